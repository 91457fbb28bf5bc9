"""The ELBO by Pyro's estimators, with beta and free bits."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import pyro
import pyro.infer
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.elementwise import ElementwiseELBO
from ppl_vae.objectives.path_gradients import (
    RepeatableGuide,
    draws_of,
    require_reparameterized,
)
from ppl_vae.objectives.quantized import QuantizedELBO, marked_sites
from ppl_vae.objectives.schedules import require_bool
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    ScaleLatents,
    Trace,
    as_args,
    elementwise_kl,
    find_layout,
    has_log_density,
    innermost,
    is_discrete,
    is_enumerated,
    is_weighted,
    latent_sites,
    mean_field_violations,
    num_rows,
    require_inside,
    row_log_prob,
    sample_rows,
    sample_sites,
    stated_elements,
    trace_pair,
    unscaled,
)
from ppl_vae.runtime import described


@dataclass(frozen=True, kw_only=True)
class ELBO(Objective):
    """The ELBO by the lowest-variance estimator that is right for the pair.

    The estimator is `EnumELBO` if a discrete latent is marked `infer={"enumerate": "parallel"}`;
    `ElementwiseELBO` for a model of this library whose only latent is discrete, with many elements;
    `QuantizedELBO` if the guide marks codes as chosen by a quantizer;
    `MeanFieldELBO` if all latents are reparameterized, no analytic KL would be wrong (see
    `mean_field_violations`), and the guide has no other sites than latents of the model and auxiliary ones;
    `ScoreFunctionELBO` if a latent has no reparameterized sampler, num_particles is 2 or more, and all sites
    are of a row, without weights or plates inside of the row: each draw has the others as a baseline;
    otherwise `TraceELBO`.

    A model may ask for another objective in its place, by an attribute `default_objective`: the name of one of
    `ppl_vae.objectives`, as `VAEGAN` has "VAEGANLoss", or a class of your own. It gets beta, free_bits and
    num_particles of this one. Nothing else makes of this anything but an ELBO. What it was is `Fit.resolved`.

    Attributes:
        stick_the_landing: Use `TraceELBO` with this option, which says what it does, whatever the model asks
            for.

    Raises:
        PairError: With `stick_the_landing`, a latent has no reparameterized sampler; or the model asks for what
            is no objective.
        ValueError: With `stick_the_landing`, free_bits is not 0.

    Example:
        >>> from ppl_vae.objectives import LinearWarmup
        >>> ELBO(beta=LinearWarmup(epochs=20)).beta_at(5)
        0.25
    """

    loss_is_elbo = True

    stick_the_landing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_no_free_bits(self)

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        asked = self.asked_by(pair.model)
        if asked is not None:
            return asked.resolve(pair, batch)
        with torch.random.fork_rng(), torch.no_grad():
            model_trace, guide_trace = trace_pair(pair, batch)
        latents = {**latent_sites(model_trace), **latent_sites(guide_trace)}
        if self.stick_the_landing:
            for name, site in latents.items():
                require_reparameterized(name, site, "stick_the_landing")
            return TraceELBO(**self._shared(), stick_the_landing=True)
        chosen: type[Objective]
        if any(is_enumerated(site) for site in latents.values()):
            chosen = EnumELBO
        elif any(is_discrete(site) and site["fn"].event_shape for site in latents.values()) and (
            stated_elements(pair, find_layout(pair, batch), batch) is not None
        ):
            chosen = ElementwiseELBO
        elif marked_sites(guide_trace):
            chosen = QuantizedELBO
        elif (
            # Pyro's analytic KL ignores the log_density of a Delta.
            all(site["fn"].has_rsample and not has_log_density(site) for site in latents.values())
            and _has_kls(model_trace, guide_trace)
            and not mean_field_violations(pair, batch)
        ):
            chosen = MeanFieldELBO
        elif (
            self.num_particles > 1
            and not self.free_bits
            and _scored_by_rows(find_layout(pair, batch), model_trace, guide_trace)
        ):
            # element_draws imports this file.
            chosen = importlib.import_module("ppl_vae.objectives").ScoreFunctionELBO
        else:
            chosen = TraceELBO
        return chosen(**self._shared())

    def asked_by(self, model: object) -> Objective | None:
        """The objective that a model asks for in place of this one; None if it asks for none.

        Raises:
            PairError: Its `default_objective` is no objective.
        """
        asked: object = getattr(model, "default_objective", None)
        if asked is None or self.stick_the_landing or type(self) is not ELBO:
            return None  # a class that derives from this one was chosen
        kind = asked
        if isinstance(asked, str):  # models must not import objectives
            kind = getattr(importlib.import_module("ppl_vae.objectives"), asked, None)
        if not (isinstance(kind, type) and issubclass(kind, Objective)) or inspect.isabstract(kind):
            told = repr(asked) if isinstance(asked, str) else described(asked)
            raise PairError(
                f"{described(model)} has default_objective = {told}, which must be the name of an objective of "
                "ppl_vae.objectives, such as 'VAEGANLoss', or a class that derives from Objective and has all "
                "of its methods: change it, or name it otherwise if it means something else"
            )
        return None if kind is ELBO else kind(**self._shared())

    def _shared(self) -> dict[str, Any]:
        """The settings that all estimators have."""
        return {"beta": self.beta, "free_bits": self.free_bits, "num_particles": self.num_particles}

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        known = _RESOLVED.setdefault(pair, {})
        kind = self, layout.signature
        if kind not in known:  # once, as in a training with this objective itself
            with pair.mode(training=False):  # batch statistics come from training steps alone
                known[kind] = self.resolve(pair, batch)
        return known[kind](pair, layout, batch, beta)


_RESOLVED: WeakKeyDictionary[Pair, dict[tuple[ELBO, object], Objective]] = WeakKeyDictionary()
"""What an ELBO is for the layouts of a pair, where an objective of one's own calls it in each step."""


