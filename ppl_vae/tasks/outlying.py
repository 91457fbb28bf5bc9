"""outliers(): the rows that a pair explains worst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from torch import Tensor

from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.pairs import AT_POINT, DISTORTION, ELBO_MEASURE, MEASURES, DataLike, Measure, Program
from ppl_vae.runtime import described, require_count
from ppl_vae.stats import Estimate, RowResult

By = Literal["elbo", "log_joint", "distortion"]
"""What rows can be sorted by."""


@dataclass(frozen=True)
class Outliers(RowResult):
    """Result of `outliers`: the worst row first; per-row values in nats.

    Attributes:
        index: Which rows they are, counted from 0, `(num,)`.
        elbo: Their ELBO, or what the pair has in its place (`measure`).
        distortion: Their -E log p(x | z): how badly they are reconstructed.
        rate: Their KL(q(z | x) || p(z)): how far from the prior they are encoded.
        by: What they are sorted by: "elbo"; "log_joint", which is log p(x, z) where the guide gives points; or
            "distortion".
        out_of: The number of all rows.
        measure: What `elbo` and `rate` are called, also in `rows()` and `to_dict()`; that of the evaluation.
    """

    index: Tensor
    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    by: str
    out_of: int
    measure: Measure = ELBO_MEASURE

    @classmethod
    def of(cls, evaluation: Evaluation, *, num: int = 10, by: By | None = None) -> Self:
        """The worst rows of an evaluation that is there already.

        Args:
            evaluation: What `evaluate` returned.
            num: How many; all, if there are fewer.
            by: See `outliers`.

        Raises:
            TypeError: `evaluation` is something else.
            ValueError: `num` is not positive, or `by` is something else, or what the pair does not have.
        """
        _check(num, by)
        if not isinstance(evaluation, Evaluation):
            raise TypeError(
                f"evaluation must be what evaluate has returned, got {described(evaluation)}"
            )
        by = _chosen(evaluation, by)
        worth = evaluation.distortion if by == "distortion" else evaluation.elbo
        badness = worth.values if by == "distortion" else -worth.values
        order = badness.argsort(descending=True)[:num]
        return cls(
            index=order,
            elbo=Estimate(evaluation.elbo.values[order], missing=evaluation.elbo.missing),
            distortion=Estimate(evaluation.distortion.values[order]),
            rate=Estimate(evaluation.rate.values[order], missing=evaluation.rate.missing),
            by=by,
            out_of=len(badness),
            measure=evaluation.measure,
        )

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield "measure", self.measure.name
        yield from self.measure.of(dict(super()._values())).items()

    def table(self) -> list[list[str]]:
        """One line for each row."""
        measure = self.measure
        columns = {
            measure.text: self.elbo,
            "distortion": self.distortion,
            measure.rate_text: self.rate,
        }
        if measure is DISTORTION:
            columns = {"distortion": self.distortion}
        numbers = zip(
            self.index.tolist(), *(e.values.tolist() for e in columns.values()), strict=True
        )
        lines = [[f"{i}", *(f"{value:.2f}" for value in values)] for i, *values in numbers]
        return [["row", *columns], *lines]

    def lines(self) -> list[tuple[str, str]]:
        """Nothing besides the table."""
        return []

    def caption(self) -> list[str]:
        """What they are sorted by."""
        order = "highest" if self.by == "distortion" else "lowest"
        text = next(each.text for each in MEASURES if each.name == self.by)
        return [f"the {len(self.index)} of {self.out_of:,} rows with the {order} {text}, nats"]


def outliers(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num: int = 10,
    by: By | None = None,
    num_samples: int = 100,
    seed: int | None = None,
    progress: bool | None = None,
) -> Outliers:
    """The rows with the lowest ELBO, or what a pair has in its place, or the worst reconstructions.

    A low ELBO says that a row is unlike the training rows, or that the guide fails on it; `evaluate` says
    which, by log p(x). A likelihood alone does not find all that is unusual: simple rows can have a high one,
    wherever they come from (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?",
    arXiv:1810.09136).

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows, as for `ppl_vae.fit`.
        num: How many to return; all, if there are fewer.
        by: "elbo"; "log_joint", which a pair whose guide gives points has in its place; or "distortion", -E log
            p(x | z). None: by the first that the pair has; the result says which.
        num_samples: Draws of z per row.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Raises:
        PairError: The programs fail on the rows.
        ValueError: `num` is not positive, or `by` is something else, or something that the pair does not have.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((3,), latent_dim=1), torch.zeros(50, 3)
        >>> x[17] = 30.0
        >>> outliers(model, Exact(model), x, num=1, seed=0).index
        tensor([17])
    """
    _check(num, by)
    found = evaluate(
        model, guide, x, num_samples=num_samples, method="guide", seed=seed, progress=progress
    )
    return Outliers.of(found, num=num, by=by)


def _check(num: int, by: str | None) -> None:
    require_count("num", num)
    if by is not None and by not in get_args(By):
        names = "', '".join(get_args(By))
        raise ValueError(f"by must be '{names}' or None, got {by!r}")


def _chosen(evaluation: Evaluation, by: By | None) -> By:
    """What to sort by.

    Raises:
        ValueError: The pair does not have what is asked for.
    """
    own: By = "elbo"
    why = "the guide gives a density, so that there is an ELBO"
    # Where p(z) of some rows is improper, they could not be compared with the others.
    if evaluation.measure is DISTORTION:
        own, why = "distortion", f"there is no ELBO: {evaluation.elbo.missing}"
    elif evaluation.measure is AT_POINT:
        own, why = "log_joint", "the guide gives points, at which there is log p(x, z) in its place"
    if by in (None, own, "distortion"):
        return by or own
    other = "" if own == "distortion" else ", or by='distortion'"
    raise ValueError(f"by={by!r} is not defined for this pair, as {why}: give by={own!r}{other}")
