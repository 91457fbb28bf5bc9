"""outliers(): the rows that a pair explains worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.pairs import DataLike, Program
from ppl_vae.runtime import described, require_count
from ppl_vae.stats import Estimate, RowResult


@dataclass(frozen=True)
class Outliers(RowResult):
    """Result of `outliers`: the worst row first; per-row values in nats.

    Attributes:
        index: Which rows they are, counted from 0, `(num,)`.
        elbo: Their ELBO.
        distortion: Their -E log p(x | z): how badly they are reconstructed.
        rate: Their KL(q(z | x) || p(z)): how far from the prior they are encoded.
        by: What they are sorted by.
        out_of: The number of all rows.
        at_points: Whether the guide gives points: then `elbo` is log p(x, z) there.
    """

    index: Tensor
    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    by: str
    out_of: int
    at_points: bool = False

    @classmethod
    def of(
        cls, evaluation: Evaluation, *, num: int = 10, by: Literal["elbo", "distortion"] = "elbo"
    ) -> Self:
        """The worst rows of an evaluation that is there already.

        Args:
            evaluation: What `evaluate` returned.
            num: How many; all, if there are fewer.
            by: "elbo", or "distortion"; where a pair has no ELBO, by the distortion in any case.

        Raises:
            TypeError: `evaluation` is something else.
            ValueError: `num` is not positive, or `by` is something else.
        """
        _check(num, by)
        if not isinstance(evaluation, Evaluation):
            raise TypeError(
                f"evaluation must be what evaluate has returned, got {described(evaluation)}"
            )
        if evaluation.elbo.missing:
            by = "distortion"
        badness = -evaluation.elbo.values if by == "elbo" else evaluation.distortion.values
        order = badness.argsort(descending=True)[:num]
        return cls(
            index=order,
            elbo=Estimate(evaluation.elbo.values[order], missing=evaluation.elbo.missing),
            distortion=Estimate(evaluation.distortion.values[order]),
            rate=Estimate(evaluation.rate.values[order], missing=evaluation.rate.missing),
            by=by,
            out_of=len(badness),
            at_points=evaluation.at_points,
        )

    def table(self) -> list[list[str]]:
        """One line for each row."""
        measure = "log p(x, z)" if self.at_points else "ELBO"
        columns = {measure: self.elbo, "distortion": self.distortion, "rate": self.rate}
        if self.elbo.missing:
            columns = {"distortion": self.distortion}
        numbers = zip(
            self.index.tolist(), *(e.values.tolist() for e in columns.values()), strict=True
        )
        lines = [[f"{i}", *(f"{value:.2f}" for value in values)] for i, *values in numbers]
        return [["row", *columns], *lines]

    def lines(self) -> list[tuple[str, str]]:
        """Nothing besides the table."""
        return []


def outliers(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num: int = 10,
    by: Literal["elbo", "distortion"] = "elbo",
    num_samples: int = 100,
    seed: int | None = None,
    progress: bool | None = None,
) -> Outliers:
    """The rows with the lowest ELBO, or the worst reconstructions.

    A low ELBO says that a row is unlike the training rows, or that the guide fails on it; `evaluate` says
    which, by log p(x). A likelihood alone does not find all that is unusual: simple rows can have a high one,
    wherever they come from (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?",
    arXiv:1810.09136).

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows, as for `ppl_vae.fit`.
        num: How many to return; all, if there are fewer.
        by: "elbo", or "distortion", -E log p(x | z); where a pair has no ELBO, by the distortion in any case.
        num_samples: Draws of z per row.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Raises:
        PairError: The programs fail on the rows.
        ValueError: `num` is not positive, or `by` is something else.

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


def _check(num: int, by: str) -> None:
    require_count("num", num)
    if by not in ("elbo", "distortion"):
        raise ValueError(f"by must be 'elbo' or 'distortion', got {by!r}")
