"""Where does each guide lose its bound? One frozen decoder, all guides trained for its posterior."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from progress import Table, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit, guides, load_data
from ppl_vae.diagnosis import Gaps, guide_on_grid, inference_gaps, posterior_grid
from ppl_vae.evaluation import Annealed, Evaluation, annealed_importance_sampling
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.plots import gaps_plot, posterior_contours
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.training import refit_guide


def main(
    data: str = "digits",
    data_dir: Path = Path("data"),
    max_epochs: int = 200,
    guide_epochs: int = 100,
    latent_dim: int = 8,
    hidden: tuple[int, ...] = (128,),
    num_samples: int = 1000,
    temperatures: int = 200,
    max_steps: int = 2000,
    max_rows: int | None = None,
    max_test_rows: int = 100,
    output: Path = Path("inference_gaps.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Swaps the guide of one frozen Bernoulli VAE: log p(x) >= best ELBO in the family >= ELBO.

    The VAE is trained with a full-covariance guide and frozen. Then each guide is trained from scratch for its
    posterior, with the same budget. log p(x) depends on the decoder alone: it is estimated once, by annealing
    from the guide that the VAE was trained with, and all gaps are relative to it. PerRow continues from
    MeanField, on the test rows themselves.

    Args:
        data: A name that load_data knows. Gray values are compared with one half; those of MNIST are drawn
            again for each batch instead.
        data_dir: Folder of the data, in torchvision's layout.
        max_epochs: Passes over the training rows for the VAE; the weights with the best held-out ELBO are kept.
        guide_epochs: The same for each guide.
        latent_dim: Number of latent dimensions. With 2, the guides are also drawn over the exact posterior.
        hidden: Widths of the encoder, and of the decoder backwards.
        num_samples: Importance samples per row, and samples for each ELBO.
        temperatures: Number of temperatures of annealed importance sampling, which has 16 chains per row.
        max_steps: Maximum number of steps in the search for the best q of each row.
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        output: Where to save the picture of the gaps; that of the posteriors adds "_posteriors" to the name.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    posteriors = output.with_stem(f"{output.stem}_posteriors")
    for picture in (output, posteriors) if latent_dim == 2 else (output,):
        require_output(picture, overwrite=overwrite)
    binarize: Any = "dynamic" if data == "MNIST" else "threshold"
    rows = load_data(data, data_dir=data_dir, binarize=binarize, max_rows=max_rows, seed=seed)
    test = rows.test[:max_test_rows]
    torch.manual_seed(seed)
    sizes = (rows.shape, latent_dim, MLP(hidden=hidden))

    def budget(epochs: int) -> dict[str, Any]:
        schedule = partial(CosineAnnealingLR, T_max=epochs)
        return dict(max_epochs=epochs, learning_rate=2e-3, lr_scheduler=schedule, seed=seed)

    def held_out(epochs: int) -> dict[str, Any]:
        return dict(**budget(epochs), validation=rows.validation, patience=epochs)

    columns = ["guide", "ELBO", "log p(x), IS", "IS − AIS", "unreliable", "ladder − AIS"]
    columns += ["unreliable, ladder", "approximation gap", "amortization gap", "ms per step"]
    table = Table(columns, steps=11)  # the decoder, log p(x), and nine guides
    model, teacher = VAE(*sizes), guides.FullCovariance(*sizes)
    fit(model, teacher, rows.train, transform=rows.transform, **held_out(max_epochs))
    table.step("the decoder")
    truth = annealed_importance_sampling(model, teacher, test, num_steps=temperatures, seed=seed)
    table.step("log p(x) by annealing")

    mean_field = guides.MeanField(*sizes)
    tried: list[Any] = [
        mean_field,
        guides.LowRank(*sizes),
        guides.FullCovariance(*sizes),
        guides.MixtureOfGaussians(*sizes),
        guides.MaskedAutoregressive(*sizes),
        guides.InverseAutoregressive(*sizes),
        guides.NeuralSpline(*sizes),
        guides.SemiAmortized(model, *sizes),
    ]
    table.head()
    gaps: dict[str, Gaps] = {}
    remarks: dict[str, list[str]] = {}

    def judge(name: str, guide: Any, ms: float) -> None:
        options: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
        plain = evaluate(model, guide, test, method="guide", **options)
        ladder = evaluate(model, guide, test, **options)
        parts = inference_gaps(
            model, guide, test, truth=truth, num_samples=num_samples, max_steps=max_steps, seed=seed
        )
        gaps[name] = parts
        cells = [name, _nats(parts.elbo), _nats(plain.log_likelihood)]
        for found in (plain, ladder):
            off = Estimate(found.log_likelihood.values - truth.log_likelihood.values)
            cells += [_nats(off), f"{found.unreliable.double().mean():.0%}"]
        cells += [_nats(parts.approximation_gap), _nats(parts.amortization_gap), f"{ms:.1f}"]
        table.row(cells)
        table.step(name)
        for words in (*_disagreement(plain, truth), *parts.notes, *parts.warnings):
            remarks.setdefault(words, []).append(name)

    for guide in tried:
        clock = _Clock(rows.transform)
        refit_guide(model, guide, rows.train, transform=clock, **held_out(guide_epochs))
        judge(type(guide).__name__, guide, clock.milliseconds())
    free, clock = guides.PerRow(mean_field, test), _Clock()
    refit_guide(model, free, test, transform=clock, batch_size=len(test), **budget(max_steps))
    judge("PerRow (MeanField)", free, clock.milliseconds())

    with replacing(output, overwrite=overwrite) as file:
        gaps_plot(gaps).savefig(file)
    print(f"\n{len(test)} test rows; nats per row ± standard error over rows. Picture: {output}.")
    print("A step has 128 rows (PerRow: all test rows); its time is the median processor time.")
    print(f"log p(x) by AIS: {_nats(truth.log_likelihood)}, Monte-Carlo error {_error(truth):.3f}.")
    if latent_dim == 2:
        with replacing(posteriors, overwrite=overwrite) as file:
            said = _draw_posteriors(model, teacher, tried, test, gaps, truth, file)
        print(f"{said} Posteriors: {posteriors}.")
    for words, names in remarks.items():
        print(f"- {', '.join(names)}: {words}")


class _Clock:
    """A transform that measures the processor time between batches. Other work on the machine does not
    lengthen it.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.transform = transform
        self.ticks: list[float] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.ticks.append(time.process_time())
        return x if self.transform is None else self.transform(x)

    def milliseconds(self) -> float:
        """Processor time of a typical step."""
        return 1000 * median(b - a for a, b in pairwise(self.ticks))


