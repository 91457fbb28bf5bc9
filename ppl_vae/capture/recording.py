"""Recording: a function of a pair's programs, run once and kept as a plain tensor graph.

`record` runs it under `make_fx`, which writes down every ATen operation. The tensors that the programs use
(parameters, buffers, others) become inputs of the graph; random operations stay random. Replaying the graph
is the same arithmetic in the same order, so under the same seed it gives the same numbers.

What cannot be recorded is detected, and a `CaptureError` names it: control flow that depends on data and
`.item()` stop the recording; programs that change Python state or draw from NumPy's or Python's generators
are found by comparing that state before and after.
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
    without_fake_tensors,
)
from ppl_vae.capture.memory import storage_of, writes_undone, written_nodes
from ppl_vae.capture.python_state import CARRIED, python_state, tensors_kept, unchanged
from ppl_vae.pairs import Pair, first_line
from ppl_vae.runtime import preserve_random_state

_logger = logging.getLogger(__name__)


MOST_OPERATIONS = 4000
"""Most operations in a graph that is compiled; a VAE's step has about 150."""


CHOICES = frozenset(
    {
        "argmax",
        "argmin",
        "bucketize",
        "ceil",
        "floor",
        "round",
        "searchsorted",
        "sign",
        "sort",
        "topk",
    }
)
"""Operations that jump: equal to float precision before, they need not be after."""


@dataclass
class Recording:
    """A graph, and what it depends on besides its arguments.

    Attributes:
        graph: The recorded operations.
        run: What a call runs: the graph, or what Inductor made of it.
        tensors: What the graph takes after its arguments: the programs' parameters, buffers and other
            tensors.
        state: The Python state of the pair when it was recorded.
        example: Tensors of the shapes of its arguments.
        writes: Which of its arguments and tensors the programs change in place, by position.
        compiled: Whether Inductor has compiled it.
    """

    graph: GraphModule
    run: Callable[..., Any]
    tensors: list[Tensor]
    state: dict[str, Any]
    example: list[Tensor]
    writes: tuple[int, ...] = ()
    compiled: bool = False

    def __call__(self, *args: Any) -> Any:
        """Runs the graph.

        Raises:
            CaptureError: An operation failed.
        """
        return self._run(self.run, args)

    def _run(self, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        try:
            with torch.no_grad():
                return run(*args, *self.tensors)
        except Exception as error:
            raise CaptureError(f"the recording cannot be run: {reason_of(error)}") from error

    @property
    def low_precision(self) -> bool:
        """Whether it computes in bfloat16 or float16, as under autocast."""
        given = [t.dtype for t in (*self.example, *self.tensors)]
        cast = [node.kwargs.get("dtype") for node in self.graph.graph.nodes]
        return any(dtype in (torch.bfloat16, torch.float16) for dtype in (*given, *cast))

    @property
    def chooses(self) -> bool:
        """Whether it makes choices, as of the nearest code, which depend on how numbers are rounded."""
        targets = (node.target for node in self.graph.graph.nodes if node.op == "call_function")
        names = {
            str(getattr(target, "overloadpacket", target)).rpartition(".")[2] for target in targets
        }
        return not CHOICES.isdisjoint(names)

    def uncompiled(self, *args: Any) -> Any:
        """Runs the graph as it was recorded.

        Raises:
            CaptureError: An operation failed.
        """
        return self._run(self.graph.forward, args)

    def undo(self, args: Sequence[Tensor]) -> Callable[[], None]:
        """Remembers what the programs change in place; the result puts it back, as often as it is called."""
        inputs = [*args, *self.tensors]
        before = [(inputs[i].detach(), inputs[i].detach().clone()) for i in self.writes]

        def put_back() -> None:
            for tensor, value in before:
                tensor.copy_(value)

        return put_back

    def compile(self) -> None:
        """Lets Inductor compile the graph: equal to float precision, no longer bit by bit.

        Raises:
            CaptureError: There is no C++ compiler, Inductor cannot do an operation, or there are so many that
                it would take minutes.
        """
        operations = len(self.graph.graph.nodes)
        if operations > MOST_OPERATIONS:
            raise CaptureError(
                f"its {operations} operations would take Inductor minutes to compile"
            )
        try:
            with preserve_random_state():
                tensors = [t.detach() for t in self.tensors]
                self.run = compile_graph(self.graph, [*self.example, *tensors])
        except Exception as error:
            raise CaptureError(f"Inductor could not compile it: {reason_of(error)}") from error
        self.compiled = True


def record(pair: Pair, function: Callable[..., Any], args: Sequence[Tensor]) -> Recording:
    """Records a function that runs the pair's programs; call it inside of `pair.scope()`.

    Args:
        pair: The pair.
        function: From tensors to a tuple of tensors.
        args: What to record it with. Their values do not matter.

    Raises:
        CaptureError: It cannot be recorded. Generators, tensors and Python state are as they were.
    """
    before = python_state(pair)
    try:
        with (
            unchanged(pair) as replaced,
            metrics_stay_tensors(),
            StaysInTorch(),
            OneHotUnread(),
            pyro.validation_enabled(False),
            writes_undone(),
            without_fake_tensors(),
        ):
            graph = make_fx(function)(*args)
    except CaptureError as error:
        raise CaptureError(first_line(error)) from error  # Pyro appends the shapes of its sites
    except Exception as error:
        raise CaptureError(f"the step cannot be recorded: {reason_of(error)}") from error
    if has_dynamic_shapes(graph):
        raise CaptureError("the programs make tensors whose shapes depend on values")
    simplify(graph)
    forget_values(graph)
    _require_known(graph, pair)
    tensors = lift_constants(graph)
    for name, tensor, _ in replaced:
        # A replaced tensor is harmless if the graph never reads it; weight normalization recomputes its
        # weight on each run.
        if any(tensor is read for read in tensors):
            raise CaptureError(CARRIED.format(name))
    own_outputs(graph)
    example = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        if t.dim()
        else t.clone()
        for t in args
    ]
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    written = written_nodes(graph)
    writes = tuple(i for i, node in enumerate(inputs) if node in written)
    return Recording(graph, graph.forward, tensors, before, example, writes)


