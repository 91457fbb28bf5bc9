"""Parameters with a number for each row: `pyro.param("loc", lambda: torch.zeros(len(x)))`, by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
import torch
from torch.nn.parameter import is_lazy

from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, move, num_rows, take_rows, trace_programs
from ppl_vae.pairs.row_plate import one_row_fewer
from ppl_vae.pairs.traces import Trace


def parameters_by_row(pair: Pair, batch: Batch, traces: tuple[Trace, Trace]) -> set[str]:
    """The `pyro.param` statements whose values have as many rows as the programs are given.

    If one has a dimension of the batch's size, the pair runs on one row fewer as if no parameter were known. In
    minibatches such values belong to no row: each batch would get them by position.

    Args:
        pair: The pair, inside of its scope.
        batch: The rows.
        traces: The traces of model and guide on these rows.
    """
    n = num_rows(batch)
    sites = {name: trace.nodes[name] for trace in traces for name in trace.param_nodes}
    possible = {name: s["value"].shape for name, s in sites.items() if n in s["value"].shape}
    fewer = _as_declared(pair, one_row_fewer(batch)) if possible else {}
    return {n for n, shape in possible.items() if fewer.get(n, shape) != shape}


def made_for_other_rows(pair: Pair, batch: Batch) -> str:
    """The end of a message, if a parameter of the pair has a number for each of other rows; else empty."""
    values: Any = pyro.get_param_store()
    declared = _as_declared(pair, batch) if len(values) else {}
    for name, shape in declared.items():
        if name in values and values[name].shape != shape:
            return (
                f". Parameter '{name}' is of shape {tuple(values[name].shape)}, and would be of shape "
                f"{tuple(shape)} for these rows: give those that the pair was trained on, or use a guide that "
                "computes q(z | x) from x"
            )
    return ""


def has_dimension(pair: Pair, n: int) -> bool:
    """Whether a known parameter of the pair has a dimension of this size; False while layers are lazy."""
    tensors = [p for module in pair.modules().values() for p in module.parameters()]
    if any(is_lazy(p) for p in tensors):
        return False
    return any(n in p.shape for p in (*tensors, *pair.state().values()))


def runs_on_all_alone(pair: Pair, batch: Batch, few: int) -> bool:
    """Whether the pair runs on all rows of a batch, but not on the first few.

    Its parameters are for each of them, or a plate over rows has their number as its size. Nothing is kept:
    neither values, nor buffers, nor the random state change.
    """
    some, every = (move(rows, _device(pair)) for rows in (take_rows(batch, slice(0, few)), batch))
    return num_rows(some) < num_rows(every) and not _runs(pair, some) and _runs(pair, every)


def _runs(pair: Pair, batch: Batch) -> bool:
    with nullcontext() if pair.in_scope else pair.scope():
        store: Any = pyro.get_param_store()
        inside: Any = {key: dict(value) for key, value in store.get_state().items()}
        try:
            with (
                torch.random.fork_rng(),
                torch.no_grad(),
                pyro.validation_enabled(False),
                store.scope(inside),
                pair.without_saved_values(),
                pair.mode(training=False),
            ):
                trace_programs(pair.model, pair.guide, batch)
        except Exception:
            return False
    return True


def _device(pair: Pair) -> torch.device:
    tensors = (p for module in pair.modules().values() for p in module.parameters())
    return next((p.device for p in (*tensors, *pair.state().values())), torch.device("cpu"))


def _as_declared(pair: Pair, batch: Batch) -> dict[str, torch.Size]:
    """The shapes of the `pyro.param` values that a first run on a batch makes; none if it fails.

    Nothing is kept: neither values nor the random state change.
    """
    store: Any = pyro.get_param_store()
    try:
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            store.scope({"params": {}, "constraints": {}}),
            pair.without_saved_values(),
        ):
            traces = trace_programs(pair.model, pair.guide, batch)
    except Exception:  # what is wrong with the programs is reported where the batch is used
        return {}
    return {name: t.nodes[name]["value"].shape for t in traces for name in t.param_nodes}
