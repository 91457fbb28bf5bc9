"""The annealing path from the guide or the prior to the posterior, in unconstrained coordinates.

A `Path` turns a pair and a chunk of rows into a function of one tensor u of shape
`(chains, rows, dimensions)`: the densities at both ends and their gradients. `recorded` runs Pyro once
to turn such a function into a plain graph of tensor operations; parts that do not depend on u are computed
beforehand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from ppl_vae.capture import recorded
from ppl_vae.evaluation.hmc import Densities, Point
from ppl_vae.pairs import (
    Batch,
    Bound,
    ImproperStandIns,
    Layout,
    NoInverseError,
    Pair,
    PairError,
    Program,
    RowDensities,
    Site,
    finite_latents,
    log_repeats,
    num_rows,
    require_no_points,
    require_proper,
    require_whole_rows,
    row_log_prob,
    sample_rows,
    sum_to_rows,
)

_logger = logging.getLogger(__name__)


class PriorGuide:
    """A guide that draws the model's latents from their prior; its densities are taken from the model.

    Attributes:
        is_prior: True, which tells the checks that its masks mean nothing.
    """

    is_prior = True

    def __init__(self, model: Program) -> None:
        self.model = model.program if isinstance(model, Bound) else model

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Runs the model; only the latents that it does not sum out are visible from outside."""
        # Sites to be summed out are drawn, in all of their plates, but not traced; `block` would hide the
        # plates from them.
        with poutine.block(hide_fn=_is_observed), poutine.mask(mask=False):
            model = poutine.infer_config(self.model, _hide_enumerated)
            ImproperStandIns(self.model)(model)(*args, **kwargs)


def _is_observed(site: Site) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def _hide_enumerated(site: Site) -> Any:
    summed_out = not site["is_observed"] and site["infer"].get("enumerate") == "parallel"
    return {"_do_not_trace": True, "is_auxiliary": True} if summed_out else {}


def transform_of(site: Site) -> Transform:
    """The bijection from real numbers to the values of a site; a site without a support counts as real.

    Raises:
        PairError: The site is discrete, or torch has no bijection to its support.
    """
    name, fn = site["name"], site["fn"]
    try:
        support = fn.support
    except NotImplementedError:  # flows
        support = constraints.independent(constraints.real, len(fn.event_shape))
    if support.is_discrete or fn.has_enumerate_support:
        raise PairError(
            f"latent site '{name}' is discrete: annealed importance sampling moves real numbers along "
            'gradients. Sum the site out in the model (infer={"enumerate": "parallel"}, and no such site '
            "in the guide), or use evaluate(), which samples, and bidirectional_monte_carlo(num_steps=1), "
            "which shows how low that is"
        )
    if isinstance(support, MixtureSameFamilyConstraint) and not _varies(support.base_constraint):
        support = support.base_constraint  # what all components have in common
    try:
        transform: Transform = biject_to(support)
    except NotImplementedError as error:
        raise PairError(
            f"latent site '{name}' has the support {support}, to which torch has no bijection from real "
            "numbers: write the site in other coordinates, or use evaluate(), which needs no bijection"
        ) from error
    return transform


def _varies(support: Constraint) -> bool:
    """Whether a support has bounds that differ within a batch, such as those of a mixture's components."""
    return any(
        (isinstance(value, Tensor) and value.dim() > 0)
        or (isinstance(value, Constraint) and _varies(value))
        for value in vars(support).values()
    )


