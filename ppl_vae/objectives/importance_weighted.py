"""The importance-weighted bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.elbo import data_scale
from ppl_vae.objectives.judged_rows import gradient_of
from ppl_vae.objectives.path_gradients import RepeatableGuide, with_gradient
from ppl_vae.objectives.schedules import require_bool
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    RowDensities,
    Site,
    Trace,
    as_args,
    inner_scale,
    num_rows,
    observed_sites,
    present,
    require_whole_rows,
    row_log_prob,
    sample_rows,
    scores_of_draws,
    sum_to_rows,
)


@dataclass(frozen=True, kw_only=True)
class ImportanceWeightedELBO(Objective):
    """The importance-weighted bound of Burda et al. (arXiv:1509.00519), row by row.

    L_K(x) = E log 1/K sum_k w_k with w_k = p(x | z_k) (p(z_k) / q(z_k | x))^beta and K = `num_particles`.
    The sum is within each row: scales and plates stay outside the log. With K > 1, plates inside of a row that
    draw a part of their elements are refused: their log w_k are right on average, but then the log of a mean of
    weights may exceed log p(x). Latents without a reparameterized sampler get the score-function gradient of
    the whole row's bound.

    With z_k = g(eps_k, phi) and the normalized weights v_k, the gradient with respect to phi is
    sum_k v_k d log w_k / d phi. As K grows, its signal vanishes faster than its noise ("Tighter Variational
    Bounds are Not Necessarily Better", arXiv:1802.04537), because of the score (see `TraceELBO`). Its
    expectation is not 0 here, so that leaving it out would bias the gradient. `doubly_reparameterized`
    replaces it by its own pathwise gradient. The gradient with respect to phi becomes

        sum_k v_k (1 - beta (1 - v_k)) (d log w_k / d z_k) (d z_k / d phi),

    with v_k^2 for beta = 1 ("Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives",
    arXiv:1810.04152; other beta follow in the same way). It is unbiased, and its signal does not vanish in its
    noise. At the exact posterior it is 0 for every draw. The gradient of the model stays the same. With K = 1
    it is that of `TraceELBO` with `stick_the_landing`. If the guide has several sites, it runs twice per step.

    Attributes:
        doubly_reparameterized: Use this gradient. The guide must then draw no other latent from one that a mask
            leaves out, unless the mask leaves out both.

    Raises:
        PairError: The pair has latents outside the plate over rows, or, with K > 1, a plate inside of a row
            draws a part of its elements. With `doubly_reparameterized`, a latent has no reparameterized
            sampler, or is in a subsampled plate inside of a row.
        ValueError: free_bits is not 0.

    Example:
        >>> ImportanceWeightedELBO(num_particles=8, doubly_reparameterized=True).num_particles
        8
    """

    num_particles: int = 5
    doubly_reparameterized: bool = False

    why_no_free_bits = (
        ", because the bound is not a KL plus other terms; use ELBO, TraceELBO or MeanFieldELBO"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(type(self).__name__, "doubly_reparameterized", self.doubly_reparameterized)

    @property
    def needs_reparameterized_latents(self) -> str:
        return "doubly_reparameterized" if self.doubly_reparameterized else ""

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        if layout.shared:
            raise PairError(
                f"site '{layout.shared[0]}' is outside of plate '{layout.plate}': the importance-weighted "
                "bound is a sum over rows and cannot include a latent shared by all rows; use TraceELBO"
            )
        doubly = None
        if self.doubly_reparameterized and torch.is_grad_enabled():
            doubly = _DoublyReparameterized(pair, layout, batch, self.num_particles, beta)
        rows = doubly.sample() if doubly else sample_rows(pair, layout, batch, self.num_particles)
        if (
            self.num_particles > 1
        ):  # log of a mean over random parts of a row is no bound of log p(x)
            require_whole_rows(
                (rows.model_trace, rows.guide_trace),
                layout,
                "the importance-weighted bound needs the whole row",
                drawn=True,
                instead="use TraceELBO",
            )
        ratio = rows.log_prior - rows.log_guide
        log_weights = rows.log_likelihood + beta * ratio
        bound = torch.logsumexp(log_weights, 0) - math.log(self.num_particles)
        surrogate = doubly.surrogate(rows, log_weights, bound) if doubly else bound
        surrogate = surrogate + bound.detach() * gradient_of(scores_of_draws(rows).sum(0))
        with torch.no_grad():
            distortion, rate = -rows.log_likelihood.mean(), -ratio.mean()
        return Loss(
            loss=beside_the_rows(rows, num_rows(batch)) - surrogate.mean(),
            elbo=-(distortion + rate),
            rate=rate,
            distortion=distortion,
            traces=[(rows.model_trace, rows.guide_trace)],
        )


def beside_the_rows(rows: RowDensities, n: int) -> Tensor:
    """What Pyro's losses count, too, in nats per row, the mean over the samples.

    These are factors of the model that belong to no row, such as a penalty on weights, and what the guide has
    beside its draws.
    """
    layout = rows.layout
    terms = [
        (-1.0, site)
        for name, site in observed_sites(rows.model_trace).items()
        if name not in layout.observed
    ]
    terms += [
        (1.0, site)
        for name, site in observed_sites(rows.guide_trace).items()
        if name not in layout.guide_sites
    ]
    total = rows.log_guide.new_zeros(())
    for sign, site in terms:
        in_rows = any(frame.name == layout.plate for frame in site["cond_indep_stack"])
        weight = sign if in_rows else sign / data_scale(rows.model_trace, layout)
        total = total + weight * row_log_prob(site, layout).sum()
    return total / (n * (len(rows.log_guide) if layout.vectorizes else 1))


class _DoublyReparameterized:
    """Samples whose gradient is that of `ImportanceWeightedELBO.doubly_reparameterized`.

    log w_k enters the gradient with the factor v_k directly (through the model, and where the guide transforms
    a draw), and with v_k u_k along the path through z_k, where u_k = 1 - beta (1 - v_k). The score does not
    enter. So the model sees latents whose gradient is multiplied by u_k. For log q, the path is the gradient
    that the run with held draws does not have.
    """

    def __init__(
        self, pair: Pair, layout: Layout, batch: Batch, num_samples: int, beta: float
    ) -> None:
        self._guide = RepeatableGuide(pair, layout, "doubly_reparameterized")
        self._pair = Pair(pair.model, self._guide)
        self._layout, self._batch = layout, batch
        self._num_samples, self._beta = num_samples, beta
        self._weights = torch.zeros(())
        self._runs: list[Trace] = []

    def sample(self) -> RowDensities:
        """Draws the samples; their weights are not known yet."""
        return sample_rows(
            self._pair, self._layout, self._batch, self._num_samples, as_seen=self._as_seen
        )

    def surrogate(self, rows: RowDensities, log_weights: Tensor, bound: Tensor) -> Tensor:
        """The bound `(n,)` with its doubly reparameterized gradient, from the samples' log w_k `(K, n)`."""
        weights = self._weights = torch.softmax(log_weights.detach(), 0)
        sites = self._layout.guide_sites
        of_held = [self._log_held(name) for name in sites]
        path = rows.log_guide - torch.stack(of_held).sum(0)
        direct = rows.log_prior
        for name, log_q in zip(sites, of_held, strict=True):
            if name not in self._layout.draws:
                direct = direct - log_q
        beta = self._beta
        terms = weights * (
            rows.log_likelihood + beta * (direct - (1 - beta * (1 - weights)) * path)
        )
        total = terms.sum(0)
        return bound.detach() + (total - total.detach())

    def _as_seen(self, guide_trace: Trace) -> Trace:
        """The guide's trace for the model: its latents' gradients are multiplied by u_k along their path."""
        held = self._guide.with_draws_held(guide_trace, self._guide, *as_args(self._batch))
        for name in self._layout.guide_sites:
            if inner_scale(guide_trace.nodes[name], self._layout) != 1.0:
                raise PairError(
                    f"site '{name}' is in a subsampled plate inside of a row: doubly_reparameterized needs the "
                    "whole row; give the plate no subsample_size, or use TraceELBO"
                )
        factor_of = partial(self._factor, len(self._runs))
        self._runs.append(held)
        seen = guide_trace.copy()
        for name in self._layout.latents:
            site, fixed = guide_trace.nodes[name], held.nodes[name]["value"]
            value = with_gradient(site["value"], partial(factor_of, site))
            if fixed.requires_grad:  # directly, by a transform with parameters: u_k + (1 - u_k)
                rest = with_gradient(fixed, partial(factor_of, site, rest=True))
                value = value + (rest - fixed.detach())
            seen.nodes[name] = {**site, "value": value}
        return seen

    def _factor(self, run: int, site: Site, rest: bool = False) -> Tensor:
        """u_k, or the rest 1 - u_k, for the value of a site in one of the runs; 1 where log q is masked."""
        weights = self._weights if len(self._runs) == 1 else self._weights[run : run + 1]
        shape = [1] * (self._layout.nesting + 1)
        shape[0], shape[self._layout.dim] = weights.shape
        shape += [1] * len(site["fn"].event_shape)
        weights = weights.reshape(shape[-site["value"].dim() :])
        missing: Tensor = self._beta * present(site) * (1 - weights)
        return missing if rest else 1 - missing

    def _log_held(self, name: str) -> Tensor:
        """log q of a site in the runs with held draws, `(K, n)`."""
        samples = self._num_samples // len(self._runs)
        n = num_rows(self._batch)
        return torch.cat(
            [
                sum_to_rows(row_log_prob(held.nodes[name], self._layout), self._layout, samples, n)
                for held in self._runs
            ]
        )
