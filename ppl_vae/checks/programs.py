"""`check`: finds what is wrong with a pair before time is spent on training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import nn

from ppl_vae.checks.data import data_problems, shape_problems
from ppl_vae.checks.report import Problem, Report, run_pair
from ppl_vae.objectives import EnumELBO, MeanFieldELBO, Objective, TraceELBO, as_objective
from ppl_vae.pairs import (
    Batch,
    Batches,
    DataLike,
    Layout,
    Pair,
    PairError,
    Program,
    Trace,
    find_layout,
    first_bad_site,
    first_line,
    is_enumerated,
    latent_sites,
    mean_field_violations,
    num_rows,
    observed_sites,
    sample_sites,
    take_rows,
    unscaled,
)
from ppl_vae.runtime import preserve_random_state


def check(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    objective: Objective | pyro.infer.ELBO | None = None,
    max_epochs: int | None = None,
    ragged: bool = False,
) -> Report:
    """Looks for errors in a pair by running it on one batch.

    It looks for:

    - latents that only one of the two programs has;
    - shapes and plates that differ;
    - data that are not in a plate over rows, or that are outside the likelihood's support;
    - latents that the objective does not support, because they have no reparameterized sampler or because of
      their dependencies;
    - parameters that receive no gradient;
    - a beta warm-up that is longer than the training.

    Nothing is changed: not the weights, the batch-norm statistics, the parameter store or the random
    generators.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data as for `fit`; the first 64 rows (or the first batch) are used.
        objective: The objective to train with; the default ELBO if None.
        max_epochs: The length of the training, to compare with the warm-up of beta.
        ragged: Also try a batch with one row fewer, because the last batch of an epoch may be smaller.

    Returns:
        A `Report`: true if there are no errors, printable, with the list of `.problems`.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("code", dist.Normal(x, 1.0))
        >>> report = check(model, guide, torch.zeros(3))
        >>> print(report.problems[0])  # doctest: +ELLIPSIS
        error: the model's latent site 'z' is not sampled by the guide, which samples 'code': ...
    """
    pair = Pair.of(model, guide)
    batches = Batches(x, pair)
    if pair.keeps_rows and batches.in_memory:
        batch = batches.rows
    else:
        batch = take_rows(batches.first(64), slice(0, 64))
    with pair.scope(), _restored(pair):
        return check_batch(pair, batch, as_objective(objective), max_epochs, ragged)


@contextmanager
def _restored(pair: Pair) -> Iterator[None]:
    """Undoes what a first run changes in modules: an autoguide creates its parameters for that batch."""
    modules = [m for root in pair.modules().values() for m in root.modules()]
    parts = [dict(vars(m)) for m in modules]
    inner = [(d, dict(d)) for part in parts for d in part.values() if isinstance(d, dict)]
    buffers = [(b, b.clone()) for m in modules for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for module, part in zip(modules, parts, strict=True):
            vars(module).clear()
            vars(module).update(part)
        for now, before in inner:
            now.clear()
            now.update(before)
        for buffer, value in buffers:
            buffer.copy_(value)


def check_batch(
    pair: Pair, batch: Batch, objective: Objective, max_epochs: int | None, ragged: bool
) -> Report:
    """`check` on a given batch, inside `pair.scope()`."""
    problems: list[Problem] = list(_warmup(objective, max_epochs))
    before: Any = pyro.get_param_store().get_state()
    inside: Any = {key: dict(value) for key, value in before.items()}
    with preserve_random_state(), pair.mode(training=False), pyro.get_param_store().scope(inside):
        problems += _run_all(pair, batch, objective, ragged)
    order = {"error": 0, "warning": 1}
    return Report(tuple(sorted(problems, key=lambda p: order[p.severity])))


def _run_all(pair: Pair, batch: Batch, wanted: Objective, ragged: bool) -> Iterator[Problem]:
    shared = list(_shared_names(pair))
    if shared:  # before anything runs, because Pyro would merge the two parameters into one
        yield from shared
        return
    traces = run_pair(pair, batch)
    if isinstance(traces, Problem):
        yield traces
        return
    model_trace, guide_trace = traces
    found = [
        *_names(model_trace, guide_trace),
        *data_problems(model_trace, batch),
        *shape_problems(model_trace, guide_trace),
    ]
    yield from found
    if any(p.severity == "error" for p in found):
        return
    with pyro.validation_enabled(False):
        for trace in traces:
            for site in sample_sites(trace).values():
                unscaled(site)
    bad = first_bad_site([(model_trace, guide_trace)])
    if bad is not None:
        yield Problem(
            "error",
            bad[0],
            f"before any training, the first site that is not finite is {bad[1]}: look at the parameters "
            "of its distribution and their initial values",
        )
        return
    try:
        layout = find_layout(pair, batch)
    except PairError as error:
        yield Problem("error", "", str(error))
        return
    if ragged:
        shorter = run_pair(pair, take_rows(batch, slice(0, num_rows(batch) - 1)))
        wrong = [shorter] if isinstance(shorter, Problem) else list(shape_problems(*shorter))
        if wrong:
            yield Problem(
                "error",
                wrong[0].site,
                "the pair runs on a full batch but not on one with fewer rows, such as the last batch of an "
                f"epoch ({wrong[0].message}). If the guide keeps parameters for each row, train with "
                "batch_size = the number of rows",
            )
            return
    try:
        objective = wanted.resolve(pair, batch)
    except ValueError as error:  # free bits with enumerated latents
        yield Problem("error", "", str(error))
        return
    summed = list(_summed_out(layout, objective))
    yield from summed
    if summed:
        return
    yield from _samplers(model_trace, guide_trace, objective)
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
    try:
        yield from _gradients(pair, layout, batch, objective)
    except Exception as error:
        yield Problem("error", "", f"the objective cannot be computed: {first_line(error)}")


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


def _warmup(objective: Objective, max_epochs: int | None) -> Iterator[Problem]:
    if max_epochs is not None and objective.warmup_epochs > max_epochs:
        yield Problem(
            "warning",
            "max_epochs",
            f"beta warms up for {objective.warmup_epochs:g} epochs, but the training ends after "
            f"{max_epochs}: beta never reaches its final value; train longer or shorten the warm-up",
        )


def _names(model_trace: Trace, guide_trace: Trace) -> Iterator[Problem]:
    in_model, in_guide = latent_sites(model_trace), latent_sites(guide_trace)
    seen = observed_sites(model_trace)
    others = ", ".join(f"'{name}'" for name in in_guide) or "nothing"
    for name, site in in_model.items():
        if name not in in_guide and not is_enumerated(site):
            yield Problem(
                "error",
                name,
                f"the model's latent site '{name}' is not sampled by the guide, which samples {others}: "
                "give the site the same name in both, or mark it for enumeration with "
                'infer={"enumerate": "parallel"}',
            )
    for name, site in in_guide.items():
        if name in seen:
            yield Problem(
                "error",
                name,
                f"site '{name}' is sampled by the guide but observed in the model: remove obs=... from "
                "the model, or the site from the guide",
            )
        elif name not in in_model and not site["infer"].get("is_auxiliary"):
            yield Problem(
                "error",
                name,
                f"the guide's site '{name}' is not in the model, which has "
                f"{', '.join(map(repr, in_model)) or 'no latents'}: give the site the same name in both, or "
                'mark it with infer={"is_auxiliary": True}',
            )
    if not seen:
        yield Problem(
            "error", "", "the model observes nothing: pass the data to pyro.sample(..., obs=x)"
        )


def _shared_names(pair: Pair) -> Iterator[Problem]:
    """PyroParams of model and guide with the same name in the store: top-level PyroModules have no name."""
    roots = [p for p in (pair.model, pair.guide) if isinstance(p, pyro.nn.PyroModule)]
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


def _samplers(model_trace: Trace, guide_trace: Trace, objective: Objective) -> Iterator[Problem]:
    if not objective.needs_reparameterised_latents:
        return
    for name, site in latent_sites(guide_trace).items():
        if not site["fn"].has_rsample:
            why = "free bits" if objective.free_bits > 0 else type(objective).__name__
            yield Problem(
                "error",
                name,
                f"site '{name}' is drawn from {type(site['fn']).__name__}, which has no reparameterized "
                f"sampler, but {why} needs one: use TraceELBO without free bits, enumerate the site with "
                "EnumELBO, or draw it from a relaxed distribution",
            )


def _gradients(pair: Pair, layout: Any, batch: Batch, objective: Objective) -> Iterator[Problem]:
    parameters = pair.parameters(batch)
    if not parameters:
        return
    beta = objective.beta_at(objective.warmup_epochs)
    with torch.enable_grad(), pyro.validation_enabled(False):
        loss = objective(pair, layout, batch, beta or 1.0).loss
        if not loss.requires_grad:
            names = list(parameters)
        else:
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            names = [n for n, g in zip(parameters, gradients, strict=True) if g is None]
    for name in names:
        yield Problem(
            "warning",
            name,
            f"parameter '{name}' receives no gradient: it does not enter the objective. Use it, or exclude "
            "it with requires_grad_(False)",
        )
