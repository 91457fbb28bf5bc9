"""What a decoder leaves of the data, and whether further latent dimensions could explain it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.causes import listed
from ppl_vae.diagnosis.scales import FACTORS, Scales, has_scale
from ppl_vae.diagnosis.scores import Scores, frequent, scores_of, why_no_scores
from ppl_vae.diagnosis.spectrum import (
    FEWEST_EVENTS,
    Directions,
    Spectrum,
    eigenvalues,
    more_dimensions,
)
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import (
    Batch,
    RowDensities,
    Site,
    innermost,
    is_factor,
    num_rows,
    parts_of,
    take_rows,
    tensors_of,
)

SUITS = 0.9
"""A decoder's noise suits the data if what they leave has so much of its variance."""

NUM_DRAWS = 32
"""Draws of each row: E_q[mean of p(x | z)] has little noise then."""

MOST_ROWS = 1000
"""Rows whose residuals are looked at, evenly spread over all."""

_OTHER_SIZES = "rows have different sizes"
_VALUES = 2**24  # how many standardized numbers are kept, about
_OF_SCALES = 2**21  # and of how many the density is taken for each scale
_SMALLEST = 1e-12  # factor of a scale, if nothing is left
_MOSTLY = 0.05  # of numbers that no dimension explains: below, their noise is not known
_END = 1.1 * FACTORS[0]  # where no smaller factor was looked at
_ERRORS = 3.0  # standard errors of a variance


@dataclass(frozen=True)
class Verdict:
    """What the residuals say of dimensions that are not used.

    Attributes:
        cause: `surplus dimensions`, `decoder noise`, `large beta`, or `local optimum` if the data would pay for
            further dimensions as the pair is; None if that is not known.
        evidence: The numbers that show it.
        sigma: The noise that suits the residuals, if the decoder is normal with one noise, else None.
        suiting_beta: The weight of the KL under which the decoder's noise acts like one that suits, if it has
            one for all numbers: see `Facts`.
    """

    cause: str | None
    evidence: str
    sigma: float | None = None
    suiting_beta: float | None = None


