"""Which results of a graph share memory, and which memory it writes to.

A program may write in place through a view: `A = torch.zeros(2, 3)`, then `A[0] += v`. In a graph, that is an
operation on a `select` of the zeros. Nothing that is written anywhere, through any view, may be computed in
advance, left out or replaced: each replay has to start from zeros and write in the recorded order.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_UNDECLARED_VIEWS = {aten._unsafe_view.default}


def sharing_memory(graph: GraphModule) -> dict[Node, set[Node]]:
    """For each node, those whose results may share memory with its own, itself included.

    Views, views of views, the items of a list of views, what an operation wrote to, and tensors of one storage
    that the graph refers to. Where it is not known whether two share memory, they do.
    """
    sharing: dict[Node, set[Node]] = {}
    first: dict[Any, Node] = {}
    for node in graph.graph.nodes:
        group = sharing[node] = {node}
        others = _shared_by(node)
        same = _identity(graph, node)
        if same is not None:
            others.append(first.setdefault(same, node))
        for other in others:
            if sharing[other] is not group:
                few, group = sorted((sharing[other], group), key=len)
                group |= few
                sharing.update(dict.fromkeys(few, group))
    return sharing


def written_nodes(graph: GraphModule) -> set[Node]:
    """The nodes whose memory is written anywhere in a graph."""
    targets = [n for node in graph.graph.nodes for n in _nodes_in(_written_by_node(node))]
    sharing = sharing_memory(graph) if targets else {}
    written = {member for target in targets for member in sharing[target]}
    # An operation with several results makes all of them again if one of them is written.
    several = [node for node in written if node.target is operator.getitem]
    return written.union(*(node.all_input_nodes for node in several))


def has_effect(node: Node) -> bool:
    """Whether an operation must run even if its result is unused: in-place and random ones."""
    return node.op in ("placeholder", "output") or is_random(node) or bool(_written_by_node(node))


def is_random(node: Node) -> bool:
    """Whether an operation draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


@contextlib.contextmanager
def writes_undone() -> Iterator[None]:
    """Inside, programs may write to any tensor; afterwards those that were there before are as they were."""
    writes = _Writes()
    try:
        with writes:
            yield
    finally:
        for storage, before in writes.kept.values():
            storage.copy_(before)


class _Writes(TorchDispatchMode):
    """Keeps a copy of each storage that an operation writes to and that no operation has made."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _storages((args, kwargs))
        for key, storage in _storages(_written(func, args, kwargs)).items():
            if key not in self._made and key not in self.kept:
                with _disable_current_modes():  # copying is no part of what is recorded
                    self.kept[key] = storage, storage.clone()
        result = func(*args, **kwargs)
        self._made |= _storages(result).keys() - given.keys()
        return result


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    """The storages of the tensors in a nested structure, by what tells them apart while they exist."""
    with torch._C.DisableTorchFunction():
        found = [
            value.untyped_storage()
            for value in tree_leaves(values)
            if isinstance(value, Tensor) and value.layout is torch.strided
        ]
    return {storage._cdata: storage for storage in found}


def storage_of(value: Any) -> int | None:
    """What tells the storage of a tensor from others while it exists; None if it has none."""
    return next(iter(_storages(value)), None)


def _shared_by(node: Node) -> list[Node]:
    """The inputs of a node with which its result may share memory."""
    if node.op != "call_function":
        return []
    if node.target is operator.getitem:  # of a list of views, or one of several results
        return [source for source in node.all_input_nodes if _shared_by(source)]
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target in _UNDECLARED_VIEWS:
        return list(node.all_input_nodes)
    given = _by_name(schema, node.args, node.kwargs)
    return _nodes_in([given.get(a.name) for a in schema.arguments if a.alias_info is not None])


def _written_by_node(node: Node) -> list[Any]:
    return _written(node.target, node.args, node.kwargs) if node.op == "call_function" else []


def _written(target: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation writes to; all of them where that is not known."""
    if target is operator.getitem:
        return []
    schema = getattr(target, "_schema", None)
    if schema is None:
        return [*args, *kwargs.values()]
    given = _by_name(schema, args, kwargs)
    written = [
        given[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    ]
    reads_only = "backward" in schema.name or "no_training" in schema.name
    if "batch_norm" in schema.name and given.get("training", not reads_only):
        # Its schema does not say so.
        written += [given.get(name) for name in ("running_mean", "running_var")]
    return [value for value in written if value is not None]


def _by_name(schema: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)


def _nodes_in(values: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(values, found.append)
    return found


def _identity(graph: GraphModule, node: Node) -> Any:
    """What nodes have in common that stand for the same tensor, or for tensors of one storage."""
    if node.target is operator.getitem:
        return node.args
    if node.op == "get_attr":
        return storage_of(getattr(graph, str(node.target)))
    return node.meta.get("storage", "arguments") if node.op == "placeholder" else None
