"""The guide's family with free numbers for each row, over which the best q of a row is optimized."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from ppl_vae.distributions import rebuilt
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Program,
    Site,
    Trace,
    as_args,
    hook_of,
    in_plates,
    inner_sizes,
    num_rows,
    sources_of,
    trace_tracked,
)


@dataclass(frozen=True)
class RowFamily:
    """Distributions over the latents of n rows, described by free numbers.

    Attributes:
        program: A guide for these n rows that draws from the distributions; called like the pair's own.
        numbers: The numbers, as unbounded leaf tensors that require gradients.
        row_dims: The row dimension of each of these tensors, counted from the left.
        note: How it is smaller than the guide's family; empty if it is not.
    """

    program: Program
    numbers: tuple[Tensor, ...]
    row_dims: tuple[int, ...]
    note: str = ""

    def pair(self, pair: Pair) -> Pair:
        """The pair with this family as its guide."""
        return Pair(pair.model, self.program, pair.store)

    @torch.no_grad()
    def put_back(self, rows: Tensor, numbers: Sequence[Tensor]) -> None:
        """Restores earlier numbers of the chosen rows, a mask `(n,)`."""
        for mine, theirs, dim in zip(self.numbers, numbers, self.row_dims, strict=True):
            shape = [1] * mine.dim()
            shape[dim] = len(rows)
            mine.copy_(torch.where(rows.reshape(shape), theirs, mine))


def own_family(pair: Pair, layout: Layout, batch: Batch) -> RowFamily:
    """The family of the guide's q(z | x), with free numbers for each row that start at the guide's own.

    If the guide has two methods, `amortize(x)`, which returns unbounded numbers `(n, k)`, and
    `family(numbers)`, which returns their distribution, these define the family. For any other guide, the
    arguments of the distributions that it draws from are freed: `biject_to` maps them to unconstrained
    numbers, and a separate number is added for each row (and for each value of plates inside of the rows'
    plate). Where such a distribution depends on another latent, the added numbers shift the arguments that
    the guide computes from it.

    Call it inside of `pair.scope()`.

    Raises:
        PairError: The guide has latents shared by all rows, draws nothing, or draws from a distribution whose
            arguments cannot be freed.
    """
    if layout.shared:
        raise PairError(
            f"site '{layout.shared[0]}' is outside of plate '{layout.plate}': a latent shared by all "
            "rows has no per-row posterior to optimize; put it inside of the plate, or make it a parameter"
        )
    if not layout.draws:
        raise PairError(
            "the guide draws no latent of a row (its sites are point estimates): it has no ELBO to optimize"
        )
    args = as_args(batch)
    with torch.no_grad():
        trace = poutine.trace(pair.guide).get_trace(*args)
    amortize = _amortize_of(pair.guide)
    family = hook_of(pair.guide, "family")
    if amortize is not None and family is not None and _is_alone(layout):
        with torch.no_grad():
            numbers = amortize(*args).clone().requires_grad_()
        site = trace.nodes[layout.draws[0]]
        program = _Sites({layout.draws[0]: (site, lambda: family(numbers))})
        return RowFamily(program, (numbers,), (0,), _note_on_parameters(family, numbers))
    return _shifted_family(pair, layout, batch, trace)


def normal_family(
    sites: dict[str, Site], layout: Layout, mean: Tensor, scale: Tensor | float
) -> RowFamily:
    """Independent normal distributions for all numbers of the given latent sites.

    Args:
        sites: Latent sites of n rows, from a trace of a single sample.
        layout: The pair's layout.
        mean: Means to start from, `(n, dimensions)`, in the order of the sites.
        scale: Standard deviations to start from, likewise or one for all.
    """
    shapes = {
        name: inner_sizes(site, layout) + site["fn"].event_shape for name, site in sites.items()
    }
    mean = mean.detach().clone().requires_grad_()
    log_scale = torch.as_tensor(scale).log().to(mean).expand_as(mean).clone().requires_grad_()
    sizes = [math.prod(shape) for shape in shapes.values()]

    def at(place: int, shape: tuple[int, ...], event_dim: int) -> Any:
        loc, spread = (
            in_plates(part.split(sizes, -1)[place].reshape(1, len(mean), *shape), layout)[0]
            for part in (mean, log_scale.exp())
        )
        return dist.Normal(loc, spread).to_event(event_dim)

    made: dict[str, tuple[Site, Callable[[], Any]]] = {
        name: (site, functools.partial(at, i, shapes[name], len(site["fn"].event_shape)))
        for i, (name, site) in enumerate(sites.items())
    }
    return RowFamily(_Sites(made), (mean, log_scale), (0, 0))


def _amortize_of(guide: Program) -> Callable[..., Tensor] | None:
    """The guide's method `amortize`, also under the name that it had in version 0.1; None if it has none."""
    old = hook_of(guide, "amortise")
    if old is not None and hook_of(guide, "amortize") is None and hook_of(guide, "family"):
        warnings.warn(
            f"{type(guide).__name__}.amortise is called amortize now: rename the method",
            DeprecationWarning,
            stacklevel=2,
        )
        return old
    return hook_of(guide, "amortize")


