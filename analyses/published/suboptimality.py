"""The gaps of "Inference Suboptimality in Variational Autoencoders" (Cremer et al., arXiv:1801.03558), MNIST.

    python analyses/published/suboptimality.py runs/gaussian --config analyses/published/gaussian_guide.yaml

784-200-200-50 and back with ELU, batches of 100, beta rising from 0 to 1 in 400 epochs, Adam with epsilon
1e-4 and the learning rates of the IWAE paper, early stopping. The guide is a normal with independent
dimensions, or a flow. What the paper claims is said as a difference of two gaps, row by row. The command goes
on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from iwae import learning_rate
from jsonargparse import auto_cli
from report import Theirs, show
from torch import nn

import ppl_vae
from ppl_vae.diagnosis import Gaps, inference_gaps
from ppl_vae.guides import InverseAutoregressive, MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, LinearWarmup
from ppl_vae.runtime import write_bytes
from ppl_vae.stats import Estimate

FILE = "gaps.json"
"""In the run folder: the values of each row, for a comparison of two runs."""


def main(
    run_dir: Path,
    theirs: Theirs,
    data_dir: Path = Path("data"),
    guide: Literal["gaussian", "flow"] = "gaussian",
    warmup_epochs: int = 400,
    max_epochs: int = 3280,
    patience: int = 100,
    trusted_samples: int = 1000,
    gap_rows: int = 100,
    gap_steps: int = 2000,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    seed: int = 0,
) -> None:
    """Trains, goes on where it was stopped, and prints the row of the table and the gaps.

    Args:
        run_dir: Folder of the training and of what is found.
        theirs: What is published; a configuration file beside this script has it.
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        guide: A normal with independent dimensions, or an inverse autoregressive flow of two layers on it.
        warmup_epochs: Epochs in which beta rises to 1.
        max_epochs: Most passes over the training rows; the learning rate is that of the whole schedule.
        patience: Epochs without a better held-out bound after which the training stops.
        trusted_samples: K of the trusted log p(x), and of the gaps.
        gap_rows: Test rows whose gaps are found, the first ones.
        gap_steps: Maximum number of steps in the search for the best q of each row.
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        seed: Seed of all random numbers.
    """
    data = ppl_vae.load_data(
        "MNIST", data_dir=data_dir, binarize="static", max_rows=max_rows, seed=seed
    )
    torch.manual_seed(seed)
    network = MLP(hidden=(200, 200), activation=nn.ELU)
    model = VAE(data.shape, 50, network)
    q: Any = MeanField(data.shape, 50, network)
    if guide == "flow":
        q = InverseAutoregressive(data.shape, 50, network, transforms=2, hidden=(200,))
    fitted = ppl_vae.fit(
        model,
        q,
        data.train,
        objective=ELBO(beta=LinearWarmup(epochs=warmup_epochs)),
        validation=data.validation,
        batch_size=100,
        max_epochs=max_epochs,
        patience=patience,
        learning_rate=1e-3,
        optimizer=partial(torch.optim.Adam, eps=1e-4, fused=True),
        lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=learning_rate),
        seed=seed,
        run_dir=run_dir,
        resume=any((run_dir / "checkpoints").glob("*")),
    )
    print(fitted, file=sys.stderr)
    show(
        f"784-200-200-50 with ELU, {type(q).__name__}, beta rising in {warmup_epochs} epochs, {fitted.epochs} "
        f"epochs, the best held-out bound after {fitted.best_epoch}, batches of 100, Adam (epsilon 1e-4), "
        "static binarization",
        run_dir,
        theirs,
        model,
        q,
        data.test[:max_test_rows],
        epochs=fitted.epochs,
        trusted_samples=trusted_samples,
        seed=seed,
    )
    gaps = inference_gaps(
        model,
        q,
        data.test[:max_test_rows][:gap_rows],
        num_samples=trusted_samples,
        max_steps=gap_steps,
        seed=seed,
    )
    write_bytes(run_dir / FILE, json.dumps(_values(gaps)).encode())
    print(f"\nThe gaps of the first {gaps.num_rows} of them:\n{gaps}")
    difference = Estimate(gaps.amortization_gap.values - gaps.approximation_gap.values)
    print(f"amortization gap - approximation gap: {difference.numbers('.2f')}")
    for number, text in enumerate(theirs.claims, 1):
        print(f"Claim {number}: {text}")


def _values(gaps: Gaps) -> dict[str, list[float]]:
    """What is compared of two runs, row by row."""
    parts = ("log_likelihood", "best_elbo", "elbo")
    return {name: getattr(gaps, name).values.tolist() for name in parts}


if __name__ == "__main__":
    auto_cli(main)
