"""Quantizers that have the same number of values, each trained alike, over seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from progress import Table, chosen_rows
from vq_vae_pairs import MANY, Pair, Setting, Sizes

from ppl_vae import evaluate
from ppl_vae.codes import (
    FSQ,
    LFQ,
    Gradient,
    Quantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    perplexity,
)
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.models import VQVAE
from ppl_vae.runtime import require_count
from ppl_vae.stats import Estimate

# Each has 64 values; the vectors of a codebook are of the size that is given.
QUANTIZERS: dict[str, Callable[[int], Quantizer]] = {
    "codebook, EMA": lambda dim: VectorQuantizer(64, dim),
    "codebook, gradient": lambda dim: VectorQuantizer(64, dim, learner=Gradient()),
    "codebook, SimVQ": lambda dim: VectorQuantizer(64, dim, learner=SimVQ()),
    "codebook, cosine": lambda dim: VectorQuantizer(64, dim, cosine=True),
    "residual, 8 and 8": lambda dim: ResidualQuantizer(8, dim, depth=2),
    "FSQ, 4 x 4 x 4": lambda dim: FSQ((4, 4, 4)),
    "LFQ, 6 bits": lambda dim: LFQ(6),
}

VALUES = 64


class Measured(NamedTuple):
    """What is found of one training: of the test rows, nats per row."""

    used: float
    perplexity: float
    rate: float
    distortion: float
    elbo: float


def quantizers(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae_quantizers"),
    sizes: Sizes = MANY,
    num_seeds: int = 3,
    rows: list[str] | None = None,
) -> None:
    """Codebooks and other quantizers with as many values: values in use, rate, distortion and ELBO.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs.
        sizes: Of networks and trainings; the number of codes is 64 for all.
        num_seeds: Trainings of each.
        rows: The quantizers, in this order; None: all. The others are compared to the first one.
    """
    require_count("--num_seeds", num_seeds)
    chosen = chosen_rows(rows, QUANTIZERS)
    more = f"more than the ELBO of {chosen[0]}"
    columns = ["quantizer", "values used", "perplexity", "rate", "distortion", "ELBO", more]
    shown = Table(columns, steps=len(chosen) * num_seeds)
    shown.head()
    of = Setting.of(data, data_dir, sizes, runs)
    first: list[Measured] | None = None
    for name in chosen:
        found = []
        for seed in range(num_seeds):
            found.append(_measured(replace(of, sizes=replace(sizes, seed=seed)), name))
            shown.step(f"{name}, seed {seed}")
        first = found if first is None else first
        gains = [one.elbo - other.elbo for one, other in zip(found, first, strict=True)]
        numbers = zip(zip(*found, strict=True), (".1f", ".1f", ".2f", ".2f", ".2f"), strict=True)
        shown.row([name, *(_told(each, as_) for each, as_ in numbers), _told(gains, "+.2f")])
    print(
        f"\nSeeds: {num_seeds}, means and standard errors over them; {len(of.data.test)} test rows of {data}, "
        f"nats per row. {VALUES} values at each position; {sizes.max_epochs} epochs of {len(of.data.train)} "
        f"rows, then a prior of {sizes.prior_epochs} epochs at most. Perplexity of the values of all positions."
    )


def _measured(of: Setting, name: str) -> Measured:
    seed, sizes = of.sizes.seed, of.sizes

    def make() -> Pair:
        quantizer = QUANTIZERS[name](sizes.dim)
        model = VQVAE(of.data.shape, quantizer, of.grid, of.likelihood)
        return model, QuantizingEncoder(model, of.grid)

    folder = f"{name.replace(', ', '-').replace(' ', '_')}-seed={seed}"
    model, guide = of.trained(folder, make)
    learned = of.with_prior(f"{folder}-prior", (model, guide), sizes.prior)
    found = evaluate(learned, guide, of.data.test, num_samples=2, seed=seed, progress=False)
    uses = _uses(guide, of.data.test, model.quantizer.codes)
    return Measured(
        float((uses > 0).sum()),
        perplexity(uses),
        found.rate.mean,
        found.distortion.mean,
        found.elbo.mean,
    )


@torch.no_grad()
def _uses(guide: Any, x: torch.Tensor, codes: int) -> torch.Tensor:
    """How often each value comes: the codes that a vector has one after the other are one number."""
    z = torch.cat([guide.codes(part) for part in x.split(500)])
    if z.dim() > 3:
        z = (z * codes ** torch.arange(z.shape[-1])).sum(-1)
    return z.flatten().bincount(minlength=VALUES)


def _told(values: Any, as_: str) -> str:
    return Estimate(torch.tensor(list(values), dtype=torch.float64), unit="").numbers(as_)
