"""What can each guide represent? Four guides over the exact posterior of one row, which is bent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from progress import start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit, sample
from ppl_vae.diagnosis import guide_on_grid, posterior_grid
from ppl_vae.guides import FullCovariance, MeanField, MixtureOfGaussians, NeuralSpline
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO
from ppl_vae.plots import guides_over_posterior
from ppl_vae.runtime import replacing, require_output

BEND, TILT, NOISE = 0.9, 0.6, 0.3

SHOWN = 0.5
"""The row whose posterior is drawn."""


def bent(x: Tensor) -> None:
    """z ~ N(0, I), and x is its height over a parabola: all z along the parabola explain x equally well."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        height = z[..., 1:] + TILT * z[..., :1] + BEND * z[..., :1] ** 2
        pyro.sample("x", dist.Normal(height, NOISE).to_event(1), obs=x)


def main(
    num_rows: int = 1024,
    max_epochs: int = 100,
    num_particles: int = 16,
    num_samples: int = 200,
    output: Path = Path("guides_over_posteriors.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Trains four guides for one model of two latents, and draws them over the exact posterior of one row.

    The model has no parameters and is not trained. Its posterior is known by quadrature.

    Args:
        num_rows: Rows that are drawn from the model, to train on.
        max_epochs: Passes over these rows, for each guide.
        num_particles: Draws of each row in a step.
        num_samples: Draws of each row for the ELBO.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    shown = torch.tensor([[SHOWN]])
    rows = sample(bent, num_rows, like=shown, seed=seed)
    network = MLP(hidden=(64, 64))
    torch.manual_seed(seed)
    guides: dict[str, Any] = {
        "mean-field": MeanField((1,), 2, network),
        "full\ncovariance": FullCovariance((1,), 2, network),
        "mixture of 8\nGaussians": MixtureOfGaussians((1,), 2, network, components=8),
        "neural\nspline flow": NeuralSpline((1,), 2, network),
    }
    trained = partial(
        fit,
        max_epochs=max_epochs,
        learning_rate=3e-3,
        lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
        objective=ELBO(num_particles=num_particles),
        seed=seed,
    )
    print("| guide | seconds | ELBO, all rows | KL(q ǁ p(z given x)), the row drawn |")
    print("| --- | --- | --- | --- |")
    grid, drawn = None, {}
    for name, guide in guides.items():
        seconds = trained(bent, guide, rows).seconds
        elbo = evaluate(bent, guide, rows, num_samples=num_samples, method="guide", seed=seed).elbo
        if grid is None:  # the posterior does not depend on the guide
            grid = posterior_grid(bent, guide, shown, size=257)
        log_q = drawn[name] = guide_on_grid(bent, guide, shown, grid)
        kl = float((log_q.exp() * (log_q - grid.log_density)).sum() / log_q.exp().sum())
        words = (name.replace("\n", " "), f"{seconds:.0f}", elbo.numbers(".3f"), f"{kl:.3f}")
        print("|", " | ".join(words), "|", flush=True)
    assert grid is not None
    with replacing(output, overwrite=overwrite) as file:
        guides_over_posterior(grid, drawn).savefig(file)
    print(f"\nNats per row ± standard error over {num_rows} rows. The picture is {output}.")


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"num_rows": 128, "max_epochs": 3, "num_particles": 2, "num_samples": 20},
            "output": "guides_over_posteriors_quick.png",
        },
    )
