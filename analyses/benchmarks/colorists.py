"""The ways to train and to apply a model of colors that `colorize.py` times, each in a process of its own.

`python colorists.py NAME SETTINGS`, with `Settings` as JSON. Those that train print their loss on the first
batch, in nats per pixel; those that are applied color a small picture, and print the mean of its colors. Then
they read numbers: for a positive one they print the seconds of a step, or of a picture, for 0 by how much the
peak of the memory has risen since, in MiB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, logsigmoid, softplus

from ppl_vae import fit
from ppl_vae.coloring import color_picture
from ppl_vae.colors import chroma_interval, luma_after_green, split_colors
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.guides import Exact
from ppl_vae.models import IndependentSegments
from ppl_vae.models.colorization import Palette, PictureColors
from ppl_vae.networks import UNet

LEARNING_RATE = 1e-3
SMALL = 64
"""Side of the picture that comes first."""


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        colors: `Palette` or `PictureColors`.
        widths: Channels of the stages of each network.
        segments: K.
        height: Lines of a picture.
        width: Its columns.
        batch_size: Pictures per step.
        steps: Steps per turn, an epoch.
        threads: Threads of torch.
        device: `cpu` or `cuda`.
    """

    colors: str
    widths: tuple[int, ...]
    segments: int
    height: int
    width: int
    batch_size: int
    steps: int
    threads: int
    device: str

    def model(self) -> Any:
        """The model, with the same weights each time."""
        torch.manual_seed(0)
        network = UNet(self.widths)
        colors = Palette() if self.colors == "Palette" else PictureColors(network)
        return IndependentSegments(self.segments, colors, network).to(self.device)


