"""probe(): a few labels and a linear classifier of what a guide makes of rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.objectives import marked_sites
from ppl_vae.pairs import (
    Batch,
    Pair,
    PairError,
    Program,
    RowDensities,
    is_certain,
    rows_first,
)
from ppl_vae.runtime import require_flags, require_number, require_progress, require_seed
from ppl_vae.tasks.encoding import (
    MEAN_SAMPLES,
    draws_for_means,
    means_of_latents,
    require_latents,
)
from ppl_vae.tasks.few_labels_results import Probe
from ppl_vae.tasks.labelled_rows import LabelledRows, cautions
from ppl_vae.tasks.observed import tell

CS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""Weights C of the labels beside the penalty, as scikit-learn's `LogisticRegression` has them."""

FOLDS = 5

Array = NDArray[Any]


def probe(
    model: Program,
    guide: Program,
    train: Any,
    test: Any,
    *,
    labels: int | None = None,
    draws: int = 1,
    Cs: Sequence[float] = CS,
    scale_each: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Probe:
    """Logistic regression of a few labels on what the guide makes of their rows, tested on other rows.

    What it reads of a row are the posterior means of its latents, as `encode` gives them; of codes of a
    quantizer the vectors that the decoder reads. Numbers are shifted by their means over the labelled rows, and
    scaled by the standard deviation of all numbers together. The weight C of the labels is the one with the
    least cross entropy in five-fold cross-validation among the labelled rows; if no class has two of them, C =
    1. Test rows are used for nothing but the accuracy, and rows without a label for nothing.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        train: Rows and their labels, `(x, y)`: rows as for `ppl_vae.fit`, and whole numbers `(n,)` from 0, -1
            where a label is hidden, such as `load_data(..., labels=100).train`.
        test: Rows and labels for the accuracy; rows whose label is hidden do not count.
        labels: How many of the labels to learn from, as many of each class as of any other, chosen at random
            as `load_data(labels=...)` does; None: all that are not hidden.
        draws: How often they are chosen; a classifier for each.
        Cs: The values of C to choose from.
        scale_each: Whether each number has a scale of its own, as `StandardScaler` of scikit-learn gives it.
            That makes noise of numbers that vary little, such as latents that have collapsed, as large as the
            others: with few labels it costs accuracy.
        seed: Seed of the first draw; those that follow have the next seeds. Also of the guide's draws, if its
            means are averages of draws.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        Predictions of each draw and row, and the accuracy.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There are not as many labels, or they are all of one class; a label is no whole number; or
            no test row has one.
        PairError: The guide needs the labels, draws no latents, or keeps parameters for each row.

    Example:
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> y = torch.arange(300) % 2
        >>> x = torch.randn(300, 3) + 4.0 * y[:, None]
        >>> model = ProbabilisticPCA((3,), latent_dim=1).maximum_likelihood(x)
        >>> rows = (x[:200], y[:200]), (x[200:], y[200:])
        >>> found = probe(model, Exact(model), *rows, labels=10, draws=5)
        >>> print(found.accuracy)
        100.00 %
    """
    require_seed(seed)
    require_progress(progress)
    require_flags(scale_each=scale_each)
    values = _Cs(Cs)
    pair = Pair.of(model, guide)
    rows, held = (LabelledRows.of(name, each, pair) for name, each in _named(train, test))
    chosen = rows.draws(labels, draws, seed)
    used = torch.cat(chosen).unique()
    z, z_test = (
        encodings(model, guide, x, seed=seed, progress=progress) for x in (rows.rows(used), held.x)
    )
    predicted, best = [], []
    for i, which in enumerate(chosen):
        at = torch.searchsorted(used, which)
        fitted = LogisticProbe.fit(
            *(z[at].numpy(), rows.labels[which].numpy(), values),
            np.random.default_rng(abs(seed + i)),
            scale_each,
        )
        predicted.append(torch.from_numpy(fitted.predict(z_test.numpy())))
        best.append(fitted.C)
    return Probe(
        predicted=torch.stack(predicted),
        labels=held.labels,
        num_labels=len(chosen[0]),
        method=f"logistic regression on {z.shape[1]} numbers of the guide",
        seeds=tuple(seed + i for i in range(draws)),
        compared_with=rows.key(chosen, held),
        C=tuple(best),
        dimensions=z.shape[1],
        cautions=tuple(cautions(rows, chosen, held)),
    )


def _named(train: Any, test: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("train", train), ("test", test)


def _Cs(given: Sequence[float]) -> list[float]:
    """The values of C in rising order.

    Raises:
        ValueError: There are none, or one is not positive.
    """
    for value in given:
        require_number("Cs", value)
    values = sorted(float(value) for value in given)
    if not values or not 0 < values[0] <= values[-1] < math.inf:
        raise ValueError(f"Cs must hold positive numbers, such as {CS}, got {list(given)}")
    return values


def encodings(
    model: Program, guide: Program, x: Batch, *, seed: int | None, progress: bool | None
) -> Tensor:
    """What a classifier reads of rows: means of their latents, or vectors of their codes, `(n, dimensions)`.

    Raises:
        PairError: The guide draws no latents, or keeps parameters for each row.
    """
    parts = []
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        require_encoder(session)
        draws = draws_for_means(session)
        first = session.sample(session.first, 1).guide_trace
        if not all(is_certain(first.nodes[name]) for name in marked_sites(first)):
            draws = MEAN_SAMPLES  # of the vectors of codes that are drawn
        for chunk in session.chunks(session.rows_at_once(draws), "encode"):
            rows = session.sample(chunk, draws)
            means = means_of_latents(rows) | _vectors_of_codes(rows)
            parts.append(torch.cat([m.double().flatten(1) for m in means.values()], 1).cpu())
    tell(session)
    return torch.cat(parts)


def require_encoder(session: Session) -> None:
    """Refuses a guide that encodes no rows, or only those that it was trained for.

    Raises:
        PairError: It is one.
    """
    require_latents(session)
    if session.pair.keeps_rows:
        raise PairError(
            "the guide keeps parameters for each row, so that it encodes no others: give one with an encoder, "
            "such as MeanField, which refit_guide trains for this model"
        )


def _vectors_of_codes(rows: RowDensities) -> dict[str, Tensor]:
    """The vectors that the decoder reads in the place of codes, by the codes' site, `(n, *event)`."""
    found = {}
    samples, n = rows.log_guide.shape
    for name, vectors in marked_sites(rows.guide_trace).items():
        site = rows.model_trace.nodes.get(vectors)
        if name in rows.layout.latents and site is not None:
            found[name] = rows_first(site, rows.layout, samples, n).mean(0)
    return found


@dataclass(frozen=True)
class LogisticProbe:
    """Shift, scale and logistic regression, fitted.

    Attributes:
        center: Mean of each number of a row.
        scale: What it is divided by: the standard deviation of all numbers together, or with `scale_each` its
            own; 1 if that is 0.
        C: The weight of the labels beside the penalty.
        weight: Of the scaled numbers, one line for each class that was there, `(k, dimensions)`.
        bias: `(k,)`.
        classes: The classes that were there, `(k,)`.
    """

    center: Array
    scale: Array
    C: float
    weight: Array
    bias: Array
    classes: Array

    @classmethod
    def fit(
        cls,
        z: Array,
        y: Array,
        Cs: Sequence[float],
        rng: np.random.Generator,
        scale_each: bool = False,
    ) -> LogisticProbe:
        """Chooses C by cross-validation among these rows, and fits all of them.

        Args:
            z: Numbers of the rows, `(n, dimensions)`.
            y: Their labels, of two classes or more.
            Cs: Values of C in rising order.
            rng: Of the folds.
            scale_each: See `probe`.
        """
        C = _best_C(z, y, Cs, rng, scale_each)
        center, scale = _moments(z, scale_each)
        (fitted,) = _regressions((z - center) / scale, y, [C])
        return cls(center, scale, C, *_lines(fitted), fitted.classes_)

    def predict(self, z: Array) -> Array:
        """The most probable class of each row, `(n,)`."""
        logits = ((z - self.center) / self.scale) @ self.weight.T + self.bias
        found: Array = self.classes[logits.argmax(1)]
        return found


def _moments(z: Array, scale_each: bool) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, or that of all together; 1 for one that does not vary."""
    scale = z.std(0)
    if not scale_each:
        scale = np.full_like(scale, np.sqrt(np.square(scale).mean()))
    return z.mean(0), np.where(scale > 0, scale, 1.0)


def _best_C(
    z: Array,
    y: Array,
    Cs: Sequence[float],
    rng: np.random.Generator,
    scale_each: bool,
) -> float:
    """The C with the least cross entropy of rows that were left out; of several the strongest penalty.

    Where the values cannot be compared, because no class has two rows, it is the one nearest to 1.
    """
    from scipy.special import log_softmax

    folds = _folds(y, rng)
    if len(Cs) == 1 or not (folds >= 0).any():
        return min(Cs, key=lambda c: abs(math.log(c)))
    losses = np.zeros(len(Cs))
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, folds == fold
        center, scale = _moments(z[inside], scale_each)
        fitted = _regressions((z[inside] - center) / scale, y[inside], Cs)
        for i, each in enumerate(fitted):
            weight, bias = _lines(each)
            told = log_softmax(((z[outside] - center) / scale) @ weight.T + bias, axis=1)
            column = np.searchsorted(each.classes_, y[outside])
            losses[i] -= told[np.arange(len(column)), column].sum()
    return float(Cs[int(np.argmin(losses))])


def _lines(fitted: Any) -> tuple[Array, Array]:
    """Weight and bias of each class's logit, of which scikit-learn has but one for two classes."""
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def _folds(y: Array, rng: np.random.Generator) -> Array:
    """The fold in which each row is left out, `(n,)`; -1 for the only row of a class, which is never.

    Each fold leaves rows of each class in, and folds have about the same size.
    """
    counts = np.bincount(y)
    number = min(FOLDS, int(counts.max()))
    found, start = np.full(len(y), -1), 0
    for label in np.flatnonzero(counts > 1):
        rows = rng.permutation(np.flatnonzero(y == label))
        found[rows] = (start + np.arange(len(rows))) % number
        start += len(rows)
    return found


def _regressions(z: Array, y: Array, Cs: Sequence[float]) -> list[Any]:
    """scikit-learn's logistic regression for each C, in rising order: each starts at the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found: list[Any] = []
    with warnings.catch_warnings():
        # Rows that a plane separates have their best weights at infinity as C grows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in Cs:
            each: Any = LogisticRegression(C=c, max_iter=2000, warm_start=True)
            if found:
                each.coef_, each.intercept_ = found[-1].coef_.copy(), found[-1].intercept_.copy()
                each.classes_ = found[-1].classes_
            found.append(each.fit(z, y))
    return found
