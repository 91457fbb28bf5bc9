"""What does z carry beside a decoder that sees a window of the sequence? What is outside of it, and no more."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from progress import Table, require_list, start
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_vae import fit
from ppl_vae.likelihoods import Bernoulli, decoded
from ppl_vae.networks import MLP, AutoregressiveDecoder
from ppl_vae.objectives import ELBO
from ppl_vae.rate_distortion import outside_window
from ppl_vae.runtime import replacing, require_count, require_output

BETA = 1.5
"""Between 1 and 2, the optimum of both sources is the pair with the best ELBO whose z tells least."""


def coins(count: int) -> Tensor:
    """All values of some fair coins, a row each."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).reshape(-1, count)


def mirror(length: int) -> Tensor:
    """Coins, and then the same in reverse order: pairs with a distance of 1, 3, 5, ..."""
    half = coins(length // 2)
    return torch.cat([half, half.flip(1)], 1)


def markov(length: int) -> Tensor:
    """A Markov chain of order 2: two coins, and then x_t = x_{t-2}."""
    return coins(2).repeat(1, (length + 1) // 2)[:, :length]


def table_of(rows: Tensor) -> Tensor:
    """p(x) with a dimension for each value, if the rows are equally likely."""
    table = torch.zeros((2,) * rows.shape[1], dtype=torch.float64)
    table[tuple(rows.long().T)] = 1 / len(rows)
    return table


class CodeOfSequences(nn.Module):
    """A code z for each row: p(z) and q(z | x) are tables, p(x | z) is an autoregressive decoder with a window.

    Args:
        rows: The sequences, equally likely.
        window: How many values before it the decoder of a value sees.
        codes: Values of z.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, window: int, codes: int) -> None:
        super().__init__()
        self.shape = (1, 1, rows.shape[1])  # a picture of one row of pixels
        self.register_buffer("rows", rows)
        self.prior = nn.Parameter(torch.zeros(codes))
        self.encoder = nn.Parameter(torch.randn(len(rows), codes) / 2)
        network = AutoregressiveDecoder(MLP((32,)), channels=16, layers=2, window=window)
        self.decoder = network.decoder(codes, (1, *self.shape))
        self.likelihood = Bernoulli()

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z)."""
        latents = one_hot(z, len(self.prior)).to(self.prior.dtype)
        return decoded(self.decoder, self.likelihood, latents, self.shape)

    def model(self, x: Tensor) -> None:
        """p(z) p(x | z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x), summed over all z."""
        which = (x.flatten(1).unsqueeze(1) == self.rows).all(-1).float().argmax(1)
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.encoder[which])
            pyro.sample("z", q, infer={"enumerate": "parallel"})

    @torch.no_grad()
    def numbers(self) -> tuple[float, float, float]:
        """I(x; z), rate and distortion by sums over all x and z, nats."""
        log_q = self.encoder.log_softmax(1)
        q = log_q.exp() / len(self.rows)
        aggregate = log_q.logsumexp(0) - math.log(len(self.rows))
        codes = torch.arange(len(self.prior)).unsqueeze(1)
        log_p = self.decode(codes).log_prob(self.rows.reshape(-1, *self.shape))
        information = (q * (log_q - aggregate)).sum()
        rate = (q * (log_q - self.prior.log_softmax(0))).sum()
        return float(information), float(rate), -float((q * log_p.T).sum())


def trained(rows: Tensor, window: int, starts: int, steps: int, seed: int) -> list[float]:
    """I(x; z), rate and distortion of the start that ended with the least loss."""
    found = []
    for i in range(starts):
        torch.manual_seed(seed + i)
        pair = CodeOfSequences(rows, window, codes=2 * len(rows))
        fit(
            *(pair.model, pair.guide, rows.reshape(-1, *pair.shape)),
            objective=ELBO(beta=BETA),
            max_epochs=steps,
            batch_size=len(rows),
            learning_rate=0.02,
            seed=seed,
            progress=False,
        )
        found.append(pair.numbers())
    return [*min(found, key=lambda of: BETA * of[1] + of[2])]


def main(
    windows: tuple[int, ...] = (0, 1, 2, 3, 5, 7),
    length: int = 8,
    num_starts: int = 3,
    max_epochs: int = 800,
    output: Path = Path("context_window.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Trains codes of sequences for decoders with several windows, and compares I(x; z) with what it must be.

    Two sources: coins and then the same in reverse order, and a Markov chain of order 2, x_t = x_{t-2}.

    Args:
        windows: How many values before it the decoder of a value sees; for the Markov chain those up to 2.
        length: Length of the sequences, even and at most 8.
        num_starts: Trainings for each window, of which the one with the least loss counts.
        max_epochs: Steps of a training.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--windows", windows)
    require_count("--num_starts", num_starts)
    if length not in (2, 4, 6, 8):
        raise ValueError(f"length must be 2, 4, 6 or 8, got {length}")
    sources = {"mirror": mirror(length), "Markov, order 2": markov(length)}
    reach = {"mirror": length, "Markov, order 2": 2}
    work = [(name, w) for name in sources for w in windows if w <= reach[name]]
    columns = ["source", "window", "outside, exact", "I(x; z), learned", "lost without z, exact"]
    table = Table([*columns, "ELBO + H(x)"], steps=len(work))
    table.head()
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in sources}
    for name, window in work:
        rows = sources[name]
        exact = outside_window(table_of(rows), window)
        information, rate, distortion = trained(rows, window, num_starts, max_epochs, seed)
        points[name].append((window, information))
        above = exact.entropy - rate - distortion
        numbers = (exact.information, information, exact.lost)
        table.row([name, str(window), *(f"{abs(of):.3f}" for of in numbers), f"{above:.3f}"])
        table.step(f"{name}, window {window}")
    with replacing(output, overwrite=overwrite) as file:
        picture(sources, points).savefig(file)
    print(f"\nNats per sequence; {num_starts} starts for each window. The picture is {output}.")


def picture(sources: dict[str, Tensor], points: dict[str, list[tuple[int, float]]]) -> Figure:
    """For each source, the information outside of each window, and what z has learned to carry."""
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, 2, sharey=True), sources.items(), strict=True):
        windows = range(max((w for w, _ in points[name]), default=0) + 1)
        exact = [outside_window(table_of(rows), w).information for w in windows]
        axes.plot(windows, exact, "o-", color="#8C8C8C", lw=2, ms=11, mfc="none", label="exact")
        if points[name]:
            axes.plot(*zip(*points[name], strict=True), "o", color="#D55E00", ms=6, label="learned")
        axes.set_title(name, fontsize=17)
        axes.set_xlabel("window of the decoder", fontsize=17)
        axes.set_xticks(windows)
        axes.tick_params(labelsize=15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("I(x; z) (nats)", fontsize=17)
    figure.axes[0].legend(fontsize=15, frameon=False)
    return figure


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"windows": (0, 1), "length": 4, "num_starts": 1, "max_epochs": 30},
            "output": "context_window_quick.png",
        },
    )
