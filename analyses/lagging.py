"""Does the guide lag behind the model? Its means against the model's posterior means, during a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from progress import Table, require_list, start
from torch import Tensor
from torch.distributions import Bernoulli

from ppl_vae import evaluate, fit
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP, AutoregressiveDecoder
from ppl_vae.runtime import replacing, require_count, require_output

NAMES = {False: "both at each step", True: "aggressive updates"}
REACH, POINTS = 5.0, 201


def rows(n: int, length: int, seed: int) -> Tensor:
    """Rows of bits `(n, 1, 1, length)`: x_t = 1 with the log odds s + 2 x_{t-1} - 1, with s ~ N(0, 1) of a row.

    The bits before tell of s, too: a decoder that sees them all can do without a latent.
    """
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(n, generator=generator)
    bits = torch.zeros(n, length)
    before = torch.zeros(n)
    for t in range(length):
        bits[:, t] = torch.bernoulli((level + before).sigmoid(), generator=generator)
        before = 2 * bits[:, t] - 1
    return bits.reshape(n, 1, 1, length)


def log_density(x: Tensor) -> Tensor:
    """log p(x) of the data, by quadrature over s, `(n,)`."""
    bits = x.flatten(1)
    before = torch.cat([torch.zeros(len(bits), 1), 2 * bits[:, :-1] - 1], 1)
    s = torch.linspace(-8.0, 8.0, 801)
    log_prior = -s.square() / 2 - math.log(2 * math.pi) / 2 + math.log(16 / 800)
    odds = s[:, None, None] + before
    found: Tensor = (log_prior[:, None] + Bernoulli(logits=odds).log_prob(bits).sum(-1)).logsumexp(
        0
    )
    return found


def posterior_means(model: VAE, x: Tensor) -> Tensor:
    """E[z | x] under the model's own posterior, by quadrature over its one latent, `(n,)`."""
    z = torch.linspace(-REACH, REACH, POINTS)
    log_prior = -z.square() / 2 - math.log(2 * math.pi) / 2
    found = []
    with torch.no_grad():
        for some in x.split(50):
            n = len(some)
            p = model.decode(z.repeat(n)[:, None])
            log_joint = p.log_prob(some.repeat_interleave(POINTS, 0)).reshape(n, POINTS) + log_prior
            found.append(log_joint.softmax(1) @ z)
    return torch.cat(found)


@dataclass(frozen=True)
class Course:
    """How a training went.

    Attributes:
        epochs: When it was looked at.
        model: The model's posterior means of some rows then, `(looks, n)`.
        guide: The guide's, `(looks, n)`.
    """

    epochs: tuple[int, ...]
    model: Tensor
    guide: Tensor


def train(
    x: Tensor, looked_at: Tensor, epochs: Sequence[int], aggressive: bool, window: int, seed: int
) -> tuple[VAE, MeanField, Course]:
    """Trains a pair up to each of some epochs, and looks at it there."""
    torch.manual_seed(seed)
    shape = tuple(x.shape[1:])
    reading = AutoregressiveDecoder(MLP((32,)), channels=16, layers=2, window=window)
    model, guide = VAE(shape, 1, reading), MeanField(shape, 1, MLP((64,)))
    of_model, of_guide = [posterior_means(model, looked_at)], [guide_means(guide, looked_at)]
    with TemporaryDirectory() as folder:
        for last in epochs:
            fit(
                *(model, guide, x),
                max_epochs=last,
                batch_size=100,
                learning_rate=2e-3,
                seed=seed,
                aggressive=aggressive,
                run_dir=Path(folder) / "run",
                resume=last != epochs[0],
                progress=False,
            )
            of_model.append(posterior_means(model, looked_at))
            of_guide.append(guide_means(guide, looked_at))
    return model, guide, Course((0, *epochs), torch.stack(of_model), torch.stack(of_guide))


def guide_means(guide: MeanField, x: Tensor) -> Tensor:
    """The means of q(z | x), `(n,)`."""
    with torch.no_grad():
        mean: Tensor = guide.encode(x).mean[:, 0]
    return mean


