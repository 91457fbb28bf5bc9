"""check(): what is wrong with a pair, in plain words, before a training is spent on it."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.distributions.constraints import Constraint

from ppl_vae.batches import Batches, DataLike
from ppl_vae.handlers import (
    PairError,
    Trace,
    first_bad_site,
    is_enumerated,
    latent_sites,
    observed_sites,
    sample_sites,
    unscaled,
)
from ppl_vae.layout import rows_frame, survey
from ppl_vae.mean_field import mean_field_violations
from ppl_vae.objectives import (
    MeanFieldELBO,
    Objective,
    as_objective,
)
from ppl_vae.pairs import Batch, Pair, Program, as_args, num_rows, take_rows
from ppl_vae.resuming import own_generators


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: ``error`` if training would be wrong or impossible, ``warning`` if it may be meant.
        site: The site, plate, parameter or argument that it is about.
        message: What is wrong, and what to do.
    """

    severity: Literal["error", "warning"]
    site: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


class PairWarning(UserWarning):
    """Something about a pair that may be meant, but usually is not."""


@dataclass(frozen=True)
class Report:
    """What :func:`check` found; true if there are no errors."""

    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing at all was found."""
        return not self.problems

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that make training wrong or impossible."""
        return tuple(p for p in self.problems if p.severity == "error")

    def __bool__(self) -> bool:
        return not self.errors

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems) or "no problems found"

    def raise_errors(self) -> None:
        """Raises a ``PairError`` with all errors, if there are any."""
        if self.errors:
            raise PairError("\n".join(p.message for p in self.errors))

    def show_warnings(self) -> None:
        """Issues a ``PairWarning`` for each of the other problems."""
        for problem in self.problems:
            if problem.severity == "warning":
                warnings.warn(problem.message, PairWarning, stacklevel=4)


