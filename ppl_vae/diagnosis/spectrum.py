"""Residuals in units of a decoder's noise, and which further dimensions would pay by their covariance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.diagnosis.scores import Scores
from ppl_vae.runtime import own_generator

WORTH = 0.01
"""Nats per row that a further dimension has to gain to be worth it."""

FEWEST_EVENTS = 5.0
"""Fisher information of a number, summed over all rows, below which its residuals tell nothing.

That is the variance of counts and bits, and the number of values of a normal number.
"""

_LEAST = 1e-9  # of beta
_SHUFFLES = 20  # of few numbers, whose largest eigenvalue varies most
_FEWEST, _LARGE = 3, 2**18  # of more numbers than that
_MORE = 1.1  # than the largest of so few shuffles
_ERRORS = 3.0  # standard errors of a variance that is off by chance
_TINY = 1e-300
_ROUNDING = 1e-6  # variance in units of a noise that suits: what is below is none
_ROUNDINGS = 8  # of a number: what is left of it below so many is rounding
_EXACTLY = 1000  # the size up to which all eigenvalues are found
_EXPLAINED = 0.01  # variance in units of the noise from which on a direction is one that the decoder explains


class Directions(NamedTuple):
    """Residuals of n rows along m directions, in which they have variance 1 if the model fits.

    Attributes:
        left: What is left of the data, `(n, m)`.
        explained: The location, in the same units, `(n, m)`; 0 where the likelihood has no scale.
        numbers: To which number of the data each direction belongs, `(m,)`.
        squares: Mean squared residuals over rows and draws, `(m,)`; NaN where a likelihood is not normal.
        noise: The variance of the noise, `(m,)`; NaN where it is not known.
        error: The relative standard error of the Fisher information, in whose units they are, `(m,)`.
    """

    left: Tensor
    explained: Tensor
    numbers: Tensor
    squares: Tensor
    noise: Tensor
    error: Tensor

    @classmethod
    def of(cls, found: Sequence[Scores]) -> Directions:
        """The directions of one site; those of which the rows tell next to nothing are left out."""
        score, present = (torch.cat([getattr(s, of) for s in found]) for of in ("score", "present"))
        n, _, k = score.shape
        sizes = torch.tensor([len(s.score) for s in found], dtype=torch.float64)
        means = torch.stack([s.information.double() for s in found])
        information = torch.einsum("b,bmkl->mkl", sizes, means) / n
        score, there = score.double(), present.double().unsqueeze(-1)
        score = score - there * (score.sum(0) / there.sum(0).clamp(min=1e-9))
        values, vectors = torch.linalg.eigh(information) if k > 1 else (information[..., 0], None)
        turned = score if vectors is None else torch.einsum("nmk,mkl->nml", score, vectors)
        told = values * n >= FEWEST_EVENTS
        unit = values.clamp(min=0.0).sqrt()
        left = (turned / torch.where(told, unit, 1.0))[:, told]
        numbers = told.nonzero()[:, 0]

        def of_numbers(name: str) -> Tensor | None:
            """What all parts have of each number, `(n, directions)`."""
            parts = [getattr(s, name) for s in found]
            known = [part for part in parts if part is not None]
            return torch.cat(known).double()[:, numbers] if len(known) == len(parts) else None

        explained, squares, noise, curvature = map(
            of_numbers, ("explained", "squares", "noise", "curvature")
        )
        if explained is not None:
            explained = explained * unit[numbers, 0]
            exact = max(
                torch.finfo(s.explained.dtype).eps for s in found if s.explained is not None
            )
            rounding = (_ROUNDINGS * exact * explained).square().mean(0)
            left = left.masked_fill(left.square().mean(0) <= rounding, 0.0)
            explained = explained - explained.mean(0)
        nan = torch.full((len(numbers),), math.nan, dtype=torch.float64)
        share = present.double().mean(0)[numbers].clamp(min=1e-9)
        return cls(
            left,
            torch.zeros_like(left) if explained is None else explained,
            numbers,
            nan if squares is None else squares.mean(0) / share,
            nan if noise is None else noise.mean(0),
            torch.zeros_like(nan)
            if curvature is None
            else _variance_of_mean(curvature).sqrt() / values[numbers, 0],
        )

    @classmethod
    def joined(cls, parts: Sequence[Directions]) -> Directions:
        """The directions of several sites, side by side."""
        starts, numbers = 0, []
        for part in parts:
            numbers.append(part.numbers + starts)
            starts += int(part.numbers.max()) + 1 if len(part.numbers) else 0
        joined = cls(*(torch.cat(of, -1) for of in zip(*parts, strict=True)))
        return joined._replace(numbers=torch.cat(numbers))

    def rest(self) -> tuple[Directions, Tensor]:
        """The same without the directions that the decoder explains.

        A second tensor says how much of each direction that is: 1 if nothing is explained, `(m,)`.
        """
        used = _directions(self.explained, _EXPLAINED)
        left = self.left - self.left @ used @ used.T
        return self._replace(left=left), 1 - used.square().sum(1)

    def by_chance(self) -> float:
        """The largest eigenvalue where the numbers are independent, with variance 1."""
        n, size = self.left.shape
        found = [_MORE * float(eigenvalues(copy, 1).sum()) for copy in self.shuffled(1.0)]
        return max([(1 + math.sqrt(size / n)) ** 2, *found])

    def shuffled(self, variance: Tensor | float) -> Iterator[Tensor]:
        """Copies of what is left in which the numbers are independent of each other.

        The directions of one number stay together. A direction keeps the variance that its rows have if that is
        the expected one but for chance: the largest eigenvalue has the same chance. Otherwise it gets the
        expected one.

        Args:
            variance: The expected variance of each direction.
        """
        squares = self.left.square()
        own = squares.mean(0)
        error = (_variance_of_mean(squares) + (self.error * own).square()).sqrt()
        expected = torch.as_tensor(variance, dtype=own.dtype).expand_as(own)
        by_chance = (own - expected).abs() <= _ERRORS * error
        scale = torch.where(by_chance, 1.0, (expected / own.clamp(min=_TINY)).sqrt())
        unit = torch.where(own > 0, self.left * scale, 0.0)
        which = self.numbers.unique(return_inverse=True)[1]
        count = int(which.max()) + 1 if len(which) else 0
        generator = own_generator()
        for _ in range(_FEWEST if unit.numel() > _LARGE else _SHUFFLES):
            order = torch.rand((len(unit), count), generator=generator).argsort(0)
            yield unit.gather(0, order[:, which])


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of the covariance of standardized residuals.

    Attributes:
        values: The eigenvalues, largest first.
        edge: What the largest one is by chance, if the truth is 1.
    """

    values: Tensor
    edge: float

    def paying(self, beta: float) -> int:
        """How many further dimensions would pay for their KL, under a weight of it."""
        return sum(_pays(float(value) / max(beta, _LEAST), self.edge) for value in self.values)

    def says(self, beta: float, trained: float | None = None) -> str:
        """The numbers, in words, under a weight of the KL; and under another one with which it was trained."""
        top = float(self.values[0]) if len(self.values) else 0.0
        count = self.paying(beta)
        text = (
            f"the residuals of the data vary by up to {top:.3g} times the decoder's noise, and by "
            f"{self.edge:.3g} times by chance"
        )
        if not count:
            return text
        nats = beta * _gain(top / beta) if beta > _LEAST else top / 2
        more = "one more dimension" if count == 1 else f"{count} more dimensions"
        at = "" if trained is None else f" at beta = {beta:g}, and none at {trained:g}"
        return f"{text}: {more} would pay{at}, the first with {nats:.2g} nats"


