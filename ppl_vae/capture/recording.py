"""Recording: a function of a pair's programs, run once and kept as a plain tensor graph.

:func:`record` runs it under ``make_fx``, which notes every ATen operation. The tensors that the programs use
(parameters, buffers, others) become inputs of the graph; random operations stay random. Replaying the graph
is the same arithmetic in the same order, so that under the same seed it gives the same numbers.

What can not be recorded is detected, and named in a :class:`CaptureError`: control flow that depends on
data and ``.item()`` stop the recording; programs that change Python state or that draw from numpy's or
Python's generators are found by looking before and after.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pyro
import pyro.infer.trace_elbo
import pyro.infer.trace_mean_field_elbo
import pyro.infer.traceenum_elbo
import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ppl_vae.capture.errors import CaptureError, reason_of
from ppl_vae.capture.graphs import (
    compile_graph,
    forget_values,
    has_dynamic_shapes,
    lift_constants,
    own_outputs,
    simplify,
)
from ppl_vae.capture.python_state import (
    CARRIED,
    python_state,
    unchanged,
)
from ppl_vae.pairs import Pair
from ppl_vae.runtime import generators_kept

_logger = logging.getLogger(__name__)


MOST_OPERATIONS = 4000
"""Operations in a graph that is compiled; a VAE's step has some 150."""


@dataclass
class Recording:
    """One graph, and what it depends on besides its arguments.

    Attributes:
        graph: The recorded operations.
        run: What is called: the graph, or what Inductor made of it.
        tensors: The tensors of the programs that the graph takes after its arguments: parameters, buffers
            and what else they hold.
        state: The Python state of the pair when it was recorded.
        example: Tensors that are shaped like its arguments.
        compiled: Whether Inductor has compiled it.
    """

    graph: GraphModule
    run: Callable[..., Any]
    tensors: list[Tensor]
    state: dict[str, Any]
    example: list[Tensor]
    compiled: bool = False

    def __call__(self, *args: Any) -> Any:
        """Runs it.

        Raises:
            CaptureError: An operation failed.
        """
        try:
            with torch.no_grad():
                return self.run(*args, *self.tensors)
        except Exception as error:
            raise CaptureError(f"what was recorded can not be run: {reason_of(error)}") from error

    def compile(self) -> None:
        """Lets Inductor compile the graph: equal to float precision, no longer bit by bit.

        Raises:
            CaptureError: There is no C++ compiler, an operation that Inductor can not do, or so many of them
                that it would take minutes.
        """
        operations = len(self.graph.graph.nodes)
        if operations > MOST_OPERATIONS:
            raise CaptureError(
                f"its {operations} operations would take Inductor minutes to compile"
            )
        try:
            with generators_kept():
                tensors = [t.detach() for t in self.tensors]
                self.run = compile_graph(self.graph, [*self.example, *tensors])
        except Exception as error:
            raise CaptureError(f"Inductor could not compile it: {reason_of(error)}") from error
        self.compiled = True


def record(pair: Pair, function: Callable[..., Any], args: Sequence[Tensor]) -> Recording:
    """Records a function that runs the pair's programs; call it inside of ``pair.scope()``.

    Args:
        pair: The pair.
        function: From tensors to a tuple of tensors.
        args: What to record it with. Their values do not matter.

    Raises:
        CaptureError: It can not be recorded. Generators, buffers and Python state are as they were.
    """
    before = python_state(pair)
    try:
        with (
            unchanged(pair) as replaced,
            metrics_stay_tensors(),
            pyro.validation_enabled(False),
        ):
            graph = make_fx(function)(*args)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"the step can not be recorded: {reason_of(error)}") from error
    if has_dynamic_shapes(graph):
        raise CaptureError("the programs make tensors whose shapes depend on values")
    simplify(graph)
    forget_values(graph)
    tensors = lift_constants(graph)
    for name, tensor, _ in replaced:
        # One that is never read may well be: weight normalisation makes a layer's weight anew in each run.
        if any(tensor is read for read in tensors):
            raise CaptureError(CARRIED.format(name))
    own_outputs(graph)
    example = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        if t.dim()
        else t.clone()
        for t in args
    ]
    return Recording(graph, graph.forward, tensors, before, example)


@contextlib.contextmanager
def metrics_stay_tensors() -> Iterator[None]:
    """While recording, Pyro's estimators must not ask for Python numbers: they are for reports alone."""

    def as_tensor(x: Any) -> Any:
        return x.detach() if isinstance(x, Tensor) else x

    with contextlib.ExitStack() as stack:
        for module in (
            pyro.infer.trace_elbo,
            pyro.infer.trace_mean_field_elbo,
            pyro.infer.traceenum_elbo,
        ):
            if hasattr(module, "torch_item"):
                stack.enter_context(mock.patch.object(module, "torch_item", as_tensor))
            stack.enter_context(
                mock.patch.object(module, "warn_if_nan", lambda value, *_, **__: value)
            )
        stack.enter_context(mock.patch.object(pyro.infer.traceenum_elbo, "Dice", _RecordedDice))
        yield


class _AllHold(TorchFunctionMode):
    """Takes ``tensor.all()`` for true."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is Tensor.all else func(*args, **(kwargs or {}))


class _RecordedDice(Dice):
    """Pyro leaves terms of probability zero out of a sum, by looking whether there are any.

    A recording keeps them: they add nothing, unless a term is infinite as well; then the loss becomes
    NaN, and a step of NaN is done again by Pyro.
    """

    def compute_expectation(self, costs: Any) -> Any:
        with _AllHold():
            return super().compute_expectation(costs)  # type: ignore[no-untyped-call]