class Residuals:
    r"""Residuals of a decoder in units of its noise, and the spectrum of their covariance.

    Let $s = \nabla_\eta \log p(x \mid \eta)$ be the score of a row in the decoder's outputs $\eta$, and
    $J = -\nabla^2_\eta \log p(x \mid \eta)$, whose mean is the Fisher information of a model that fits. A
    further dimension $\eta + w z'$ with a small w raises the best beta-ELBO of a row by

    $$\frac{1}{2 \beta} (w^T s)^2 - \frac{1}{2} w^T J w,$$

    so it pays if and only if an eigenvalue l of the covariance of $F^{-1/2} s$ exceeds beta, with F the mean of
    J. In a linear normal decoder that is the condition l_i > beta sigma^2 (Lucas et al., *Don't Blame the
    ELBO!*, arXiv:1911.02469), and the gain is $\beta (l / \beta - 1 - \log (l / \beta)) / 2$ nats.

    What s and J are for each likelihood is told by `scores_of`.

    By chance, the largest eigenvalue of n rows of D numbers is $(1 + \sqrt{D / n})^2$ (Marchenko and Pastur),
    and more if the numbers have heavy tails, as rows show whose numbers are shuffled one by one.
    """

    def __init__(self) -> None:
        self._unknown = ""
        self._normal = True
        self._kept: dict[str, Tensor | None] = {}
        self._scales: dict[str, Scales] = {}
        self._sites: dict[str, list[Scores]] = {}
        # Of sites with a scale that is too large: the scores with the one that suits the data; and, if it has
        # several, with one for each group of numbers that share theirs.
        self._suited: dict[bool, dict[str, list[Scores]]] = {True: {}, False: {}}
        self._rows = 0

    @classmethod
    def of(cls, session: Session, rows: list[Batch], size: int) -> Residuals:
        """The residuals of some rows.

        Args:
            session: The opened pair.
            rows: About a thousand rows, in parts of one shape each.
            size: Rows at once, with all draws of each.
        """
        found, whole = cls(), session.pair.keeps_rows
        n = sum(map(num_rows, rows))
        numbers = sum(tensor[0].numel() for tensor in tensors_of(rows[0]))

        def parts(most: int, draws: int) -> Iterator[RowDensities]:
            """Draws of about so many rows, until something is not known."""
            for batch in rows:
                few = batch if whole else take_rows(batch, slice(0, None, -(-n // most)))
                at_once = num_rows(few) if whole else size * NUM_DRAWS // draws
                for part in parts_of(num_rows(few), at_once):
                    if not found._unknown:
                        yield session.sample(few if whole else take_rows(few, part), draws)

        # One draw of each of many rows is enough for a scale.
        for some in parts(max(64, _OF_SCALES // numbers), max(1, min(NUM_DRAWS, MOST_ROWS // n))):
            found._look(some)
        for some in parts(max(64, _VALUES // numbers), NUM_DRAWS):
            found._update(some)
        return found

    def _explained(self, rows: RowDensities) -> dict[str, Site]:
        """The sites that latents explain; none if something is not known."""
        nodes, layout = rows.model_trace.nodes, rows.layout
        sites = {name: nodes[name] for name in layout.observed if not _is_told(nodes[name])}
        for site in sites.values():
            self._unknown = self._unknown or why_no_scores(layout, site)
        self._unknown = self._unknown or (
            "" if sites else "the model observes nothing that it explains"
        )
        return {} if self._unknown else sites

    def _look(self, rows: RowDensities) -> None:
        """Looks at the scales of some rows, and which categories are frequent."""
        for name, site in self._explained(rows).items():
            if name not in self._kept:
                self._kept[name] = frequent(rows, rows.layout, site)
            if has_scale(site):
                scales = self._scales.setdefault(name, Scales())
                if not scales.update(rows, rows.layout, site):
                    self._unknown = _OTHER_SIZES

    def _update(self, rows: RowDensities) -> None:
        """Adds the draws for a batch of rows."""
        sites = self._explained(rows)
        self._rows += rows.log_guide.shape[1]
        for name, site in sites.items():
            scales = self._scales.get(name)
            factors = None if scales is None else scales.factors(apart=True)
            found = scores_of(rows, rows.layout, site, self._kept.get(name), factors)
            before = self._sites.setdefault(name, [])
            if before and before[0].score.shape[1:] != found.score.shape[1:]:
                self._unknown = _OTHER_SIZES
                return
            if not bool(found.score.isfinite().all() & found.information.isfinite().all()):
                self._unknown = "the likelihood has no finite mean and variance"
                return
            before.append(found.kept())
            self._normal &= found.squares is not None
            for apart, of_sites in self._suited.items():
                factors = (
                    scales.factors(apart) if scales and (scales.several or not apart) else None
                )
                if factors is not None and bool((factors.square() < SUITS).any()):
                    smaller = factors.clamp(max=1.0)
                    suited = scores_of(rows, rows.layout, site, None, smaller, stretch=True)
                    of_sites.setdefault(name, []).append(suited.kept())
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
        found = Directions.joined([Directions.of(of) for of in self._sites.values()])
        size = found.left.shape[1]
        if size == 0:
            self._unknown = (
                f"{self._rows} rows are too few, as all of them tell less of each number of x than "
                f"{FEWEST_EVENTS:g} values of a normal number would; give more rows"
            )
            return Verdict(None, "")
        edge = found.by_chance()
        spectrum = Spectrum(eigenvalues(found.left, unused), edge)
        if spectrum.paying(beta) and beta > 1 and not self._normal:
            # The second order is not enough then: of data that vary more than the likelihood allows, it says
            # that next to no weight pays, under any beta.
            return Verdict("large beta", spectrum.says(1.0))
        if spectrum.paying(beta):
            return Verdict("local optimum", spectrum.says(beta))
        rest, free = found, torch.ones(size, dtype=torch.float64)
        if self._normal:
            rest, free = found.rest()
        if float(free.sum()) < 0.5:
            return Verdict(
                "surplus dimensions", "the decoder reproduces every direction of the data"
            )
        of_rest = Spectrum(eigenvalues(rest.left, unused), edge)
        if beta > 1 and of_rest.paying(1.0):
            return Verdict("large beta", of_rest.says(1.0, beta))
        several = any(scales.several for scales in self._scales.values())
        for apart in (True, False) if several else (False,):
            verdict = self._of_noise(unused, beta, apart)
            if verdict is not None:
                return verdict
        return Verdict("surplus dimensions", of_rest.says(1.0))

    def _of_noise(self, unused: int, beta: float, apart: bool) -> Verdict | None:
        """Whether smaller scales, such that suit the data, would show what the dimensions could explain.

        Args:
            unused: How many dimensions are not used.
            beta: The weight of the KL.
            apart: Whether numbers of other scales have a factor of their own, or all of a site the same one.
        """
        small = self._small_scales(apart)
        if not small:
            return None
        parts = []
        for name, found in self._sites.items():
            scales = self._scales.get(name)
            of_scales = self._suited[apart and scales is not None and scales.several]
            own = Directions.of(of_scales.get(name, found))
            if name not in of_scales:  # a normal site, or one whose scale suits
                unit = torch.ones(len(own.numbers), dtype=torch.float64)
                for group in small:
                    unit = torch.where(group.holds(name, own.numbers), group.factor, unit)
                own = own._replace(left=own.left / unit, explained=own.explained / unit)
            parts.append(own)
        suited = Directions.joined(parts)
        rest, free = suited.rest()
        more = more_dimensions(rest, free, unused)
        if more is None:
            return None
        count, share = more
        sigma = suiting_beta = None
        evidence = (
            f"the scale that suits the data is {_listed(small, self._sites)}; with that, {count}"
        )
        first = small[0]
        if len(self._sites) == 1 and first.alone and first.factor > _END:
            kinked = first.site in self._scales and self._scales[first.site].kinked
            suiting_beta = first.factor if kinked else first.factor**2
        if len(self._sites) == 1 and first.alone and first.noise > 0:
            of_all, left = math.sqrt(first.noise), math.sqrt(first.noise) * first.factor
            sigma = left * math.sqrt(share)
            suiting_beta = first.factor**2 * share
            evidence = (
                f"the noise is {of_all:.3g} and what is left of the data {left:.3g}; with noise of "
                f"{sigma:.3g}, {count}"
            )
        # If the noise is at its optimum nevertheless, beta is the cause.
        if beta > 1 and all(abs(group.squares - 1) < 0.02 for group in small):
            return Verdict("large beta", evidence)
        return Verdict("decoder noise", evidence, sigma, suiting_beta)

    def _small_scales(self, apart: bool) -> list[_SmallScale]:
        """The numbers of each site that share a scale, where a smaller one suits the data."""
        names = list(self._sites)
        parts = [Directions.of(self._sites[name]) for name in names]
        rest, free = Directions.joined(parts).rest()
        found, start = [], 0
        for name, part in zip(names, parts, strict=True):
            m = len(part.numbers)
            own, own_free = rest.left[:, start : start + m], free[start : start + m]
            start += m
            scales = self._scales.get(name)
            factors = None if scales is None else scales.factors(apart)
            groups = torch.zeros_like(part.numbers)
            if apart and scales is not None:
                groups = scales.groups[part.numbers]
            for which in groups.unique():
                here = groups == which
                if factors is not None:
                    factor = float(factors[part.numbers[here][0]])
                elif not bool(part.squares.isnan().any()) and own_free[here].mean() > _MOSTLY:
                    # The noise has what no dimension explains.
                    of_rest = float(own[:, here].square().sum()) / len(own)
                    factor = max(_SMALLEST, math.sqrt(of_rest / float(own_free[here].sum())))
                else:
                    continue
                size = int(here.sum())
                by_chance = _ERRORS * math.sqrt(2 / (size * len(own)))
                if factor**2 < min(SUITS, 1 - by_chance):
                    numbers = part.numbers[here]
                    squares = float(part.squares[here].mean())
                    noise = float(part.noise[here].mean())
                    alone = size == m and (scales is None or not scales.several)
                    found.append(_SmallScale(name, numbers, m, factor, squares, noise, alone))
        return found


@dataclass(frozen=True)
class _SmallScale:
    """Numbers of a site that share a scale, which a smaller one suits better.

    Attributes:
        site: The site.
        numbers: Which of its numbers they are.
        of: How many numbers it has.
        factor: By what the scale would have to be multiplied.
        squares: Mean squared residuals of normal numbers in units of the noise.
        noise: The variance of the noise, if the numbers are normal and independent.
        alone: Whether all numbers of the site have one scale.
    """

    site: str
    numbers: Tensor
    of: int
    factor: float
    squares: float
    noise: float
    alone: bool

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return len(self.numbers)

    def holds(self, site: str, numbers: Tensor) -> Tensor:
        """Which of the numbers of a site are among them."""
        return torch.isin(numbers, self.numbers) & (site == self.site)


def _listed(small: list[_SmallScale], sites: Collection[str]) -> str:
    """By what the scales would have to be multiplied, and where, in words."""
    each = []
    for name in dict.fromkeys(group.site for group in small):
        groups = [group for group in small if group.site == name]
        factors = sorted(group.factor for group in groups)
        low, high = (
            f"at most {FACTORS[0]:g}" if factor < _END else f"{factor:.2g}"
            for factor in (factors[0], factors[-1])
        )
        size, of = sum(group.size for group in groups), groups[0].of
        some = "" if size == of else f" for {size} of {of} numbers"
        at = f" at '{name}'" if len(sites) > 1 else ""
        each.append(f"{low if low == high else f'{low} to {high}'} times the decoder's{some}{at}")
    return listed(each)


def _is_told(site: Site) -> bool:
    """Whether a site is one that rows come with, such as labels, or a factor: no latent explains it."""
    return isinstance(innermost(site["fn"]), Given | Revealed) or is_factor(site)
