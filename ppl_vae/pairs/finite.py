"""Latents with finitely many values: all joint values of them, and importance weights that sum over these."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.pairs.densities import RowDensities, sample_rows
from ppl_vae.pairs.layout import Layout, LayoutChangedError, inner_scale, row_log_prob, sum_to_rows
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, num_rows
from ppl_vae.pairs.sources import sources_of, trace_tracked
from ppl_vae.pairs.traces import Site, given_earlier, innermost, present, trace_pair

MOST_VALUES = 1024
"""Most joint values of finite latents that are summed over, if the guide draws nothing else."""

MOST_VALUES_WITH_OTHERS = 32
"""The same if it does: then each sample of the other latents is drawn once for each of these values."""


@dataclass(frozen=True)
class FiniteLatents:
    """The latents of a row that the guide draws from finite sets, and their joint values.

    Attributes:
        values: Joint values of each site, `(count, *plates, *event)`; the plate over rows has size 1.
        sizes: How many values a single number of each site may take.
        count: The number C of joint values.
        alone: Whether the guide draws nothing else.
    """

    values: dict[str, Tensor]
    sizes: dict[str, int]
    count: int
    alone: bool

    def of_rows(self, n: int, layout: Layout) -> dict[str, Tensor]:
        """The joint values with a plate over n rows, `(count, *plates, *event)` for each site."""
        found = {}
        for name, value in self.values.items():
            sizes = list(value.shape)
            sizes[1 + layout.nesting + layout.dim] = n
            found[name] = value.expand(sizes)
        return found


def finite_latents(pair: Pair, layout: Layout, batch: Batch) -> FiniteLatents | None:
    """The latents of a row that can be summed over, because their joint values are few.

    They are those of this batch: plates and supports of another may be larger. None if there are none, or too
    many joint values, or if a discrete draw has no finite support that all rows and both programs share. The
    random state does not change. Call it inside `pair.scope()`.

    Raises:
        LayoutChangedError: The programs have other sites on this batch than the layout.
    """
    if not layout.discrete:
        return None
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        model_trace, guide_trace = trace_pair(pair, batch)
    if not set(layout.guide_sites) <= guide_trace.nodes.keys():
        raise LayoutChangedError("the guide has other sites on this batch than the layout")
    sites = [guide_trace.nodes[name] for name in layout.discrete]
    numbers: list[int] = []
    supports: list[Tensor] = []
    for site in sites:
        support, other = _support(site["fn"]), model_trace.nodes.get(site["name"])
        of_model = None if other is None else _support(given_earlier(other))
        if support is None or of_model is None or not torch.equal(support, of_model):
            return None
        if inner_scale(site, layout) != 1.0 or _varies(pair, batch, site):
            return None
        supports.append(support)
        numbers.append(math.prod(_shape(site, layout)) * _repeats(site).numel())
    count = math.prod(len(s) ** k for s, k in zip(supports, numbers, strict=True))
    alone = len(sites) == len(layout.draws) and not layout.shared
    if count > (MOST_VALUES if alone else MOST_VALUES_WITH_OTHERS):
        return None
    ranges = [
        torch.arange(len(s)) for s, k in zip(supports, numbers, strict=True) for _ in range(k)
    ]
    grid = torch.cartesian_prod(*ranges).reshape(count, -1)
    values, first = {}, 0
    for site, support, k in zip(sites, supports, numbers, strict=True):
        chosen = support[grid[:, first : first + k].to(support.device)]
        event = _repeats(site) + support.shape[1:]
        values[site["name"]] = chosen.reshape(count, *_shape(site, layout), *event)
        first += k
    return FiniteLatents(
        values,
        {site["name"]: len(s) for site, s in zip(sites, supports, strict=True)},
        count,
        alone=alone,
    )


_HOW_LOW = (
    "(bidirectional_monte_carlo(num_steps=1) shows how low it may be, on rows that the model draws)"
)


def notes_on_discrete(
    latents: Collection[str], finite: FiniteLatents | None, covered: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How to read the result if discrete latents are summed over, and what to doubt if they are drawn.

    Args:
        latents: Their names.
        finite: What they are summed over; None if they are drawn.
        covered: Whether the guide is known to leave out nothing, as `covers_posterior` says.
    """
    names = ", ".join(f"'{name}'" for name in latents)
    if finite is None and covered:
        text = (
            f"latents {names} are discrete and are drawn, from a guide that can draw all of their values: if "
            "the posterior has several modes, log p(x) is too low without those that it hardly ever draws, and "
            f"k-hat does not see them {_HOW_LOW}"
        )
        return (), (text,) if latents else ()
    if finite is None:
        text = (
            f"latents {names} are discrete and are drawn, as their values are too many to sum over, or not "
            "the same ones in both programs: log p(x) leaves out what the guide does not draw, and k-hat does "
            f"not see it {_HOW_LOW}"
        )
        return (), (text,) if latents else ()
    what = (
        "log p(x) and the ELBO are exact"
        if finite.alone
        else "every sample of the other latents is drawn for each of them"
    )
    return (
        f"latents {names} are summed over their {finite.count} joint values, not drawn: {what}",
    ), ()


_FIXED = (dist.Bernoulli, dist.Categorical, dist.OneHotCategorical)
"""Distributions whose support depends on no value."""


