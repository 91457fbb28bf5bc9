"""What a decoder leaves of the data, and whether further latent dimensions could explain it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.diagnosis.causes import listed
from ppl_vae.diagnosis.scores import (
    Scores,
    frequent,
    scores_of,
    suiting_factor,
    why_no_scores,
)
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import Layout, RowDensities, Site, innermost, is_factor

WORTH = 0.01
"""Nats per row that a further dimension has to gain to be worth it."""

FEWEST_EVENTS = 5.0
"""Fisher information of a number, summed over all rows, below which its residuals tell nothing.

That is the variance of counts and bits, and the number of values of a normal number.
"""

SUITS = 0.9
"""A decoder's noise suits the data if what they leave has so much of its variance."""

_VALUES = 2**24  # how many standardized numbers are kept, about
_LEAST = 1e-9  # of beta
_SHUFFLES = 3
_MORE = 1.1  # than the largest of so few shuffles
_EXACTLY = 1000  # the size up to which all eigenvalues are found


@dataclass(frozen=True)
class Verdict:
    """What the residuals say of dimensions that are not used.

    Attributes:
        cause: `surplus dimensions`, `decoder noise`, `large beta`, or `local optimum` if the data would pay for
            further dimensions as the pair is; None if that is not known.
        evidence: The numbers that show it.
        sigma: The noise that suits the residuals, if the decoder is normal with one noise, else None.
    """

    cause: str | None
    evidence: str
    sigma: float | None = None