def main(
    epochs: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120),
    num_rows: int = 2_000,
    length: int = 24,
    window: int = 24,
    num_shown: int = 100,
    num_seeds: int = 3,
    output: Path = Path("lagging.png"),
    overwrite: bool = False,
) -> None:
    """Trains VAEs with one latent and a decoder that can do without it, as usual and aggressively.

    The picture has the plane of the model's posterior mean and of the guide's, for the first seed. On the
    diagonal, the guide is right. At the origin, the latent says nothing.

    Args:
        epochs: Epochs after which the plane is looked at; the last one ends the training.
        num_rows: Rows to train on; as many test rows are a quarter of that.
        length: Bits of a row.
        window: How many bits back the decoder sees.
        num_shown: Rows in the picture.
        num_seeds: Trainings of each kind.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--epochs", epochs)
    require_count("--num_seeds", num_seeds)
    test = rows(max(2, num_rows // 4), length, seed=1000)
    columns = ["training", "seed", "rate", "ELBO", "log p(x)", "largest spread of model's means"]
    table = Table([*columns, "spread at the end, model", "guide"], steps=2 * num_seeds)
    table.head()
    shown: dict[bool, Course] = {}
    for seed in range(num_seeds):
        x = rows(num_rows, length, seed)
        for aggressive, name in NAMES.items():
            model, guide, course = train(x, test[:num_shown], epochs, aggressive, window, seed)
            found = evaluate(model, guide, test, num_samples=200, seed=seed, progress=False)
            spread = course.model.std(1)
            numbers = [found.rate.mean, found.elbo.mean, found.log_likelihood.mean]
            numbers += [float(spread.max()), float(spread[-1]), float(course.guide[-1].std())]
            table.row([name, str(seed), *(f"{number:.3f}" for number in numbers)])
            table.step(f"{name}, seed {seed}")
            if seed == 0:
                shown[aggressive] = course
    with replacing(output, overwrite=overwrite) as file:
        picture(shown).savefig(file)
    own = float(log_density(test).mean())
    print(f"\nNats per row, means over {len(test):,} test rows, whose own log p(x) is {own:.3f};")
    print(f"spread: standard deviation of the means of {len(test[:num_shown])} of them.")
    print(f"The picture is {output}.")


def picture(courses: dict[bool, Course]) -> Figure:
    """The plane of both means, with the way of each row through it, from dark to light."""
    figure = Figure(figsize=(9, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    reach = max(
        1.1 * float(max(course.model.abs().max(), course.guide.abs().max()))
        for course in courses.values()
    )
    for axes, (aggressive, course) in zip(panels, courses.items(), strict=True):
        lines = _ways(axes, course)
        axes.axline((0, 0), slope=1, color="#8C8C8C", linewidth=1, zorder=0)
        axes.set_title(NAMES[aggressive], fontsize=16)
        axes.set_xlabel("model's posterior mean", fontsize=15)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=13)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("guide's mean", fontsize=15)
    last = next(iter(courses.values())).epochs
    bar = figure.colorbar(lines, ax=panels, ticks=range(len(last)), aspect=25)
    bar.ax.set_yticklabels([str(epoch) for epoch in last])
    bar.ax.tick_params(labelsize=12)
    bar.set_label("epoch", fontsize=15)
    return figure


def _ways(axes: Axes, course: Course) -> LineCollection:
    """The ways of some rows as lines, and where all rows end as points."""
    points = np.stack([course.model.numpy(), course.guide.numpy()], -1)
    looks = len(points)
    few = points[:, :: max(1, points.shape[1] // 25)]
    pieces = np.stack([few[:-1], few[1:]], 2)  # (looks - 1, rows, 2, 2)
    number = np.repeat(np.arange(1, looks), few.shape[1])
    lines = LineCollection(
        list(pieces.reshape(-1, 2, 2)), array=number, cmap="viridis", linewidths=1.2, alpha=0.7
    )
    lines.set_clim(0, looks - 1)
    axes.add_collection(lines)
    axes.scatter(points[-1, :, 0], points[-1, :, 1], s=16, color="#D55E00", linewidths=0, zorder=3)
    return lines


if __name__ == "__main__":
    tiny = {"epochs": (1, 2), "num_rows": 100, "length": 6, "window": 6, "num_shown": 10}
    start(main, quick=tiny | {"num_seeds": 1, "output": "lagging_quick.png"})
