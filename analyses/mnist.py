"""How good is a plain VAE on MNIST? Prints a row of the table in docs/results.md.

Encoder 784-400-400-50, mirrored decoder, Bernoulli likelihood, mean-field guide, ELBO. log p(x) can be
compared only with numbers for the same binarization. "dynamic" is the binarization of "Importance Weighted
Autoencoders" (arXiv:1509.00519), which reports -86.76 nats for a VAE with 50 latents after 3,280 epochs.
"static" draws the training rows once. "threshold" has no noise in gray pixels, which is easier.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Literal

import pyro
import torch
from progress import Table, start
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.stats import Estimate


def main(
    data_dir: Path = Path("data"),
    binarize: Literal["dynamic", "static", "threshold"] = "dynamic",
    max_epochs: int = 100,
    num_samples: int = 5000,
    trusted_samples: int = 1000,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    seed: int = 0,
) -> None:
    """Trains a 784-400-400-50 Bernoulli VAE on MNIST and prints how good it is on the test rows.

    The learning rate falls from 1e-3 to 0 along a cosine; the weights with the best held-out ELBO are kept.

    Args:
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        binarize: How a gray pixel becomes 0 or 1: by a new draw for each batch, by one draw, or by comparison
            with one half. Numbers from different choices cannot be compared.
        max_epochs: Passes over the training rows.
        num_samples: Importance samples per row from the guide, as papers draw them.
        trusted_samples: K of the trusted log p(x), by proposals of each row's own.
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        seed: Seed of all random numbers.
    """
    data = ppl_vae.load_data(
        "MNIST", data_dir=data_dir, binarize=binarize, max_rows=max_rows, seed=seed
    )
    table = Table([], steps=3)
    torch.manual_seed(seed)
    network = MLP(hidden=(400, 400))
    model = VAE(data.shape, latent_dim=50, network=network, likelihood=Bernoulli())
    guide = MeanField(data.shape, latent_dim=50, network=network)
    fitted = ppl_vae.fit(
        model,
        guide,
        data.train,
        validation=data.validation,
        transform=data.transform,
        max_epochs=max_epochs,
        lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
        patience=max_epochs,
        seed=seed,
    )
    print(fitted, file=sys.stderr)  # shown at once: the evaluation takes as long again
    table.step("training")
    test = data.test[:max_test_rows]
    started = time.monotonic()
    plain = ppl_vae.evaluate(model, guide, test, num_samples=num_samples, method="guide", seed=seed)
    between = time.monotonic()
    table.step("log p(x), the guide's samples")
    evaluation = ppl_vae.evaluate(model, guide, test, num_samples=trusted_samples, seed=seed)
    seconds = [between - started, time.monotonic() - between]
    table.step("log p(x), trusted")
    diagnosis = ppl_vae.diagnose(model, guide, test, evaluation=evaluation, fit=fitted, seed=seed)

    at_least = "≥ " if diagnosis.saturated else ""
    row = {
        "binarization": binarize,
        "epochs (best)": f"{fitted.epochs} ({fitted.best_epoch})",
        "training (s)": f"{fitted.seconds:.0f}",
        "ELBO": _nats(evaluation.elbo),
        "rate": _nats(evaluation.rate),
        "distortion": _nats(evaluation.distortion),
        f"log p(x), the guide's {num_samples} samples": _nats(plain.log_likelihood),
        "unreliable": f"{plain.unreliable.double().mean():.1%}",
        f"log p(x), K = {trusted_samples}": _nats(evaluation.log_likelihood),
        f"unreliable, K = {trusted_samples}": f"{evaluation.unreliable.double().mean():.1%}",
        "bits/dim": f"{evaluation.bits_per_dim.mean:.4f}",
        "active units": f"{diagnosis.active_units} of {len(diagnosis.names)}",
        "mutual information": at_least + _nats(diagnosis.mutual_information),
        "evaluation (s)": f"{seconds[0]:.0f} and {seconds[1]:.0f}",
    }
    table.columns = list(row)
    table.head()
    table.row(list(row.values()))
    print(f"\n{evaluation.num_rows} test rows, nats per row ± standard error over rows.")
    print(f"{diagnosis.summary()}\n\nCommand: `{shlex.join(['python', *sys.argv])}`")
    device = next(model.parameters()).device.type
    print(
        f"Versions: ppl_vae {ppl_vae.__version__}, torch {torch.__version__}, Pyro {pyro.__version__}, "
        f"Python {platform.python_version()}; {device}, {torch.get_num_threads()} threads"
    )


def _nats(estimate: Estimate) -> str:
    return estimate.numbers(".2f")


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"max_epochs": 1, "num_samples": 50, "trusted_samples": 50},
            **{"max_rows": 500, "max_test_rows": 20},
        },
    )
