"""What does the ELBO say about the latent? For discrete data nothing at beta = 1: any encoder reaches -H(y)."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from progress import Table, require_list, start
from torch import Tensor, nn

from ppl_vae import fit
from ppl_vae.objectives import ELBO
from ppl_vae.rate_distortion import BestModel, best_model
from ppl_vae.runtime import replacing, require_count, require_output

COUNTS = torch.tensor([8, 4, 4, 2, 2, 2, 1, 1])
"""Rows of each value y: the population."""

CODES = 16
"""Values of z; with as few as those of y, some trainings end where two values share a code."""

COLORS = ["#56B4E9", "#0072B2", "#8C8C8C", "#D55E00", "#E69F00"]


class Tables(nn.Module):
    """A pair of tables p(z), p(y | z) and q(z | y), all of them trained.

    Args:
        sharpness: How much the guide knows of y at the start.
    """

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        size = len(COUNTS)
        self.prior = nn.Parameter(torch.zeros(CODES).double())
        self.decoder = nn.Parameter(torch.randn(CODES, size).double())
        self.encoder = nn.Parameter(
            torch.randn(size, CODES).double() + sharpness * torch.eye(size, CODES)
        )

    def model(self, y: Tensor) -> None:
        """p(z) p(y | z)."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("y", dist.Categorical(logits=self.decoder[z]), obs=y)

    def guide(self, y: Tensor) -> None:
        """q(z | y), summed over all z."""
        with pyro.plate("data", len(y)):
            q = dist.Categorical(logits=self.encoder[y.long()])
            pyro.sample("z", q, infer={"enumerate": "parallel"})

    def rate_and_distortion(self, population: Tensor) -> tuple[float, float]:
        """By sums over the tables, nats."""
        with torch.no_grad():
            log_q = self.encoder.log_softmax(1)
            joint = population.unsqueeze(1) * log_q.exp()
            rate = (joint * (log_q - self.prior.log_softmax(0))).sum()
            distortion = -(joint * self.decoder.log_softmax(1).T).sum()
        return float(rate), float(distortion)


def some_encoders(seed: int) -> dict[str, Tensor]:
    """Tables Q(z | y) by name: from one that knows nothing of y to one that knows all, and two at random."""
    size = len(COUNTS)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, size, CODES, generator=generator, dtype=torch.float64)
    nothing, everything = noise[0, :1].softmax(1), torch.eye(size, CODES, dtype=torch.float64)
    mixed = {f"{share:.0%} of the rows": share for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    found = {name: share * everything + (1 - share) * nothing for name, share in mixed.items()}
    return found | {"random": noise[1].softmax(1), "random, sharper": (4 * noise[2]).softmax(1)}


def trained(beta: float, num_seeds: int, max_epochs: int, seed: int) -> list[tuple[float, float]]:
    """Rate and distortion of pairs of tables, trained from starts that know more and more of y."""
    y = torch.arange(len(COUNTS)).repeat_interleave(COUNTS)
    population = COUNTS.double() / COUNTS.sum()
    found = []
    for i in range(num_seeds):
        torch.manual_seed(seed + i)
        tables = Tables(sharpness=1.5 * i)
        fit(
            *(tables.model, tables.guide, y),
            objective=ELBO(beta=beta),
            max_epochs=max_epochs,
            batch_size=len(y),
            learning_rate=0.3,
            seed=seed,
        )
        found.append(tables.rate_and_distortion(population))
    return found


def main(
    betas: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0),
    num_seeds: int = 5,
    max_epochs: int = 400,
    output: Path = Path("indeterminacy.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Shows that the ELBO of discrete data does not determine the latent, and that beta does.

    The first table takes encoders Q(z | y) and gives each its best prior and decoder. The second one trains all
    three by SVI for several beta, from starts that know more and more of y.

    Args:
        betas: Weights of the rate.
        num_seeds: Trainings for each beta.
        max_epochs: Steps of a training.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--betas", betas)
    require_count("--num_seeds", num_seeds)
    population = COUNTS.double() / COUNTS.sum()
    first = Table(["Q(z given y) knows", "I(y; z)", "distortion", "ELBO + H(y)"], steps=0)
    first.head()
    best = {name: best_model(population, q) for name, q in some_encoders(seed).items()}
    for name, of in best.items():
        gap = f"{of.elbo + of.entropy:.0e}"
        first.row([name, f"{of.rate:.4f}", f"{of.distortion:.4f}", gap])
    entropy = next(iter(best.values())).entropy
    print(f"\nH(y) = {entropy:.4f} nats.\n")
    columns = ["beta", "best rate", "rate, least", "rate, largest", "best loss", "loss, least"]
    table = Table(columns, steps=len(betas))
    table.head()
    rates = {}
    for beta in betas:
        found = trained(beta, num_seeds, max_epochs, seed)
        rates[beta] = [rate for rate, _ in found]
        losses = [distortion + beta * rate for rate, distortion in found]
        target = "any" if beta == 1 else f"{entropy if beta < 1 else 0.0:.3f}"
        numbers = (min(rates[beta]), max(rates[beta]), min(1.0, beta) * entropy, min(losses))
        table.row([f"{beta:g}", target, *(f"{abs(number):.3f}" for number in numbers)])
        table.step(f"beta = {beta:g}")
    with replacing(output, overwrite=overwrite) as file:
        picture(best, rates, entropy).savefig(file)
    print(f"\nNats per row; {num_seeds} trainings for each beta. The picture is {output}.")


def picture(best: dict[str, BestModel], rates: dict[float, list[float]], entropy: float) -> Figure:
    """Left the loss of each encoder under its best model, right the rates of what was trained."""
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = torch.tensor([0.0, entropy])
    for beta, color in zip((0.5, 0.8, 1.0, 1.2, 1.5), COLORS, strict=True):
        left.plot(ends, entropy + (beta - 1) * ends, color=color, lw=1.5)
        points = [(of.rate, of.loss(beta)) for of in best.values()]
        left.plot(*zip(*points, strict=True), "o", color=color, ms=6, label=f"β = {beta:g}")
        left.annotate(
            f"β = {beta:g}",
            (entropy, entropy + (beta - 1) * entropy),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=15,
        )
    left.set_xlim(-0.06, 1.3 * entropy)
    left.set_title("encoders Q(z | y)", fontsize=17)
    label(left, "I(y; z)", "distortion + β rate")
    low, high = min(rates), max(rates)
    right.plot([low, 1, 1, high], [entropy, entropy, 0, 0], color="#8C8C8C", lw=3, label="optimum")
    points = [(beta, rate) for beta, found in rates.items() for rate in found]
    right.plot(*zip(*points, strict=True), "o", color="#D55E00", ms=6, label="SVI")
    right.legend(fontsize=15, frameon=False)
    right.set_title("trained pairs", fontsize=17)
    label(right, "β", "rate")
    return figure


def label(axes: Axes, x: str, y: str) -> None:
    """Names of the axes, in a size that is legible on a thumbnail."""
    axes.set_xlabel(x, fontsize=17)
    axes.set_ylabel(f"{y} (nats)", fontsize=17)
    axes.tick_params(labelsize=15)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"betas": (0.5, 1.0, 2.0), "num_seeds": 2, "max_epochs": 30},
            "output": "indeterminacy_quick.png",
        },
    )
