"""Logistic distributions of a pixel's chroma, on the whole numbers that its luma leaves room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.colors import chroma_interval, luma_after_green
from ppl_vae.distributions.quantized_logistic import log_sigmoid

_QUANTILES = 6
"""At so many quantiles of Cg the mean of Co is averaged, with the weights of Gauss and Legendre."""

_TAIL = 10.0
"""So many scales from the location, what is left is an exponential distribution."""

_FAR = 80.0
"""So many scales away, nothing is left of a logistic distribution, in single precision and in fact."""


class ChromaLogistic(dist.TorchDistribution):
    """P(Co, Cg | Y): rounded logistic distributions, cut to the chroma that the luma Y leaves room for.

    Of the integer color space YCoCg-R (see `ppl_vae.colors`). With the logistic function s and
    F(v) = s((v - loc) / scale), cut to the whole numbers from a to b,

        P(v) = (F(v + 1/2) - F(v - 1/2)) / (F(b + 1/2) - F(a - 1/2)).

    Cg has this distribution on the numbers that Y leaves room for; then Co, with the location
    loc_Co + slope (Cg - loc_Cg), on those that Y and Cg leave room for. So the masses of all colors of a luma
    sum to 1, and -log2 P is a number of bits in which a lossless code can write the color of a pixel whose gray
    value is known. All are evaluated in logarithms, exactly at any distance.

    Args:
        luma: Y, whole numbers from 0 to 255, `(*batch)`.
        loc: Locations of (Co, Cg), any real numbers, `(*batch, 2)`.
        scale: Their scales, positive, `(*batch, 2)`; a scale s has the standard deviation 1.81 s before it is
            cut.
        slope: By how much the location of Co moves with Cg, `(*batch)`.

    Example:
        >>> p = ChromaLogistic(torch.tensor([0, 255]), torch.tensor([20.0, 0.0]), torch.tensor([5.0, 5.0]))
        >>> p.log_prob(torch.tensor([[1, 0], [0, 0]])).exp()
        tensor([0.1339, 1.0000])
        >>> p.mode
        tensor([[1., 0.],
                [0., 0.]])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "luma": constraints.integer_interval(0, 255),
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
        "slope": constraints.real,
    }

    def __init__(
        self,
        luma: Tensor,
        loc: Tensor,
        scale: Tensor,
        slope: Tensor | float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.slope = torch.as_tensor(slope, dtype=loc.dtype, device=loc.device)
        batch = torch.broadcast_shapes(
            luma.shape, loc.shape[:-1], scale.shape[:-1], self.slope.shape
        )
        self.luma, self.loc, self.scale = luma.to(loc.dtype), loc, scale
        super().__init__(batch, torch.Size([2]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The chroma of the colors with this luma."""
        return self.room(self.luma)

    @staticmethod
    def room(luma: Tensor) -> constraints.Constraint:
        """The chroma that there is with a luma, of event shape `(2,)`, whatever location and scale are.

        Args:
            luma: Y, whole numbers from 0 to 255, `(*batch)`.

        Example:
            >>> ChromaLogistic.room(torch.tensor([128, 255])).check(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
            tensor([ True, False])
        """
        return _Room(luma)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ChromaLogistic:
        """The same distribution for a larger batch shape."""
        new: ChromaLogistic = self._get_checked_instance(ChromaLogistic, _instance)  # type: ignore[no-untyped-call]
        batch = torch.Size(batch_shape)
        new.luma, new.slope = self.luma.expand(batch), self.slope.expand(batch)
        new.loc, new.scale = self.loc.expand(*batch, 2), self.scale.expand(*batch, 2)
        super(ChromaLogistic, new).__init__(batch, torch.Size([2]), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(Co, Cg | Y) of whole numbers `(*batch, 2)`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        orange, green = value.to(self.loc.dtype).unbind(-1)
        of_green, of_orange = self.of_green(), self.of_orange(green)
        log_p: Tensor = of_green.log_prob(green) + of_orange.log_prob(orange)
        return log_p

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws whole numbers, as floats, `(*sample_shape, *batch, 2)`."""
        shape = (*torch.Size(sample_shape), *self.batch_shape)
        uniform = torch.rand(2, *shape, dtype=self.loc.dtype, device=self.loc.device)
        green = self.of_green().at(uniform[0])
        orange = self.of_orange(green).at(uniform[1])
        return torch.stack([orange.expand(shape), green.expand(shape)], -1)

    @property
    def mode(self) -> Tensor:
        """The mode of Cg, and that of Co at this Cg, `(*batch, 2)`.

        For scales of some levels it is the most probable color, or near it. For large scales it may not be:
        where luma and Cg leave little room for Co, each of its values is likely.
        """
        green = self.of_green().mode
        orange = self.of_orange(green).mode
        return torch.stack(torch.broadcast_tensors(orange, green), -1).expand(*self.batch_shape, 2)

    @property
    def mean(self) -> Tensor:
        """E[(Co, Cg)] to within a level, `(*batch, 2)`: before rounding; that of Co over 6 quantiles of Cg."""
        of_green = self.of_green()
        orange: Tensor | float = 0.0
        nodes, weights = np.polynomial.legendre.leggauss(_QUANTILES)
        shares = torch.from_numpy((nodes + 1) / 2).to(self.loc)
        for green, weight in zip(of_green.quantiles(shares), weights, strict=True):
            orange = orange + self.of_orange(green).mean * (weight / 2)
        orange = torch.as_tensor(orange).expand(self.batch_shape)
        return torch.stack([orange, of_green.mean.expand(self.batch_shape)], -1)

    def of_green(self) -> CutLogistic:
        """P(Cg | Y), of the batch shape."""
        return CutLogistic(self.loc[..., 1], self.scale[..., 1], *chroma_interval(self.luma))

    def of_orange(self, green: Tensor) -> CutLogistic:
        """P(Co | Y, Cg), of the batch shape.

        Args:
            green: Cg, `(*batch)`.
        """
        loc = self.loc[..., 0] + self.slope * (green - self.loc[..., 1])
        room = chroma_interval(luma_after_green(self.luma, green))
        return CutLogistic(loc, self.scale[..., 0], *room)


class CutLogistic:
    """A logistic distribution, rounded to whole numbers and cut to those from `least` to `greatest`.

    Args:
        loc: Its location, `(*batch)`.
        scale: Its scale, `(*batch)`.
        least: The least number that there is, of a shape that can be broadcast with these.
        greatest: The greatest one.
    """

    def __init__(self, loc: Tensor, scale: Tensor, least: Tensor, greatest: Tensor) -> None:
        self.loc, self.scale, self.least, self.greatest = loc, scale, least, greatest

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), from s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)) above and below the line.

        With log s(u) = min(u, 0) - log(1 + exp(-|u|)), what remains in the logarithm are numbers between 1 and
        2, so that there is one logarithm for all of them: half the time of one for each.
        """
        inverse = 1 / self.scale
        below, above = (value - self.loc + 0.5) * inverse, (self.loc - value + 0.5) * inverse
        most, least = (
            (self.greatest - self.loc + 0.5) * inverse,
            (self.loc - self.least + 0.5) * inverse,
        )
        exponents = _least_of(below) + _least_of(above) - _least_of(most) - _least_of(least)
        inside = _factor(most) * _factor(least) * _one_minus_exp(inverse)
        rest = (
            _factor(below)
            * _factor(above)
            * _one_minus_exp((self.greatest - self.least + 1) * inverse)
        )
        return exponents + torch.log(inside / rest)

    def masses(self, count: int) -> Tensor:
        """P(least), P(least + 1), ..., `(*batch, count)`; 0 beyond `greatest`.

        With the distances u_0, ..., u_n of the edges from the location in scales, from least - 1/2 to
        greatest + 1/2, and d = 1 / scale, the mass between two of them is

            P_j = s(u_(j+1)) s(-u_j) (1 - exp(-d)) / (s(u_n) s(-u_0) (1 - exp(-n d))),

        in which nothing cancels. There is one exponential for each edge. The location lies on the side of u_n,
        otherwise all is mirrored; where the cut is below it, all s(u) are divided by exp(u_n).

        Args:
            count: How many; at least `greatest - least + 1`, or the last ones are left out.
        """
        up = 2 * self.loc >= self.least + self.greatest
        sign = torch.where(up, 1.0, -1.0).to(self.loc.dtype)
        edges = torch.arange(count + 1, dtype=self.loc.dtype, device=self.loc.device) - 0.5
        inverse = 1 / self.scale
        u = (sign * inverse).unsqueeze(-1) * (edges + (self.least - self.loc).unsqueeze(-1))
        ends = torch.stack(torch.broadcast_tensors(self.least - 0.5, self.greatest + 0.5))
        ends = (ends - self.loc) * (sign * inverse)
        shift = (-ends.amax(0)).clamp_min(0.0)
        lower, upper = _sides(u, shift.unsqueeze(-1))
        lower_ends, upper_ends = _sides(ends, shift)
        total = torch.where(up, lower_ends[1] * upper_ends[0], lower_ends[0] * upper_ends[1])
        width = (self.greatest - self.least + 1) * inverse
        factor = torch.expm1(-inverse) / torch.expm1(-width) / total
        mass = torch.where(
            up.unsqueeze(-1), lower[..., 1:] * upper[..., :-1], lower[..., :-1] * upper[..., 1:]
        )
        beyond = edges[1:] > (self.greatest - self.least + 1).unsqueeze(-1)
        return (mass * factor.unsqueeze(-1)).masked_fill(beyond, 0.0)

    @property
    def mode(self) -> Tensor:
        """The most probable number."""
        return torch.minimum(torch.maximum(self.loc.round(), self.least), self.greatest)

    @property
    def mean(self) -> Tensor:
        """E[v] before rounding, from the integral of v dF = [v F] - [scale softplus]."""
        side, near, far = self._from_mode()
        # With T(u) = s(-u): E[u] = (near T(near) - far T(far) + softplus(-near) - softplus(-far)) / mass.
        # far is above 0. Everything comes from three exponentials, and one logarithm.
        width = far - near
        power_near, power_far, power = (torch.exp(-u) for u in (near.abs(), far, width))
        one_minus = torch.tanh(width / 2) * (1 + power)
        tail_near = torch.where(near > 0, power_near, 1.0) / (1 + power_near)
        tail_far = power_far / (1 + power_far)
        mass = tail_near * one_minus / (1 + power_far)
        rest = torch.log((1 + power_near) / (1 + power_far)) - near.clamp_max(0.0)
        mean = (near * tail_near - far * tail_far + rest) / mass
        # So far in the tail that it is an exponential distribution, cut at the far end.
        mean = torch.where(near > _TAIL, near + 1 - width * power / one_minus, mean)
        value = self.loc + side * self.scale * mean
        return torch.minimum(torch.maximum(value, self.least), self.greatest)

    def at(self, uniform: Tensor) -> Tensor:
        """The whole number at this quantile, counted from the end of the cut that is nearer to the mode."""
        return next(self.quantiles([uniform]))

    def quantiles(self, uniform: Iterable[Tensor]) -> Iterator[Tensor]:
        """The whole numbers at several quantiles, see `at`: what does not depend on these is computed once."""
        side, near, far = self._from_mode()
        # log T(u) between those of the ends, T = s(-u): accurate however far the cut is in the tail.
        log_near = log_sigmoid(-near)
        far_share = torch.exp(log_sigmoid(-far) - log_near)
        for each in uniform:
            share = (each + (1 - each) * far_share).clamp_min(1e-37)
            log_tail = log_near + share.log()
            u = torch.log(1 - log_tail.exp().clamp_max(1 - 1e-7)) - log_tail
            value = (self.loc + side * self.scale * u).round()
            yield torch.minimum(torch.maximum(value, self.least), self.greatest)

    def _from_mode(self) -> tuple[Tensor, Tensor, Tensor]:
        """A side, 1 or -1, and the ends of the cut on it, in scales; near < far, near the mode."""
        side = torch.where(self.loc <= (self.least + self.greatest) / 2, 1.0, -1.0)
        up, down = self.greatest + 0.5 - self.loc, self.loc - self.least + 0.5
        near = torch.where(side > 0, -down, -up) / self.scale
        far = torch.where(side > 0, up, down) / self.scale
        return side, near, far


def _sides(u: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """exp(shift) s(u) and s(-u)."""
    power = torch.exp((-shift - u).clamp_max(_FAR))
    lower = 1 / (torch.exp(-shift) + power)
    return lower, power * lower


def _least_of(u: Tensor) -> Tensor:
    """min(u, 0)."""
    return u.clamp_max(0.0)


def _factor(u: Tensor) -> Tensor:
    """1 + exp(-|u|)."""
    return 1 + torch.exp(-u.abs())


def _one_minus_exp(d: Tensor) -> Tensor:
    """1 - exp(-d) for d > 0, which does not cancel."""
    return torch.tanh(d / 2) * (1 + torch.exp(-d))


class _Room(constraints.Constraint):
    """The chroma that a luma leaves room for."""

    is_discrete = True
    event_dim = 1

    def __init__(self, luma: Tensor) -> None:
        self.luma = luma

    def check(self, value: Tensor) -> Tensor:
        # A byte holds no chroma below 0, and a float may hold numbers that no integer does.
        wide = torch.promote_types(self.luma.dtype, torch.int32)
        orange, green = value.to(torch.promote_types(value.dtype, wide)).unbind(-1)
        first = chroma_interval(self.luma)
        second = chroma_interval(luma_after_green(self.luma, green))
        inside = (first[0] <= green) & (green <= first[1])
        inside = inside & (second[0] <= orange) & (orange <= second[1])
        whole: Tensor = (value == value.round()).all(-1) & (self.luma == self.luma.round())
        return whole & inside

    def __repr__(self) -> str:
        return "the chroma (Co, Cg) of colors with this luma, a whole number from 0 to 255"
