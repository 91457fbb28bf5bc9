"""Which of the means against dead codes does what, each with each, over seeds."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from progress import Table
from torch.optim.lr_scheduler import CosineAnnealingLR
from vq_vae_pairs import MANY, Setting, Sizes, uses

from ppl_vae import evaluate, fit
from ppl_vae.codes import EMA, Gradient, KMeansStart, RandomStart, perplexity
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.models import VQVAE
from ppl_vae.objectives import QuantizedELBO
from ppl_vae.runtime import require_count
from ppl_vae.stats import Estimate


def ablation(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    results: Path = Path("vq_vae_ablation.jsonl"),
    sizes: Sizes = MANY,
    num_seeds: int = 3,
) -> None:
    """Which of the means against dead codes does what: start, learner, restarts and gradient, each with each.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        results: File that keeps what was found: a run that was stopped goes on.
        sizes: Of networks and trainings.
        num_seeds: Trainings of each.
    """
    require_count("--num_seeds", num_seeds)
    known = _known(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    settings = list(itertools.product(STARTS, LEARNERS, RESTARTS, GRADIENTS))
    columns = [
        "start",
        "codebook",
        "restarts",
        "gradient",
        "dead codes",
        "perplexity",
        "distortion",
    ]
    shown = Table(columns, steps=len(settings) * num_seeds)
    of = Setting.of(data, data_dir, sizes, results.parent)
    for seed, names in itertools.product(range(num_seeds), settings):
        key = json.dumps([*names, seed, data, asdict(sizes)])
        if key not in known:
            known[key] = _ablated(replace(of, sizes=replace(sizes, seed=seed)), *names)
            with results.open("a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
        shown.step(", ".join(names))
    shown.head()
    for names in settings:
        each = [known[json.dumps([*names, seed, data, asdict(sizes)])] for seed in range(num_seeds)]
        numbers = [
            Estimate(torch.tensor([float(found[i]) for found in each]), unit="") for i in range(3)
        ]
        shown.row(
            [*names, *(n.numbers(f) for n, f in zip(numbers, (".0f", ".1f", ".2f"), strict=True))]
        )
    print("\nWhat a change does, paired by seed:\n")
    changes = Table(["change", *columns[:4], "dead codes", "distortion"], steps=1)
    changes.head()
    for place, (first, second) in enumerate(CHANGES):
        for names in (n for n in settings if n[place] == first):
            other = (*names[:place], second, *names[place + 1 :])
            pairs = [
                [known[json.dumps([*n, seed, data, asdict(sizes)])] for n in (names, other)]
                for seed in range(num_seeds)
            ]
            gains = [
                Estimate(torch.tensor([float(b[i]) - float(a[i]) for a, b in pairs]), unit="")
                for i in (0, 2)
            ]
            cells = ["" if i == place else name for i, name in enumerate(names)]
            told = [n.numbers(f) for n, f in zip(gains, ("+.0f", "+.2f"), strict=True)]
            changes.row([f"{first} to {second}", *cells, *told])
    print(
        f"\nSeeds: {num_seeds}, means and standard errors over them; {sizes.codes} codes, "
        f"{sizes.max_epochs} epochs of {len(of.data.train)} rows of {data}. Dead: the code of none of the "
        "training rows. Perplexity of training rows, distortion of test rows in nats."
    )


STARTS = {"k-means": KMeansStart(), "random": RandomStart()}


LEARNERS: dict[str, Any] = {"EMA": EMA(), "gradient": Gradient()}


RESTARTS = {"yes": 1.0, "no": 0.0}


GRADIENTS = {"straight-through": "straight-through", "rotation": "rotation"}
CHANGES = (STARTS, LEARNERS, RESTARTS, GRADIENTS)


def _ablated(
    of: Setting, begin: str, learner: str, restarts: str, gradient: Any
) -> tuple[int, float, float]:
    """Dead codes and perplexity of training rows, and the distortion of test rows."""
    sizes = of.sizes
    torch.manual_seed(sizes.seed)
    quantizer = of.quantizer(
        start=STARTS[begin], learner=LEARNERS[learner], restarts=RESTARTS[restarts]
    )
    model = VQVAE(of.data.shape, quantizer, of.grid, of.likelihood)
    guide = QuantizingEncoder(model, of.grid)
    fit(
        *(model, guide, of.data.train),
        objective=QuantizedELBO(gradient=gradient),
        transform=of.data.transform,
        batch_size=sizes.batch_size,
        max_epochs=sizes.max_epochs,
        learning_rate=sizes.learning_rate,
        lr_scheduler=partial(CosineAnnealingLR, T_max=sizes.max_epochs),
        seed=sizes.seed,
        progress=False,
    )
    counts = uses(model, guide, of.train)
    dead = int((counts == 0).sum())
    found = evaluate(model, guide, of.data.test, num_samples=2, seed=0, progress=False)
    return dead, perplexity(counts), found.distortion.mean


def _known(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found = {}
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # it was stopped while it wrote
            key, numbers = json.loads(line)
            found[key] = numbers
    return found
