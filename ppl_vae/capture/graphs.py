"""Passes over recorded graphs: what is known in advance is computed once, the rest runs faster."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental import proxy_tensor

from ppl_vae.capture.memory import has_effect, sharing_memory, storage_of, written_nodes
from ppl_vae.capture.substitutions import join_logarithms, split_biases

aten = torch.ops.aten

_COPIES = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}

_SHAPES = {aten.expand.default, aten.view.default, aten.reshape.default}

_BY_ONE = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}

_FILLED = {
    aten.full.default,
    aten.zeros.default,
    aten.ones.default,
    aten.scalar_tensor.default,
    aten.arange.default,
    aten.lift_fresh_copy.default,
}

_LITERAL = "_literal_"


@dataclass(frozen=True)
class TensorFacts:
    """What is kept of the result of an operation.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        device: Where it is.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


_DESCRIBES = "extract_val"
"""The function of torch that describes a result; it is private, so that a version may have none."""

_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def without_fake_tensors() -> Iterator[None]:
    """Within it, `make_fx` keeps `TensorFacts` of each result, not a FakeTensor.

    For each FakeTensor, torch makes a mode of its own, which keeps the text of the whole stack: half of the
    time of a recording. It computes with the tensors themselves in either case. What another thread traces with
    fake tensors keeps them. A version of torch that describes results in another way keeps its own.
    """
    with _ONE_AT_A_TIME:  # threads that end in another order would leave `facts` in place
        of_torch: Callable[..., Any] | None = getattr(proxy_tensor, _DESCRIBES, None)
        if of_torch is None:
            yield
            return

        def facts(value: Any, *options: Any, **named: Any) -> Any:  # versions differ in the options
            if isinstance(value, TensorFacts):
                return value  # of the inputs of a user's operation, torch asks again
            if isinstance(value, Tensor) and value.layout is torch.strided and not is_fake(value):
                return TensorFacts(value.shape, value.dtype, value.device)
            return of_torch(value, *options, **named)  # of a list, it calls this for each item

        setattr(proxy_tensor, _DESCRIBES, facts)
        try:
            yield
        finally:
            setattr(proxy_tensor, _DESCRIBES, of_torch)


LARGEST_LITERAL = 65536
"""Most numbers in a tensor that is computed in advance; a larger one is cheaper to make than to read."""


def simplify(graph: GraphModule) -> None:
    """Drops operations that do nothing or whose result is unused, and does those on literals in advance.

    The values that the graph computes stay the same, bit by bit. What is written in place stays as it is. Its
    code is made again by `recompile`, which is left to the last of several changes.
    """
    written = written_nodes(graph)
    _fold_literals(graph, written)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            continue
        source = _source_of_same(node)
        if source is not None and node not in written and source not in written:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    _drop_dead(graph.graph)


def forget_values(graph: GraphModule) -> None:
    """Drops the tensors that recording left at the nodes, and keeps their shapes."""
    for node in graph.graph.nodes:
        node.meta = {"shape": _shape(node)} if _shape(node) is not None else {}


def lift_constants(graph: GraphModule) -> list[Tensor]:
    """Turns the tensors of the programs that a graph refers to into its last inputs, except for its code.

    Returns:
        The tensors, in the order of the new inputs.
    """
    nodes = graph.graph.nodes
    inputs: dict[int, Node] = {}
    tensors: list[Tensor] = []
    anchor = [n for n in nodes if n.op == "placeholder"][-1]
    for node in list(nodes):
        if node.op != "get_attr" or str(node.target).startswith(_LITERAL):
            continue
        tensor = getattr(graph, str(node.target))
        if not isinstance(tensor, Tensor):
            continue
        if id(tensor) not in inputs:
            with graph.graph.inserting_after(anchor):
                anchor = graph.graph.placeholder(f"tensor_{len(tensors)}")
            anchor.meta = node.meta | {"storage": storage_of(tensor)}
            inputs[id(tensor)] = anchor
            tensors.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.graph.erase_node(node)
    graph.graph.lint()
    return tensors


def own_outputs(graph: GraphModule) -> None:
    """Makes each output a tensor of its own, so that a caller may write into it, and makes the graph's code.

    Otherwise a gradient may be an argument, a literal, or the same tensor as another parameter's gradient.
    """
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    sharing = sharing_memory(graph)
    seen: set[Node] = set()
    results = []
    for node in output.args[0]:
        if isinstance(node, Node):
            memory = sharing[node]
            if node in seen or any(n.op in ("placeholder", "get_attr") for n in memory):
                with graph.graph.inserting_before(output):
                    copied = graph.graph.call_function(aten.clone.default, (node,))
                copied.meta = dict(node.meta)
                node = copied
            seen |= memory
        results.append(node)
    output.args = (tuple(results),)
    graph.recompile()


