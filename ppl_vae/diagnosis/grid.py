"""The exact posterior of rows with a two-dimensional latent, on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.diagnosis.families import normal_family
from ppl_vae.diagnosis.refinement import is_real
from ppl_vae.pairs import (
    DataLike,
    PairError,
    Program,
    in_plates,
    inner_sizes,
    num_rows,
    require_proper,
    require_whole_rows,
    rows_first,
    sample_rows,
)
from ppl_vae.runtime import html_table
from ppl_vae.stats import Estimate

BORDER = 1e-4
"""Largest posterior mass allowed beyond the grid, judged by the mass in its outermost cells."""

COARSE = 1e-2
"""Largest change of log p(x), in nats, allowed when every second line of the grid is left out."""

_DEPTH = 30.0  # nats below the mode, where the density is negligible

_LOOKS = 40


@dataclass(frozen=True)
class PosteriorGrid:
    """p(z | x) of n rows, each on its own grid of `size` x `size` points.

    Attributes:
        points: The values of each of the two latent numbers, `(n, 2, size)`, evenly spaced.
        log_density: log p(z | x), normalized by quadrature, `(n, size, size)`: the first number along the
            first dimension of the grid.
        log_evidence: log p(x) by quadrature, `(n,)`.
        error: Change of `log_evidence` when every second line of the grid is left out, `(n,)`.
        border: Posterior mass in the outermost cells, `(n,)`.
        names: Names of the two latent numbers.
    """

    points: Tensor
    log_density: Tensor
    log_evidence: Tensor
    error: Tensor
    border: Tensor
    names: tuple[str, str]

    def __repr__(self) -> str:
        n, _, size = self.points.shape
        axes = " x ".join(self.names)
        return f"PosteriorGrid({axes}, {size} x {size} points, {n} row{'' if n == 1 else 's'})"

    def _repr_html_(self) -> str:
        n, _, size = self.points.shape
        rows = [
            ("latents", ", ".join(self.names)),
            ("points", f"{size} x {size} for each of {n} rows"),
            ("log p(x), by quadrature", str(Estimate(self.log_evidence))),
            (
                "change with every second line left out, largest",
                f"{float(self.error.max()):.2g} nats",
            ),
            ("posterior mass at the border, largest", f"{float(self.border.max()):.2g}"),
        ]
        return html_table(rows)

    @property
    def log_likelihood(self) -> Estimate:
        """log p(x) per row, so that a grid can be the `truth` of `inference_gaps`."""
        return Estimate(self.log_evidence)

    @property
    def log_likelihood_error(self) -> Tensor:
        """Estimated error of log p(x), `(n,)`."""
        return self.error

    @property
    def mass(self) -> Tensor:
        """Posterior mass of each cell, `(n, size, size)`; it sums to 1 over a row's grid."""
        return (self.log_density + _log_cell(self.points)[:, None, None]).exp()

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(n, 2)`."""
        mass = self.mass
        return torch.stack(
            [(mass.sum(2 - i) * self.points[:, i]).sum(-1) for i in range(2)], dim=-1
        )

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(n, 2, 2)`."""
        first, second = (self.points[:, i] - self.mean[:, i, None] for i in range(2))
        mass = self.mass
        cross = torch.einsum("nij,ni,nj->n", mass, first, second)
        var = [(mass.sum(2 - i) * c.square()).sum(-1) for i, c in enumerate((first, second))]
        return torch.stack([var[0], cross, cross, var[1]], -1).reshape(-1, 2, 2)


def posterior_grid(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    size: int = 129,
    bounds: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> PosteriorGrid:
    """The exact posterior of each row, on a grid that is fitted to its mass.

    p(z_ij | x) = p(x, z_ij) / p(x), with p(x) = sum_ij p(x, z_ij) dz_1 dz_2. This is the trapezoidal rule: its
    error falls exponentially with the number of points for densities that vanish at the border. A row's grid
    starts around draws from prior and guide. It grows while there is mass at its border, and shrinks to where
    the density is within 30 nats of its largest value.

    Args:
        model: Pyro program of p(x, z), its latents two real numbers per row: one site or two.
        guide: Pyro program of q(z | x). It sets where the search starts; the posterior does not depend on it.
        x: Rows, `(n, *event)`; about a hundred at most, all in one batch.
        size: Points per side, odd.
        bounds: Ends of the grid for both latent numbers, the same for all rows, instead of fitting it.

    Raises:
        PairError: The model does not have just two real latent numbers per row, or sees a part of a row only.
        ValueError: `size` is even or below 17, or the requested grid is too small (mass at its
            border) or too coarse for the posterior.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> from ppl_vae.networks import MLP
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(4, 3)
        >>> grid = posterior_grid(model, MeanField((3,), 2, MLP((8,))), x)
        >>> torch.allclose(grid.log_evidence, model.log_evidence(x).double(), atol=1e-4)
        True
    """
    if size < 17 or size % 2 == 0:
        raise ValueError(f"size must be odd and at least 17, got {size}")
    with opened(model, guide, x, seed=0, whole=True, draws_start_at_seed=True) as session:
        require_proper(session.layout, "posterior_grid", session.pair.model)
        joint = _Joint(session)
        if bounds is None:
            box = joint.fitted(min(size, 65))
        else:
            box = torch.tensor(bounds, dtype=torch.float64).expand(num_rows(session.first), 2, 2)
        points = _points(box, size)
        log_joint = joint(points)
    cell = _log_cell(points)
    log_evidence = log_joint.logsumexp((1, 2)) + cell
    halved = log_joint[:, ::2, ::2].logsumexp((1, 2)) + cell + math.log(4.0)
    grid = PosteriorGrid(
        points=points,
        log_density=log_joint - log_evidence[:, None, None],
        log_evidence=log_evidence,
        error=(halved - log_evidence).abs(),
        border=_border((log_joint - log_joint.logsumexp((1, 2), keepdim=True)).exp()),
        names=joint.names,
    )
    _require_good(grid)
    return grid


def guide_on_grid(model: Program, guide: Program, x: DataLike, grid: PosteriorGrid) -> Tensor:
    """log q(z | x) on the points of a grid, `(n, size, size)`.

    Raises:
        PairError: The guide draws other sites than the model's latents (for example auxiliary ones), so its
            density at a given latent is unknown.
    """
    with opened(model, guide, x, seed=0, whole=True, draws_start_at_seed=True) as session:
        layout = session.layout
        if set(layout.draws) != set(layout.latents) or layout.draws != layout.guide_sites:
            raise PairError(
                f"the guide draws {', '.join(map(repr, layout.guide_sites))} and the model's latents are "
                f"{', '.join(map(repr, layout.latents))}: the guide's density at given latents is unknown; "
                "draw the latents themselves in the guide"
            )
        return _Joint(session)(grid.points, of_guide=True)


class _Joint:
    """log p(x, z) of each row at the points of the row's own grid."""

    def __init__(self, session: Session) -> None:
        pair, layout, batch = session.pair, session.layout, session.first
        self.pair, self.layout, self.batch = pair, layout, batch
        single = sample_rows(pair, layout, batch, 1)
        self.single: dict[str, Any] = {n: single.model_trace.nodes[n] for n in layout.latents}
        self.sizes = {n: single.latents[n][0, 0].numel() for n in layout.latents}
        unreal = [n for n, site in self.single.items() if not is_real(site["fn"])]
        if layout.shared or sum(self.sizes.values()) != 2 or unreal:
            found = ", ".join(f"'{n}' of {k}" for n, k in self.sizes.items()) or "none"
            raise PairError(
                f"a grid needs two real latent numbers per row; the latents found are {found}"
                + (f", and '{unreal[0]}' is not real" if unreal else "")
                + (f", and '{layout.shared[0]}' belongs to all rows" if layout.shared else "")
            )
        needed = "a grid needs the density of whole rows"
        require_whole_rows((single.model_trace,), layout, needed)
        self.names: tuple[str, str] = tuple(  # type: ignore[assignment]
            f"{n}[{i}]" if k > 1 else n for n, k in self.sizes.items() for i in range(k)
        )
        start = torch.zeros(num_rows(batch), 2, device=single.log_guide.device)
        start = start.to(single.log_guide.dtype)
        # Its values are always given: only its sites and shapes matter.
        self.stand_in = normal_family(self.single, layout, start, 1.0).pair(pair)
        self.at_once = math.prod(session.chunk_sizes(2**20, rows=16))

    def __call__(self, points: Tensor, of_guide: bool = False) -> Tensor:
        """The log joint (or the guide's log density) in float64, `(n, size, size)`."""
        n, _, size = points.shape
        first = points[:, 0, :, None].expand(n, size, size)
        second = points[:, 1, None, :].expand(n, size, size)
        z = torch.stack([first, second], -1).reshape(n, size * size, 2).transpose(0, 1)
        pair, layout = self.pair, self.layout
        if not of_guide:
            pair, layout = (
                self.stand_in,
                replace(layout.of_another_guide, guide_sites=layout.latents, draws=layout.latents),
            )
        found = []
        for chunk in z.split(max(1, self.at_once // n)):
            rows = sample_rows(pair, layout, self.batch, len(chunk), self._values(chunk))
            value = rows.log_guide if of_guide else rows.log_likelihood + rows.log_prior
            found.append(value.double().cpu())
        return torch.cat(found).transpose(0, 1).reshape(n, size, size)

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        values = {}
        parts = z.split(list(self.sizes.values()), -1)
        for (name, site), part in zip(self.single.items(), parts, strict=True):
            shape = (*z.shape[:2], *inner_sizes(site, self.layout), *site["fn"].event_shape)
            values[name] = in_plates(part.reshape(shape), self.layout).to(site["value"])
        return values

    def fitted(self, size: int) -> Tensor:
        """Ends of each row's grid, `(n, 2, 2)`, around its posterior."""
        n = num_rows(self.batch)
        rows = sample_rows(self.pair, self.layout, self.batch, 64)
        draws = torch.cat([rows.latents[s].reshape(64, n, -1) for s in self.sizes], -1)
        prior = torch.cat([self._of_prior(s, n) for s in self.sizes], -1)
        both = torch.cat([draws.double().cpu(), prior.double().cpu()])
        low, high = both.amin(0), both.amax(0)
        reach = (high - low).clamp(min=1e-6)
        box = torch.stack([low - reach / 2, high + reach / 2], -1)
        for _ in range(_LOOKS):
            # A narrow ridge may hide between points of a coarse grid: the true mode may be some points away.
            new, cut = self._closer(box, size, margin=size // 8)
            before, after = (b[..., 1] - b[..., 0] for b in (box, new))
            box = new
            if not cut and bool(((after / before - 1).abs() < 0.1).all()):
                return self._closer(box, size, margin=1)[0]
        return box

    def _closer(self, box: Tensor, size: int, margin: int) -> tuple[Tensor, bool]:
        """New ends around the relevant part of a grid, and whether it reaches old ends, which then move out."""
        points = _points(box, size)
        log_joint = self(points)
        deep = log_joint > log_joint.amax((1, 2), keepdim=True) - _DEPTH
        ends, cut = [], False
        for axis in range(2):
            seen = deep.any(2 - axis)  # (n, size)
            first = seen.double().argmax(-1)
            last = size - 1 - seen.flip(-1).double().argmax(-1)
            low, high = box[:, axis, 0], box[:, axis, 1]
            step = (high - low) / (size - 1)
            beyond = [
                torch.where(at, (high - low) / 2, margin * step)
                for at in (first == 0, last == size - 1)
            ]
            cut |= bool(((first == 0) | (last == size - 1)).any())
            ends.append(
                torch.stack([low + first * step - beyond[0], low + last * step + beyond[1]], -1)
            )
        return torch.stack(ends, 1), cut

    def _of_prior(self, name: str, n: int) -> Tensor:
        """64 draws from the prior of a site, which show where its mass is, `(64, n, numbers)`."""
        site = self.single[name]
        value: Tensor = site["fn"].sample((64,))
        missing = (1,) * (self.layout.nesting - len(site["fn"].batch_shape))
        value = value.reshape(64, *missing, *value.shape[1:])
        draws = rows_first({**site, "value": value}, self.layout, 64, n)
        return draws.reshape(64, n, self.sizes[name])


def _points(box: Tensor, size: int) -> Tensor:
    """Evenly spaced points between the ends `(n, 2, 2)`: `(n, 2, size)`, in float64."""
    share = torch.linspace(0, 1, size, dtype=torch.float64)
    low, high = box.double().unbind(-1)
    return low[..., None] + (high - low)[..., None] * share


def _log_cell(points: Tensor) -> Tensor:
    """log of the area of a cell, `(n,)`."""
    return (points[:, :, 1] - points[:, :, 0]).log().sum(-1)


def _border(mass: Tensor) -> Tensor:
    inside = mass[:, 1:-1, 1:-1].sum((1, 2))
    return (mass.sum((1, 2)) - inside).clamp(min=0.0)


def _require_good(grid: PosteriorGrid) -> None:
    row = _first_row(grid.border > BORDER)
    if row is not None:
        raise ValueError(
            f"the grid is too small: {100 * float(grid.border[row]):.2g} % of the posterior of row {row} "
            "lies in its outermost cells; give wider bounds, or no bounds and a larger size, to fit the mass"
        )
    row = _first_row(grid.error > COARSE)
    if row is not None:
        raise ValueError(
            f"the grid is too coarse: log p(x) of row {row} changes by {float(grid.error[row]):.2g} nats when "
            "every second line is left out; raise size, or give narrower bounds"
        )


def _first_row(bad: Tensor) -> int | None:
    return int(bad.nonzero()[0]) if bool(bad.any()) else None