class Residuals:
    r"""Residuals of a decoder in units of its noise, and the spectrum of their covariance.

    Let $s = \nabla_\eta \log p(x \mid \eta)$ be the score of a row in the decoder's outputs $\eta$, and
    $J = -\nabla^2_\eta \log p(x \mid \eta)$, whose mean is the Fisher information of a model that fits. A
    further dimension $\eta + w z'$ with a small w raises the best beta-ELBO of a row by

    $$\frac{1}{2 \beta} (w^T s)^2 - \frac{1}{2} w^T J w,$$

    so it pays if and only if an eigenvalue l of the covariance of $F^{-1/2} s$ exceeds beta, with F the mean of
    J. In a linear normal decoder that is the condition l_i > beta sigma^2 (Lucas et al., *Don't Blame the
    ELBO!*, arXiv:1911.02469), and the gain is $\beta (l / \beta - 1 - \log (l / \beta)) / 2$ nats.

    - Normal numbers: $F^{-1/2} s$ is x less its mean in units of the noise.
    - Bits and counts (Bernoulli, binomial, Poisson): s is x less its mean, and F the variance.
    - Categories: s is the vector of indicators less the probabilities p, and F = diag(p) - p p^T. Of C
      categories one is left out, as F has the rank C - 1.
    - A discretized logistic, with a and b the ends of the interval of x in units of the scale and the logistic
      function g: s = g(a) + g(b) - 1, and J = g'(a) + g'(b).
    - Absolute errors (Laplace): s is a sign, and J is 0 but at one point: F is a difference.
    - Others: derivatives in their location, log odds, or the logarithm of a rate or a concentration.
    - What a mask leaves out has s = 0 and J = 0: a number that is there in a share r of the rows has r times
      the information.

    By chance, the largest eigenvalue of n rows of D numbers is $(1 + \sqrt{D / n})^2$ (Marchenko and Pastur),
    and more if the numbers have heavy tails, as rows show whose numbers are shuffled one by one.
    """

    def __init__(self) -> None:
        self._unknown = ""
        self._normal = True
        self._sites: dict[str, list[Scores]] = {}
        self._kept: dict[str, Tensor | None] = {}
        # With the scale that suits the data, if the decoder's is larger: by how much less, and the scores then.
        self._factors: dict[str, float] = {}
        self._suited: dict[str, list[Scores]] = {}
        self._numbers = 0
        self._squares = 0.0
        self._noise = 0.0
        self._rows = 0

    def update(self, rows: RowDensities, layout: Layout) -> None:
        """Adds the draws for a batch of rows."""
        nodes = rows.model_trace.nodes
        sites = {name: nodes[name] for name in layout.observed if not _is_told(nodes[name])}
        for site in sites.values():
            self._unknown = self._unknown or why_no_scores(layout, site)
        if self._unknown or not sites:
            self._unknown = self._unknown or "the model observes nothing that it explains"
            return
        if self._numbers >= _VALUES:
            return
        self._rows += rows.log_guide.shape[1]
        squares, noise, numbers = 0.0, 0.0, 0
        for name, site in sites.items():
            if name not in self._kept:
                self._kept[name] = frequent(rows, layout, site)
                self._factors[name] = suiting_factor(site) or 1.0
            factor = self._factors[name]
            found = scores_of(rows, layout, site, self._kept[name], factor)
            before = self._sites.setdefault(name, [])
            if before and before[0].score.shape[1:] != found.score.shape[1:]:
                self._unknown = "rows have different sizes"
                return
            if not bool(found.score.isfinite().all() & found.information.isfinite().all()):
                self._unknown = "the likelihood has no finite mean and variance"
                return
            before.append(found.kept())
            if factor**2 < SUITS:
                found_suited = scores_of(rows, layout, site, None, factor, stretch=True)
                self._suited.setdefault(name, []).append(found_suited.kept())
            self._numbers += found.score.numel()
            self._normal &= found.squares is not None
            if found.squares is not None and found.noise is not None:
                size = found.score.shape[1]
                squares += float(found.squares.sum()) * size
                noise += float(found.noise.sum()) * size
                numbers += size
        self._squares += squares / max(numbers, 1)
        self._noise += noise / max(numbers, 1)
        if len(self._sites) != len(sites):
            self._unknown = "rows have different sites"

    @property
    def unknown(self) -> str:
        """Why nothing is known, in words; empty if it is."""
        return self._unknown or ("there is one row" if self._rows < 2 else "")

    def verdict(self, beta: float, unused: int) -> Verdict:
        """Why some dimensions are not used.

        Args:
            beta: The weight of the KL that the pair was trained with.
            unused: How many they are.
        """
        if self.unknown:
            return Verdict(None, "")
        left, explained, numbers = _together(self._sites)
        size = left.shape[1]
        if size == 0:
            self._unknown = (
                f"{self._rows} rows are too few, as all of them tell less of each number of x than "
                f"{FEWEST_EVENTS:g} values of a normal number would; give more rows"
            )
            return Verdict(None, "")
        edge = _by_chance(left, numbers)
        spectrum = Spectrum(_eigenvalues(left, unused), edge)
        if spectrum.paying(beta) and beta > 1 and not self._normal:
            # The second order is not enough then: of data that vary more than the likelihood allows, it says
            # that next to no weight pays, under any beta.
            return Verdict("large beta", spectrum.says(1.0))
        if spectrum.paying(beta):
            return Verdict("local optimum", spectrum.says(beta))
        rest, free = left, size
        if self._normal:
            used = _directions(explained, 0.01)
            rest, free = left - left @ used @ used.T, size - used.shape[1]
        if free <= 0:
            return Verdict(
                "surplus dimensions", "the decoder reproduces every direction of the data"
            )
        of_rest = Spectrum(_eigenvalues(rest, unused), edge)
        if beta > 1 and of_rest.paying(1.0):
            return Verdict("large beta", of_rest.says(1.0, beta))
        surplus = Verdict("surplus dimensions", of_rest.says(1.0))
        if self._normal:
            return self._of_noise(rest, free, unused, edge, beta) or surplus
        return self._of_scales(unused) or surplus

    def _of_noise(
        self, rest: Tensor, free: int, unused: int, edge: float, beta: float
    ) -> Verdict | None:
        """Whether a smaller noise would show what the dimensions could explain."""
        total = float(rest.square().sum()) / len(rest)
        if total / free >= SUITS:  # what is left looks like the noise
            return None
        found = _more_dimensions(rest, free, unused, edge)
        if found is None:
            return None
        more, share = found
        best = None
        evidence = f"with {math.sqrt(share):.2g} times the noise, {more}"
        if len(self._sites) == 1 and self._noise > 0:  # otherwise there are several noises
            sigma = math.sqrt(self._noise / self._rows)
            best, left = (sigma * math.sqrt(of) for of in (share, total / free))
            evidence = (
                f"the noise is {sigma:.3g} and what is left of the data {left:.3g}; with noise of "
                f"{best:.3g}, {more}"
            )
        # If it is at its optimum nevertheless, beta is the cause.
        if beta > 1 and abs(self._squares / self._rows - 1) < 0.02:
            return Verdict("large beta", evidence)
        return Verdict("decoder noise", evidence, best)

    def _of_scales(self, unused: int) -> Verdict | None:
        """The same for other likelihoods with a scale: the one with which log p(x | z) is largest."""
        if not self._suited:
            return None
        left, explained, numbers = _together(self._sites | self._suited)
        used = _directions(explained, 0.01)
        rest, free = left - left @ used @ used.T, left.shape[1] - used.shape[1]
        found = (
            _more_dimensions(rest, free, unused, _by_chance(left, numbers)) if free > 0 else None
        )
        if found is None:
            return None
        where = {name: f" at '{name}'" if len(self._sites) > 1 else "" for name in self._suited}
        each = [f"{self._factors[name]:.2g} times the decoder's{of}" for name, of in where.items()]
        return Verdict(
            "decoder noise",
            f"the scale that suits the data is {listed(each)}; with that, {found[0]}",
        )


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


