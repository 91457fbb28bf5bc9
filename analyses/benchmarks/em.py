"""Is EM as fast and as good as in other libraries? Same data, start, iterations and threads."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from hmmlearn import hmm
from jsonargparse import auto_cli
from sklearn.decomposition import PCA, FactorAnalysis as SklearnFactors
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from ppl_vae.em import fit_em
from ppl_vae.models import FactorAnalysis, GaussianHMM, GaussianMixture, ProbabilisticPCA

Score = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        name: What is fitted.
        other: The library that it is compared with.
        ours: Fits from the common start (this is timed); returns a function that gives log p(x), nats per row.
        theirs: The same for the other library.
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
    centers = 1.5 * torch.randn(components, size, generator=generator)
    mixing = torch.eye(size) + 0.3 * torch.randn(size, size, generator=generator) / size**0.5
    group = torch.randint(components, (rows,), generator=generator)
    x: Tensor = centers[group] + torch.randn(rows, size, generator=generator) @ mixing
    return x


def factors(rows: int, iterations: int) -> Iterator[Comparison]:
    """Both run to convergence: scikit-learn's steps are not those of EM. 32 dimensions, 5 factors."""
    size, factors = 32, 5
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(factors, size, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, factors, generator=generator, dtype=torch.float64) @ loadings
    noise = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    x += 3.0 + noise * torch.linspace(0.5, 2.0, size, dtype=torch.float64)

    def ours() -> Score:
        model = FactorAnalysis((size,), factors).double()
        fitted = fit_em(model, x, tolerance=3e-6, device="cpu")
        return lambda: fitted.log_likelihood

    def theirs() -> Score:
        fitted = SklearnFactors(factors, svd_method="lapack").fit(x.numpy())
        return lambda: float(fitted.score(x.numpy()))

    yield Comparison("FactorAnalysis, converged", "scikit-learn", ours, theirs)

    def our_pca() -> Score:
        model = ProbabilisticPCA((size,), factors).double().maximum_likelihood(x)
        return lambda: float(model.log_evidence(x).detach().mean())

    def their_pca() -> Score:
        fitted = PCA(factors).fit(x.numpy())
        return lambda: float(fitted.score(x.numpy()))

    yield Comparison("ProbabilisticPCA, closed form", "scikit-learn", our_pca, their_pca)


def hidden_markov(
    rows: int, iterations: int, implementation: str, sequences: int
) -> Iterator[Comparison]:
    """Diagonal Gaussians of 2 dimensions, 5 states; `rows` counts the steps of all sequences."""
    states, size, steps = 5, 2, rows // sequences
    x = _clusters(sequences * steps, size, states).double().reshape(sequences, steps, size)
    model = GaussianHMM((steps, size), states).double()
    model.initialize(x[:, :2000], seed=0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chain = model.prior(2)

    def ours() -> Score:
        model.load_state_dict(start)
        fitted = fit_em(
            model, x, initialize=False, max_iterations=iterations, tolerance=0.0, device="cpu"
        )
        return lambda: fitted.log_likelihood

    def theirs() -> Score:
        reference = hmm.GaussianHMM(
            states,
            "diag",
            n_iter=iterations,
            tol=-math.inf,
            init_params="",
            covars_prior=0.0,
            implementation=implementation,
        )
        reference.startprob_ = chain.initial_logits.detach().exp().numpy()
        reference.transmat_ = chain.transition_logits[0].detach().exp().numpy()
        reference.means_ = start["means"].numpy().copy()
        reference.covars_ = (2 * start["covariance.log_scale"]).exp().numpy()
        reference.fit(x.flatten(0, 1).numpy(), [steps] * sequences)
        rows = x.flatten(0, 1).numpy()
        return lambda: float(reference.score(rows, [steps] * sequences)) / len(x)

    name = f"GaussianHMM, {sequences} x {steps} steps"
    yield Comparison(name, f"hmmlearn ({implementation})", ours, theirs)


SECTIONS: tuple[Section, ...] = (
    partial(gaussian_mixtures, dtype=torch.float32),
    partial(gaussian_mixtures, dtype=torch.float64),
    factors,
    partial(hidden_markov, implementation="log", sequences=1000),
    partial(hidden_markov, implementation="scaling", sequences=1000),
    partial(hidden_markov, implementation="log", sequences=1),
    partial(hidden_markov, implementation="scaling", sequences=1),
)


def main(rows: int = 100_000, iterations: int = 10, repeats: int = 5, threads: int = 1) -> None:
    """Times fit_em and other libraries in turns from the same start, and compares log p(x).

    Args:
        rows: Rows of data.
        iterations: EM iterations of every fit.
        repeats: Number of fits of each; the medians of their times are compared.
        threads: Threads of torch, BLAS and OpenMP.
    """
    torch.set_num_threads(threads)
    print("| model | other | ours, s | theirs, s | ours / theirs | difference of log p(x) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with threadpool_limits(threads), warnings.catch_warnings():
        # No fit converges in a fixed number of iterations.
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
