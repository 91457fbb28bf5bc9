"""Scores of a likelihood in its location, and their Fisher information: how a small change of it would pay."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ppl_vae.diagnosis.locations import NORMAL, WRAPPERS, moved, stretched
from ppl_vae.distributions import Ancestral, QuantizedLogistic
from ppl_vae.pairs import (
    Layout,
    RowDensities,
    Site,
    in_plates,
    inner_sizes,
    present,
    rows_first,
)

MOST_COLUMNS = 4096
"""Most directions of all categorical numbers of a site that are looked at, unless each number has one."""

NORMALS = (torch.distributions.Normal, *NORMAL)
"""Likelihoods whose residuals are normal numbers."""

_FULL = 16  # categories up to which all directions of a number are looked at
_NATURAL = (
    torch.distributions.Bernoulli,
    torch.distributions.Binomial,
    torch.distributions.Poisson,
)
_BLOCKS = (
    torch.distributions.Categorical,
    torch.distributions.OneHotCategorical,
    torch.distributions.Multinomial,
)
_FLOOR = 0.01
_STEP = 0.25  # of a scale that suits the data: for densities with a kink
_AT_A_KINK = 2 / _STEP**2 * (_STEP - 1 + math.exp(-_STEP))
"""The second difference with that step of the log density of a Laplace distribution, whose information is 1."""


class Scores(NamedTuple):
    """Scores of a site for n rows, means over their draws; each number has k directions.

    Attributes:
        score: Derivative of log p(x | z) along each direction, `(n, numbers, k)`; 0 where a mask leaves x out.
        information: Minus the second derivatives, means over rows, `(numbers, k, k)`.
        present: The share of draws in which masks leave a number in, `(n, numbers)`.
        explained: The location in units of the scale, `(n, numbers)`; None if the likelihood has no scale.
        squares: Squared residuals of a normal site in units of its noise, means over draws, `(n, numbers)`, 0
            where a mask leaves x out; or None.
        noise: Its variance, mean over draws, `(n, numbers)`, if its numbers are independent; or None.
        curvature: Minus the second derivatives, means over draws, `(n, numbers)`; None if they are not random.
    """

    score: Tensor
    information: Tensor
    present: Tensor
    explained: Tensor | None = None
    squares: Tensor | None = None
    noise: Tensor | None = None
    curvature: Tensor | None = None

    def kept(self) -> Scores:
        """The same with as little memory as it needs, on the CPU."""
        small = {
            name: part.float().cpu() for name, part in self._asdict().items() if part is not None
        }
        kept = {"information": self.information.cpu()}
        if self.explained is not None:  # of the data's precision already
            kept["explained"] = self.explained.cpu()
        return Scores(**(small | kept))


def why_no_scores(layout: Layout, site: Site) -> str:
    """Why the scores at a site are not known, in words; empty if they are."""
    # An enumerated latent gives x one mean for each of its values.
    if not layout.vectorizes or len(site["fn"].batch_shape) > layout.nesting + 1:
        return "the model cannot be run on many draws at once, or enumerates a latent"
    fn = of_each_number(site)
    if isinstance(fn, (*_NATURAL, *_BLOCKS, *NORMAL, QuantizedLogistic)):
        return ""
    try:
        known = moved(fn, torch.zeros(())) is not None
    except (TypeError, ValueError):
        known = False
    return "" if known else "the likelihood has no location that is known here"


def scores_of(
    rows: RowDensities,
    layout: Layout,
    site: Site,
    kept: Tensor | None = None,
    suits: Tensor | None = None,
    stretch: bool = False,
) -> Scores:
    r"""Scores of a site for some rows.

    With $\eta$ the location of a number, the score is $s = \partial_\eta \log p(x \mid \eta)$, and minus the
    second derivative is $J$. The location is in units in which a change of 1 is large for any data: `loc` in
    units of `scale`, log odds, the logarithm of a rate or of a concentration. With $F = E J$:

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

    Args:
        rows: Draws of the rows.
        layout: Their layout.
        site: An observed site for which `why_no_scores` has nothing to say.
        kept: For categorical numbers which categories are looked at: see `frequent`.
        suits: By what the scale of each number would have to be multiplied to suit the data, `(numbers,)`.
        stretch: Whether it is.
    """
    samples, n = rows.log_guide.shape
    fn, x = of_each_number(site), site["value"]
    event = len(site["fn"].event_shape)
    step: float | Tensor = _STEP
    if suits is not None:
        like = x if x.is_floating_point() else torch.empty((), device=x.device)
        placed = _placed(suits.to(like), layout, _shape(fn, x), event)
        fn, step = (stretched(fn, placed), _STEP) if stretch else (fn, _STEP * placed)

    def by_row(value: Tensor, more: int = 0) -> Tensor:
        return numbers_of(value, layout, (samples, n), event, more)

    there = present(site)
    block = isinstance(fn, _BLOCKS)
    if block and not isinstance(fn, torch.distributions.Categorical):
        there = there.all(-1)
        event -= 1
    there = by_row(there)
    if block:
        hits, total, probs = _counts(fn, x)
        hits, probs = by_row(hits, 1), by_row(probs.expand(hits.shape), 1)
        trials = by_row(total) * there
        if kept is not None:
            hits, probs = (
                part.gather(-1, kept.expand(*part.shape[:2], *kept.shape)) for part in (hits, probs)
            )
        weight = trials.unsqueeze(-1)
        score = torch.where(there.unsqueeze(-1) > 0, hits - weight * probs, 0.0)
        mean = (weight * probs).mean((0, 1))
        by_number = [part.flatten(0, 1).movedim(1, 0) for part in (weight * probs, probs)]
        inner = by_number[0].mT @ by_number[1] / (samples * n)
        return Scores(score.mean(0), torch.diag_embed(mean) - inner, there.mean(0))
    value, minus = _derivatives(fn, x, step)
    value, minus = (by_row(part) for part in torch.broadcast_tensors(value, minus))
    explained = squares = noise = None
    if isinstance(fn, NORMALS):
        squares = torch.where(there > 0, value.square(), 0.0).mean(0)
    value = torch.where(there > 0, value, 0.0).mean(0)
    of_rows = torch.where(there > 0, minus, 0.0).mean(0)
    minus = of_rows.mean(0)
    if not isinstance(fn, (*_NATURAL, *NORMALS)):
        # Far from a peak of the density it may be negative; then the number would pay by itself.
        minus = torch.maximum(minus, _FLOOR * value.square().mean(0))
    in_units = None
    if isinstance(fn, NORMAL):
        in_units = _in_units_of(fn, fn.mean)
    elif hasattr(fn, "loc") and hasattr(fn, "scale"):
        in_units = fn.loc / fn.scale
    if in_units is not None:
        explained = by_row(in_units.expand(_shape(fn, x))).mean(0).to(in_units.dtype)
    if isinstance(fn, torch.distributions.Normal):
        noise = by_row(fn.variance.expand(_shape(fn, x))).mean(0)
    return Scores(
        value.unsqueeze(-1),
        minus[:, None, None],
        there.mean(0),
        explained,
        squares,
        noise,
        None if isinstance(fn, NORMALS) else of_rows,
    )


def numbers_of(
    value: Tensor, layout: Layout, size: tuple[int, int], event: int, more: int = 0
) -> Tensor:
    """A number for each of those of a row, `(samples, n, numbers)`, float64.

    Args:
        value: Of the shape of a site's value, or one that can be broadcast to it.
        layout: The layout of the rows.
        size: How many draws, and of how many rows.
        event: How many of its last dimensions belong to a row.
        more: How many dimensions come after these, and stay as they are.
    """
    like = SimpleNamespace(event_shape=(1,) * (event + more))
    found = rows_first({"value": value, "fn": like}, layout, *size)
    tail = found.shape[found.dim() - more :] if more else ()
    return found.reshape(*size, -1, *tail).double()


def _placed(numbers: Tensor, layout: Layout, shape: torch.Size, event: int) -> Tensor:
    """The inverse for numbers that all draws and rows share: to be broadcast to the shape of a site's value."""
    like = SimpleNamespace(event_shape=(1,) * event)
    inner = inner_sizes({"value": torch.empty(shape, device="meta"), "fn": like}, layout)
    own = shape[len(shape) - event :]
    return in_plates(numbers.reshape(1, 1, *inner, *own), layout)