def _gain(ratio: float) -> float:
    """Nats that a dimension gains where the residuals vary by so many times what is free."""
    return 0.5 * (ratio - 1 - math.log(ratio)) if ratio > 1 else 0.0


def _pays(ratio: float, edge: float) -> bool:
    """Whether a dimension pays where the residuals vary by so many times what is free: not by chance alone."""
    return ratio > edge and _gain(ratio) > WORTH


def _more_dimensions(rest: Tensor, free: int, unused: int, edge: float) -> tuple[str, float] | None:
    """How many further dimensions would pay if the noise were the best one, in words; None if none would.

    With so many more dimensions, the best noise is what they leave of the rest: that is returned, too, in units
    of the noise, squared.

    Args:
        rest: What is left of the data, `(n, directions)`.
        free: The number of directions that no dimension explains.
        unused: The most dimensions there could be.
        edge: What the largest eigenvalue is by chance.
    """
    total = float(rest.square().sum()) / len(rest)
    values = _eigenvalues(rest, min(unused, free - 1))
    for count in range(len(values), 0, -1):
        share = (total - float(values[:count].sum())) / (free - count)
        if share <= 0 or _pays(float(values[count - 1]) / share, edge):
            return f"{count} more dimension{'s' if count > 1 else ''} would pay", max(share, 0.0)
    return None


def _is_told(site: Site) -> bool:
    """Whether a site is one that rows come with, such as labels, or a factor: no latent explains it."""
    return isinstance(innermost(site["fn"]), Given | Revealed) or is_factor(site)


def _in_units(found: list[Scores]) -> tuple[Tensor, Tensor, Tensor]:
    """What is left at a site, and what is explained, in units of the noise; each `(n, directions)`.

    A third tensor says to which number each direction belongs.

    Directions of which the rows tell next to nothing are left out.
    """
    score, present = (torch.cat([getattr(s, of) for s in found]) for of in ("score", "present"))
    n, _, k = score.shape
    sizes = torch.tensor([len(s.score) for s in found], dtype=torch.float64)
    means = torch.stack([s.information.double() for s in found])
    information = torch.einsum("b,bmkl->mkl", sizes, means) / n
    score, present = score.double(), present.double().unsqueeze(-1)
    score = score - present * (score.sum(0) / present.sum(0).clamp(min=1e-9))
    values, vectors = torch.linalg.eigh(information) if k > 1 else (information[..., 0], None)
    turned = score if vectors is None else torch.einsum("nmk,mkl->nml", score, vectors)
    told = values * n >= FEWEST_EVENTS
    unit = values.clamp(min=0.0).sqrt()
    left = (turned / torch.where(told, unit, 1.0))[:, told]
    numbers = told.nonzero()[:, 0]
    if any(s.explained is None for s in found):
        return left, torch.zeros_like(left), numbers
    explained = torch.cat([s.explained for s in found if s.explained is not None])
    return left, (explained.double() * unit[:, 0])[:, told[:, 0]], numbers


def _together(sites: Mapping[str, list[Scores]]) -> tuple[Tensor, Tensor, Tensor]:
    """`_in_units` of all sites, the directions side by side."""
    parts = [_in_units(found) for found in sites.values()]
    left, explained = (torch.cat(of, -1) for of in zip(*(p[:2] for p in parts), strict=True))
    counts = [int(part[2].max()) + 1 if len(part[2]) else 0 for part in parts]
    numbers = [part[2] + sum(counts[:i]) for i, part in enumerate(parts)]
    return left, explained, torch.cat(numbers)


def _by_chance(centered: Tensor, numbers: Tensor) -> float:
    """The largest eigenvalue where the numbers have variance 1 and are independent.

    Args:
        centered: Rows `(n, directions)`.
        numbers: To which number each direction belongs: those of one number stay together.
    """
    n, size = centered.shape
    limit = (1 + math.sqrt(size / n)) ** 2
    scale = centered.square().mean(0).sqrt()
    unit = centered[:, scale > 0] / scale[scale > 0]
    which = numbers[scale > 0].unique(return_inverse=True)[1]
    count = int(which.max()) + 1 if len(which) else 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(_SHUFFLES):
        order = torch.rand((n, count), generator=generator).argsort(0)[:, which]
        values = _eigenvalues(unit.gather(0, order), 1)
        limit = max([limit, *(_MORE * values).tolist()])
    return limit


def _eigenvalues(centered: Tensor, count: int) -> Tensor:
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
        torch.manual_seed(0)
        wide = min(count + 10, n, size)
        values: Tensor = torch.svd_lowrank(centered, wide, niter=8)[1]
        return values[:count].square() / n


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