def check(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    objective: Objective | pyro.infer.ELBO | None = None,
    max_epochs: int | None = None,
    ragged: bool = False,
) -> Report:
    """Looks for what is wrong with a pair, by running it on one batch.

    Looked for: latents that only one of the two programs has; shapes and plates that differ; data that are not
    in a plate over rows, or outside of the likelihood's support; latents without a reparameterised
    sampler, or with dependencies, that the objective can not have; parameters that receive no gradient;
    a beta warm-up longer than the training. Nothing is changed: neither weights, batch-norm
    statistics, the parameter store nor the random generators.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: DataLike as for ``fit``; the first 64 rows (or the first batch) are used.
        objective: The objective to be trained with; the default ELBO if None.
        max_epochs: The length of the training, to be compared with the warm-up of beta.
        ragged: Also try a batch with a row less, as the last batch of an epoch may be.

    Returns:
        A :class:`Report`: true if there are no errors, printable, with ``.problems``.

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
    """Takes back what a first run changes in modules: an autoguide makes its parameters for that batch."""
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
    """:func:`check` on a given batch, inside of ``pair.scope()``."""
    problems: list[Problem] = list(_warmup(objective, max_epochs))
    before: Any = pyro.get_param_store().get_state()
    inside: Any = {key: dict(value) for key, value in before.items()}
    with own_generators(), pair.mode(training=False), pyro.get_param_store().scope(inside):
        problems += _run_all(pair, batch, objective, ragged)
    order = {"error": 0, "warning": 1}
    return Report(tuple(sorted(problems, key=lambda p: order[p.severity])))


def check_data(pair: Pair, batch: Batch) -> None:
    """Refuses a batch that a pair can not be run on, in plain words; call it inside of ``pair.scope()``.

    Runs both programs once, in evaluation mode and without gradients; leaves the random generators alone.

    Args:
        pair: Model and guide.
        batch: What the two are called with.

    Raises:
        PairError: A program raises on the batch, its observed sites are not in a plate over the rows, a
            value does not fit its distribution, or data are NaN, infinite or outside of the support.
    """
    with own_generators(), pair.mode(training=False):
        traces = _traces(pair, batch)
        if isinstance(traces, Problem):
            raise PairError(traces.message)
        with torch.no_grad(), pyro.validation_enabled(False):
            found = list(_data(traces[0], batch)) or list(_shapes(*traces))
    Report(tuple(found)).raise_errors()


class DataCheck:
    """Looks at the data of batch after batch: NaN, infinite, or outside of the likelihood's support.

    Where every observed value is a tensor of the batch itself, and its support the same for all rows, the
    programs need not run: the tensors are looked at. Otherwise they run, as in :func:`check_data`.

    Args:
        pair: Model and guide; make and use the object inside of ``pair.scope()``.
        batch: A batch that :func:`check` has found good.
    """

    def __init__(self, pair: Pair, batch: Batch) -> None:
        self._pair = pair
        self._as_they_come: list[tuple[int, str, Any, Constraint]] | None = []
        self._dim: int | None = None
        traces = self._run(batch)
        if traces is None:
            return
        sites = {n: s for n, s in observed_sites(traces[0]).items() if s["value"].numel()}
        self._dim = rows_frame(sites, num_rows(batch)).dim
        for name, site in sites.items():
            found = _as_it_comes(site, as_args(batch))
            if found is None:
                self._as_they_come = None
                return
            self._as_they_come.append((found[0], name, site, found[1]))

    def first_problem(self, batch: Batch) -> tuple[str, int | None] | None:
        """What is wrong with the data of a batch, and the first such row in it; None if nothing is."""
        n, args = num_rows(batch), as_args(batch)
        found: tuple[Problem, list[int]] | None = None
        if self._as_they_come is not None:
            for i, name, site, support in self._as_they_come:
                value = args[i].reshape(n, *site["value"].shape[1:])
                found = found or _unusable(name, site | {"value": value}, n, self._dim, support)
        else:
            traces = self._run(batch)
            for name, site in observed_sites(traces[0]).items() if traces else ():
                found = found or _unusable(name, site, n, self._dim)
        if found is None:
            return None
        return found[0].message, min(found[1], default=None)

    def _run(self, batch: Batch) -> tuple[Trace, Trace] | None:
        with own_generators(), self._pair.mode(training=False):
            traces = _traces(self._pair, batch)
        # What a program raises on this batch, the training will say.
        return None if isinstance(traces, Problem) else traces


def _as_it_comes(site: Any, args: tuple[Tensor, ...]) -> tuple[int, Constraint] | None:
    """Which argument an observed value is, and the support of any row; None if it is computed, or varies."""
    value = site["value"]
    if isinstance(site["mask"], Tensor):
        return None
    try:
        support = _of_any_row(site["fn"].support, alone=len(args) == 1)
    except Exception:  # distributions that state no support
        return None
    for i, x in enumerate(args):
        if (
            support is not None
            and value.data_ptr() == x.data_ptr()
            and value.dtype == x.dtype
            and value.numel() == x.numel()
            and value.shape[:1] == x.shape[:1]
            and value.is_contiguous()
            and x.is_contiguous()
        ):
            return i, support
    return None


def _of_any_row(support: Constraint, alone: bool) -> Constraint | None:
    """A support without tensors of the size of a batch; None if they are not the same everywhere."""
    support = copy.copy(support)
    for name, part in list(vars(support).items()):
        if isinstance(part, Constraint):
            inner = _of_any_row(part, alone)
            if inner is None:
                return None
            setattr(support, name, inner)
        elif isinstance(part, Tensor):
            if not alone or bool((part != part.flatten()[0]).any()):
                return None
            setattr(support, name, part.flatten()[0])
        elif isinstance(part, (list, tuple)):
            return None
    return support


def _run_all(pair: Pair, batch: Batch, wanted: Objective, ragged: bool) -> Iterator[Problem]:
    shared = list(_shared_names(pair))
    if shared:  # before anything runs: Pyro would make one parameter of the two
        yield from shared
        return
    traces = _traces(pair, batch)
    if isinstance(traces, Problem):
        yield traces
        return
    model_trace, guide_trace = traces
    found = [
        *_names(model_trace, guide_trace),
        *_data(model_trace, batch),
        *_shapes(model_trace, guide_trace),
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
            "of its distribution, and how they begin",
        )
        return
    try:
        layout = survey(pair, batch)
    except PairError as error:
        yield Problem("error", "", str(error))
        return
    if ragged:
        shorter = _traces(pair, take_rows(batch, slice(0, num_rows(batch) - 1)))
        wrong = [shorter] if isinstance(shorter, Problem) else list(_shapes(*shorter))
        if wrong:
            yield Problem(
                "error",
                wrong[0].site,
                "the pair runs on a full batch but not on one with a row less, as the last batch of an "
                f"epoch has ({wrong[0].message}). If the guide keeps parameters for each row, train with "
                "batch_size = the number of rows",
            )
            return
    objective = wanted.resolve(pair, batch)
    yield from _samplers(model_trace, guide_trace, objective)
    if isinstance(objective, MeanFieldELBO):
        for site, guilty in mean_field_violations(pair, batch).items():
            names = " and ".join(f"'{name}'" for name in sorted(guilty))
            yield Problem(
                "error",
                site,
                f"the analytic KL of site '{site}' is wrong for this pair: in the model its density depends "
                f"on {names}, which in the guide is sampled from it. Use TraceELBO (the default objective "
                "chooses so by itself), or sample in the model's order in the guide",
            )
    try:
        yield from _gradients(pair, layout, batch, objective)
    except Exception as error:
        yield Problem("error", "", f"the objective can not be computed: {_first_line(error)}")


def _warmup(objective: Objective, max_epochs: int | None) -> Iterator[Problem]:
    if max_epochs is not None and objective.warmup_epochs > max_epochs:
        yield Problem(
            "warning",
            "max_epochs",
            f"beta warms up for {objective.warmup_epochs:g} epochs, but the training ends after "
            f"{max_epochs}: it never reaches its final value; train longer or shorten the warm-up",
        )


def _traces(pair: Pair, batch: Batch) -> tuple[Trace, Trace] | Problem:
    args = as_args(batch)
    role = "guide"
    try:
        with torch.no_grad():
            with pyro.validation_enabled(False):
                guide_trace = poutine.trace(pair.guide).get_trace(*args)
            role = "model"
            with pyro.validation_enabled(False):
                model = poutine.replay(pair.model, trace=guide_trace)
                model_trace = poutine.trace(model).get_trace(*args)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in args)
        return Problem(
            "error",
            role,
            f"the {role} raised {type(error).__name__} on a batch of shape {shapes}: {_first_line(error)}"
            f"{_other_dtype(pair, args, error)}",
        )
    return model_trace, guide_trace


def _other_dtype(pair: Pair, args: tuple[Tensor, ...], error: Exception) -> str:
    """The remedy, if a program raised because data and parameters differ in type."""
    if not re.search(r"dtype|scalar type|input type|data type", str(error), re.IGNORECASE):
        return ""
    stored = pyro.get_param_store().named_parameters()
    parameters = [p for m in pair.modules().values() for p in m.parameters()]
    types = [p.dtype for p in (*parameters, *(p for _, p in stored)) if p.is_floating_point()]
    for i, x in enumerate(args):
        if types and x.dtype != types[0]:
            name = "x" if len(args) == 1 else f"x[{i}]"
            method = {torch.float32: "float()", torch.float64: "double()"}.get(
                types[0], f"to({types[0]})"
            )
            return f"; {name} is {x.dtype}, the parameters are {types[0]}: pass {name}.{method}"
    return ""


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
            "error", "", "the model observes nothing: give pyro.sample(..., obs=x) the data"
        )
    if not in_model:
        yield Problem("error", "", "the model has no latent site: there is nothing to infer")


def _data(model_trace: Trace, batch: Batch) -> Iterator[Problem]:
    seen = observed_sites(model_trace)
    n = num_rows(batch)
    dim: int | None = None
    if seen:
        try:
            dim = rows_frame(seen, n).dim
        except PairError as error:
            yield Problem("error", next(iter(seen)), str(error))
    for name, site in seen.items():
        found = _unusable(name, site, n, dim)
        if found is not None:
            yield found[0]


def _unusable(
    name: str, site: Any, n: int, dim: int | None, support: Constraint | None = None
) -> tuple[Problem, list[int]] | None:
    """What makes the data at an observed site useless, and in which rows (none if that can not be told)."""
    fn, value = site["fn"], site["value"]
    if value.numel() == 0:  # pyro.factor
        return None
    if not bool(torch.isfinite(value).all()):
        rows = rows_not_finite(site, dim)
        what = "NaN" if bool(torch.isnan(value).any()) else "infinite"
        advice = (
            f"the data at site '{name}' are {what} in {len(rows) or 1} of the {n} rows looked at: remove "
            "those rows, or put any number there and hide it from the likelihood with poutine.mask"
        )
        return Problem("error", name, advice), rows
    base = fn
    while isinstance(base, (Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(base, dist.MaskedDistribution):  # what it hides may be anything
            return None
        base = base.base_dist
    kind = type(base).__name__
    try:
        inside = (fn.support if support is None else support).check(value)
    except Exception:  # distributions that state no support, or not for this shape
        return None
    if kind == "Beta":  # whose density at 0 and 1 may be infinite
        inside = inside & ~_any_of_event((value <= 0.0) | (value >= 1.0), fn)
    if isinstance(site["mask"], Tensor):
        inside = inside | ~site["mask"]
    if bool(inside.all()):
        return None
    low, high = float(value.min()), float(value.max())
    advice = {
        "Bernoulli": "binarise it (load_data(..., binarize=...)), or choose a likelihood for its values",
        "Binomial": "give counts from 0 to total_count",
        "Beta": "squeeze it into the open interval (0, 1)",
    }.get(kind, "transform the data or choose another likelihood")
    problem = Problem(
        "error",
        name,
        f"the data at site '{name}' ({low:g} to {high:g}) are outside of the support of {kind}, "
        f"{_describe(base)}: {advice}",
    )
    return problem, _rows_of(~inside, dim)


def rows_not_finite(site: Any, dim: int | None) -> list[int]:
    """The rows, counted from 0 along the plate at ``dim``, with NaN or infinite data at an observed site."""
    return _rows_of(_any_of_event(~torch.isfinite(site["value"]), site["fn"]), dim)


def _any_of_event(bad: Tensor, fn: Any) -> Tensor:
    event_dim = min(len(fn.event_shape), bad.dim())
    return bad.flatten(bad.dim() - event_dim).any(-1) if event_dim else bad


def _rows_of(bad: Tensor, dim: int | None) -> list[int]:
    if dim is None or bad.dim() < -dim:
        return []
    rows = bad.movedim(dim, 0)
    found: list[int] = rows.reshape(len(rows), -1).any(1).nonzero().flatten().tolist()
    return found


def _describe(fn: Any) -> str:
    text = str(fn.support)
    if type(fn).__name__ == "Binomial":
        return f"the integers 0 to {int(fn.total_count.max())}"
    return {"Boolean()": "0 and 1"}.get(text, text)


def _shapes(model_trace: Trace, guide_trace: Trace) -> Iterator[Problem]:
    for role, trace in (("model", model_trace), ("guide", guide_trace)):
        for name, site in sample_sites(trace).items():
            frames = [f for f in site["cond_indep_stack"] if f.vectorized]
            try:
                actual = tuple(site["fn"].log_prob(site["value"]).shape)
            except Exception as error:
                yield Problem(
                    "error",
                    name,
                    f"site '{name}' in the {role}: its value of shape {tuple(site['value'].shape)} does not "
                    f"fit its distribution of batch shape {tuple(site['fn'].batch_shape)} and event shape "
                    f"{tuple(site['fn'].event_shape)} ({_first_line(error)})",
                )
                continue
            expected = [1] * (-min((f.dim for f in frames), default=0))
            for frame in frames:
                expected[frame.dim] = frame.size
            padded = (1,) * (len(expected) - len(actual)) + actual
            if list(padded) != expected:
                plates = ", ".join(f"'{f.name}' (size {f.size}, dim {f.dim})" for f in frames)
                yield Problem(
                    "error",
                    name,
                    f"site '{name}' in the {role} has log densities of shape {actual}, but its plates "
                    f"({plates or 'none'}) make {tuple(expected)}: add "
                    f".to_event({max(1, len(actual) - len(expected))}) to its distribution, or the plate "
                    "that is missing",
                )
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is None:
            continue
        if site["fn"].event_shape != other["fn"].event_shape:
            yield Problem(
                "error",
                name,
                f"site '{name}' has event shape {tuple(site['fn'].event_shape)} in the model and "
                f"{tuple(other['fn'].event_shape)} in the guide: the two must be the same",
            )
            continue
        around = [{f.name for f in s["cond_indep_stack"] if f.vectorized} for s in (site, other)]
        if around[0] != around[1]:
            sets = [", ".join(f"'{p}'" for p in sorted(names)) or "no plate" for names in around]
            yield Problem(
                "error",
                name,
                f"site '{name}' is in {sets[0]} in the model and in {sets[1]} in the guide: use the same "
                "plates, with the same names, in both",
            )


def _shared_names(pair: Pair) -> Iterator[Problem]:
    """PyroModules at top level have no name, so that their PyroParams can fall together in the store."""
    roots = [p for p in (pair.model, pair.guide) if isinstance(p, pyro.nn.PyroModule)]
    if len(roots) < 2 or roots[0] is roots[1]:
        return
    names = [_pyro_params(root) for root in roots]
    for name in sorted(names[0].keys() & names[1].keys()):
        if names[0][name] is not names[1][name]:
            yield Problem(
                "error",
                name,
                f"model and guide both have a PyroParam called '{name}': Pyro's parameter store would make "
                "one of the two; rename one, or construct one of the modules with a name "
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
                f"site '{name}' is drawn from {type(site['fn']).__name__}, which has no reparameterised "
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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__