def more_dimensions(rest: Directions, free: Tensor, unused: int) -> tuple[str, float] | None:
    """How many further dimensions would pay if the noise were the best one, in words; None if none would.

    With so many more dimensions, the best noise is what they leave of the rest: that is returned, too, in units
    of the noise, squared. The eigenvalues are compared with it, and with what that ratio is by chance.

    Args:
        rest: What is left of the data.
        free: How much of each direction no dimension explains, `(m,)`.
        unused: The most dimensions there could be.
    """
    size = round(float(free.sum()))
    most = min(unused, size - 1, len(rest.left))
    total = float(rest.left.square().sum()) / len(rest.left)
    if most < 1 or total <= 0:
        return None
    edge = (1 + math.sqrt(size / len(rest.left))) ** 2
    limits = [edge] * most
    for copy in rest.shuffled(free * (total / float(free.sum()))):
        ratios = [ratio for ratio, _ in _ratios(copy, size, most)]
        limits = [max(limit, _MORE * ratio) for limit, ratio in zip(limits, ratios, strict=True)]
    found = _ratios(rest.left, size, most)
    for count in range(most, 0, -1):
        ratio, share = found[count - 1]
        if _pays(ratio, limits[count - 1]):
            return f"{count} more dimension{'s' if count > 1 else ''} would pay", share
    return None


def _ratios(left: Tensor, size: int, most: int) -> list[tuple[float, float]]:
    """For 1, 2, ... more dimensions, the variance of the last one in units of what they leave; and that."""
    total = float(left.square().sum()) / len(left)
    values = eigenvalues(left, most)
    found = []
    for count in range(1, most + 1):
        share = total - float(values[:count].sum())
        share = max(_ROUNDING, share / (size - count))
        found.append((float(values[count - 1]) / share, share))
    return found


def eigenvalues(centered: Tensor, count: int) -> Tensor:
    """The largest eigenvalues of the covariance of rows."""
    n, size = centered.shape
    count = min(count, n, size)
    if count <= 0:
        return centered.new_zeros(0)
    if min(n, size) <= _EXACTLY:
        gram = centered.T @ centered if size <= n else centered @ centered.T
        exact: Tensor = torch.linalg.eigvalsh(gram / n).flip(0)[:count]
        return exact.clamp(min=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(own_generator().initial_seed())
        wide = min(count + 10, n, size)
        values: Tensor = torch.svd_lowrank(centered, wide, niter=8)[1]
        return values[:count].square() / n


def _variance_of_mean(values: Tensor) -> Tensor:
    """The sampling variance of the mean over rows; 0 for one row, of which it is not known."""
    n = len(values)
    found: Tensor = (values - values.mean(0)).square().sum(0) / (n * max(n - 1, 1))
    return found


def _gain(ratio: float) -> float:
    """Nats that a dimension gains where the residuals vary by so many times what is free."""
    return 0.5 * (ratio - 1 - math.log(ratio)) if ratio > 1 else 0.0


def _pays(ratio: float, edge: float) -> bool:
    """Whether a dimension pays where the residuals vary by so many times what is free: not by chance alone."""
    return ratio > edge and _gain(ratio) > WORTH


def _directions(x: Tensor, least: float) -> Tensor:
    """Orthonormal directions along which the variance of rows is at least `least`: `(D, directions)`."""
    x = x - x.mean(0)
    n, size = x.shape
    if size <= n:
        variances, vectors = torch.linalg.eigh(x.T @ x / n)
        found: Tensor = vectors[:, variances > least]
        return found
    variances, vectors = torch.linalg.eigh(x @ x.T / n)
    kept = variances > least
    found = x.T @ vectors[:, kept] / (n * variances[kept]).sqrt()
    return found
