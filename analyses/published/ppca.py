"""Posterior collapse that can be computed: "Don't Blame the ELBO!" (Lucas et al., arXiv:1911.02469).

    python analyses/published/ppca.py

At the optimum of a linear VAE's ELBO, which is that of probabilistic PCA (Tipping and Bishop, 1999), latent
dimension i is used if and only if the i-th eigenvalue of the data's covariance exceeds sigma^2. So the number
of active units, the ELBO and log p(x) are known beforehand, and a training has to find them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import diagnose, evaluate, fit, load_data
from ppl_vae.guides import MeanField
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP


def main(
    data: str = "digits",
    data_dir: Path = Path("data"),
    sigmas: tuple[float, ...] = (0.6, 0.8, 1.0, 1.3, 1.8),
    latent_dim: int = 20,
    max_epochs: int = 6000,
    num_samples: int = 1000,
    max_rows: int | None = None,
    seed: int = 0,
) -> None:
    """Trains a linear VAE with each noise scale, and prints what it finds beside what is to be found.

    Args:
        data: A name that load_data knows.
        data_dir: Folder of the data, in torchvision's layout.
        sigmas: Standard deviations of the noise, which are held fixed.
        latent_dim: Number of latent dimensions.
        max_epochs: Steps, each with all training rows.
        num_samples: K.
        max_rows: Maximum number of rows per split, for a quick trial.
        seed: Seed of all random numbers.
    """
    x = load_data(data, data_dir=data_dir, max_rows=max_rows, seed=seed).train
    x = (x - x.mean(0)) / x.std()
    vectors = x.flatten(1).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(vectors.T, correction=0)).flip(0)[:latent_dim]
    shape = tuple(x.shape[1:])
    columns = ["sigma", "active units", "theirs", "ELBO", f"log p(x), K = {num_samples}"]
    columns += ["exact log p(x) of the trained model", "log p(x) at the optimum, theirs"]
    for cells in (columns, ["---"] * len(columns)):
        print("|", " | ".join(cells), "|")
    for sigma in sigmas:
        torch.manual_seed(seed)
        model = ProbabilisticPCA(shape, latent_dim, sigma=sigma, learn_sigma=False)
        guide = MeanField(shape, latent_dim, MLP(hidden=()))
        fit(
            model,
            guide,
            x,
            max_epochs=max_epochs,
            batch_size=len(x),
            learning_rate=0.02,
            lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
            seed=seed,
        )
        found = evaluate(model, guide, x, num_samples=num_samples, seed=seed)
        active = diagnose(model, guide, x, seed=seed).active_units
        exact = model.log_evidence(x).detach().mean()
        best = ProbabilisticPCA(shape, latent_dim, sigma=sigma, learn_sigma=False)
        optimum = best.maximum_likelihood(x).log_evidence(x).detach().mean()
        cells = [f"{sigma}", f"{active}", f"{int((eigenvalues > sigma**2).sum())}"]
        cells += [f"{float(found.elbo.mean):.3f}", f"{float(found.log_likelihood.mean):.3f}"]
        cells += [f"{float(exact):.3f}", f"{float(optimum):.3f}"]
        print("|", " | ".join(cells), "|", flush=True)
    print(
        f"\n{len(x)} training rows of {data}, centered, in units of their deviation; nats per row."
    )


if __name__ == "__main__":
    auto_cli(main)
