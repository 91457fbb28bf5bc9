"""By what the scale of each number of a likelihood would have to be multiplied to suit the data."""

from __future__ import annotations

import math

import pyro
import torch
from pyro.distributions import AsymmetricLaplace
from torch import Tensor

from ppl_vae.diagnosis.locations import scale_of, stretched
from ppl_vae.diagnosis.scores import numbers_of, of_each_number
from ppl_vae.pairs import Layout, RowDensities, Site, present
from ppl_vae.runtime import own_generator

FACTORS = (1e-4, 1e2)
"""Between which the factor of a scale is looked for."""

_STEP = 0.15  # of its logarithm; between the points of the grid, a parabola
_DIGITS = 6  # in which scales agree that are the same


def has_scale(site: Site) -> bool:
    """Whether the numbers of a site have a scale each, beside a location."""
    try:
        return scale_of(of_each_number(site)) is not None
    except (TypeError, ValueError):  # a distribution of the user's own
        return False


class Scales:
    r"""The scales of the numbers of one site: which have the same one, and the factors that suit the data.

    The factor of numbers that share a scale is the f with the highest mean of $\log p(x \mid \mu, f s)$ over
    rows and draws, with the locations $\mu$ as they are. A scale is shared if it is the same in all rows.

    Example:
        >>> from ppl_vae.checks import opened
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         loc = torch.zeros(*z.shape, 2)
        ...         pyro.sample("x", dist.Laplace(loc, torch.tensor([1.0, 4.0])).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> x, scales = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), Scales()
        >>> with opened(model, guide, x) as session:
        ...     rows = session.sample(x, 1)
        ...     known = scales.update(rows, rows.layout, rows.model_trace.nodes["x"])
        >>> scales.groups.tolist(), [round(float(f), 2) for f in scales.factors(True)]  # mean |x| / scale
        ([0, 1], [1.0, 0.5])
    """

    def __init__(self) -> None:
        low, high = map(math.log, FACTORS)
        self._grid = torch.arange(low, high, _STEP, dtype=torch.float64)
        self._sums: Tensor | None = None  # of log p for each factor and number
        self._marks: Tensor | None = None  # of each number, two sums of its scales
        self._generator = own_generator()
        self.kinked = False
        """Whether log p(x) is a distance in units of the scale (Laplace), not about a square of it."""

    def update(self, rows: RowDensities, layout: Layout, site: Site) -> bool:
        """Adds the draws for some rows; False if they have other numbers than the rows before."""
        fn, x = of_each_number(site), site["value"]
        samples, n = rows.log_guide.shape
        event = len(site["fn"].event_shape)

        def by_row(value: Tensor) -> Tensor:
            shape = torch.broadcast_shapes(fn.batch_shape + fn.event_shape, x.shape)
            return numbers_of(value.expand(shape), layout, (samples, n), event)

        there = by_row(present(site))
        if self._marks is not None and self._marks.shape[1] != there.shape[-1]:
            return False
        self.kinked |= isinstance(fn, torch.distributions.Laplace | AsymmetricLaplace)
        scale = scale_of(fn)
        assert scale is not None
        weight = torch.rand((2, n), generator=self._generator, dtype=torch.float64)
        marks = weight @ by_row(scale).mean(0).cpu()
        self._marks = marks if self._marks is None else self._marks + marks
        if isinstance(fn, torch.distributions.Normal):  # its residuals tell
            return True
        sums = []
        with pyro.validation_enabled(False):
            for log_factor in self._grid.tolist():
                density = by_row(stretched(fn, math.exp(log_factor)).log_prob(x))
                sums.append(torch.where(there > 0, density, 0.0).sum((0, 1)).cpu())
        found = torch.stack(sums)
        self._sums = found if self._sums is None else self._sums + found
        return True

    @property
    def groups(self) -> Tensor:
        """For each number, the number of those that have its scale, `(numbers,)`."""
        assert self._marks is not None
        digits = 10 ** (_DIGITS - self._marks.amax(0).log10().ceil())
        rounded = (self._marks * digits).round() / digits
        found: Tensor = rounded.unique(dim=1, return_inverse=True)[1]
        return found

    @property
    def several(self) -> bool:
        """Whether there are several scales."""
        return bool(self.groups.any())

    def factors(self, apart: bool) -> Tensor | None:
        """The factor of each number, `(numbers,)`; None for normal numbers, of which residuals tell it.

        Args:
            apart: Whether those of each scale have a factor of their own, or all have the same one.
        """
        if self._sums is None:
            return None
        groups = self.groups if apart else torch.zeros_like(self.groups)
        count = int(groups.max()) + 1
        sums = self._sums.new_zeros(len(self._grid), count).index_add_(1, groups, self._sums)
        return _highest(self._grid, sums).exp()[groups]


def _highest(grid: Tensor, values: Tensor) -> Tensor:
    """Where each column of values on a grid is highest, by the parabola through three points.

    Example:
        >>> grid = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
        >>> curves = torch.stack([-((grid - 0.3) ** 2), grid, 0 * grid], -1)
        >>> [round(float(each), 3) for each in _highest(grid, curves)]
        [0.3, 2.0, 0.0]
    """
    known = torch.where(values.isfinite(), values, -math.inf)
    flat = known.amax(0) == known.amin(0)  # it tells nothing
    best = known.argmax(0)
    inner = best.clamp(1, len(grid) - 2)
    low, here, high = (known.gather(0, (inner + by).unsqueeze(0))[0] for by in (-1, 0, 1))
    bend = 2 * here - low - high
    step = float(grid[1] - grid[0])
    shift = torch.where((bend > 0) & bend.isfinite(), 0.5 * (high - low) / bend, 0.0)
    found = torch.where(best == inner, grid[inner] + step * shift.clamp(-1, 1), grid[best])
    return torch.where(flat, 0.0, found)