def _note_on_parameters(family: Callable[[Tensor], Any], numbers: Tensor) -> str:
    """A note on a family with networks of its own, such as a flow."""
    with torch.enable_grad():
        q = family(numbers.detach())
        own = q.log_prob(q.sample()).requires_grad
    if not own:
        return ""
    return (
        "the guide's family has parameters of its own, shared by all rows, which are held fixed: the best q "
        "in the family is the best for these parameters"
    )


class _Sites:
    """A guide that draws each site, in its plates, from the distribution that a function returns."""

    def __init__(self, sites: dict[str, tuple[Site, Callable[[], Any]]]) -> None:
        self.sites = sites

    def __call__(self, *args: Any) -> None:
        plates: dict[str, Any] = {}
        for name, (site, make) in self.sites.items():
            with contextlib.ExitStack() as stack:
                for frame in (f for f in site["cond_indep_stack"] if f.vectorized):
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                if site["mask"] is not None:
                    stack.enter_context(poutine.mask(mask=site["mask"]))
                pyro.sample(name, make())


def _is_alone(layout: Layout) -> bool:
    return len(layout.draws) == len(layout.guide_sites) == 1


class _Shift(Messenger):
    """Adds numbers to the unconstrained arguments of the distributions at the named sites."""

    def __init__(self, shifts: dict[str, list[Tensor]]) -> None:
        super().__init__()
        self.shifts = shifts

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.shifts and not msg["is_observed"]:
            rest = iter(self.shifts[msg["name"]])

            def shifted(value: Tensor, constraint: Constraint) -> Tensor:
                to = biject_to(constraint)
                new: Tensor = to(to.inv(value) + next(rest))
                return new

            msg["fn"] = rebuilt(msg["fn"], shifted)


def _shifted_family(pair: Pair, layout: Layout, batch: Batch, trace: Trace) -> RowFamily:
    n = num_rows(batch)
    shifts: dict[str, list[Tensor]] = {}
    numbers: list[Tensor] = []
    row_dims: list[int] = []
    for name in layout.draws:
        site = trace.nodes[name]
        fn: Any = site["fn"]
        found: list[Tensor] = []

        def free(
            value: Tensor, constraint: Constraint, found: list[Tensor] = found
        ) -> Tensor:  # of this site
            start = biject_to(constraint).inv(value)
            found.append(torch.zeros_like(start).requires_grad_())
            return value

        try:
            same: Any = rebuilt(fn, free)
            value = site["value"]
            mine, its = same.log_prob(value), fn.log_prob(value)
            agrees = torch.allclose(mine, its, rtol=1e-3, atol=1e-3)
        except Exception:  # rebuilding fails if a distribution is more than its arguments
            agrees = False
        if not agrees or not found:
            raise PairError(
                f"site '{name}' is drawn from a {type(fn).__name__}, whose arguments cannot be freed for "
                "each row: give the guide two methods, amortize(x), which returns unbounded numbers of shape "
                "(n, k), and family(numbers), which returns their distribution"
            )
        row = len(fn.batch_shape) + layout.dim
        if row < 0 or fn.batch_shape[row] != n:
            raise PairError(
                f"site '{name}' is in plate '{layout.plate}' of {n} rows, but its distribution has the "
                f"batch shape {tuple(fn.batch_shape)}: it has no separate distribution for each row"
            )
        shifts[name] = found
        numbers += found
        row_dims += [row] * len(found)
    chained = _chained(pair, layout, batch)
    note = (
        f"the guide's site '{chained}' depends on another latent: the best q in the family is the best "
        "among shifts of the arguments that the guide computes from it"
        if chained
        else ""
    )
    # The guide's other handlers still apply: masks, plates, sites computed from others.
    return RowFamily(_Shift(shifts)(pair.guide), tuple(numbers), tuple(row_dims), note)


def _chained(pair: Pair, layout: Layout, batch: Batch) -> str | None:
    """A draw of the guide whose distribution depends on another of its draws, if there is one."""
    if len(layout.draws) < 2:
        return None
    trace = trace_tracked(pair, batch)
    if trace is None:
        return layout.draws[-1]
    try:
        fns: dict[str, Any] = {name: trace.nodes[name]["fn"] for name in layout.draws}
        sources = {
            name: sources_of(fns[name].log_prob(trace.nodes[name]["value"]))
            for name in layout.draws
        }
    except Exception:  # code that checks a tensor's type cannot be tracked
        return layout.draws[-1]
    return next((n for n, s in sources.items() if s & set(layout.draws) - {n}), None)
