"""What is rewritten in a recorded graph before it is compiled changes no number."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.graphs import forget_values
from ppl_vae.capture.substitutions import join_logarithms, split_biases


def test_a_bias_that_is_added_apart_changes_nothing() -> None:
    def product(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(bias, a, b).relu()

    inputs = torch.randn(4), torch.randn(5, 3), torch.randn(3, 4)
    graph = make_fx(product)(*inputs)
    split_biases(graph)
    assert torch.ops.aten.addmm.default not in {node.target for node in graph.graph.nodes}
    torch.testing.assert_close(graph(*inputs), product(*inputs))


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28), (64,), (32, 3)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_joined_logarithms_are_the_bernoulli_density(shape: tuple[int, ...], scale: float) -> None:
    def log_prob(logits: Tensor, x: Tensor) -> Tensor:
        p = dist.Bernoulli(logits=logits, validate_args=False).to_event(len(shape))
        log_p: Tensor = p.log_prob(x)
        return log_p

    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(4, 5, *shape, generator=generator)
    x = torch.randint(0, 2, (5, *shape), generator=generator).float()
    x[0] = 0.5  # not only the ends
    graph = make_fx(log_prob)(logits, x)
    forget_values(graph)
    join_logarithms(graph)
    targets = {node.target for node in graph.graph.nodes}
    assert torch.ops.aten.binary_cross_entropy_with_logits.default not in targets
    exact = log_prob(logits.double(), x.double())
    torch.testing.assert_close(graph(logits, x).double(), exact, rtol=2e-6, atol=1e-5)


def test_logarithms_of_logits_in_any_order_are_joined() -> None:
    def log_prob(logits: Tensor, x: Tensor) -> Tensor:
        unused = torch.rand_like(x)
        del unused  # a draw that nobody looks at: it moves the generator
        p = dist.Bernoulli(logits=logits.transpose(-1, -2), validate_args=False).to_event(1)
        log_p: Tensor = p.log_prob(x)
        return log_p

    logits, x = torch.randn(3, 64, 5), torch.ones(3, 5, 64)
    graph = make_fx(log_prob)(logits, x)
    forget_values(graph)
    join_logarithms(graph)
    targets = {node.target for node in graph.graph.nodes}
    assert torch.ops.aten.binary_cross_entropy_with_logits.default not in targets
    assert torch.ops.aten.rand_like.default in targets
    torch.testing.assert_close(graph(logits, x), log_prob(logits, x))


def test_logarithms_are_joined_only_where_a_row_is_summed() -> None:
    def element_wise(logits: Tensor, x: Tensor) -> Tensor:
        log_p: Tensor = dist.Bernoulli(logits=logits, validate_args=False).log_prob(x)
        return log_p.sum(-1) + log_p.amax(-1)

    inputs = torch.randn(3, 64), torch.ones(3, 64)
    graph = make_fx(element_wise)(*inputs)
    forget_values(graph)
    join_logarithms(graph)
    assert torch.equal(graph(*inputs), element_wise(*inputs))