@dataclass(frozen=True, kw_only=True)
class TraceELBO(Objective):
    """The ELBO by Pyro's `Trace_ELBO`: right for every pair, with the KL estimated by sampling.

    Reparameterized latents get pathwise gradients, the others score-function gradients.

    With z = g(eps, phi), the gradient of - beta log q_phi(z | x) has two parts: along the path phi -> z, and
    directly, with z held fixed. The direct part, the score, has the expectation 0 under q, for every beta.
    `stick_the_landing` leaves it out ("Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
    Variational Inference", arXiv:1703.09194). The loss and the expected gradient stay the same. The variance
    of the guide's gradient vanishes as q approaches the exact posterior, where log p(x, z) - log q(z | x) is
    constant in z; far from it, the variance may be larger.

    If the guide draws several latents, it runs twice per step, because their parameters depend on other draws
    too, and that path counts. A flow that is fast to sample from (`InverseAutoregressive`) becomes slow: the
    density of a held draw takes one pass for each dimension.

    If the guide transforms a draw (`Delta` sites, as in Pyro's autoguides), the score of the draw's own density
    is left out.

    Attributes:
        stick_the_landing: Leave the score out of the gradient of the guide.

    Raises:
        PairError: With `stick_the_landing`, a latent has no reparameterized sampler: its gradient is the score.
        ValueError: With `stick_the_landing`, free_bits is not 0: a KL below its free bits has to cancel in the
            loss, and would do so only in part.

    Example:
        >>> TraceELBO(stick_the_landing=True)
        TraceELBO(beta=1.0, free_bits=0.0, num_particles=1, stick_the_landing=True)
    """

    loss_is_elbo = True

    stick_the_landing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_no_free_bits(self)

    @property
    def needs_reparameterized_latents(self) -> str:
        return (
            "stick_the_landing" if self.stick_the_landing else super().needs_reparameterized_latents
        )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        repeatable = None
        if self.stick_the_landing and torch.is_grad_enabled():
            repeatable = RepeatableGuide(pair, layout, "stick_the_landing")
        return _pyro_loss(pyro.infer.Trace_ELBO, self, pair, layout, batch, beta, repeatable)


@dataclass(frozen=True, kw_only=True)
class MeanFieldELBO(Objective):
    """The ELBO by Pyro's `TraceMeanField_ELBO`: with an analytic KL wherever torch or Pyro has one.

    It is right if no latent's parents in the model descend from that latent in the guide; `check` tests this.
    """

    loss_is_elbo = True

    @property
    def needs_reparameterized_latents(self) -> str:
        return super().needs_reparameterized_latents or type(self).__name__

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        try:
            return _pyro_loss(pyro.infer.TraceMeanField_ELBO, self, pair, layout, batch, beta)
        except AttributeError as error:
            if site := _without_kl(pair, batch):  # Pyro's estimator looks for an entropy that is 0
                raise PairError(
                    f"site '{site[0]}' has no analytic KL ({site[1]}), and its sampler is not reparameterized, "
                    "so that MeanFieldELBO has no gradient for it: use ELBO (the default), which selects an "
                    "objective that has one, or TraceELBO"
                ) from error
            raise


