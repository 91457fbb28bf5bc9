"""The stages of `check`: each looks for one kind of problem; a stage with an error is the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import nn

from ppl_vae.checks.arguments import bad_argument, impossible_value, moved_starts
from ppl_vae.checks.batches import small_batch_problem, trace_problems
from ppl_vae.checks.data import large_values, same_for_all_rows
from ppl_vae.checks.latents import observed_problems
from ppl_vae.checks.report import Problem, run_pair
from ppl_vae.checks.rows import row_problems
from ppl_vae.objectives import (
    ELBO,
    Alternating,
    EnumELBO,
    ImportanceWeightedELBO,
    MeanFieldELBO,
    Objective,
    QuantizedELBO,
    ScoreFunctionELBO,
    TraceELBO,
    checked,
    marked_sites,
    moved_by,
    no_gradient,
    without_parameters,
)
from ppl_vae.pairs import (
    Batch,
    Layout,
    Layouts,
    Pair,
    PairError,
    Site,
    Trace,
    about_obs_mask,
    broken_commitments,
    elements_of,
    first_bad_site,
    first_line,
    is_certain,
    is_enumerated,
    is_posterior,
    is_weighted,
    latent_sites,
    mean_field_violations,
    missing_values,
    not_in_parts,
    observed_sites,
    sample_sites,
    sites_of_rows,
    stated_by,
    trace_pair,
    unscaled,
)

_FEW_ELEMENTS = 4
"""So few elements of a discrete latent can be drawn: the noise of the gradient grows with their number."""

_MOST_VALUES = 1_000_000
"""Most numbers of values of a discrete latent, over all rows, that are tried: whether they can be summed."""


class Subject:
    """What is checked. Its traces, layout and objective are found when a stage first asks for them.

    Args:
        pair: The pair, inside its scope.
        batch: The rows to run it on.
        requested_objective: The objective to train with, not yet resolved.
        smallest_batch: Rows of the smallest batch of an epoch, usually the last one; None if that is not known.
        minibatches: Whether a batch holds only some of the rows.
        layouts: The layouts of the pair.
        doubt: How the data were read, if they could be read otherwise.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        requested_objective: Objective,
        smallest_batch: int | None,
        minibatches: bool,
        layouts: Layouts,
        doubt: str = "",
    ) -> None:
        self.pair, self.batch = pair, batch
        self.requested_objective = requested_objective
        self.smallest_batch = smallest_batch
        self.minibatches = minibatches
        self.layouts = layouts
        self.doubt = doubt

    @cached_property
    def run(self) -> tuple[Trace, Trace] | Problem:
        """The traces of model and guide, or what they raised."""
        return run_pair(self.pair, self.batch)

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """The traces of model and guide, once both have run."""
        assert not isinstance(self.run, Problem)
        return self.run

    @cached_property
    def data(self) -> dict[str, Site]:
        """The observed sites that belong to rows."""
        return sites_of_rows(self.pair.model, self.batch, self.traces[0])

    @cached_property
    def layout(self) -> Layout:
        """The layout of the pair."""
        return self.layouts.of(self.batch)

    @cached_property
    def objective(self) -> Objective:
        """The objective that will run on this pair."""
        return self.requested_objective.resolve(self.pair, self.batch)


def problems_of(subject: Subject) -> Iterator[Problem]:
    """Runs the stages in their order, up to the first that finds an error."""
    for stage in STAGES:
        found = list(stage(subject))
        yield from found
        if any(problem.severity == "error" for problem in found):
            return


def _runs(subject: Subject) -> Iterator[Problem]:
    if isinstance(subject.run, Problem):
        yield subject.run


def _sites(subject: Subject) -> Iterator[Problem]:
    model_trace, guide_trace = subject.traces
    if _lacks_shifts(subject):
        model, guide = (type(of).__name__ for of in (subject.pair.model, subject.pair.guide))
        yield Problem(
            "error",
            "shifts",
            f"the colors of this {model} are latent, so that it sums out its segments and has the site "
            f"'shifts', which {guide} does not sample: use WithinPicture(model) as the guide "
            "(`--guide WithinPicture`), or a model with other colors, such as Palette()",
        )
        return
    yield from _names(model_trace, guide_trace)
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is not None and (wrong := missing_values(subject.pair, other["fn"], site["fn"])):
            yield Problem("error", name, wrong)
    yield from trace_problems(subject.pair, subject.batch, subject.traces, subject.data)
    yield from observed_problems(subject.pair.guide, guide_trace)


