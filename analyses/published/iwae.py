"""Table 1 of "Importance Weighted Autoencoders" (Burda et al., arXiv:1509.00519), MNIST.

    python analyses/published/iwae.py runs/iwae-5 --config analyses/published/iwae_5.yaml

784-200-200-50 with tanh, or 784-200-200-100-100-100-50 with two layers of latents; dynamic binarization of all
60,000 rows, batches of 20, Adam with epsilon 1e-4, the learning rate 1e-3 * 10^(-i / 7) for 3^i epochs with
i = 0, ..., 7: 3,280 epochs in all. The command goes on where it was stopped.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from report import Theirs, show
from torch import Tensor, nn

import ppl_vae
from ppl_vae.guides import BottomUp, MeanField
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO

STAGES = 8


def learning_rate(epoch: int) -> float:
    """The factor of the learning rate after so many epochs: stage i has 3^i of them."""
    stage = next(i for i in range(STAGES) if epoch < (3 ** (i + 1) - 1) // 2 or i == STAGES - 1)
    return float(10 ** (-stage / 7))


def pair(x: Tensor, layers_of_latents: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """The paper's pair, with Glorot's weights and the output's bias at the logits of the mean pixels."""
    torch.manual_seed(seed)
    shape, network = tuple(x.shape[1:]), MLP(hidden=(200, 200), activation=nn.Tanh)
    model: nn.Module
    guide: nn.Module
    if layers_of_latents == 1:
        model, guide = VAE(shape, 50, network), MeanField(shape, 50, network)
    else:
        between = MLP(hidden=(100, 100), activation=nn.Tanh)
        model = HierarchicalVAE(shape, (100, 50), network, between)
        guide = BottomUp(shape, (100, 50), network, between)
    layers = [m for part in (model, guide) for m in part.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    output = next(layer for layer in layers if layer.out_features == math.prod(shape))
    with torch.no_grad():
        output.bias.copy_(x.mean(0).clamp(0.001, 0.999).logit().flatten())
    return model, guide


def main(
    run_dir: Path,
    theirs: Theirs,
    data_dir: Path = Path("data"),
    samples: int = 1,
    weighted: bool = False,
    layers_of_latents: Literal[1, 2] = 1,
    max_epochs: int = 3280,
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
        samples: k, the samples of the training bound.
        weighted: Whether they are weighted (IWAE) or averaged (VAE).
        layers_of_latents: 1 or 2.
        max_epochs: Where to stop; the learning rate is that of the whole schedule.
        trusted_samples: K of the trusted log p(x).
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        seed: Seed of all random numbers.
    """
    data = ppl_vae.load_data("MNIST", data_dir=data_dir, binarize="dynamic", max_rows=max_rows)
    x = torch.cat([data.train, data.validation])
    model, guide = pair(x, layers_of_latents, seed)
    kind = ImportanceWeightedELBO if weighted else TraceELBO
    objective = kind(num_particles=samples)
    fitted = ppl_vae.fit(
        model,
        guide,
        x,
        objective=objective,
        transform=data.transform,
        batch_size=20,
        max_epochs=max_epochs,
        learning_rate=1e-3,
        optimizer=partial(torch.optim.Adam, eps=1e-4, fused=True),
        lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=learning_rate),
        seed=seed,
        run_dir=run_dir,
        resume=any((run_dir / "checkpoints").glob("*")),
    )
    print(fitted, file=sys.stderr)
    bound = f"importance-weighted bound, k = {samples}" if weighted else f"ELBO, k = {samples}"
    show(
        f"{layers_of_latents} layer(s) of latents, {bound}, {fitted.epochs} of 3280 epochs of the staircase, "
        "batches of 20, Adam (epsilon 1e-4), dynamic binarization",
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