def compile_graph(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Lets Inductor compile a graph. Random numbers stay those of the plain graph.

    On a GPU, Inductor would choose the kernels that add up numbers by timing them, and another process would
    choose others: a resumed training would end with other bits. So it chooses by rules, where torch can.

    Raises:
        RuntimeError: Inductor or the C++ compiler failed.
    """
    # Torch warns of its own code, and warnings may be errors where a user works.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.config
        from torch._inductor.compile_fx import compile_fx

        graph = copy.deepcopy(graph)
        split_biases(graph)
        join_logarithms(graph)
        settings = {"fallback_random": True}
        on_gpu = any(isinstance(given, Tensor) and given.is_cuda for given in inputs)
        if on_gpu and hasattr(torch._inductor.config, "deterministic"):
            settings["deterministic"] = True
        with torch.no_grad(), torch._inductor.config.patch(settings):
            compiled: Any = compile_fx(graph, inputs)
    return compiled  # type: ignore[no-any-return]


def has_dynamic_shapes(graph: GraphModule) -> bool:
    """Whether the shape of a result depends on values: boolean masks, `nonzero`, `unique`."""
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if node.target is not aten.index.Tensor:
            return True
        indices = [_dtype(n) for n in node.args[1] if isinstance(n, Node)]
        if any(dtype in (None, torch.bool, torch.uint8) for dtype in indices):
            return True
    return False


def _shape(node: Node) -> torch.Size | None:
    if "shape" in node.meta:
        return node.meta["shape"]  # type: ignore[no-any-return]
    return getattr(node.meta.get("val"), "shape", None)


def _dtype(node: Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _source_of_same(node: Node) -> Node | None:
    """The node whose value this node repeats, if there is one."""
    source = node.args[0]
    assert isinstance(source, Node)
    if node.target in _COPIES:
        return source
    if node.target in _SHAPES and _shape(source) is not None and _shape(node) == _shape(source):
        return source
    if node.target in _BY_ONE and len(node.args) > 1 and _is_one(node.args[1]):
        if _dtype(source) is None or _dtype(node) != _dtype(source):
            return None  # a mask times 1 is no mask
        return source if _shape(node) == _shape(source) else None
    if node.target is aten.t.default and source.target is aten.t.default:
        inner = source.args[0]
        return inner if isinstance(inner, Node) else None
    return None


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 1


def _fold_literals(graph: GraphModule, written: set[Node]) -> None:
    """Computes what depends on literals of the programs only, such as a prior's log scale."""
    values: dict[Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node in written or has_effect(node):
            continue
        inputs = node.all_input_nodes
        literal = node.target in _FILLED and all(
            n.op == "get_attr" and n not in written for n in inputs
        )
        if node.target is aten.ones_like.default and _shape(node) == torch.Size([]):
            literal, inputs = True, []
            node.args, node.target = ([],), aten.ones.default
            node.kwargs = {"dtype": node.meta["val"].dtype, "device": node.meta["val"].device}
        if not literal and not (inputs and all(n in values for n in inputs)):
            continue
        arguments = torch.fx.node.map_arg(
            (node.args, dict(node.kwargs)), lambda n: _value(graph, values, n)
        )
        with torch.no_grad():
            result = node.target(*arguments[0], **arguments[1])
        if isinstance(result, Tensor) and (result.numel() <= LARGEST_LITERAL or inputs == []):
            values[node] = result
    kept = {n for n in values if any(user not in values for user in n.users)}
    for i, node in enumerate(n for n in list(graph.graph.nodes) if n in kept):
        name = f"{_LITERAL}{i}"
        graph.register_buffer(name, values[node], persistent=False)
        with graph.graph.inserting_before(node):
            literal_node = graph.graph.get_attr(name)
        literal_node.meta = {"shape": values[node].shape}
        node.replace_all_uses_with(literal_node)
    _drop_dead(graph.graph)


def _value(graph: GraphModule, values: dict[Node, Tensor], node: Node) -> Any:
    return getattr(graph, str(node.target)) if node.op == "get_attr" else values[node]


def _drop_dead(graph: Graph) -> None:
    graph.eliminate_dead_code(is_impure_node=has_effect)
