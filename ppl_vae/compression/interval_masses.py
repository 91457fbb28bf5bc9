"""Masses of intervals under distributions of real numbers, one number given those before it."""

from __future__ import annotations

from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr

from ppl_vae.pairs import elementwise, innermost


class Masses(Protocol):
    """A distribution of E real numbers, for B rows.

    Attributes:
        steps: Which numbers are independent given those before: parts of 0..E-1, one after the other.
    """

    steps: list[slice]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        """Masses of intervals, up to a factor for each number.

        Args:
            which: The e numbers of a step.
            edges: Where intervals begin and end, `(B, e, K + 1)`, in either order.
            before: The numbers of earlier steps, in their columns of `(B, E)`.

        Returns:
            `(B, e, K)`, not negative, and not all 0.
        """


class _Normals:
    """Independent normals."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        self.steps = [slice(0, loc.shape[-1])]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        return _normalized(_log_or_mass(self.loc, self.scale, edges, False), self, edges)

    def logs(self, edges: Tensor) -> Tensor:
        return _log_or_mass(self.loc, self.scale, edges, True)

    def are(self, loc: Tensor, scale: Tensor) -> bool:
        """Whether all have these moments."""
        return bool((self.loc == loc).all() and (self.scale == scale).all())


class _JointNormal:
    """N(loc, L L^T): each number is normal given those before it."""

    def __init__(self, loc: Tensor, tril: Tensor) -> None:
        self._loc, self._tril = loc, tril
        self.steps = [slice(i, i + 1) for i in range(loc.shape[-1])]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        i = which.start
        loc = self._loc[:, i : i + 1]
        if i:
            gap = (before[:, :i] - self._loc[:, :i]).unsqueeze(-1)
            noise = torch.linalg.solve_triangular(self._tril[:, :i, :i], gap, upper=False)
            loc = loc + (self._tril[:, i, :i] * noise.squeeze(-1)).sum(-1, keepdim=True)
        return _Normals(loc, self._tril[:, i, i : i + 1]).of(slice(0, 1), edges, before)


class _NormalMixtures:
    """Mixtures of K normals with independent numbers: given some, others have other weights."""

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self._logits, self._loc, self._scale = logits, loc, scale
        self.steps = [slice(i, i + 1) for i in range(loc.shape[-1])]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        i = which.start
        noise = (before[:, None, :i] - self._loc[..., :i]) / self._scale[..., :i]
        log_p = -0.5 * noise.square() - self._scale[..., :i].log()
        logits = (self._logits + log_p.sum(-1)).log_softmax(-1)
        loc, scale = self._loc[..., i], self._scale[..., i]
        logs = _log_or_mass(loc, scale, edges.expand(-1, loc.shape[-1], -1), True)
        return _of_logs((logits.unsqueeze(-1) + logs).logsumexp(-2, keepdim=True))


class _Independent:
    """Independent numbers of any kind with a distribution function."""

    def __init__(self, fn: Any, numbers: int) -> None:
        self._fn = fn
        self.steps = [slice(0, numbers)]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        low, high = edges.isneginf(), edges.isposinf()
        inside = edges.masked_fill(low | high, torch.nan)
        some = inside.nanmedian(-1, keepdim=True).values
        inside = inside.where(~(low | high), some)
        flat = inside.movedim(-1, 0).reshape(-1, *self._fn.batch_shape)
        cdf = self._fn.cdf(flat).reshape(inside.movedim(-1, 0).shape).movedim(0, -1)
        cdf = cdf.masked_fill(low, 0.0).masked_fill(high, 1.0)
        masses: Tensor = cdf.diff(dim=-1).abs()
        empty = masses.sum(-1, keepdim=True) <= 0
        return masses.where(~empty, 1.0)


class _Certain:
    """Numbers that are certain: nothing is coded."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.steps = [slice(0, value.shape[-1])]

    def of(self, which: slice, edges: Tensor, before: Tensor) -> Tensor:
        raise NotImplementedError