def frequent(rows: RowDensities, layout: Layout, site: Site) -> Tensor | None:
    """Which categories of each number are looked at, `(numbers, k)`; None if a site is not categorical.

    All but the rarest: their log odds against it are all directions that there are. Of many categories, only
    those with the highest probability.
    """
    fn = of_each_number(site)
    if not isinstance(fn, _BLOCKS):
        return None
    samples, n = rows.log_guide.shape
    hits, total, probs = _counts(fn, site["value"])
    more = isinstance(fn, torch.distributions.Categorical)
    like = SimpleNamespace(event_shape=(1,) * (len(site["fn"].event_shape) + more))
    expected = {"value": hits + total.unsqueeze(-1) * probs, "fn": like}
    seen = rows_first(expected, layout, samples, n).mean((0, 1)).reshape(-1, hits.shape[-1])
    numbers, categories = seen.shape
    most = categories - 1 if categories <= _FULL else max(1, MOST_COLUMNS // numbers)
    found: Tensor = seen.topk(min(most, categories - 1), -1).indices
    return found


def of_each_number(site: Site) -> Any:
    """The distribution of each number, or of each vector of numbers, given those before it."""
    fn = site["fn"]
    while isinstance(fn, (*WRAPPERS, Ancestral)):
        fn = fn.conditionals(site["value"]) if isinstance(fn, Ancestral) else fn.base_dist
    return fn


def _shape(fn: Any, x: Tensor) -> torch.Size:
    return torch.Size(torch.broadcast_shapes(fn.batch_shape + fn.event_shape, x.shape))


def _counts(fn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often each category is seen, `(*batch, C)`, of how many, `(*batch)`, and the probabilities."""
    probs = fn.probs
    if isinstance(fn, torch.distributions.Categorical):
        x = torch.where(x.isfinite(), x, 0).long().clamp(0, probs.shape[-1] - 1)
        x = torch.nn.functional.one_hot(x, probs.shape[-1])
    x = x.to(probs.dtype)
    x = x.expand(torch.broadcast_shapes(x.shape, probs.shape))
    return x, x.sum(-1), probs


def _derivatives(fn: Any, x: Tensor, step: float | Tensor = _STEP) -> tuple[Tensor, Tensor]:
    """The score of each number and minus its derivative.

    The derivative of a score that is constant on both sides of a kink (Laplace) is a difference of so many
    scales, in units in which that of a Laplace distribution is 1 on average.
    """
    if isinstance(fn, torch.distributions.Normal):
        units = (x - fn.loc) / fn.scale
        return units, torch.ones_like(units)
    if isinstance(fn, _NATURAL):
        return x - fn.mean, fn.variance
    if isinstance(fn, NORMAL):
        units = _in_units_of(fn, x - fn.mean)
        return units, torch.ones_like(units)
    if isinstance(fn, QuantizedLogistic):
        return _of_levels(fn, x)
    with torch.enable_grad(), pyro.validation_enabled(False):
        by = torch.zeros(_shape(fn, x), dtype=x.dtype, device=x.device)
        by = (by if by.is_floating_point() else by.float()).requires_grad_()
        density = moved(fn, by).log_prob(x).sum()
        (score,) = torch.autograd.grad(density, by, create_graph=True)
        second = None
        if score.requires_grad:
            (second,) = torch.autograd.grad(score.sum(), by, allow_unused=True)
    if second is not None and bool((second != 0).any()):
        return score.detach(), -second
    with torch.no_grad(), pyro.validation_enabled(False):
        ahead, here, back = (moved(fn, by.detach() + s).log_prob(x) for s in (step, 0.0, -step))
    return score.detach(), (2 * here - ahead - back) / step**2 / _AT_A_KINK


def _in_units_of(fn: Any, x: Tensor) -> Tensor:
    """Vectors in units in which normal numbers that depend on each other are N(0, I)."""
    units: Tensor = torch.linalg.solve_triangular(fn.scale_tril, x.unsqueeze(-1), upper=False)
    return units.squeeze(-1)


def _of_levels(fn: QuantizedLogistic, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of log (g(b) - g(a)) they are g(a) + g(b) - 1 and g'(a) + g'(b); the last levels reach to infinity."""
    half = 0.5 / (fn.levels - 1)
    above = torch.sigmoid((x + half - fn.loc) / fn.scale).masked_fill(x > 1 - half, 1.0)
    below = torch.sigmoid((x - half - fn.loc) / fn.scale).masked_fill(x < half, 0.0)
    return below + above - 1, below * (1 - below) + above * (1 - above)
