"""At which weight of the KL do latents die? Linear, plain and autoregressive VAEs on MNIST, side by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from progress import Table, require_list, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import diagnose, evaluate, fit, load_data
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP, AutoregressiveDecoder
from ppl_vae.objectives import ELBO
from ppl_vae.pairs import Program
from ppl_vae.rate_distortion import linear_optimum
from ppl_vae.runtime import replacing, require_count, require_output
from ppl_vae.stats import Estimate

TITLES = {"linear": "probabilistic PCA", "mlp": "MLP", "autoregressive": "autoregressive decoder"}
BLUE, ORANGE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Sizes:
    """What is trained, beside the weight of the KL.

    Attributes:
        rows: Rows to train on.
        latents: Latent dimensions.
        epochs: Passes over the rows.
        seed: Seed of weights and draws.
        hidden: Width of the MLPs.
        channels: Channels of the autoregressive decoder.
        layers: Its layers.
        window: How many pixels it sees back.
    """

    rows: int = 10_000
    latents: int = 20
    epochs: int = 30
    seed: int = 0
    hidden: int = 200
    channels: int = 16
    layers: int = 2
    window: int = 2


@dataclass(frozen=True)
class Point:
    """What a pair has come to.

    Attributes:
        family: Which kind of pair.
        beta: The weight of the KL that it was trained with.
        active: Active latent dimensions, on test rows.
        rate: Its rate, nats.
        distortion: Its distortion, nats.
        settings: What it was trained with.
    """

    family: str
    beta: float
    active: int
    rate: float
    distortion: float
    settings: str


@dataclass(frozen=True)
class Family:
    """Pairs of one kind.

    Attributes:
        make: Makes a pair.
        x: Rows to train on.
        test: Rows to measure it on.
        sizes: Their number, and so on.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        batch_size: Rows of a step.
    """

    make: Callable[[], tuple[Program, Program]]
    x: Tensor
    test: Tensor
    sizes: Sizes
    learning_rate: float
    batch_size: int = 100

    @property
    def settings(self) -> str:
        """What a point is found with, beside its beta: another one is another point."""
        data = f"{len(self.x)} rows of sum {float(self.x.double().sum()):.6g}, {len(self.test)} test rows"
        return f"{asdict(self.sizes)}, {data}, {self.learning_rate}, {self.batch_size}"

    def of_seed(self, seed: int) -> Family:
        """The same with another seed of weights and draws."""
        return replace(self, sizes=replace(self.sizes, seed=seed))

    def train(self, name: str, beta: float) -> Point:
        """Trains a pair with this weight of the KL, and measures it."""
        torch.manual_seed(self.sizes.seed)
        model, guide = self.make()
        fit(
            *(model, guide, self.x),
            objective=ELBO(beta=beta),
            max_epochs=self.sizes.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler=partial(CosineAnnealingLR, T_max=self.sizes.epochs),
            seed=self.sizes.seed,
            progress=False,
        )
        found = evaluate(
            model, guide, self.test, num_samples=20, method="guide", seed=0, progress=False
        )
        active = diagnose(model, guide, self.test, beta=beta, seed=0, progress=False).active_units
        return Point(name, beta, active, found.rate.mean, found.distortion.mean, self.settings)


def linear_pair(x: Tensor, noise: float, latents: int) -> tuple[ProbabilisticPCA, MeanField]:
    """The best linear VAE at beta = 1: its latents are principal directions, which die in turn as beta grows.

    From other weights they are mixtures of these at first, which part very slowly.
    """
    shape = tuple(x.shape[1:])
    model = ProbabilisticPCA(shape, latents, sigma=noise**0.5, learn_sigma=False)
    model.maximum_likelihood(x)
    guide = MeanField(shape, latents, MLP(hidden=()))
    with torch.no_grad():
        gain = torch.linalg.solve(
            model.weight.T @ model.weight + noise * torch.eye(latents), model.weight.T
        )
        guide.head.weight.zero_()[:latents] = gain
        guide.head.bias.zero_()[:latents] = -gain @ model.mean.flatten()
    return model, guide


def known_points(file: Path) -> list[Point]:
    """The points that an earlier run has kept."""
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return [
            Point(
                row["family"],
                float(row["beta"]),
                int(row["active"]),
                float(row["rate"]),
                float(row["distortion"]),
                row["settings"],
            )
            for row in csv.DictReader(opened)
        ]


def over_seeds(points: Sequence[Point], number: str) -> Estimate:
    """Mean and standard error over seeds of a number of points."""
    return Estimate(torch.tensor([float(getattr(p, number)) for p in points]), unit="")


def keep(file: Path, point: Point) -> None:
    """Adds a point to those that are kept."""
    row = asdict(point)
    is_new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main(
    data_dir: Path = Path("data"),
    linear: tuple[float, ...] = (1, 10, 20, 30, 40, 55, 75, 100, 130, 170, 250),
    mlp: tuple[float, ...] = (0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 128),
    autoregressive: tuple[float, ...] = (0.1, 0.2, 0.4, 0.7, 1, 1.4, 2, 4, 8),
    sizes: Sizes = Sizes(),
    num_seeds: int = 3,
    linear_epochs: int = 150,
    autoregressive_rows: int = 5_000,
    autoregressive_epochs: int = 12,
    num_test: int = 500,
    results: Path = Path("collapse.csv"),
    output: Path = Path("collapse.png"),
    overwrite: bool = False,
) -> None:
    """Trains three kinds of VAEs on MNIST at several weights of the KL, and counts their active latents.

    For probabilistic PCA it is known which latents are active: those whose eigenvalue is above beta s^2, where
    s^2 is the noise that is best at beta = 1. Its trainings start at the best weights for beta = 1, and it is
    measured on the training rows. It sees gray pixels, the others pixels that are 0 or 1.

    Args:
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        linear: Weights of the KL for probabilistic PCA with a linear guide.
        mlp: Those for an MLP decoder.
        autoregressive: Those for an autoregressive decoder.
        sizes: What is trained.
        num_seeds: Trainings for each weight of the KL, with seeds from that of `sizes` on; one for
            probabilistic PCA, which always starts at the same weights.
        linear_epochs: Passes over the rows for probabilistic PCA.
        autoregressive_rows: Rows to train the autoregressive decoder on, which takes long.
        autoregressive_epochs: Passes over these.
        num_test: Test rows, the first ones.
        results: A file of what was found so far: a run that was stopped goes on there.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--linear", linear, may_be_empty=True)
    require_list("--mlp", mlp, may_be_empty=True)
    require_list("--autoregressive", autoregressive, may_be_empty=True)
    require_count("--num_seeds", num_seeds)
    gray = load_data("MNIST", data_dir=data_dir, seed=0)
    x, test = (rows[:n].float() for rows, n in ((gray.train, sizes.rows), (gray.test, num_test)))
    bits, test_bits = ((rows > 0.5).float() for rows in (x, test))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.flatten(1).double().T, correction=0)).flip(0)
    noise = float(eigenvalues[sizes.latents :].mean())
    shape, size = tuple(x.shape[1:]), sizes.latents
    network = MLP((sizes.hidden, sizes.hidden))
    reading = AutoregressiveDecoder(
        network, channels=sizes.channels, layers=sizes.layers, window=sizes.window
    )
    long = replace(sizes, rows=autoregressive_rows, epochs=autoregressive_epochs)
    families = {
        "linear": Family(
            lambda: linear_pair(x, noise, size),
            *(x, x, replace(sizes, epochs=linear_epochs), 5e-3),
            batch_size=500,
        ),
        "mlp": Family(
            lambda: (
                VAE(shape, size, network, Bernoulli()),
                MeanField(shape, size, network),
            ),
            *(bits, test_bits, sizes, 1e-3),
        ),
        "autoregressive": Family(
            lambda: (
                VAE(shape, size, reading, Bernoulli()),
                MeanField(shape, size, network),
            ),
            *(bits[:autoregressive_rows], test_bits, long, 2e-3),
        ),
    }
    wanted = {"linear": linear, "mlp": mlp, "autoregressive": autoregressive}
    known = {(p.family, p.beta, p.settings): p for p in known_points(results)}
    seeds = {name: 1 if name == "linear" else num_seeds for name in wanted}
    table = Table(
        ["decoder", "beta", "active", "exact", "rate", "exact rate", "distortion"],
        steps=sum(len(betas) * seeds[name] for name, betas in wanted.items()),
    )
    table.head()
    points: list[Point] = []
    for name, family in families.items():
        for beta in wanted[name]:
            found = []
            for seed in range(sizes.seed, sizes.seed + seeds[name]):
                one = family.of_seed(seed)
                point = known.get((name, beta, one.settings))
                if point is None:
                    point = one.train(name, beta)
                    keep(results, point)
                found.append(point)
                table.step(f"{TITLES[name]}, beta = {beta:g}, seed {seed}")
            exact = ["", ""]
            if name == "linear":
                best = linear_optimum(eigenvalues, noise, beta, latent_dim=size)
                exact = [str(int(best.active.sum())), f"{best.rate:.1f}"]
            active, rate, distortion = (
                over_seeds(found, number).numbers(".1f")
                for number in ("active", "rate", "distortion")
            )
            table.row([TITLES[name], f"{beta:g}", active, exact[0], rate, exact[1], distortion])
            points += found
    with replacing(output, overwrite=overwrite) as file:
        picture(points, eigenvalues, noise, size).savefig(file)
    print(
        f"\nNats per row, means over {len(test):,} test rows; {size} latents; means over {num_seeds} seeds with"
    )
    print("standard errors, but for probabilistic PCA, which has one. The exact numbers")
    print(f"are those of the best linear VAE with the noise {noise:.4f} on the {len(x):,} training")
    print(f"rows, on which probabilistic PCA is measured. The picture is {output}.")