def masses_of(fn: Any) -> Masses | None:
    """The masses of intervals under a distribution of real numbers; None if they are not known.

    Args:
        fn: A distribution; its batch counts as rows.
    """
    numbers = fn.event_shape.numel()
    if isinstance(innermost(fn), dist.Delta):
        inner = innermost(fn)
        shape = fn.batch_shape + fn.event_shape
        return _Certain(inner.v.expand(shape).reshape(-1, numbers).double())
    each = elementwise(fn)
    if each is not None:
        if type(each) is dist.Normal:
            return _Normals(*(t.reshape(-1, numbers).double() for t in (each.loc, each.scale)))
        try:
            with torch.random.fork_rng():
                each.cdf(each.sample())
        except NotImplementedError:
            return None
        return _Independent(each, numbers)
    inner, event = fn, fn.event_shape
    while isinstance(inner, torch.distributions.Independent | dist.ExpandedDistribution):
        inner = inner.base_dist
    if len(event) != 1 or inner.batch_shape != fn.batch_shape:
        return None
    joint = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)
    if isinstance(inner, joint):
        loc = inner.loc.expand(*fn.batch_shape, numbers).reshape(-1, numbers)
        tril = inner.scale_tril.expand(*fn.batch_shape, numbers, numbers)
        return _JointNormal(loc.double(), tril.reshape(-1, numbers, numbers).double())
    if isinstance(inner, torch.distributions.MixtureSameFamily):
        parts = inner.component_distribution
        normal = elementwise(parts)
        if type(normal) is not dist.Normal:
            return None
        count = parts.batch_shape[-1]
        logits = inner.mixture_distribution.logits.expand(*fn.batch_shape, count)
        shape = (*fn.batch_shape, count, numbers)
        loc, scale = (
            t.expand(shape).reshape(-1, count, numbers) for t in (normal.loc, normal.scale)
        )
        return _NormalMixtures(logits.reshape(-1, count).double(), loc.double(), scale.double())
    return None


def standard(masses: Masses) -> bool:
    """Whether all numbers are N(0, 1)."""
    return isinstance(masses, _Normals) and masses.are(torch.tensor(0.0), torch.tensor(1.0))


def points(masses: Masses) -> Tensor | None:
    """The numbers, if they are certain, `(B, E)`."""
    return masses.value if isinstance(masses, _Certain) else None


def _log_or_mass(loc: Tensor, scale: Tensor, edges: Tensor, log: bool) -> Tensor:
    """Masses of intervals under normals, as a difference of the smaller tails; or their logarithms."""
    u = (edges - loc.unsqueeze(-1)) / scale.unsqueeze(-1)
    upper = u[..., :-1] + u[..., 1:] > 0
    if not log:
        below, above = ndtr(u), ndtr(-u)
        return torch.where(upper, -above.diff(dim=-1), below.diff(dim=-1)).abs()
    below, above = log_ndtr(u), log_ndtr(-u)
    one = torch.where(upper, above[..., :-1], below[..., :-1])
    two = torch.where(upper, above[..., 1:], below[..., 1:])
    most, least = torch.maximum(one, two), torch.minimum(one, two)
    gap = (least - most).masked_fill(most.isneginf(), 0.0)
    return most + torch.log1p(-gap.exp())


def _normalized(masses: Tensor, normals: _Normals, edges: Tensor) -> Tensor:
    """Masses that are not all 0: far from the mean their logarithms are needed."""
    lost = masses.sum(-1) < 1e-250
    if bool(lost.any()):
        masses = torch.where(lost.unsqueeze(-1), _of_logs(normals.logs(edges)), masses)
    return masses


def _of_logs(logs: Tensor) -> Tensor:
    """Masses of logarithms, up to a factor; alike where all are 0."""
    most = logs.amax(-1, keepdim=True)
    return (logs - most).exp().where(most.isfinite(), 1.0)
