"""Is EM as fast and as good as in the libraries for it? Same data, start, iterations and threads."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from jsonargparse import auto_cli
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from ppl_vae.em import fit_em
from ppl_vae.models import GaussianMixture

Score = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        name: What is fitted.
        other: Whose implementation it is compared with.
        ours: Fits from the common start, which is timed; returns what gives log p(x), nats a row.
        theirs: Likewise.
    """

    name: str
    other: str
    ours: Callable[[], Score]
    theirs: Callable[[], Score]


Section = Callable[[int, int], Iterator[Comparison]]
"""Comparisons for a number of rows and of iterations."""


def gaussian_mixtures(rows: int, iterations: int, dtype: torch.dtype) -> Iterator[Comparison]:
    """Each kind of covariance, 10 components of 16 dimensions."""
    components, size = 10, 16
    x = _clusters(rows, size, components).to(dtype)
    for kind, name in _SKLEARN_COVARIANCES.items():
        model = GaussianMixture((size,), components, kind).to(dtype)  # type: ignore[arg-type]
        model.initialize(x[:10_000], seed=0)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        sklearn = partial(
            SklearnMixture,
            components,
            covariance_type=name,
            reg_covar=0.0,
            tol=0.0,
            max_iter=iterations,
            init_params="random_from_data",
            weights_init=model.logits.detach().double().softmax(0).numpy(),
            means_init=model.means.detach().double().clone().numpy(),
            precisions_init=_precisions(model, kind).detach().numpy(),
        )

        def ours(model: GaussianMixture = model, start: dict[str, Tensor] = start) -> Score:
            model.load_state_dict(start)
            fitted = fit_em(
                model, x, initialize=False, max_iterations=iterations, tolerance=0.0, device="cpu"
            )
            return lambda: fitted.log_likelihood

        def theirs(sklearn: Callable[[], Any] = sklearn) -> Score:
            fitted = sklearn().fit(x.numpy())
            return lambda: float(fitted.score(x.double().numpy()))

        precision = str(dtype).removeprefix("torch.")
        yield Comparison(f"GaussianMixture, {kind}, {precision}", "scikit-learn", ours, theirs)


_SKLEARN_COVARIANCES = {
    "full": "full",
    "diagonal": "diag",
    "tied": "tied",
    "spherical": "spherical",
}


def _precisions(model: GaussianMixture, kind: str) -> Tensor:
    p: Any = model.decode(torch.arange(model.components))
    if kind in ("full", "tied"):
        of_each: Tensor = torch.linalg.inv(p.covariance_matrix.double())
        return of_each if kind == "full" else of_each[0]
    of_each = p.base_dist.variance.double().reciprocal()
    return of_each if kind == "diagonal" else of_each[:, 0]


def _clusters(rows: int, size: int, components: int) -> Tensor:
    """Overlapping groups of one shape."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(components, size, generator=generator)
    mixing = torch.eye(size) + 0.3 * torch.randn(size, size, generator=generator) / size**0.5
    group = torch.randint(components, (rows,), generator=generator)
    x: Tensor = centres[group] + torch.randn(rows, size, generator=generator) @ mixing
    return x


SECTIONS: tuple[Section, ...] = (
    partial(gaussian_mixtures, dtype=torch.float32),
    partial(gaussian_mixtures, dtype=torch.float64),
)


def main(rows: int = 100_000, iterations: int = 10, repeats: int = 5, threads: int = 1) -> None:
    """Times fit_em and other libraries from the same start, turn and turn about, and compares log p(x).

    Args:
        rows: Rows of data.
        iterations: EM iterations of every fit.
        repeats: Fits of each; the medians of their times are compared.
        threads: Threads of torch, BLAS and OpenMP.
    """
    torch.set_num_threads(threads)
    print("| model | other | ours, s | theirs, s | ours / theirs | difference of log p(x) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with threadpool_limits(threads), warnings.catch_warnings():
        # Nobody converges in a fixed number of iterations.
        warnings.filterwarnings("ignore", "Best performing initialization did not converge")
        for section in SECTIONS:
            for comparison in section(rows, iterations):
                seconds: tuple[list[float], list[float]] = ([], [])
                for _ in range(repeats):
                    scores = []
                    for fit, times in zip(
                        (comparison.ours, comparison.theirs), seconds, strict=True
                    ):
                        started = time.perf_counter()
                        scores.append(fit())
                        times.append(time.perf_counter() - started)
                ours, theirs = map(median, seconds)
                cells = [comparison.name, comparison.other, f"{ours:.3f}", f"{theirs:.3f}"]
                cells += [f"{ours / theirs:.2f}", f"{scores[0]() - scores[1]():.1e}"]
                print("|", " | ".join(cells), "|", flush=True)
    print(f"\n{rows} rows, {iterations} iterations, medians of {repeats} fits, {threads} threads.")


if __name__ == "__main__":
    auto_cli(main)
