"""A training step recorded once as a plain tensor graph, then run without Pyro.

Pyro runs its effect handlers in Python at every step. :class:`CapturedLoss` runs them once: the objective
and its gradients are recorded with ``make_fx`` as a graph of ATen operations, whose inputs are the batch,
beta, the parameters and the buffers, found by object identity; random operations stay random. The graph
is the same arithmetic in the same order, so that under the same seed it gives the same numbers.

What can not be recorded is detected, and named: control flow that depends on data and ``.item()`` stop the
recording; programs that change Python state or draw from numpy's or Python's generators are found by looking
before and after a step; and a recording is compared with Pyro itself under the same seed when it is
made and ever more rarely afterwards. In each of these cases :class:`CaptureError` says why, and the caller
goes on with Pyro.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import numbers
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.infer.trace_elbo
import pyro.infer.trace_mean_field_elbo
import pyro.infer.traceenum_elbo
import torch
from pyro.infer.util import Dice
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ppl_vae.graphs import (
    compile_graph,
    forget_values,
    has_dynamic_shapes,
    lift_constants,
    simplify,
)
from ppl_vae.objectives import Loss, Objective
from ppl_vae.pairs import Batch, Pair, Program, as_args
from ppl_vae.rows import Layout

_logger = logging.getLogger(__name__)

MOST_RECORDINGS = 8
"""Recordings of one loss that are kept: batch shapes beyond them run in Pyro."""

SMALL = 4096
"""Numbers in a parameter whose gradient is looked at in every step."""

RECORD_AFTER = 20
"""Steps on batches of one shape that Pyro does before the shape is recorded, which costs some hundred."""

LOOK_EVERY = 50
"""Steps after which the Python state that the programs can reach is looked at again."""

FIRST_COMPARISONS = (1, 10, 100)
COMPARE_EVERY = 1000
"""Steps after which a recording is compared with Pyro again."""


class CaptureError(RuntimeError):
    """A step that can not be replaced by a recording; the message says why."""


@dataclass
class _Recording:
    """One graph and the tensors that it takes besides the batch and beta."""

    graph: GraphModule
    run: Callable[..., Any]
    tensors: list[Tensor]
    state: dict[str, Any]
    example: list[Tensor]
    calls: int = 0
    unseen: int = 0


class CapturedLoss:
    """Loss, metrics and gradients of an objective on a pair, by a recorded graph.

    Args:
        pair: The pair, inside of whose scope everything happens.
        layout: Its layout.
        objective: A resolved objective.
        parameters: The trainable leaves by name; each gets its gradient in ``.grad``.
        compile: Let Inductor compile each recording: equal to float precision, no longer bit by bit.

    Attributes:
        recordings: How many graphs have been recorded.
        comparisons: How many steps have been compared with Pyro.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        objective: Objective,
        parameters: dict[str, Tensor],
        compile: bool = False,
    ) -> None:
        self.pair = pair
        self.layout = layout
        self.objective = objective
        self.leaves = list(parameters.values())
        self.names = list(parameters)
        self.scheduled = not isinstance(objective.beta, (int, float))
        self.recordings = 0
        self.comparisons = 0
        self.compile = compile
        self._cache: dict[Any, _Recording] = {}
        self._seen: dict[Any, int] = {}
        self._modules_seen: list[nn.Module] | None = None

    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """Runs the step: sets ``.grad`` of all parameters and returns its metrics.

        Returns:
            Loss, ELBO, rate, distortion, and a number that is finite if the gradients of all small
            parameters (biases) are, which is what a bad gradient nearly always shows in; ``(5,)``.

        Raises:
            CaptureError: The step can not be captured, or the recording no longer tells the truth.
                Weights and buffers are as they were: the caller can run the step in Pyro.
        """
        key = self._key(batch)
        recording = self._cache.get(key)
        if recording is not None and recording.unseen >= LOOK_EVERY:
            recording = self._still_true(recording)
        if recording is None:
            if len(self._cache) >= MOST_RECORDINGS:
                raise CaptureError(
                    f"batches have come in more than {MOST_RECORDINGS} shapes: pad them to a few"
                )
            recording = self._record(batch, beta)
            self._cache[key] = recording
        recording.calls += 1
        recording.unseen += 1
        calls = recording.calls
        if calls in FIRST_COMPARISONS or calls % COMPARE_EVERY == 0:
            return self._compared(recording, batch, beta)
        return self._run(recording, batch, beta)

    def pays(self, batch: Batch) -> bool:
        """Whether a step on such a batch is worth a recording: it has come up often enough.

        Samples that have to be looped over make a graph of all of them, which takes long to record and
        saves little.
        """
        if self.objective.num_particles > 1 and not self.layout.vectorizes:
            return False
        key = self._key(batch)
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] > RECORD_AFTER

    def look_again(self) -> None:
        """Says that something may have changed: the next step looks at the programs' state again."""
        self._modules_seen = None
        for recording in self._cache.values():
            recording.unseen = LOOK_EVERY

    # -- running -----------------------------------------------------------------------------------------

    def _inputs(self, recording: _Recording, batch: Batch, beta: float) -> list[Any]:
        weight = [torch.tensor(beta, device=self.leaves[0].device)] if self.scheduled else []
        return [*as_args(batch), *weight, *recording.tensors]

    def _still_true(self, recording: _Recording) -> _Recording | None:
        """The recording, unless the programs' Python state has changed since it was made."""
        now = python_state(self.pair)
        recording.unseen = 0
        if now == recording.state:
            return recording
        if self.recordings >= MOST_RECORDINGS:
            changed = [name for name in now if now[name] != recording.state.get(name)]
            raise CaptureError(f"the Python state of the pair keeps changing ({changed[0]})")
        self._cache.clear()
        return None

    def _run(self, recording: _Recording, batch: Batch, beta: float) -> Tensor:
        with torch.no_grad():
            metrics, *gradients = recording.run(*self._inputs(recording, batch, beta))
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        return metrics  # type: ignore[no-any-return]

    def _plain(self, batch: Batch, beta: float | Tensor) -> tuple[Any, ...]:
        loss: Loss = self.objective(self.pair, self.layout, batch, beta)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(loss.loss, self.leaves, allow_unused=True)
        small = [g.sum() for g in gradients if g is not None and g.numel() <= SMALL]
        witness = torch.stack(small).sum() if small else loss.elbo
        parts = (loss.loss.detach(), loss.elbo, loss.rate, loss.distortion, witness)
        return (torch.stack([part.float() for part in parts]), *gradients)

    # -- recording ---------------------------------------------------------------------------------------

    def _record(self, batch: Batch, beta: float) -> _Recording:
        args = as_args(batch)
        weight = [torch.tensor(beta, device=self.leaves[0].device)] if self.scheduled else []

        def step(*inputs: Tensor) -> tuple[Any, ...]:
            rows = inputs[: len(args)] if len(args) > 1 else inputs[0]
            return self._plain(rows, inputs[-1] if self.scheduled else beta)

        before = python_state(self.pair)
        try:
            with self._as_before(), _numbers_stand_aside(), pyro.validation_enabled(False):
                graph = make_fx(step)(*args, *weight)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(f"the step can not be recorded: {_reason(error)}") from error
        if has_dynamic_shapes(graph):
            raise CaptureError("the programs make tensors whose shapes depend on values")
        simplify(graph)
        forget_values(graph)
        known = {id(t): t for t in self.leaves}
        known |= {id(b): b for m in self._modules() for b in m.buffers(recurse=False)}
        tensors = lift_constants(graph, known)
        self.recordings += 1
        example = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in args
        ]
        recording = _Recording(graph, graph.forward, tensors, before, [*example, *weight])
        if self.compile:
            self._compile(recording)
        return recording

    def _compile(self, recording: _Recording) -> None:
        try:
            with _generators_kept():
                recording.run = compile_graph(
                    recording.graph, [*recording.example, *recording.tensors]
                )
        except Exception as error:  # no C++ compiler, or an operation that Inductor can not do
            self.compile = False
            _logger.warning("Inductor could not compile the step: %s", _reason(error))

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        """Leaves generators and buffers as they were, and insists that numpy's were not used."""
        buffers = [(b, b.clone()) for m in self._modules() for b in m.buffers(recurse=False)]
        places = _places(self.pair)
        values = {name: place[key] for name, (place, key) in places.items()}
        foreign, (python, numpy) = _foreign_bytes(), _foreign_generators()
        try:
            with _generators_kept():
                yield
            if _foreign_bytes() != foreign:
                raise CaptureError(
                    "the pair draws from numpy's or Python's random generator, which a recording would freeze"
                )
            now = python_state(self.pair)
            changed = [name for name in values if values[name] != now.get(name)]
            if changed:
                raise CaptureError(
                    f"the pair changes Python state as it runs ({changed[0]}), which a recording would "
                    "freeze"
                )
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for name, (place, key) in places.items():
                place[key] = values[name]
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    # -- comparing ---------------------------------------------------------------------------------------

    def _compared(self, recording: _Recording, batch: Batch, beta: float) -> Tensor:
        """One step by Pyro and by the recording, under the same random numbers."""
        self.comparisons += 1
        with self._as_before(), pyro.validation_enabled(False):
            expected = self._plain(batch, beta)
        generators = tensor_generators(self.leaves[0].device)
        buffers = [(b, b.clone()) for m in self._modules() for b in m.buffers(recurse=False)]
        metrics = self._run(recording, batch, beta)
        found = [metrics, *(leaf.grad for leaf in self.leaves)]
        for name, mine, truth in zip(["loss", *self.names], found, expected, strict=True):
            if not _same(mine, truth):
                set_tensor_generators(generators, self.leaves[0].device)
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
                what = "the loss" if name == "loss" else f"the gradient of '{name}'"
                raise CaptureError(
                    f"{what} of the recorded step differs from Pyro's: something that the programs depend on "
                    "has changed since it was recorded, and is neither a parameter, a buffer nor an argument"
                )
        return metrics

    def _modules(self) -> list[nn.Module]:
        if self._modules_seen is None:
            roots = self.pair.modules().values()
            self._modules_seen = [module for root in roots for module in root.modules()]
        return self._modules_seen

    def _key(self, batch: Batch) -> Any:
        shapes = tuple((t.shape, t.dtype, t.stride(), t.device) for t in as_args(batch))
        return shapes, tuple([module.training for module in self._modules()])


