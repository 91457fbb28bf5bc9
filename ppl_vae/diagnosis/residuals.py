"""What a decoder leaves of the data, and whether further latent dimensions could explain it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Normal, Poisson

from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import (
    Layout,
    RowDensities,
    Site,
    elementwise,
    innermost,
    is_factor,
    present,
    rows_first,
)

WORTH = 0.01
"""Nats per row that a further dimension has to gain to be worth it."""

FEWEST_EVENTS = 5.0
"""Variance of a number, summed over all rows, below which its residuals tell nothing."""

_VALUES = 2**24  # how many standardized numbers are kept, about
_LEAST = 1e-9  # of beta
_SHUFFLES = 3
_NATURAL = (Bernoulli, Binomial, Poisson)  # their score in natural parameters is x less its mean
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

    Let $s = \nabla_\eta \log p(x \mid \eta)$ be the score of a row in the decoder's outputs $\eta$, and F its
    Fisher information. A further dimension $\eta + w z'$ with a small w raises the best beta-ELBO of a row by

    $$\frac{1}{2 \beta} (w^T s)^2 - \frac{1}{2} w^T F w,$$

    so it pays if and only if an eigenvalue l of the covariance of $F^{-1/2} s$ exceeds beta. In a linear normal
    decoder that is the condition l_i > beta sigma^2 (Lucas et al., *Don't Blame the ELBO!*,
    arXiv:1911.02469), and the gain is $\beta (l / \beta - 1 - \log (l / \beta)) / 2$ nats. For Bernoulli,
    binomial and Poisson numbers, s is x less its mean, and F the variance; for normal ones $F^{-1/2} s$ is x
    less its mean in units of the noise. Other likelihoods are not judged.

    By chance, the largest eigenvalue of n rows of D numbers is $(1 + \sqrt{D / n})^2$ (Marchenko and Pastur),
    and more if the numbers have heavy tails, as rows show whose numbers are shuffled one by one.
    """

    def __init__(self) -> None:
        self._unknown = ""
        self._normal = True
        self._sites = 0
        self._left: list[Tensor] = []
        self._explained: list[Tensor] = []
        self._variances: list[Tensor] = []
        self._squares = 0.0
        self._noise = 0.0
        self._rows = 0

    def update(self, rows: RowDensities, layout: Layout) -> None:
        """Adds the draws for a batch of rows."""
        nodes = rows.model_trace.nodes
        sites = [nodes[name] for name in layout.observed if not _is_told(nodes[name])]
        for site in sites:
            self._unknown = self._unknown or _why_unknown(layout, site)
        if self._unknown or not sites:
            self._unknown = self._unknown or "the model observes nothing that it explains"
            return
        self._sites = len(sites)
        parts = [_of_site(rows, layout, site) for site in sites]
        left, explained, variance = (
            torch.cat(of, -1) for of in zip(*(p[:3] for p in parts), strict=True)
        )
        self._normal &= all(isinstance(elementwise(site["fn"]), Normal) for site in sites)
        squares, noise = (torch.cat(of, -1) for of in zip(*(p[3:] for p in parts), strict=True))
        self._squares += float(squares.mean(1).sum())
        self._noise += float(noise.mean(1).sum())
        self._rows += len(left)
        if sum(part.numel() for part in self._left) < _VALUES:
            if self._left and self._left[0].shape[1] != left.shape[1]:
                self._unknown = "rows have different sizes"
                return
            self._left.append(left.float().cpu())
            self._explained.append(explained.float().cpu())
            self._variances.append(variance.float().cpu())

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
        left, explained = (torch.cat(part).double() for part in (self._left, self._explained))
        variance = torch.cat(self._variances).double()
        told = variance.sum(0) >= FEWEST_EVENTS
        unit = variance.mean(0)[told].sqrt()
        left, explained = left[:, told] / unit, explained[:, told] / unit
        left = left - left.mean(0)
        size = left.shape[1]
        if size == 0:
            return Verdict(None, "")
        edge = _by_chance(left)
        spectrum = Spectrum(_eigenvalues(left, unused), edge)
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
        if self._normal:
            found = self._of_noise(rest, free, unused, edge, beta)
            if found is not None:
                return found
        return Verdict("surplus dimensions", of_rest.says(1.0))

    def _of_noise(
        self, rest: Tensor, free: int, unused: int, edge: float, beta: float
    ) -> Verdict | None:
        """Whether a smaller noise would show what the dimensions could explain."""
        n = len(rest)
        total = float(rest.square().sum()) / n
        if total / free >= 0.9:  # what is left looks like the noise
            return None
        values = _eigenvalues(rest, min(unused, free - 1))
        for count in range(len(values), 0, -1):
            # With so many more dimensions, the best noise is what the others leave.
            share = (total - float(values[:count].sum())) / (free - count)
            if share <= 0 or _pays(float(values[count - 1]) / share, edge):
                sigma = math.sqrt(self._noise / self._rows)
                best: float | None = sigma * math.sqrt(max(share, 0.0))
                left = sigma * math.sqrt(total / free)
                more = f"{count} more dimension{'s' if count > 1 else ''} would pay"
                evidence = (
                    f"the noise is {sigma:.3g} and what is left of the data {left:.3g}; with noise of "
                    f"{best:.3g}, {more}"
                )
                if self._sites > 1:  # each has a noise of its own
                    best = None
                    evidence = f"with {math.sqrt(max(share, 0.0)):.2g} times the noise, {more}"
                # If it is at its optimum nevertheless, beta is the cause.
                at_optimum = abs(self._squares / self._rows - 1) < 0.02
                if beta > 1 and at_optimum:
                    return Verdict("large beta", evidence)
                return Verdict("decoder noise", evidence, best)
        return None


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


