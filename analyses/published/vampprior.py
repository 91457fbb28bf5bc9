"""Table 1 of "VAE with a VampPrior" (Tomczak and Welling, arXiv:1705.07120): static MNIST, one layer.

    python analyses/published/vampprior.py runs/vamp --config analyses/published/vampprior.yaml

784-300-300-40 and back, batches of 100, Adam with learning rate 5e-4, beta rising from 0 to 1 in 100 epochs,
early stopping after 50 epochs without a better held-out bound; 500 pseudo-inputs, or p(z) = N(0, I). The
command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from report import Theirs, show

import ppl_vae
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE, StandardNormal, VampPrior
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, LinearWarmup


def main(
    run_dir: Path,
    theirs: Theirs,
    data_dir: Path = Path("data"),
    prior: Literal["standard", "vamp"] = "vamp",
    components: int = 500,
    warmup_epochs: int = 100,
    max_epochs: int = 2000,
    patience: int = 50,
    trusted_samples: int = 1000,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    seed: int = 0,
) -> None:
    """Trains, goes on where it was stopped, and prints the row of the table beside theirs.

    Args:
        run_dir: Folder of the training and of what is found.
        theirs: The published number; a configuration file beside this script has it.
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        prior: N(0, I), or the mixture of the guide's posteriors of pseudo-inputs.
        components: Number of pseudo-inputs.
        warmup_epochs: Epochs in which beta rises to 1.
        max_epochs: Most passes over the training rows.
        patience: Epochs without a better held-out bound after which the training stops.
        trusted_samples: K of the trusted log p(x).
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        seed: Seed of all random numbers.
    """
    data = ppl_vae.load_data(
        "MNIST", data_dir=data_dir, binarize="static", max_rows=max_rows, seed=seed
    )
    torch.manual_seed(seed)
    network = MLP(hidden=(300, 300))
    vamp = prior == "vamp"
    model: Any = VAE(
        data.shape, 40, network, prior=VampPrior(components) if vamp else StandardNormal()
    )
    guide = MeanField(data.shape, 40, network)
    if vamp:
        model.prior.attach_guide(guide)
        model.prior.start_at(data.train)
    fitted = ppl_vae.fit(
        model,
        guide,
        data.train,
        objective=ELBO(beta=LinearWarmup(epochs=warmup_epochs)),
        validation=data.validation,
        batch_size=100,
        max_epochs=max_epochs,
        patience=patience,
        learning_rate=5e-4,
        seed=seed,
        run_dir=run_dir,
        resume=any((run_dir / "checkpoints").glob("*")),
    )
    print(fitted, file=sys.stderr)
    of_prior = f"VampPrior({components})" if vamp else "N(0, I)"
    show(
        f"784-300-300-40, prior {of_prior}, beta rising in {warmup_epochs} epochs, {fitted.epochs} epochs, the "
        f"best held-out bound after {fitted.best_epoch}, batches of 100, Adam (5e-4), static binarization",
        run_dir,
        theirs,
        model,
        guide,
        data.test[:max_test_rows],
        epochs=fitted.epochs,
        trusted_samples=trusted_samples,
        seed=seed,
    )


if __name__ == "__main__":
    auto_cli(main)