def _lacks_shifts(subject: Subject) -> bool:
    """Whether a model of this library has latent colors, and a guide that is for models without."""
    stated = stated_by(subject.pair.model, "shifts_prior")
    return stated is not None and stated() is not None and "shifts" not in subject.traces[1].nodes


def _starts(subject: Subject) -> Iterator[Problem]:
    for trace in subject.traces:
        yield from moved_starts(trace)


def _finite(subject: Subject) -> Iterator[Problem]:
    with pyro.validation_enabled(False):
        for trace in subject.traces:
            for site in sample_sites(trace).values():
                unscaled(site)
    bad = first_bad_site([subject.traces])
    if bad is not None:
        try:
            subject.pair.require_no_nan(trained=False)
        except PairError as error:
            yield Problem("error", bad[0], str(error))
            return
        explained = impossible_value(subject.traces[0], bad[0]) or bad_argument(
            subject.pair, subject.traces
        )
        if explained is not None:
            yield explained
            return
        large = large_values(subject.batch)
        advice = (
            f"the likely cause are the data: {large}; repair or rescale them"
            if large
            else "look at the parameters of its distribution and their initial values"
        )
        yield Problem(
            "error",
            bad[0],
            f"before any training, the first site that is not finite is {bad[1]}: {advice}",
        )


def _layout(subject: Subject) -> Iterator[Problem]:
    try:
        layout = subject.layout
    except PairError as error:
        yield Problem("error", "", str(error))
        return
    yield from row_problems(subject.traces[0], layout, subject.minibatches)


def _same_for_all_rows(subject: Subject) -> Iterator[Problem]:
    dim, surely = subject.layout.dim, bool(subject.doubt)
    yield from same_for_all_rows(subject.data, subject.batch, dim, surely)


def _small_batch(subject: Subject) -> Iterator[Problem]:
    rows = subject.smallest_batch
    if subject.pair.keeps_rows and subject.minibatches:
        yield Problem("error", "", not_in_parts("a part of them"))
        return
    found = None if rows is None else small_batch_problem(subject.pair, subject.batch, rows)
    if found is not None:
        yield found


def _commitments(subject: Subject) -> Iterator[Problem]:
    for site, reason in broken_commitments(subject.pair, subject.batch):
        yield Problem("error", site, reason)


def _objective(subject: Subject) -> Iterator[Problem]:
    try:
        objective = subject.objective
    except ValueError as error:  # free bits with enumerated latents
        yield Problem("error", "", str(error))
    else:
        yield from _summed_out(subject.layout, objective)


def objective_problems(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    traces: tuple[Trace, Trace],
    objective: Objective,
) -> Iterator[Problem]:
    """Why a resolved objective is wrong for a batch with these traces."""
    found = list(_summed_out(layout, objective))
    yield from found or _of_estimator(pair, batch, traces, objective)


def _of_estimator(
    pair: Pair, batch: Batch, traces: tuple[Trace, Trace], objective: Objective
) -> Iterator[Problem]:
    if wrong := _through_codes(traces[1], objective):
        yield wrong
        return
    yield from _weights(*traces, objective)
    yield from _samplers(*traces, objective)
    if isinstance(objective, MeanFieldELBO):
        for site, guilty in mean_field_violations(pair, batch).items():
            names = " and ".join(f"'{name}'" for name in sorted(guilty))
            yield Problem(
                "error",
                site,
                f"the analytic KL of site '{site}' is wrong for this pair: in the model its density depends "
                f"on {names}, but in the guide this dependence is reversed. Use TraceELBO (the default "
                "objective selects it automatically), or sample in the model's order in the guide",
            )


def _through_codes(guide_trace: Trace, objective: Objective) -> Problem | None:
    """Codes that a quantizer chooses, if the objective passes no gradient through the choice."""
    # One of the user's own may do as it likes.
    ours = type(objective).__module__.startswith("ppl_vae.")
    if isinstance(objective, QuantizedELBO) or not ours:
        return None
    for site in marked_sites(guide_trace):
        if is_certain(guide_trace.nodes[site]):
            return Problem(
                "error",
                site,
                f"the guide chooses the codes '{site}' by a quantizer, and {type(objective).__name__} passes "
                "no gradient through that, so that the encoder would not be trained: use ELBO (the default), "
                "which selects QuantizedELBO",
            )
    return None