def pictures(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Chroma and luma of random smooth pictures with some noise, int16."""
    generator = torch.Generator().manual_seed(0)
    chroma = torch.empty(count, height, width, 2, dtype=torch.int16)
    luma = torch.empty(count, height, width, dtype=torch.int16)
    for i in range(count):
        coarse = 256 * torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
        rgb = interpolate(coarse, (height, width), mode="bilinear")[0].movedim(0, -1)
        rgb = rgb + 4 * torch.randn(rgb.shape, generator=generator)
        luma[i], chroma[i] = split_colors(rgb.round().clamp(0, 255).to(torch.uint8))
    return chroma, luma


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """The peak of the memory so far, in MiB: of the GPU, or of the process.

    Linux counts that of the process which started this one in `ru_maxrss`, too, so its own record is read.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    record = Path("/proc/self/status")
    lines = record.read_text().splitlines() if record.is_file() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (own or [whole // 1024 if sys.platform == "darwin" else whole])[0] / 1024


class Turns:
    """Answers on standard output: see the top of the file.

    Args:
        device: `cpu` or `cuda`.
        first: What is printed first.
    """

    def __init__(self, device: str, first: float) -> None:
        self.device = device
        synchronize(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.before = peak(device)
        print(first, flush=True)
        self.asked = self.started = 0.0

    def next(self, done: int) -> int:
        """Ends a turn of so many steps, 0 before the first one; waits for the next, and gives its steps."""
        synchronize(self.device)
        if done:
            print((time.perf_counter() - self.started) / done, flush=True)
        while not (count := int(input())):
            print(peak(self.device) - self.before, flush=True)
        self.started = time.perf_counter()
        return count


# -- training ------------------------------------------------------------------------------------------------


def by_hand(model: Any, y: Tensor, x: Tensor) -> Tensor:
    """- log P(y | x) per picture: the log-sum-exp over segments of log P(z_i = k | x) + log P(y_i | k).

    The mass of a rounded logistic is a difference of sigmoids. It is written as a sum of logarithms, since the
    difference itself is 0 in single precision for colors that are a few scales away: `log_mass`.
    """
    scaled = (x.unsqueeze(1) - 128) / 64
    log_prior = model.segmenter(scaled).movedim(1, -1).log_softmax(-1)
    features = model.colors.features
    if hasattr(model.colors, "net"):
        features = model.colors.net(scaled).movedim(1, -1).unflatten(-1, features.shape) + features
    loc = 32 * features[..., :2]
    inverse = 1 / (0.1 + 8 * softplus(features[..., 2:4]))
    orange, green = y.unsqueeze(-2).unbind(-1)
    x = x.unsqueeze(-1)
    log_p = log_mass(green, loc[..., 1], inverse[..., 1], *chroma_interval(x))
    at = loc[..., 0] + features[..., 4] * (green - loc[..., 1])
    room = chroma_interval(luma_after_green(x, green))
    log_p = log_p + log_mass(orange, at, inverse[..., 0], *room)
    log_evidence: Tensor = (log_prior + log_p).logsumexp(-1).sum((1, 2))
    return -log_evidence.mean()


def log_mass(value: Tensor, loc: Tensor, inverse: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """log of (s(b) - s(a)) of a value, cut at both ends: s(b) - s(a) = s(b) s(-a) (1 - exp(a - b))."""

    def log_between(below: Tensor, above: Tensor) -> Tensor:
        """For the edges `below` and `above`."""
        width = (above - below) * inverse
        ends = logsigmoid((above - loc) * inverse) + logsigmoid((loc - below) * inverse)
        return ends + torch.log(-torch.expm1(-width))

    return log_between(value - 0.5, value + 0.5) - log_between(least - 0.5, most + 0.5)


def with_ours(model: Any, y: Tensor, x: Tensor) -> Tensor:
    """The same with the distributions of the library."""
    loss: Tensor = -model.log_evidence(y, x).mean()
    return loss


def train_by_hand(
    settings: Settings, loss: Callable[[Any, Tensor, Tensor], Tensor], compiled: bool = False
) -> None:
    """The loop that a torch user writes by hand. It reads one number per step, as `fit` does."""
    model = settings.model()
    size = settings.batch_size
    data = [of.float().to(settings.device) for of in patches(settings)]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    objective = torch.compile(loss) if compiled else loss
    with torch.no_grad():
        first = loss(model, *(of[:size] for of in data))

    def batches() -> Iterator[list[Tensor]]:
        while True:
            order = torch.randperm(len(data[0]), device=settings.device)
            for index in order.split(size):
                yield [of.index_select(0, index) for of in data]

    turns = Turns(settings.device, float(first) / (settings.height * settings.width))
    count = turns.next(0)
    total, source = 0.0, batches()
    while True:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            value = objective(model, *next(source))
            value.backward()
            optimizer.step()
            total += value.item()
        count = turns.next(count)


def train_by_fit(settings: Settings, compile: bool) -> None:
    """`fit`: a turn is an epoch, which ends where a schedule of the learning rate is asked."""
    model = settings.model()
    guide = Exact(model)
    data = tuple(of.float() for of in patches(settings))
    options: dict[str, Any] = {"batch_size": settings.batch_size, "device": settings.device}
    options |= {"progress": False, "seed": 0}
    # The loss of a training that does not move: its first one.
    still = settings.model()
    first = fit(
        *(still, Exact(still), tuple(of[: settings.batch_size] for of in data)),
        max_epochs=1,
        learning_rate=1e-12,
        **options,
    ).history[0]["loss"]
    turns = Turns(settings.device, first / (settings.height * settings.width))

    def factor(epoch: int) -> float:
        turns.next(settings.steps if epoch else 0)
        return 1.0

    fit(
        *(model, guide, data),
        max_epochs=1_000_000,
        learning_rate=LEARNING_RATE,
        optimizer=partial(torch.optim.Adam, fused=True),
        lr_scheduler=lambda made: torch.optim.lr_scheduler.LambdaLR(made, factor),
        compile=compile,
        **options,
    )


def patches(settings: Settings) -> tuple[Tensor, Tensor]:
    """The pictures of an epoch."""
    return pictures(settings.steps * settings.batch_size, settings.height, settings.width)


# -- applying ------------------------------------------------------------------------------------------------

Painter = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""Mean and mode of the colors of a picture, `(h, w, 2)` each."""


def ours(model: Any, luma: Tensor) -> tuple[Tensor, Tensor]:
    """As users call it."""
    found = color_picture(model, luma)
    return found.mean, found.mode


@torch.no_grad()
def plain(model: Any, luma: Tensor) -> tuple[Tensor, Tensor]:
    """The whole picture at once: the mean of the components' means, and the likeliest of their modes."""
    device = next(model.parameters()).device
    x = luma.to(device).float()[None]
    weights = network(model, luma)
    p: ChromaLogistic = model.color_components(x)
    mean = (weights.unsqueeze(-1) * p.mean).sum(-2)[0].cpu()
    candidates = p.mode
    masses = [
        (weights * p.log_prob(candidate.unsqueeze(-2)).exp()).sum(-1)
        for candidate in candidates.unbind(-2)
    ]
    best = torch.stack(masses, -1).argmax(-1)[..., None, None].expand(*x.shape, 1, 2)
    return mean, candidates.gather(-2, best).squeeze(-2)[0].short().cpu()


@torch.no_grad()
def network(model: Any, luma: Tensor) -> Tensor:
    """P(z_i = k | x), `(1, h, w, K)`."""
    x = luma.to(next(model.parameters()).device).float()[None, None]
    found: Tensor = model.segmenter((x - 128) / 64).movedim(1, -1).softmax(-1)
    return found


@torch.no_grad()
def networks(model: Any, luma: Tensor) -> tuple[Tensor, Tensor]:
    """The networks alone, without what follows from their numbers."""
    x = luma.to(next(model.parameters()).device).float()[None]
    model.colors(x)
    weights = network(model, luma)
    return weights.mean(-1), weights


def apply(settings: Settings, painter: Painter) -> None:
    """Colors a picture as often as is asked."""
    model = settings.model().eval()
    small = pictures(1, SMALL, SMALL)[1][0]
    mean, _ = painter(model, small)
    # Repeated, as making a large one would take more memory than coloring it.
    down, right = -(-settings.height // SMALL), -(-settings.width // SMALL)
    luma = small.repeat(down, right)[: settings.height, : settings.width].contiguous()
    turns = Turns(settings.device, float(mean.mean()))
    count = turns.next(0)
    while True:
        for _ in range(count):
            painter(model, luma)
        count = turns.next(count)


CONTENDERS: dict[str, Callable[[Settings], None]] = {
    "hand": partial(train_by_hand, loss=by_hand),
    "hand-compiled": partial(train_by_hand, loss=by_hand, compiled=True),
    "hand-ours": partial(train_by_hand, loss=with_ours),
    "fit-graph": partial(train_by_fit, compile=False),
    "fit": partial(train_by_fit, compile=True),
    "color_picture": partial(apply, painter=ours),
    "plain": partial(apply, painter=plain),
    "networks": partial(apply, painter=networks),
}


def main() -> None:
    """Follows the protocol above on standard input and output."""
    name, given = sys.argv[1:]
    settings = Settings(**json.loads(given))
    torch.set_num_threads(settings.threads)
    CONTENDERS[name](settings)


if __name__ == "__main__":
    main()
