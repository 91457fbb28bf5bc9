"""Faster ways to compute parts of a graph before it is compiled, equal to float precision."""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from ppl_vae.capture.memory import written_nodes

aten = torch.ops.aten

MOST_FACTORS = 64
"""Most factors between 1 and 2 in one product: 2^64 is far from the largest float32, 2^128."""

LEAST_LANES = 16
"""Fewest products side by side, to keep a processor's vector units busy."""


def split_biases(graph: GraphModule) -> None:
    """Splits each `bias + a @ b` that is one operation into a product and a sum.

    ATen copies the bias into the result, which the product then reads again: 10 % of a VAE's step. Inductor
    does a separate sum together with the activation that follows.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs:
            continue
        bias, left, right = node.args
        with graph.graph.inserting_before(node):
            product = graph.graph.call_function(aten.mm.default, (left, right))
            # Inductor would join a product and a sum again; a - (-b) = a + b to the last bit.
            negative = graph.graph.call_function(aten.neg.default, (bias,))
            total = graph.graph.call_function(aten.sub.Tensor, (product, negative))
        product.meta, total.meta = dict(node.meta), dict(node.meta)
        negative.meta = dict(bias.meta)
        node.replace_all_uses_with(total)
        graph.graph.erase_node(node)
    graph.recompile()


def join_logarithms(graph: GraphModule) -> None:
    """Computes one logarithm for up to 64 numbers in a row's sum of Bernoulli log densities.

    sum_i log p(x_i | logits l_i) = sum_i (l_i x_i - max(l_i, 0)) - sum_j log prod_i (1 + exp(-|l_ij|)): the
    factors lie between 1 and 2, so a product of 64 cannot overflow. Otherwise logarithms take most of the time
    of a decoder's element-wise work.
    """
    written = written_nodes(graph)
    for node in list(graph.graph.nodes):
        total = _sum_over_row(node)
        if total is None or written.intersection([node, *node.all_input_nodes]):
            continue  # what is written may not be read later than it was
        logits, data = node.args[:2]
        shape = list(node.meta["shape"])
        batch = list(total.meta["shape"])
        size = math.prod(shape[len(batch) :])
        factors = _factors(size)
        if factors == 1:
            continue
        call = graph.graph.call_function
        with graph.graph.inserting_before(total):
            magnitude = call(aten.abs.default, (logits,))
            factor = call(aten.exp.default, (call(aten.neg.default, (magnitude,)),))
            factor = call(aten.add.Tensor, (factor, 1.0))
            factor = call(aten.reshape.default, (factor, [*batch, factors, size // factors]))
            logarithm = call(aten.log.default, (call(aten.prod.dim_int, (factor, -2)),))
            linear = call(aten.mul.Tensor, (logits, data))
            linear = call(aten.sub.Tensor, (linear, call(aten.clamp_min.default, (logits, 0.0))))
            linear = call(aten.reshape.default, (linear, [*batch, size]))
            joined = call(
                aten.sub.Tensor,
                (
                    call(aten.sum.dim_IntList, (linear, [-1])),
                    call(aten.sum.dim_IntList, (logarithm, [-1])),
                ),
            )
        joined.meta = dict(total.meta)
        total.replace_all_uses_with(joined)
        unused = total
        while unused is not logits:  # no further: an unused random operation must stay
            source = unused.args[0]
            assert isinstance(source, Node)
            graph.graph.erase_node(unused)
            unused = source
    graph.recompile()


def _sum_over_row(node: Node) -> Node | None:
    """The sum over a row of a negated element-wise cross entropy, if nothing else uses that."""
    if node.target is not aten.binary_cross_entropy_with_logits.default:
        return None
    if len(node.args) != 5 or node.args[2:] != (None, None, 0) or "shape" not in node.meta:
        return None
    negated = _only_user(node, aten.neg.default)
    flat = negated and (_only_user(negated, aten.view.default) or negated)
    total = flat and _only_user(flat, aten.sum.dim_IntList)
    if not total or not flat or list(total.args[1:]) != [[-1]] or "shape" not in total.meta:
        return None
    shape, batch = list(node.meta["shape"]), list(total.meta["shape"])
    if flat is negated:
        return total if shape[:-1] == batch else None
    return total if shape[: len(batch)] == batch and len(shape) > len(batch) else None


def _only_user(node: Node, target: object) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _factors(size: int) -> int:
    """The largest number of factors that divides `size` and leaves enough products side by side."""
    most = min(MOST_FACTORS, size // LEAST_LANES)
    return next((f for f in range(most, 1, -1) if size % f == 0), 1)
