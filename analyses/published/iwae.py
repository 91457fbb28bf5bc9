"""Table 1 of "Importance Weighted Autoencoders" (Burda et al., arXiv:1509.00519): one layer, MNIST.

    python analyses/published/iwae.py runs/iwae-5 --samples 5 --weighted true

784-200-200-50 with tanh, dynamic binarization of all 60,000 rows, batches of 20, Adam with epsilon 1e-4,
the learning rate 1e-3 * 10^(-i / 7) for 3^i epochs with i = 0, ..., 7: 3,280 epochs in all. The command goes on
where it was stopped.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import ppl_vae
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO

STAGES = 8


def learning_rate(epoch: int) -> float:
    """The factor of the learning rate after so many epochs: stage i has 3^i of them."""
    stage = next(i for i in range(STAGES) if epoch < (3 ** (i + 1) - 1) // 2 or i == STAGES - 1)
    return float(10 ** (-stage / 7))


def pair(x: Tensor, seed: int) -> tuple[VAE, MeanField]:
    """The paper's pair, with Glorot's weights and the output's bias at the logits of the mean pixels."""
    torch.manual_seed(seed)
    shape, network = tuple(x.shape[1:]), MLP(hidden=(200, 200), activation=nn.Tanh)
    model, guide = VAE(shape, 50, network), MeanField(shape, 50, network)
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
    data_dir: Path = Path("data"),
    samples: int = 1,
    weighted: bool = False,
    max_epochs: int = 3280,
    num_samples: int = 5000,
    max_rows: int | None = None,
    seed: int = 0,
) -> None:
    """Trains, goes on where it was stopped, and evaluates."""
    data = ppl_vae.load_data("MNIST", data_dir=data_dir, binarize="dynamic", max_rows=max_rows)
    x = torch.cat([data.train, data.validation])
    model, guide = pair(x, seed)
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
        resume=(run_dir / "checkpoints").exists(),
    )
    print(fitted)
    evaluation = ppl_vae.evaluate(model, guide, data.test, num_samples=num_samples, seed=seed)
    print(evaluation)
    print(ppl_vae.diagnose(model, guide, data.test, seed=seed))


if __name__ == "__main__":
    auto_cli(main)