def _varies(pair: Pair, batch: Batch, site: Site) -> bool:
    """Whether a site's support may depend on another draw."""
    if isinstance(innermost(site["fn"]), _FIXED):
        return False
    tracked = trace_tracked(pair, batch)
    if tracked is None:
        return True
    here = tracked.nodes[site["name"]]
    return bool(sources_of(here["fn"].log_prob(here["value"])) - {site["name"]})


def _support(fn: Any) -> Tensor | None:
    """All values of one number, `(size, *event)`; None if they are not finite or differ by row."""
    base = innermost(fn)
    if not base.has_enumerate_support:
        return None
    try:
        support: Tensor = base.enumerate_support(expand=False)
    except (NotImplementedError, ValueError):
        return None
    event = base.event_shape
    return support.reshape(len(support), *event) if support[0].numel() == event.numel() else None


def _repeats(site: Site) -> torch.Size:
    """The event dimensions of a site over independent numbers."""
    shape, inner = site["fn"].event_shape, innermost(site["fn"]).event_shape
    return torch.Size(shape[: len(shape) - len(inner)])


def _shape(site: Site, layout: Layout) -> list[int]:
    """The sizes of the plates around a site, with 1 for the plate over rows and where there is none."""
    shape = [1] * layout.nesting
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.name != layout.plate:
            shape[frame.dim] = frame.size
    return shape


@dataclass(frozen=True)
class SummedRows:
    """Densities of n rows, with finite latents c summed over; all in nats, `(K, n)`.

    Attributes:
        log_weights: log sum_c p(x, z_c, c) / q(z_c | x, c), whose mean over K is an unbiased p(x).
        rate: sum_c q(c | x) (log q(c | x) - log p(c)); with other latents, log q(c, z | x) - log p(c, z) at
            draws of both.
        distortion: - sum_c q(c | x) log p(x | c); with other latents, - log p(x | c, z) at the same draws.
    """

    log_weights: Tensor
    rate: Tensor
    distortion: Tensor


def summed_rows(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    num_samples: int,
    latents: FiniteLatents,
    at_once: int,
) -> SummedRows:
    """Draws the other latents K times for each joint value of the finite ones, and sums over these.

    The guide may never draw a value that matters. The sum does not depend on what it draws.

    Args:
        pair: The pair, inside of its scope.
        layout: The layout of the batch.
        batch: n rows.
        num_samples: K.
        latents: The finite latents of this batch.
        at_once: How many samples of a row to run at once, if the pair vectorizes: of each joint value at least
            its K.
    """
    n = num_rows(batch)
    values = {
        name: value.repeat_interleave(num_samples, 0)
        for name, value in latents.of_rows(n, layout).items()
    }
    total = latents.count * num_samples
    step = num_samples * max(1, at_once // num_samples) if layout.vectorizes else 1
    finite = tuple(latents.values)
    others = tuple(name for name in layout.guide_sites if name not in latents.values)
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, total, step):
        size = min(step, total - start)
        part = {m: v[start] if size == 1 else v[start : start + size] for m, v in values.items()}
        run = sample_rows(pair, layout, batch, size, values=part)
        for key, term in (
            ("q", _log_prob(run, layout, finite)),
            ("others", _log_prob(run, layout, others)),
            ("prior", run.log_prior),
            ("likelihood", run.log_likelihood),
            # Numbers that a mask leaves out count once, not once for each of their values.
            ("repeated", log_repeats(run, layout, latents)),
        ):
            parts.setdefault(key, []).append(term)
        del run  # its traces hold all that was computed
    log = {
        key: torch.cat(terms).reshape(latents.count, num_samples, n) for key, terms in parts.items()
    }
    log_weights = torch.logsumexp(
        log["likelihood"] + log["prior"] - log["others"] - log["repeated"], 0
    )
    if not latents.alone:  # q(c | x, z_c) does not sum to 1 over values with a z of their own
        drawn = sample_rows(pair, layout, batch, num_samples)
        return SummedRows(log_weights, drawn.log_guide - drawn.log_prior, -drawn.log_likelihood)
    q = (log["q"] - log["repeated"]).exp()

    def expected(term: Tensor) -> Tensor:
        return torch.where(q > 0, q * term, 0.0).sum(0)

    return SummedRows(log_weights, expected(log["q"] - log["prior"]), -expected(log["likelihood"]))


def _log_prob(run: RowDensities, layout: Layout, names: tuple[str, ...]) -> Tensor:
    """log q of some sites of the guide, `(samples, n)`."""
    found = torch.zeros_like(run.log_guide)
    for name in names:
        terms = row_log_prob(run.guide_trace.nodes[name], layout)
        found = found + sum_to_rows(terms, layout, *found.shape)
    return found


def log_repeats(run: RowDensities, layout: Layout, latents: FiniteLatents) -> Tensor:
    """The logarithm of how often the joint values repeat what counts, because of masks; `(samples, n)`."""
    k, n = run.log_guide.shape
    found = torch.zeros_like(run.log_guide)
    for name, size in latents.sizes.items():
        site = run.guide_trace.nodes[name]
        left_out = ~present(site)
        inner = len(innermost(site["fn"]).event_shape)
        left_out = left_out.flatten(left_out.dim() - inner).all(-1) if inner else left_out
        repeats = len(_repeats(site))
        number = left_out.to(found.dtype)
        number = number.flatten(number.dim() - repeats).sum(-1) if repeats else number
        found = found + math.log(size) * sum_to_rows(number, layout, k, n)
    return found