def _estimator(subject: Subject) -> Iterator[Problem]:
    yield from _of_estimator(subject.pair, subject.batch, subject.traces, subject.objective)
    if _through_codes(subject.traces[1], subject.objective):
        return
    yield from _drawn_elements(subject)
    try:
        yield from _gradients(subject)
    except PairError as error:
        yield Problem("error", "", str(error))
    except Exception as error:
        name = type(subject.objective).__name__
        yield Problem("error", "", f"the objective {name} cannot be computed: {first_line(error)}")


def _summed_out(layout: Layout, objective: Objective) -> Iterator[Problem]:
    """Latents to be summed out in the model, if the objective does not do that or has a beta other than 1."""
    if not layout.enumerated:
        return
    site = layout.enumerated[0]
    if isinstance(objective, TraceELBO | MeanFieldELBO):
        yield Problem(
            "error",
            site,
            f"site '{site}' is not sampled by the guide but marked for enumeration in the model, and "
            f"{type(objective).__name__} does not enumerate: use EnumELBO (the default objective selects it "
            "automatically), or sample the site in the guide",
        )
    elif isinstance(objective, EnumELBO) and objective.beta != 1.0:
        yield Problem(
            "error",
            site,
            f"site '{site}' is summed out in the model, so it has no KL that beta = {objective.beta} could "
            "weight: train with beta = 1, or sample the site in the guide",
        )


def _names(model_trace: Trace, guide_trace: Trace) -> Iterator[Problem]:
    in_model, in_guide = latent_sites(model_trace), latent_sites(guide_trace)
    seen = observed_sites(model_trace)
    others = ", ".join(f"'{name}'" for name in in_guide) or "nothing"
    for name, site in in_model.items():
        if name not in in_guide and not is_enumerated(site):
            advice = about_obs_mask(model_trace, name) or (
                "give the site the same name in both, or mark it for enumeration with "
                'infer={"enumerate": "parallel"}'
            )
            yield Problem(
                "error",
                name,
                f"the model's latent site '{name}' is not sampled by the guide, which samples {others}: "
                + advice,
            )
    for name in in_guide:
        if name in seen:
            yield Problem(
                "error",
                name,
                f"site '{name}' is sampled by the guide but observed in the model: remove obs=... from "
                "the model, or the site from the guide",
            )
    if not seen:
        yield Problem(
            "error", "", "the model observes nothing: pass the data to pyro.sample(..., obs=x)"
        )


def _shared_names(subject: Subject) -> Iterator[Problem]:
    """PyroParams of model and guide with the same name in the store: top-level PyroModules have no name."""
    roots = [
        p for p in (subject.pair.model, subject.pair.guide) if isinstance(p, pyro.nn.PyroModule)
    ]
    if len(roots) < 2 or roots[0] is roots[1]:
        return
    names = [_pyro_params(root) for root in roots]
    for name in sorted(names[0].keys() & names[1].keys()):
        if names[0][name] is not names[1][name]:
            yield Problem(
                "error",
                name,
                f"model and guide both have a PyroParam called '{name}': Pyro's parameter store would merge "
                "them into one; rename one, or construct one of the modules with a name "
                '(super().__init__(name="guide"))',
            )


def _pyro_params(root: nn.Module) -> dict[str, Any]:
    found = {}
    for path, module in root.named_modules():
        for name in getattr(module, "_pyro_params", {}):
            prefix = getattr(root, "_pyro_name", "")
            full = ".".join(part for part in (prefix, path, name) if part)
            found[full] = module.__dict__["_parameters"].get(f"{name}_unconstrained")
    return found


def _weights(model_trace: Trace, guide_trace: Trace, objective: Objective) -> Iterator[Problem]:
    if not isinstance(objective, ImportanceWeightedELBO):
        return
    for trace in (model_trace, guide_trace):
        for name, site in sample_sites(trace).items():
            if is_weighted(site):
                yield Problem(
                    "warning",
                    name,
                    f"site '{name}' is weighted by poutine.scale, which the importance-weighted bound leaves "
                    "out: it is a bound for p(x) of the model. Use TraceELBO to train with the weights",
                )