@dataclass(frozen=True, kw_only=True)
class EnumELBO(Objective):
    """The ELBO by Pyro's `TraceEnum_ELBO`: discrete latents marked for enumeration are summed out.

    Raises:
        PairError: beta differs from 1 and the model itself enumerates a latent. A latent that is summed out
            exactly has no KL that beta could weight.
        ValueError: free_bits is not 0. With enumeration, the KL of one latent is a sum over the values of
            others.
    """

    loss_is_elbo = True

    why_no_free_bits = (
        " for latents that are enumerated or depend on enumerated ones; set free_bits=0, or use TraceELBO or "
        "MeanFieldELBO with a pair that enumerates nothing"
    )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        if layout.enumerated and beta != 1.0:
            raise PairError(
                f"site '{layout.enumerated[0]}' is summed out in the model, so it has no KL that beta = {beta} "
                "could weight: train with beta = 1, or sample the site in the guide"
            )
        return _pyro_loss(pyro.infer.TraceEnum_ELBO, self, pair, layout, batch, beta)


def _without_kl(pair: Pair, batch: Batch) -> tuple[str, str] | None:
    """A latent that has neither an analytic KL nor a reparameterized sampler, and of what the KL would be."""
    with torch.random.fork_rng(), torch.no_grad():
        model_trace, guide_trace = trace_pair(pair, batch)
    for name in latent_sites(model_trace):
        if name not in guide_trace.nodes or guide_trace.nodes[name]["fn"].has_rsample:
            continue
        q, p = guide_trace.nodes[name]["fn"], model_trace.nodes[name]["fn"]
        try:
            kl_divergence(q, p)
        except NotImplementedError:
            return name, " from ".join(type(innermost(each)).__name__ for each in (q, p))
    return None


