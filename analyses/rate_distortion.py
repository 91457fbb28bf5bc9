"""Rate and distortion in one picture: learned pairs, the exact curve, and the curve of one frozen decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from progress import Table, require_list, start
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit
from ppl_vae.evaluation import Evaluation
from ppl_vae.guides import FullCovariance
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, Loss, MeanFieldELBO, Objective
from ppl_vae.pairs import Batch, Layout, Pair
from ppl_vae.plots import RatePoint, rate_distortion
from ppl_vae.rate_distortion import frozen_decoder_curve, linear_optimum, reverse_water_filling
from ppl_vae.runtime import replacing, require_output

LATENTS, NOISE = 6, 0.25
EIGENVALUES = [16.0, 8.0, 4.0, 2.0, 1.0, 0.5, *[NOISE] * 6]
"""Variances of the data: six latents and the noise explain them exactly, so that beta = 1 is on H - D."""

ENTROPY = sum(math.log(2 * math.pi * math.e * value) / 2 for value in EIGENVALUES)
NORMALIZER = len(EIGENVALUES) / 2 * math.log(2 * math.pi * NOISE)


@dataclass(frozen=True, kw_only=True)
class RateDistortion(Objective):
    """rate + weight distortion: the loss of beta-VAE with beta = 1 / weight, times the weight.

    Attributes:
        weight: lambda.
    """

    weight: float = 1.0

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        """See `Objective`."""
        elbo = MeanFieldELBO(num_particles=self.num_particles)
        found = elbo(pair, layout, batch, 1 / self.weight)
        return replace(found, loss=self.weight * found.loss)


def normal_rows(n: int, seed: int) -> Tensor:
    """Rows `(n, 12)` whose covariance has exactly the eigenvalues, along random directions."""
    generator = torch.Generator().manual_seed(seed)
    size = len(EIGENVALUES)
    x, turn = (torch.randn(m, size, generator=generator).double() for m in (n, size))
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False).T
    rows: Tensor = white * torch.tensor(EIGENVALUES).double().sqrt() @ torch.linalg.qr(turn).Q.T
    return rows.float()


def of_best_guide(model: ProbabilisticPCA, x: Tensor, slope: float) -> tuple[float, float]:
    """Rate and distortion of a linear decoder with its posterior under the noise s^2 / slope."""
    with torch.no_grad():
        tempered = deepcopy(model)
        tempered.log_sigma.sub_(math.log(slope) / 2)
        q = tempered.posterior(x)
        prior = MultivariateNormal(torch.zeros(LATENTS), torch.eye(LATENTS)).expand(q.batch_shape)
        rate = kl_divergence(q, prior).mean()
        error = (x - model.decode(q.mean).mean).square().sum(1).mean()
        error = error + (model.weight @ q.scale_tril[0]).square().sum()
    return float(rate), NORMALIZER + float(error) / (2 * NOISE)


def above_the_curve(point: Evaluation) -> float:
    """By which share of it the rate of a pair is above the exact curve at its distortion."""
    error = 2 * NOISE * (point.distortion.mean - NORMALIZER)
    best = reverse_water_filling(EIGENVALUES, distortion=error, latent_dim=LATENTS)
    return point.rate.mean / best.rate - 1


def main(
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    frozen_beta: float = 4.0,
    num_rows: int = 500,
    max_epochs: int = 800,
    num_samples: int = 1000,
    num_chains: int = 16,
    num_steps: int = 300,
    output: Path = Path("rate_distortion.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Trains linear VAEs on normal data at several beta, and compares them with exact rate-distortion curves.

    Each is trained twice: with distortion + beta rate, and from another start with rate + lambda distortion,
    lambda = 1 / beta. By reverse water-filling it is known where both should end. One decoder is then frozen,
    and its own curve is found by annealed importance sampling, and exactly.

    Args:
        betas: Weights of the rate.
        frozen_beta: Which of them has trained the decoder that is frozen.
        num_rows: Rows of 12 numbers, of one normal distribution.
        max_epochs: Steps of each training, with all rows in each.
        num_samples: Draws of each row, for rate and distortion.
        num_chains: Chains of each row for the frozen decoder.
        num_steps: Temperatures for the frozen decoder.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--betas", betas)
    if frozen_beta not in betas:
        raise ValueError(f"frozen_beta must be one of the betas {betas}, got {frozen_beta}")
    x = normal_rows(num_rows, seed)
    columns = ["loss", "beta", "rate", "best rate", "distortion", "best distortion", "active"]
    table = Table([*columns, "rate above the curve"], steps=2 * len(betas) + 1)
    table.head()
    found: dict[str, dict[str, RatePoint]] = {"β-VAE": {}, "rate + λ distortion, λ = 1/β": {}}
    for beta in betas:
        best = linear_optimum(EIGENVALUES, NOISE, beta, latent_dim=LATENTS)
        losses: list[Objective] = [
            ELBO(beta=beta, num_particles=8),
            RateDistortion(weight=1 / beta, num_particles=8),
        ]
        for place, (name, loss) in enumerate(zip(found, losses, strict=True)):
            torch.manual_seed(seed + place)
            model = ProbabilisticPCA((12,), LATENTS, sigma=NOISE**0.5, learn_sigma=False)
            guide = FullCovariance((12,), LATENTS, MLP(hidden=()))
            fit(
                *(model, guide, x),
                objective=loss,
                max_epochs=max_epochs,
                batch_size=num_rows,
                learning_rate=0.05,
                lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
                seed=seed + place,
            )
            point = evaluate(model, guide, x, num_samples=num_samples, method="guide", seed=seed)
            found[name][f"β = {beta:g}"] = point
            if place == 0 and beta == frozen_beta:
                kept = model
            numbers = (point.rate.mean, best.rate, point.distortion.mean, best.distortion)
            cells = [f"{number:.3f}" for number in numbers]
            cells += [f"{int(best.active.sum())}", f"{above_the_curve(point):+.2%}"]
            table.row([name, f"{beta:g}", *cells])
            table.step(f"{name}, beta = {beta:g}")
    slopes = {1 / frozen_beta, *np.geomspace(0.5 / max(betas), 1 / min(betas), 13).tolist()}
    curve = frozen_decoder_curve(
        kept, x, slopes=[*slopes], num_chains=num_chains, num_steps=num_steps, seed=seed
    )
    table.step("the frozen decoder")
    print()
    own = Table(["slope 1 / beta", "rate", "exact rate", "distortion", "exact distortion"], 0)
    own.head()
    for at in curve:
        rate, distortion = of_best_guide(kept, x, at.slope)
        numbers = (at.rate.mean, rate, at.distortion.mean, distortion)
        own.row([f"{at.slope:.4g}", *(f"{number:.3f}" for number in numbers)])
    grid = np.geomspace(min(betas) / 2, 3 * max(betas), 200)
    curves: dict[str, Iterable[RatePoint]] = {
        "best linear VAE, exact": [
            linear_optimum(EIGENVALUES, NOISE, beta, latent_dim=LATENTS) for beta in grid
        ],
        f"decoder of β = {frozen_beta:g}, AIS": curve,
    }
    figure = rate_distortion(found, curves=curves, entropy=ENTROPY)
    with replacing(output, overwrite=overwrite) as file:
        figure.savefig(file)
    print(f"\nNats per row, means over {num_rows} rows. The first table compares with the best")
    print("linear VAE at the same beta, and at the same distortion. The second one is the")
    print(f"curve of the decoder of beta = {frozen_beta:g} alone. The picture is {output}.")


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"betas": (0.5, 4.0), "num_rows": 100, "max_epochs": 30, "num_samples": 50},
            **{"num_chains": 4, "num_steps": 30, "output": "rate_distortion_quick.png"},
        },
    )