def picture(points: Sequence[Point], eigenvalues: Tensor, noise: float, size: int) -> Figure:
    """Active latents and rate of each kind of pair with standard errors; linear ones beside the exact lines."""
    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey="row")
    every = [point.beta for point in points]
    grid = np.geomspace(min(every), max(every), 600)
    best = [linear_optimum(eigenvalues, noise, float(beta), latent_dim=size) for beta in grid]
    for column, (name, title) in enumerate(TITLES.items()):
        of_kind = [p for p in points if p.family == name]
        betas = sorted({p.beta for p in of_kind})
        lines = "o" if name == "linear" else "o-"
        for axes, number in zip(panels[:, column], ("active", "rate"), strict=True):
            found = [over_seeds([p for p in of_kind if p.beta == beta], number) for beta in betas]
            errors = [0.0 if math.isnan(e.standard_error) else e.standard_error for e in found]
            bars = {"yerr": errors, "capsize": 4, "markersize": 6, "color": BLUE}
            axes.errorbar(betas, [e.mean for e in found], fmt=lines, label="trained", **bars)
        if name == "linear":
            active = [int(at.active.sum()) for at in best]
            exact = {"drawstyle": "steps-mid", "color": ORANGE, "zorder": 0, "label": "exact"}
            panels[0, column].plot(grid, active, **exact)
            panels[1, column].plot(
                grid, [at.rate for at in best], color=ORANGE, zorder=0, label="exact"
            )
            panels[0, column].legend(fontsize=13, frameon=False)
        panels[0, column].set_title(title, fontsize=16)
        panels[1, column].set_xlabel("β", fontsize=16)
    panels[0, 0].set_ylabel("active latents", fontsize=15)
    panels[1, 0].set_ylabel("rate, nats", fontsize=15)
    for axes in panels.flat:
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.axvline(1.0, color="#8C8C8C", linewidth=0.8, zorder=-1)
    axes.tick_params(labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    tiny = Sizes(rows=200, latents=3, epochs=2, hidden=8, channels=2, layers=1, window=1)
    start(
        main,
        quick={
            **{"linear": (1.0, 100.0), "mlp": (1.0,), "autoregressive": (1.0,)},
            **{f"sizes.{name}": value for name, value in asdict(tiny).items()},
            **{
                "linear_epochs": 2,
                "autoregressive_rows": 100,
                "autoregressive_epochs": 1,
                "num_test": 50,
                "num_seeds": 2,
            },
            **{"results": "collapse_quick.csv", "output": "collapse_quick.png"},
        },
    )