def _is_told(site: Site) -> bool:
    """Whether a site is one that rows come with, such as labels, or a factor: no latent explains it."""
    return isinstance(innermost(site["fn"]), Given | Revealed) or is_factor(site)


def _why_unknown(layout: Layout, site: Site) -> str:
    """Why the residuals at a site say nothing; empty if they do."""
    fn = elementwise(site["fn"])
    if not bool(present(site).all()):
        return "the data are masked"
    if fn is None or (fn.has_enumerate_support and not isinstance(fn, _NATURAL)):
        return "the likelihood has no mean and noise for each number"
    # An enumerated latent gives x one mean for each of its values.
    if not layout.vectorizes or len(site["fn"].batch_shape) > layout.nesting + 1:
        return "the model cannot be run on many draws at once, or enumerates a latent"
    if not isinstance(fn, Normal | Bernoulli | Binomial | Poisson):
        return "the likelihood is neither normal nor one of bits or counts"
    finite = bool(fn.mean.isfinite().all() & fn.variance.isfinite().all())
    return "" if finite else "the likelihood has no finite mean and variance"


def _of_site(rows: RowDensities, layout: Layout, site: Site) -> tuple[Tensor, ...]:
    """What is left at a site, and what is explained, in units of the noise; each `(n, numbers)`.

    Where the score is x less its mean, the units are those of the data, and a third tensor holds the variances;
    elsewhere these are 1. Then come the squared residuals in units of the noise, and the noise's variance.
    """
    samples, n = rows.log_guide.shape

    def by_row(value: Tensor) -> Tensor:
        shaped = rows_first({**site, "value": value}, layout, samples, n)
        return shaped.reshape(samples, n, -1).double()

    x, mean, variance = (
        by_row(value) for value in (site["value"], site["fn"].mean, site["fn"].variance)
    )
    noise = variance.mean(0)
    natural = isinstance(elementwise(site["fn"]), _NATURAL)
    unit = torch.ones_like(noise) if natural else noise.sqrt()
    return (
        (x[0] - mean.mean(0)) / unit,
        mean.mean(0) / unit,
        noise if natural else torch.ones_like(noise),
        ((x - mean).square() / variance).mean(0),
        noise,
    )


def _by_chance(centered: Tensor) -> float:
    """The largest eigenvalue where the numbers have variance 1 and are independent."""
    n, size = centered.shape
    limit = (1 + math.sqrt(size / n)) ** 2
    scale = centered.square().mean(0).sqrt()
    unit = centered[:, scale > 0] / scale[scale > 0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(_SHUFFLES):
        order = torch.rand(unit.shape, generator=generator).argsort(0)
        values = _eigenvalues(unit.gather(0, order), 1)
        limit = max([limit, *values.tolist()])
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
