"""What inference of segments loses: exact sums, encoders and mean fields, beside what each model is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from progress import Table, start
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit
from ppl_vae.data import load_photos
from ppl_vae.guides import Exact, SegmentationEncoder, StructuredMeanField
from ppl_vae.models import IndependentSegments, Palette, PottsSegments
from ppl_vae.models.colorization import SegmentedColors
from ppl_vae.networks import UNet
from ppl_vae.objectives import (
    ELBO,
    GumbelSoftmaxELBO,
    Objective,
    ScoreFunctionELBO,
    StraightThroughELBO,
)
from ppl_vae.runtime import require_count
from ppl_vae.stats import Estimate

BITS = 1 / math.log(2)
"""In a nat."""


@dataclass(frozen=True)
class Way:
    """A guide and an objective for a model.

    Attributes:
        title: What it is called.
        guide: Builds the guide.
        objective: What is maximised.
    """

    title: str
    guide: Callable[[SegmentedColors], nn.Module]
    objective: Objective = field(default_factory=ELBO)


@dataclass(frozen=True)
class Rung:
    """P(z | x), and the ways to infer z.

    Attributes:
        title: What it is called.
        model: Its class.
        segments: K.
        size: Side of the patches; a grid is summed exactly where K^size is no more than 8192.
        more: How many times as many patches as the least.
        batch_size: Patches of a step.
        ways: The first one is exact.
    """

    title: str
    model: type[SegmentedColors]
    segments: int
    size: int
    more: int
    batch_size: int
    ways: tuple[Way, ...]


def rungs(network: UNet) -> Iterator[Rung]:
    """The rungs whose exact sum is known, with what can stand in for it."""

    def encoder(model: SegmentedColors) -> nn.Module:
        return SegmentationEncoder(model.segments, network)

    yield Rung(
        "independent pixels",
        IndependentSegments,
        segments=8,
        size=32,
        more=1,
        batch_size=16,
        ways=(
            Way("exact sum", Exact),
            Way("encoder, summed over values", encoder),
            Way("encoder, Gumbel-softmax", encoder, GumbelSoftmaxELBO()),
            Way("encoder, score function with baseline", encoder, ScoreFunctionELBO()),
            Way("encoder, straight-through", encoder, StraightThroughELBO()),
        ),
    )
    yield Rung(
        "Potts grid",
        PottsSegments,
        segments=3,
        size=6,
        more=4,
        batch_size=64,
        ways=(
            Way("exact sum (transfer matrix)", Exact),
            Way("mean field of lines", StructuredMeanField),
            Way("encoder, summed over values", encoder),
        ),
    )


def measured(
    model: SegmentedColors, guide: nn.Module, rows: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Means over the rows, per pixel: -log2 P(y | x), -ELBO and I(z; y | x), all of them exact."""
    pixels = rows[1][0].numel()
    quietly: dict[str, Any] = {"num_samples": 1, "seed": 0, "progress": False}
    exact = evaluate(model, Exact(model), rows, **quietly)
    bound = exact if isinstance(guide, Exact) else evaluate(model, guide, rows, **quietly)
    bits, of_bound, rate = (
        float(values.mean()) * BITS / pixels
        for values in (-exact.elbo.values, -bound.elbo.values, exact.rate.values)
    )
    return {"bits": bits, "bound": of_bound, "lost": of_bound - bits, "information": rate}


def main(
    data: str = "skimage",
    longest: int = 120,
    widths: tuple[int, ...] = (16, 32, 64),
    patches: int = 500,
    epochs: int = 4,
    learning_rate: float = 1e-3,
    num_seeds: int = 3,
    num_rows: int = 256,
) -> None:
    """Trains the same models of colors by other ways of inferring their segments.

    What a model is worth is -log2 P(y | x), whatever it was trained with. The bound is that of its own guide:
    what lies between them is what this guide loses. All are exact for each patch, and means over patches of
    photos that no model was trained on, with standard errors over seeds. Time is that of training, of which the
    exact sum's is 1.

    Args:
        data: Photos, as for `ppl_vae.data.load_photos`.
        longest: They are reduced to this side.
        widths: Channels of the U-Nets.
        patches: How many are trained on, at least.
        epochs: Passes over them.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        num_seeds: Trainings of each.
        num_rows: Patches to measure on.
    """
    require_count("--num_seeds", num_seeds)
    photos = load_photos(data, longest=longest)
    every = list(rungs(UNet(widths)))
    columns = ["-log2 P(y given x), bits", "-ELBO, bits", "lost", "I(z; y given x), bits", "time"]
    table = Table(
        ["P(z given x)", "inference", *columns], num_seeds * sum(len(r.ways) for r in every)
    )
    table.head()
    for rung in every:
        found: dict[str, list[dict[str, float]]] = {way.title: [] for way in rung.ways}
        for seed in range(num_seeds):
            rows = photos.train.patches(rung.size, rung.more * patches, seed=seed)
            others = photos.test.patches(rung.size, num_rows, seed=0)
            for way in rung.ways:
                torch.manual_seed(seed)
                model = rung.model(rung.segments, Palette(), UNet(widths))
                model.initialize(*rows, seed=seed)
                guide = way.guide(model)
                started = time.perf_counter()
                fit(
                    *(model, guide, rows),
                    objective=way.objective,
                    max_epochs=epochs,
                    batch_size=rung.batch_size,
                    learning_rate=learning_rate,
                    lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
                    seed=seed,
                    progress=False,
                )
                seconds = time.perf_counter() - started
                found[way.title].append({**measured(model, guide, others), "time": seconds})
                table.step(f"{rung.title}, {way.title}, seed {seed}")
        exact = found[rung.ways[0].title]
        for title, runs in found.items():
            for run, of_exact in zip(runs, exact, strict=True):
                run["share"] = run["time"] / of_exact["time"]
            cells = [_mean(runs, name) for name in ("bits", "bound", "lost", "information")]
            table.row([rung.title, title, *cells, _mean(runs, "share", ".2f")])


def _mean(runs: list[dict[str, float]], name: str, places: str = ".3f") -> str:
    return Estimate(torch.tensor([run[name] for run in runs]), "").numbers(places)


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"longest": 60, "widths": (4, 6), "patches": 4},
            **{"epochs": 1, "num_seeds": 1, "num_rows": 4},
        },
    )