class _Unconstrained(Messenger):
    """Sets the guide's draws from unconstrained numbers, and keeps the log Jacobians."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.log_jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if name not in self.values or msg["done"] or msg["is_observed"]:
            return  # the model's sites take their values from the guide's
        u = self.values[name]
        transform = transform_of(msg)
        value = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, value)
        batch_dim = value.dim() - len(msg["fn"].event_shape)
        self.log_jacobians[name] = (
            jacobian.flatten(batch_dim).sum(-1) if (jacobian.dim() > batch_dim) else jacobian
        )
        msg["value"], msg["done"] = value, True


class Path:
    """The densities between the guide (or the prior) and the posterior of a chunk of rows.

    With the guide's draws z = T(u) of each row and the Jacobian of T,

        f_0(u) = q(T(u) | x) |dT/du|   and   f_1(u) = p(x, T(u)) |dT/du|,

    so that f_1 integrates to p(x), and f_0 to 1. When starting from the prior, q(z | x) is p(z). Discrete
    latents with few joint values c are no part of z: both densities are summed over them, sum_c q(T(u), c | x)
    and sum_c p(x, T(u), c). Use it inside of `pair.scope()`, without gradients.

    Args:
        pair: The pair, with `PriorGuide` as its guide to start at the prior.
        layout: The pair's layout.
        batch: n rows.

    Raises:
        PairError: A latent is discrete and cannot be summed over, or belongs to all rows.

    Attributes:
        summed: The discrete latents that are summed over; None if there are none.
    """

    def __init__(self, pair: Pair, layout: Layout, batch: Batch) -> None:
        if layout.shared:
            raise PairError(
                f"latent site '{layout.shared[0]}' belongs to all rows: annealed importance sampling "
                "estimates log p(x) of single rows. Use evaluate(), which draws the site from the guide"
            )
        require_proper(layout, "annealing", pair.model)
        require_no_points(layout, "annealing from the guide (guide=None starts at the prior)")
        if not layout.draws:
            raise PairError(
                "the guide draws no latents: there is nothing to anneal; use evaluate(), which is exact here"
            )
        self.pair, self.layout, self.batch = pair, layout, batch
        self.summed = finite_latents(pair, layout, batch) if layout.discrete else None
        if self.summed is not None and self.summed.alone:
            self.summed = None  # nothing else could be moved
        self._values: dict[str, Tensor] = {}
        if self.summed is not None:
            self._values = self.summed.of_rows(num_rows(batch), layout)
        self._draws = tuple(name for name in layout.draws if name not in self._values)
        self._from_prior = isinstance(pair.guide, PriorGuide)
        self._sites: dict[str, _Flattened] = {}

    def draw(self, num_chains: int, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draws from f_0, `(num_chains, n, dimensions)`; or given values, the same for all chains.

        Args:
            num_chains: How many draws per row.
            values: Values of the guide's draws, shaped as one run of the guide gives them. They get the dtypes
                of earlier draws, of which there must be some.
        """
        if num_chains > 1 and not self.layout.vectorizes:
            return torch.cat([self.draw(1, values) for _ in range(num_chains)])
        if values is not None:
            values = {n: self._sites[n].as_drawn(v) for n, v in values.items() if n in self._sites}
            if num_chains > 1:
                values = {n: self._repeated(n, v, num_chains) for n, v in values.items()}
        rows = sample_rows(self.pair, self.layout, self.batch, num_chains, values=values)
        needed = "chains need the density of whole rows"
        require_whole_rows((rows.model_trace,), self.layout, needed)
        parts = []
        for name in self._draws:
            site = rows.guide_trace.nodes[name]
            u = transform_of(site).inv(site["value"])
            flat = _Flattened(u, site, self.layout, num_chains, num_rows(self.batch))
            self._sites[name] = flat
            parts.append(flat.flatten(u))
        return torch.cat(parts, -1)

    def in_order_of(self, other: Path, u: Tensor) -> Tensor | None:
        """Positions of another path, of the same sites in another order; None if it has other sites."""
        sizes = {name: site.size for name, site in other._sites.items()}
        if sizes != {name: site.size for name, site in self._sites.items()}:
            return None
        parts = dict(zip(sizes, u.split([*sizes.values()], -1), strict=True))
        return torch.cat([parts[name] for name in self._sites], -1)

    def densities(self, u: Tensor) -> Point:
        """The path's densities at u, computed by Pyro."""
        return Point(u, *self._densities(u))

    def record(self, u: Tensor, check: Tensor) -> Densities:
        """`densities` without Pyro, for u of one shape; falls back to Pyro where that fails.

        Args:
            u: Example of the positions that the result will be called with.
            check: Other positions of the same shape, where the recording must agree with Pyro.
        """
        run = self._recorded(self._densities, u, check)
        return lambda u: Point(u, *run(u))

    def scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log f_0 and log f_1 at u, `(chains, n)` each, without gradients.

        Raises:
            PairError: The guide cannot score what it has not drawn.
        """
        if len(u) > 1 and not self.layout.vectorizes:
            found = [self.scores(part) for part in u.split(1)]
            return torch.cat([base for base, _ in found]), torch.cat([end for _, end in found])
        base, end = self._score(u)
        return base, base + end if self._from_prior else end

    def record_scores(self, u: Tensor, check: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """`scores`, for u of one shape; as `record`."""
        return self._recorded(self.scores, u, check)

    def record_end(self, u: Tensor, check: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """log f_1 and its gradient, for u of one shape; as `record`."""
        return self._recorded(self._end, u, check)

    def _recorded(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], u: Tensor, check: Tensor
    ) -> Callable[[Tensor], tuple[Tensor, ...]]:
        try:
            run = recorded(function, u)
        except Exception as error:  # any operation that cannot be recorded
            _logger.info("the densities cannot be recorded, Pyro runs instead: %s", error)
            return function
        # What one call leaves to the next shows in the second.
        for position in (check, 0.5 * (u + check)):
            for found, expected in zip(run(position), function(position), strict=True):
                scale = float(expected.abs().nan_to_num(posinf=0.0).max()) + 1.0
                if not torch.allclose(
                    found, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True
                ):
                    _logger.info("the recorded densities differ from Pyro's, which runs instead")
                    return function
        return run

    def _end(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            _, end = self.scores(u)
            (gradient,) = torch.autograd.grad((end + 0.0 * u.sum(-1)).sum(), u)
        return end.detach(), gradient

    def _repeated(self, name: str, value: Tensor, num_chains: int) -> Tensor:
        """Expands a value without a plate of chains to one with it."""
        event_dim = self._sites[name].event_dim
        padding = self.layout.nesting + event_dim - value.dim()
        return value.reshape((1,) * padding + value.shape).expand(
            num_chains, *(1,) * padding, *value.shape
        )

    def _densities(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            if len(u) > 1 and not self.layout.vectorizes:
                scores = [self._score(part) for part in u.split(1)]
                base, end = (torch.cat(parts) for parts in zip(*scores, strict=True))
            else:
                base, end = self._score(u)
            nothing = 0.0 * u.sum(-1)  # a density that does not depend on u gets a zero gradient
            (d_base,) = torch.autograd.grad((base + nothing).sum(), u, retain_graph=True)
            (d_end,) = torch.autograd.grad((end + nothing).sum(), u)
        base, end = base.detach(), end.detach()
        if self._from_prior:
            return base, end, d_base, d_end
        return base, end - base, d_base, d_end - d_base

    def _score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log f_0, with log f_1 (from the guide) or log f_1 - log f_0 = log p(x | z) (from the prior)."""
        if self.summed is None:
            return self._score_at(u, None)
        count, k = self.summed.count, len(u)
        if self.layout.vectorizes:
            values = {name: v.repeat_interleave(k, 0) for name, v in self._values.items()}
            base, end = self._score_at(u.repeat(count, 1, 1), values)
        else:
            scores = [
                self._score_at(u, {name: v[c] for name, v in self._values.items()})
                for c in range(count)
            ]
            base, end = (torch.cat(parts) for parts in zip(*scores, strict=True))
        total = base + end if self._from_prior else end
        base, total = (each.unflatten(0, (count, k)).logsumexp(0) for each in (base, total))
        return base, total - base if self._from_prior else total

    def _score_at(
        self, u: Tensor, values_of_summed: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """`_score`, of one joint value of the discrete latents for each u."""
        sizes = [site.size for site in self._sites.values()]
        parts = zip(self._sites.items(), u.split(sizes, -1), strict=True)
        values = {name: site.unflatten(part, len(u)) for (name, site), part in parts}
        try:
            with pyro.validation_enabled(False), _Unconstrained(values) as given:
                rows = sample_rows(
                    self.pair, self.layout, self.batch, len(u), values=values_of_summed
                )
        except NoInverseError as error:
            prior = "" if self._from_prior else ", start at the prior (guide=None)"
            raise PairError(
                f"{error}{prior}, or use evaluate(), which scores only what is drawn"
            ) from error
        jacobian = torch.stack(
            [
                sum_to_rows(term, self.layout, len(u), u.shape[1])
                for term in given.log_jacobians.values()
            ]
        ).sum(0)
        if self.summed is not None:  # numbers that a mask leaves out count once
            jacobian = jacobian - log_repeats(rows, self.layout, self.summed)
        if self._from_prior:
            return rows.log_prior + jacobian, rows.log_likelihood
        base = self._log_guide(rows, self.layout.draws) + jacobian
        # An autoguide's latents are functions of its draws, with their own log Jacobians.
        functions = tuple(n for n in self.layout.guide_sites if n not in self.layout.draws)
        end = rows.log_likelihood + rows.log_prior + jacobian
        return base, end - self._log_guide(rows, functions) if functions else end

    def _log_guide(self, rows: RowDensities, names: tuple[str, ...]) -> Tensor:
        samples, n = rows.log_guide.shape
        terms = [
            sum_to_rows(
                row_log_prob(rows.guide_trace.nodes[name], self.layout), self.layout, samples, n
            )
            for name in names
        ]
        return torch.stack(terms).sum(0)


class _Flattened:
    """Reshapes a site's unconstrained values to `(chains, rows, numbers)`, and back."""

    def __init__(self, u: Tensor, site: Site, layout: Layout, num_chains: int, n: int) -> None:
        self.event_dim = len(site["fn"].event_shape)
        event_dim = u.dim() - (site["value"].dim() - self.event_dim)
        self._padding = (1,) * (layout.nesting + 1 + event_dim - u.dim())
        batch_dim = layout.nesting + 1
        self._dims = (0, batch_dim + layout.dim)
        self._dtype = u.dtype
        moved = u.reshape(self._padding + u.shape).movedim(self._dims, (0, 1))
        if moved.shape[:2] != (num_chains, n):
            raise PairError(
                f"latent site '{site['name']}' has the shape {tuple(site['value'].shape)} for {n} rows "
                f"of {num_chains} samples: it does not have a separate value for each"
            )
        self._inner = moved.shape[2:]
        self.size = math.prod(self._inner)

    def as_drawn(self, value: Tensor) -> Tensor:
        """A value in the dtype of the guide's draws: networks take no other."""
        return value.to(self._dtype)

    def flatten(self, u: Tensor) -> Tensor:
        moved = u.reshape(self._padding + u.shape).movedim(self._dims, (0, 1))
        return moved.flatten(2) if self._inner else moved.unsqueeze(-1)

    def unflatten(self, flat: Tensor, num_chains: int) -> Tensor:
        moved = flat.to(self._dtype).reshape(num_chains, flat.shape[1], *self._inner)
        value = moved.movedim((0, 1), self._dims)
        return value.reshape(value.shape[len(self._padding) :])