# -- what a recording depends on -------------------------------------------------------------------------


def python_state(pair: Pair) -> dict[str, Any]:
    """The plain numbers, strings and flags that the programs of a pair can reach, by name."""
    return {name: place[key] for name, (place, key) in _places(pair).items()}


def _places(pair: Pair) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each of them is: the namespace and its key there."""
    spaces: dict[str, dict[str, Any]] = {}
    for root, module in pair.modules().items():
        for path, inner in module.named_modules():
            spaces[f"{root}.{path}." if path else f"{root}."] = vars(inner)
    places: dict[str, tuple[dict[str, Any], str]] = {}
    for prefix, space in spaces.items():
        places |= {f"{prefix}{k}": (space, k) for k, v in space.items() if _is_plain(v)}
    for role, program in (("model", pair.model), ("guide", pair.guide)):
        places |= _reachable(program, role)
    return places


def _reachable(program: Program, role: str) -> dict[str, tuple[dict[str, Any], str]]:
    while isinstance(program, functools.partial):
        program = program.func
    function = getattr(program, "__func__", program)
    if isinstance(function, nn.Module):
        function = type(function).forward
    owner = getattr(program, "__self__", None)
    places: dict[str, tuple[dict[str, Any], str]] = {}
    if owner is not None and not isinstance(owner, nn.Module):
        space = vars(owner)
        places = {f"{role}.{k}": (space, k) for k, v in space.items() if _is_plain(v)}
    if not isinstance(function, types.FunctionType):
        return places
    try:
        names = inspect.getclosurevars(function)
    except ValueError:  # a name that is bound later
        return places
    space = function.__globals__
    places |= {f"{role}: {k}": (space, k) for k, v in names.globals.items() if _is_plain(v)}
    copied = {k: v for k, v in names.nonlocals.items() if _is_plain(v)}
    return places | {f"{role}: {k}": (copied, k) for k in copied}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (numbers.Number, str))


def _foreign_generators() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _foreign_bytes() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), *state[2:]


def tensor_generators(device: torch.device) -> list[Tensor]:
    """The state of torch's generators that programs on a device draw from."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_tensor_generators(states: list[Tensor], device: torch.device) -> None:
    """Puts back what :func:`tensor_generators` read."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@contextlib.contextmanager
def _numbers_stand_aside() -> Iterator[None]:
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


def _same(mine: Any, truth: Any) -> bool:
    """Equal up to the rounding of another order of summation, relative to the tensor's largest value."""
    if mine is None or truth is None:
        return mine is truth or not bool((truth if mine is None else mine).any())
    if not bool(torch.isfinite(truth).all()):
        return bool((torch.isfinite(mine) == torch.isfinite(truth)).all())
    eps = torch.finfo(truth.dtype).eps
    scale = float(truth.abs().max()) + eps
    return float((mine - truth).abs().max()) <= 3e3 * eps * scale


def _reason(error: BaseException) -> str:
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent" in text:
        return (
            "the programs turn a tensor into a Python number (.item(), float(), or an `if` on it)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"