def _has_kls(model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether Pyro's analytic estimator has a term for each of the guide's sites.

    That is a KL for a latent of the model, and a sampled log density for a site that is marked as auxiliary and
    reparameterized, as autoguides and `pyro.factor` mark theirs. The estimator stops at other draws of the
    guide alone, and leaves out what both programs observe.
    """
    in_model, latents = sample_sites(model_trace), latent_sites(model_trace)
    return all(
        name in latents
        or (name not in in_model and site["infer"].get("is_auxiliary") and site["fn"].has_rsample)
        for name, site in sample_sites(guide_trace).items()
    )


def _scored_by_rows(layout: Layout, model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether draws need the score function, and have no other reward than what their row adds to the loss.

    Draws in plates inside of a row have rewards of their own in `TraceELBO`, which has less noise then.
    """
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
    drawn = [site for site in in_guide.values() if not site["fn"].has_rsample]
    return (
        bool(drawn)
        and not layout.shared
        and {*layout.observed, *layout.latents} == {*in_model}
        and {*in_guide} <= {*in_model}
        and not any(is_weighted(site) for site in (*in_model.values(), *in_guide.values()))
        and not any(
            frame.vectorized and frame.name != layout.plate
            for site in drawn
            for frame in site["cond_indep_stack"]
        )
    )


def _require_no_free_bits(objective: ELBO | TraceELBO) -> None:
    require_bool(type(objective).__name__, "stick_the_landing", objective.stick_the_landing)
    if objective.stick_the_landing and objective.free_bits:
        raise ValueError(
            f"{type(objective).__name__}: there are no free bits with stick_the_landing, which leaves out a "
            "part of the KL's gradient: set one of the two to its default"
        )


@functools.cache
def _keeping_traces(estimator: type[Any]) -> type[Any]:
    """A subclass of one of Pyro's ELBOs that keeps its traces, so that metrics need no second run.

    For a `RepeatableGuide` it also keeps the log densities of the held draws, with their scales.
    """

    class KeepsTraces(estimator):  # type: ignore[misc]
        def __init__(self, repeatable: RepeatableGuide | None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.repeatable = repeatable
            self.kept_traces: list[tuple[Any, Any]] = []
            self.held: list[Tensor] = []

        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            traces: tuple[Any, Any] = super()._get_trace(model, guide, args, kwargs)
            self.kept_traces.append(traces)
            if self.repeatable is not None:
                held = self.repeatable.with_draws_held(traces[1], guide, *args, **kwargs)
                draws = draws_of(held).values()
                self.held += [(site["scale"] * unscaled(site)).sum() for site in draws]
            return traces

    return KeepsTraces


def _pyro_loss(
    estimator: type[Any],
    objective: Objective,
    pair: Pair,
    layout: Layout,
    batch: Batch,
    beta: float,
    repeatable: RepeatableGuide | None = None,
) -> Loss:
    elbo = _keeping_traces(cast(Hashable, estimator))(
        repeatable,
        num_particles=objective.num_particles,
        vectorize_particles=objective.num_particles > 1 and layout.vectorizes,
        max_plate_nesting=layout.nesting,
        strict_enumeration_warning=False,
    )
    model, guide = pair.model, repeatable or pair.guide
    if isinstance(beta, Tensor) or beta != 1.0:
        model, guide = ScaleLatents(beta)(model), ScaleLatents(beta, layout.factors)(guide)
    with warnings.catch_warnings():
        # The caller checks for NaN itself.
        warnings.filterwarnings("ignore", "Encountered (NaN|.?inf)")
        # The mark only allows enumeration: some objectives sample such sites.
        warnings.filterwarnings("ignore", "(?s).*If you want to enumerate sites")
        total = elbo.differentiable_loss(model, guide, *as_args(batch))
    if elbo.held:
        score = torch.stack(elbo.held).sum() / objective.num_particles
        total = total - (score - score.detach())
    traces = elbo.kept_traces
    layout.require(*traces[0])
    for model_trace, _ in traces:
        require_inside(model_trace, layout)
    n, scale = num_rows(batch), data_scale(traces[0][0], layout)
    loss = total / (n * scale)
    if objective.free_bits > 0:
        analytic = estimator is pyro.infer.TraceMeanField_ELBO
        loss = loss + beta * _missing_free_bits(objective.free_bits, layout, traces, analytic)
    with torch.no_grad():
        if estimator is pyro.infer.TraceEnum_ELBO:
            rows = sample_rows(pair, layout, batch, 1)
            distortion = -rows.log_likelihood.mean()
            rate = (rows.log_guide - rows.log_prior).mean()
        else:
            distortion = -_sum(traces, 0, layout.observed, layout)
            local = _sum(traces, 1, layout.guide_sites, layout)
            local = local - _sum(traces, 0, layout.latents, layout)
            in_density = (*latent_sites(traces[0][1]), *layout.factors)
            others = tuple(n for n in in_density if n not in layout.guide_sites)
            shared = _sum(traces, 1, others, layout) - _sum(traces, 0, layout.shared, layout)
            distortion = distortion / (n * objective.num_particles)
            rate = (local + shared / scale) / (n * objective.num_particles)
    return Loss(loss, -(distortion + rate), rate, distortion, traces)


def _sum(
    traces: list[tuple[Any, Any]], which: int, names: tuple[str, ...], layout: Layout
) -> Tensor:
    """Sum of the log densities of the named sites in the model (0) or guide (1) traces."""
    sites = [both[which].nodes[name] for both in traces for name in names]
    terms = [row_log_prob(site, layout).sum() for site in sites]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def data_scale(model_trace: Any, layout: Layout) -> float:
    """N / n if the model's plate represents N rows of which the batch holds n; otherwise 1."""
    for frame in model_trace.nodes[layout.observed[0]]["cond_indep_stack"]:
        if frame.name == layout.plate and frame.full_size:
            return float(frame.full_size) / float(frame.size)
    return 1.0


def _missing_free_bits(
    free_bits: float, layout: Layout, traces: list[tuple[Any, Any]], analytic: bool
) -> Tensor:
    """sum over dimensions of max(0, free_bits - KL): the amount that raises each KL to its free bits.

    The KLs are the same terms as in the estimator's loss, analytic or sampled, so that a KL below its free
    bits cancels in the loss exactly.
    """
    missing: list[Tensor] = []
    for name in layout.latents:
        kls, free = [], free_bits
        for model_trace, guide_trace in traces:
            guide_site, model_site = guide_trace.nodes[name], model_trace.nodes[name]
            kl = elementwise_kl(guide_site, model_site, analytic)
            if kl is None:
                free = free_bits * guide_site["fn"].event_shape.numel()
                kl = _joint_kl(guide_site, model_site, analytic).unsqueeze(-1)
            over = [layout.dim - 1]
            if kl.dim() > layout.nesting + 1:  # vectorized particles
                over.append(-layout.nesting - 2)
            kls.append(kl.mean(over))
        missing.append((free - torch.stack(kls).mean(0)).clamp(min=0.0).sum())
    return torch.stack(missing).sum()


def _joint_kl(guide_site: Any, model_site: Any, analytic: bool) -> Tensor:
    """KL(q || p) of a whole site, as Pyro's estimators compute it; of the site's batch shape."""
    if analytic:
        try:
            kl = kl_divergence(guide_site["fn"], model_site["fn"])
        except NotImplementedError:
            pass
        else:
            masked: Tensor = scale_and_mask(kl, mask=guide_site["mask"])
            return masked
    return unscaled(guide_site) - unscaled(model_site)
