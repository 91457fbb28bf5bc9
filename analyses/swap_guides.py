"""What does the guide cost? The same model p(z) p(x | z); only q(z | x) is swapped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from progress import Table, start
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit, guides, load_data, models
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate


def main(
    max_epochs: int = 200,
    num_samples: int = 1000,
    max_rows: int | None = None,
    output: Path = Path("swap_guides.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Swaps the guides of two models of handwritten digits: how many nats of log p(x) does each one lose?

    A model is trained with its richest guide and frozen; then each guide is trained for it. 8 samples of z per
    step: near the best q, their noise dominates the gradient. The gap is log p(x) - ELBO = KL(q || p(z | x)).

    Args:
        max_epochs: Passes over the training rows, for each model and for each guide.
        num_samples: Importance samples per row.
        max_rows: Maximum number of rows per split, for a quick trial.
        output: Where to save the picture of the gaps, with 95 % intervals.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    torch.manual_seed(seed)
    gray = load_data("digits", dequantize=True, max_rows=max_rows)
    binary = load_data("digits", binarize="threshold", max_rows=max_rows)
    line, deep = (gray.shape, 8, MLP(hidden=())), (gray.shape, 8, MLP(hidden=(128,)))
    pca, vae = models.ProbabilisticPCA(gray.shape, 8), models.VAE(*deep)
    kinds = (guides.MeanField, guides.LowRank, guides.FullCovariance, guides.MixtureOfGaussians)
    # A model, its data, the step size, a guide to train it with, the guides to compare.
    settings: list[tuple[Any, ...]] = [
        (pca, gray, 0.05, guides.Exact(pca), [*(q(*line) for q in kinds[:3]), guides.Exact(pca)]),
        (vae, binary, 0.005, guides.FullCovariance(*deep), [q(*deep) for q in kinds]),
    ]
    annealed = partial(fit, lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs), seed=seed)
    annealed = partial(annealed, objective=ELBO(num_particles=8), max_epochs=max_epochs)
    figure = Figure(figsize=(8, 2.6), dpi=200, layout="constrained")
    columns = ["model, guide", "ELBO", "rate", "distortion", "log p(x)", "gap", "unreliable"]
    table = Table([*columns, "seconds"], steps=sum(1 + len(tried) for *_, tried in settings))
    table.head()
    panels = figure.subplots(1, 2, sharex=True)
    for axes, (model, data, rate, teacher, tried) in zip(panels, settings, strict=True):
        train = partial(annealed, model, x=data.train, transform=data.transform, learning_rate=rate)
        train(teacher)
        model.requires_grad_(False)
        name, names = type(model).__name__, [type(q).__name__ for q in tried]
        table.step(f"{name}, trained with {type(teacher).__name__}")
        seconds, found = [], []
        for q in tried:
            seconds.append(train(q).seconds if list(q.parameters()) else 0)
            found.append(evaluate(model, q, data.test, num_samples=num_samples, seed=seed))
            table.step(f"{name}, {type(q).__name__}, ELBO {found[-1].elbo.mean:.2f}")
        truth = max(found, key=lambda e: e.elbo.mean).log_likelihood
        gaps = [Estimate(truth.values - e.elbo.values) for e in found]
        for q, e, gap, s in zip(names, found, gaps, seconds, strict=True):
            values = (e.elbo, e.rate, e.distortion, e.log_likelihood, gap)
            cells = [v.numbers(".3f") for v in values]
            cells += [f"{e.unreliable.double().mean():.1%}", f"{s:.0f}"]
            table.row([f"{name}, {q}", *cells])
        errors = [1.96 * gap.standard_error for gap in gaps]
        means = [
            round(gap.mean, 6) + 0.0 for gap in gaps
        ]  # rounding of an exact guide is no gap below 0
        bars = axes.barh(names, means, xerr=errors, color="#56B4E9", capsize=4)
        axes.bar_label(bars, fmt="{:z.2f}", padding=5)
        axes.set(xlabel=f"{name}: log p(x) − ELBO (nats per row)", ylim=(3.5, -0.5), xmargin=0.25)
    with replacing(output, overwrite=overwrite) as file:
        figure.savefig(file)
    print(f"\nTest rows; nats per row ± standard error over rows. The picture is in {output}.")


if __name__ == "__main__":
    start(
        main,
        quick={
            "max_epochs": 2,
            "num_samples": 50,
            "max_rows": 64,
            "output": "swap_guides_quick.png",
        },
    )
