"""Arguments of distributions that are outside of their constraints, and the parameters that they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_vae.checks.report import Problem, run_pair
from ppl_vae.checks.supports import constraint_in_words
from ppl_vae.pairs import Batch, Pair, PairError, Site, Trace, first_line, innermost, sample_sites


def bad_argument(pair: Pair, traces: tuple[Trace, Trace]) -> Problem | None:
    """The first argument of a distribution that is outside of its constraint; None if there is none.

    Args:
        pair: Model and guide, inside of their scope.
        traces: Their traces, run without validation.
    """
    for role, trace in (("guide", traces[1]), ("model", traces[0])):
        for name, site in sample_sites(trace).items():
            found = _outside(site)
            if found is not None:
                argument, value, bad, constraint = found
                own = _parameter(pair, value)
                is_parameter = f" (the parameter '{own}')" if own else ""
                is_bad = "is" if bad is None else f"is {bad:.6g},"
                return Problem(
                    "error",
                    name,
                    f"site '{name}' in the {role}: the {argument} of {type(innermost(site['fn'])).__name__}"
                    f"{is_parameter} {is_bad} outside of {constraint_in_words(constraint)}: keep it there "
                    "by pyro.param(..., constraint=...), PyroParam, or a function such as exp or softplus",
                )
    return None


def impossible_value(model_trace: Trace, name: str) -> Problem | None:
    """Why a draw of the guide is impossible in the model, where the distribution has a `why_impossible`.

    Args:
        model_trace: The trace of the model, with the guide's latents.
        name: The site.
    """
    site = model_trace.nodes.get(name)
    explain = getattr(innermost(site["fn"]), "why_impossible", None) if site else None
    why = explain(site["value"]) if site and callable(explain) else None
    return Problem("error", name, f"site '{name}' in the model: {why}") if why else None


@contextmanager
def arguments_explained(pair: Pair, few: Callable[[], Batch]) -> Iterator[None]:
    """Names site and parameter where a distribution refuses its arguments, in place of printing them all.

    Args:
        pair: Model and guide, inside of their scope.
        few: Some rows, to run the programs on again.

    Raises:
        PairError: A distribution has refused them.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, PairError) or not str(error).startswith("Expected parameter "):
            raise
        pair.require_no_nan()
        traces = run_pair(pair, few())
        found = traces if isinstance(traces, Problem) else bad_argument(pair, traces)
        raise PairError(first_line(error) if found is None else found.message) from error


def moved_starts(trace: Trace) -> Iterator[Problem]:
    """Parameters of `pyro.param` that begin outside of their constraint, which torch moves without a word.

    Where the start becomes NaN there is an error already; and where the value is no longer the start, it was
    learned or loaded, and the start does not matter.

    Args:
        trace: The trace of a program.
    """
    for name, node in trace.nodes.items():
        if node["type"] != "param" or len(node["args"]) < 2:
            continue
        start, constraint = node["args"][1], node["kwargs"].get("constraint")
        if (
            not isinstance(start, Tensor)
            or constraint is None
            or constraints.is_dependent(constraint)
        ):
            continue
        with torch.no_grad():
            inside = constraint.check(start)
            if inside.all():
                continue
            to = transform_to(constraint)
            value = to(to.inv(start))
            now = node["value"]
            if now.shape != value.shape or not torch.allclose(now, value.to(now), equal_nan=False):
                continue
            place = (~inside).nonzero()[0].tolist()
            before, after = start[tuple(place)], value[tuple(place)]
        at, moved = (
            ("elsewhere", ": torch has moved it")
            if before.ndim
            else (f"at {float(before):.6g}", "")
            if before == after
            else (f"at {float(before):.6g}", f": torch has moved it to {float(after):.6g}")
        )
        yield Problem(
            "warning",
            name,
            f"the constraint of the parameter '{name}' allows {constraint_in_words(constraint)}, but it begins "
            f"{at}{moved}, where it may hardly learn. Begin well inside",
        )


def _outside(site: Site) -> tuple[str, Tensor, float | None, Any] | None:
    """The argument that is outside of its constraint: its name, its value, a bad number and the constraint."""
    fn = innermost(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        with torch.no_grad():
            bad = value[~constraint.check(value)].flatten()
            bad = bad[~bad.isnan()]  # which a computation has made, whose place is not known
            if len(bad):
                number = float(bad[0]) if constraint.event_dim == 0 else None
                return name, value, number, constraint
    return None


def _parameter(pair: Pair, value: Tensor) -> str:
    """The name of the parameter that a tensor is, or is a view of; empty if it was computed."""
    store = pyro.get_param_store()
    named = {name: store[name] for name in store}
    for root, module in pair.modules().items():
        named |= {f"{root}.{name}": p for name, p in module.named_parameters()}
    place = value.untyped_storage().data_ptr()
    return next((n for n, p in named.items() if p.untyped_storage().data_ptr() == place), "")