def _require_known(graph: GraphModule, pair: Pair) -> None:
    """A tensor that is changed in place has to be one that the programs keep.

    Otherwise it may have been made while recording by something else than torch, and each replay would go on
    from what the last one left.
    """
    kept = {storage_of(tensor) for tensor in tensors_kept(pair)}
    for node in written_nodes(graph):
        if node.op == "get_attr" and storage_of(getattr(graph, str(node.target))) not in kept:
            raise CaptureError(
                "the programs change a tensor in place that is neither made by an operation of torch, nor a "
                "parameter, a buffer, another attribute of a module, or a variable that model or guide name"
            )


class StaysInTorch(TorchFunctionMode):
    """Refuses to let values leave torch: a recording would hold those of the rows that it was made from.

    `make_fx` itself refuses `.item()` and an `if` on a value.

    Raises:
        CaptureError: A program calls `.numpy()`, `.tolist()` or the like.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVES_TORCH:
            raise CaptureError(f"the programs read tensors outside of torch, by .{name}()")
        return func(*args, **(kwargs or {}))


class OneHotUnread(TorchFunctionMode):
    """Makes one-hot vectors without reading the classes, which `one_hot` does on a CPU to check their range.

    The vectors are the same, and `scatter` checks the range, too: a replay with a class out of range fails, and
    Pyro runs the step and says what is wrong.

    Raises:
        CaptureError: The number of classes is left open, so that the shape depends on the classes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.one_hot:
            return func(*args, **(kwargs or {}))
        classes, num = _classes_of(*args, **(kwargs or {}))
        if num == -1:
            raise CaptureError(
                "torch.nn.functional.one_hot looks for the largest class of each batch: give it num_classes, "
                "as in one_hot(y, num_classes=10)"
            )
        if not isinstance(num, int) or num < 1 or classes.dtype != torch.int64:
            return func(*args, **(kwargs or {}))  # which raises an error of its own
        zeros = torch.zeros(*classes.shape, num, dtype=classes.dtype, device=classes.device)
        return zeros.scatter(-1, classes.unsqueeze(-1), 1)


def _classes_of(input: Tensor, num_classes: Any = -1) -> tuple[Tensor, Any]:
    """The arguments of `one_hot`, however they are given."""
    return input, num_classes


_LEAVES_TORCH = {"numpy", "tolist", "__array__", "__dlpack__", "storage", "untyped_storage"}


@contextlib.contextmanager
def metrics_stay_tensors() -> Iterator[None]:
    """While recording, Pyro's estimators do not turn metrics into Python numbers, which only reports need."""

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
    """Takes `tensor.all()` for true."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is Tensor.all else func(*args, **(kwargs or {}))


class _RecordedDice(Dice):
    """Sets terms of probability zero to 0, which Pyro looks for and leaves out: they may be infinite."""

    def compute_expectation(self, costs: Any) -> Any:
        with _AllHold(), mock.patch.object(pyro.infer.util, "_fulldot", _sum_of_likely):
            return super().compute_expectation(costs)  # type: ignore[no-untyped-call]


_fulldot: Any = pyro.infer.util._fulldot


def _sum_of_likely(prob: Tensor, cost: Tensor) -> Any:
    return _fulldot(prob, cost.where(prob > 0, 0.0))