def _samplers(model_trace: Trace, guide_trace: Trace, objective: Objective) -> Iterator[Problem]:
    if not objective.needs_reparameterized_latents:
        return
    for name, site in latent_sites(guide_trace).items():
        if not site["fn"].has_rsample:
            yield Problem(
                "error",
                name,
                f"site '{name}' is drawn from {type(site['fn']).__name__}, which has no reparameterized "
                f"sampler, but {objective.needs_reparameterized_latents} needs one: use TraceELBO without "
                "options, enumerate the site with EnumELBO, or draw it from a relaxed distribution; ELBO (the "
                "default) selects what suits the pair",
            )


def _drawn_elements(subject: Subject) -> Iterator[Problem]:
    """Elements of a discrete latent that are drawn by the default objective, and need not be.

    The gradient of each draw has what all elements add to the ELBO: its noise grows with their number.
    """
    if not isinstance(subject.requested_objective, ELBO) or type(subject.objective) not in (
        TraceELBO,
        ScoreFunctionELBO,
    ):
        return
    guide_trace = subject.traces[1]
    for name in subject.layout.discrete:
        event = guide_trace.nodes[name]["fn"].event_shape
        if event.numel() <= _FEW_ELEMENTS:
            continue
        try:
            found = elements_of(subject.pair, subject.layout, subject.batch, _MOST_VALUES)
        except Exception:  # a program that cannot be run at other values of z
            found = None
        if found is None:
            yield from _without_baseline(subject, name)
        else:
            yield Problem(
                "warning",
                name,
                f"the {event.numel()} discrete elements of '{name}' are drawn, and the gradient of "
                "such draws is very noisy. The likelihood seems to take one element at a time: train with "
                "objective=ppl_vae.objectives.ElementwiseELBO(), which sums over their values exactly",
            )


def _without_baseline(subject: Subject, name: str) -> Iterator[Problem]:
    """A discrete latent of many elements whose gradient has no baseline, as it would have of several draws."""
    asked = subject.requested_objective
    if type(subject.objective) is not TraceELBO or asked.num_particles > 1:
        return
    if is_posterior(subject.pair.model, subject.pair.guide):  # all draws have the same reward
        return
    several = replace(asked, num_particles=2)
    if isinstance(several.resolve(subject.pair, subject.batch), ScoreFunctionELBO):
        yield Problem(
            "warning",
            name,
            f"'{name}' is discrete and is drawn as a whole, once for each row, and the gradient of such draws "
            "is very noisy. Train with objective=ppl_vae.objectives.ELBO(num_particles=4): several draws are "
            "baselines of each other",
        )


def _gradients(subject: Subject) -> Iterator[Problem]:
    pair, batch, objective = subject.pair, subject.batch, subject.objective
    parameters = pair.parameters(batch)
    if not parameters:
        return
    parameters = {n: p for n, p in parameters.items() if not objective.keeps(pair, n)}
    if isinstance(objective, Alternating):
        name, turns = type(objective).__name__, objective.turns(pair)
        moved = {n for names in moved_by(pair, parameters, turns, name).values() for n in names}
        for parameter in (each for each in parameters if each not in moved):
            yield Problem(
                "warning",
                parameter,
                f"no turn of {name} moves parameter '{parameter}': add it to the moves of a turn, or exclude "
                f"it with "
                "requires_grad_(False)",
            )
        parameters = {n: p for n, p in parameters.items() if n in moved}
    beta = objective.beta_at(objective.warmup_epochs)
    with torch.enable_grad(), pyro.validation_enabled(False):
        loss = checked(objective, objective(pair, subject.layout, batch, beta or 1.0)).loss
        names = list(parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            names = [n for n, g in zip(parameters, gradients, strict=True) if g is None]
        elif not without_parameters([trace_pair(pair, batch)]):
            yield Problem("error", "", no_gradient(objective))
            return
    for name in names:
        yield Problem(
            "warning",
            name,
            f"parameter '{name}' receives no gradient from the first batch: it does not enter the objective "
            "there. Unless batches of another kind use it, use it, or exclude it with requires_grad_(False)",
        )


STAGES: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    _shared_names,  # before anything runs, because Pyro would merge the two parameters into one
    _runs,
    _sites,
    _starts,
    _finite,
    _layout,
    _same_for_all_rows,
    _small_batch,
    _commitments,
    _objective,
    _estimator,
)
