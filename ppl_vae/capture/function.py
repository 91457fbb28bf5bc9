"""A function of one tensor recorded as a graph; what does not depend on the tensor is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.graphs import (
    forget_values,
    has_dynamic_shapes,
    simplify,
    without_fake_tensors,
)
from ppl_vae.capture.memory import is_random, writes_undone, written_nodes
from ppl_vae.capture.recording import StaysInTorch


def recorded(
    function: Callable[[Tensor], tuple[Tensor, ...]], u: Tensor
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of one tensor as a graph of operations; those that do not depend on it are done once.

    Args:
        function: What to record. The tensors that it refers to must not change afterwards, nor may it
            change them or its argument in place.
        u: An example of its argument; others must have its shape.

    Raises:
        Exception: Whatever makes recording impossible, mostly control flow that depends on values.

    Example:
        >>> scale = torch.tensor(3.0)
        >>> run = recorded(lambda u: (u * scale.exp().log(),), torch.zeros(2))
        >>> run(torch.ones(2))
        (tensor([3., 3.]),)
    """
    with StaysInTorch(), writes_undone(), without_fake_tensors():
        graph: GraphModule = make_fx(lambda u: function(u))(u)  # it miscounts a method's arguments
    if has_dynamic_shapes(graph):
        raise ValueError("the programs make tensors whose shapes depend on values")
    if any(n.op in ("placeholder", "get_attr") for n in written_nodes(graph)):
        raise ValueError("the programs change tensors in place that they have not made themselves")
    simplify(graph)
    _do_beforehand(graph)
    forget_values(graph)

    def run(u: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(graph(u))

    return run


def _do_beforehand(graph: GraphModule) -> None:
    """Replaces what does not depend on the graph's argument by its value.

    What is written in place, by whatever operation, is made and written again in each call.
    """
    values: dict[Node, Any] = {}
    written = written_nodes(graph)
    depends: set[Node] = set()
    for node in graph.graph.nodes:
        again = node in written or (is_random(node) and node.users)
        if again or node.op in ("placeholder", "output") or depends & set(node.all_input_nodes):
            depends.add(node)
        elif node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
        else:
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for i, node in enumerate([n for n in values if depends & set(n.users)]):
        if node.op == "get_attr":
            continue
        graph.register_buffer(f"_known_{i}", values[node], persistent=False)
        with graph.graph.inserting_before(node):
            known = graph.graph.get_attr(f"_known_{i}")
        node.replace_all_uses_with(known, delete_user_cb=depends.__contains__)
    for node in reversed(list(graph.graph.nodes)):
        if node in values and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
