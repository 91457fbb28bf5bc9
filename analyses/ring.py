"""Can a normal prior become a ring? Prior, map and draws, and log p(x) by quadrature beside the ELBO."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from progress import Table, require_list, start
from torch import Tensor, nn

from ppl_vae import evaluate, fit, sample
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.runtime import replacing, require_output

GUIDES = {"MeanField": MeanField, "FullCovariance": FullCovariance}


def ring(z: Tensor) -> Tensor:
    """z / 10 + z / |z| (Doersch, "Tutorial on Variational Autoencoders", arXiv:1606.05908)."""
    found: Tensor = z / 10 + z / z.norm(dim=-1, keepdim=True)
    return found


def log_density(x: Tensor) -> Tensor:
    """log p(x) of the data: at the radius 1 + r / 10, the density of the Rayleigh distribution of r."""
    radius = x.norm(dim=-1)
    r = 10 * (radius - 1)
    found: Tensor = (
        r.clamp(min=1e-30).log() - r.square() / 2 + math.log(10) - (2 * math.pi * radius).log()
    )
    return found.where(r > 0, -torch.inf)


def by_quadrature(model: VAE, x: Tensor, size: int) -> Tensor:
    """log p(x) of a model with two latents, on a grid from -5 to 5, `(n,)`."""
    line = torch.linspace(-5.0, 5.0, size)
    z = torch.cartesian_prod(line, line)
    log_prior = -z.square().sum(1) / 2 - math.log(2 * math.pi) + 2 * math.log(10 / (size - 1))
    with torch.no_grad():
        p = model.decode(z)
        parts = [(p.log_prob(rows[:, None]) + log_prior).logsumexp(1) for rows in x.split(20)]
    return torch.cat(parts)


def main(
    guides: tuple[str, ...] = ("MeanField", "FullCovariance"),
    num_rows: int = 5_000,
    num_test: int = 500,
    hidden: int = 64,
    max_epochs: int = 300,
    grid: int = 400,
    output: Path = Path("ring.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Trains a VAE with two latents on points of a ring, and compares log p(x) with the truth.

    Args:
        guides: Guides to train it with; the picture is of the last one.
        num_rows: Rows to train on.
        num_test: Test rows.
        hidden: Width of the two hidden layers.
        max_epochs: Passes over the data.
        grid: Points of the quadrature along each latent.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--guides", guides)
    torch.manual_seed(seed)
    x, test = ring(torch.randn(num_rows, 2)), ring(torch.randn(num_test, 2))
    truth = float(log_density(test).mean())
    columns = [
        "guide",
        "ELBO",
        "log p(x), samples",
        "log p(x), quadrature",
        "the data's own log p(x)",
    ]
    table = Table(columns, steps=len(guides))
    table.head()
    network = MLP((hidden, hidden), nn.Tanh)
    for name in guides:
        torch.manual_seed(seed)
        model = VAE((2,), 2, network, LearnedGaussian(0.3))
        guide = GUIDES[name]((2,), 2, network)
        fit(model, guide, x, max_epochs=max_epochs, learning_rate=2e-3, seed=seed, progress=False)
        found = evaluate(model, guide, test, num_samples=500, seed=seed, progress=False)
        exact = by_quadrature(model, test, grid)
        numbers = [found.elbo.mean, found.log_likelihood.mean, float(exact.mean()), truth]
        table.row([name, *(f"{number:.3f}" for number in numbers)])
        table.step(name)
    with replacing(output, overwrite=overwrite) as file:
        picture(model, test, seed).savefig(file)
    print(f"\nNats per row, means over {num_test:,} test rows. The picture is {output}.")


def picture(model: VAE, test: Tensor, seed: int) -> Figure:
    """The prior, where the decoder's mean takes it, draws of the model, and data; colored by the angle of z."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1500, 2, generator=generator)
    with torch.no_grad():
        mean = model.decode(z).mean
    drawn = sample(model, 500, seed=seed, progress=False)
    angle = torch.atan2(z[:, 1], z[:, 0]) / (2 * math.pi) % 1
    colors = hsv_to_rgb(np.stack([angle.numpy(), np.full(1500, 0.8), np.full(1500, 0.8)], 1))
    figure = Figure(figsize=(12, 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 4)
    scatter(panels[0], z, colors, "z ~ N(0, I)", 4.0)
    scatter(panels[1], mean, colors, "mean of p(x | z)", 1.7)
    scatter(panels[2], drawn, "#0072B2", "draws of x", 1.7)
    scatter(panels[3], test, "#D55E00", "data", 1.7)
    return figure


def scatter(axes: Axes, points: Tensor, color: Any, title: str, reach: float) -> None:
    """Points in a square."""
    x, y = points.T.numpy()
    axes.scatter(x, y, c=color, s=3, linewidths=0)
    axes.set_title(title, fontsize=17)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    quick = {"guides": ("MeanField",), "num_rows": 500, "num_test": 100, "max_epochs": 20}
    start(main, quick=quick | {"grid": 100, "output": "ring_quick.png"})