def _disagreement(found: Evaluation, truth: Annealed) -> list[str]:
    """Whether importance sampling and annealing differ by more than their Monte-Carlo errors."""
    errors = found.log_likelihood_error.double().square() + truth.log_likelihood_error.square()
    error = float(errors.sum().sqrt()) / found.num_rows
    gap = found.log_likelihood.mean - truth.log_likelihood.mean
    if abs(gap) <= 3 * error:
        return []
    cause = "its samples miss mass" if gap < 0 else "annealing has not converged"
    return [f"log p(x) by IS differs from AIS by {gap:.3f} ± {error:.3f} (Monte Carlo): {cause}"]


def _draw_posteriors(
    model: VAE,
    teacher: Any,
    tried: list[Any],
    test: Tensor,
    gaps: dict[str, Gaps],
    truth: Annealed,
    picture: Path,
) -> str:
    """Draws guides over the exact posteriors of rows that are easy, typical and hard for mean-field."""
    grid = posterior_grid(model, teacher, test)
    shown = ("MeanField", "FullCovariance", "MixtureOfGaussians", "NeuralSpline")
    by_name = {type(g).__name__: g for g in tried}
    drawn = {name: guide_on_grid(model, by_name[name], test, grid) for name in shown}
    order = gaps["MeanField"].inference_gap.values.argsort()
    places = [int(order[int(share * (len(test) - 1))]) for share in (0.1, 0.5, 0.9)]
    posterior_contours(grid, drawn, rows=places).savefig(picture)
    off = truth.log_likelihood.mean - grid.log_likelihood.mean
    return (
        f"log p(x) by quadrature: {_nats(grid.log_likelihood)}; AIS differs by {off:.4f} ± "
        f"{_error(truth):.4f} (Monte Carlo)."
    )


def _error(truth: Annealed) -> float:
    """The Monte-Carlo error of the mean over rows."""
    return float(truth.log_likelihood_error.double().square().sum().sqrt()) / truth.num_rows


def _nats(estimate: Estimate) -> str:
    return estimate.numbers(".2f")


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"max_epochs": 2, "guide_epochs": 2, "max_rows": 64, "max_test_rows": 4},
            **{
                "latent_dim": 2,
                "hidden": (16,),
                "num_samples": 50,
                "max_steps": 20,
                "temperatures": 10,
            },
            "output": "inference_gaps_quick.png",
        },
    )
