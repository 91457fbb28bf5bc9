"""`NormalMixture`: its products of matrices give the density of `MixtureSameFamily`, and their gradients."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.distributions import NormalMixture, normal_mixture as module

K, D, N = 30, 7, 50


def parts(scale: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, means, scales, and values near the means, all in single precision."""
    torch.manual_seed(seed)
    loc = 2 * torch.randn(K, D)
    scales = scale * (0.1 + torch.rand(K, D))
    z = (loc + 2 * scales * torch.randn(K, D))[torch.randint(K, (N,))]
    return torch.randn(K), loc, scales, z


def mixture(kind: Any, logits: Tensor, loc: Tensor, scale: Tensor) -> Any:
    return kind(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize("scale", [3.0, 1.0, 0.1, 0.01, 1e-3, 1e-4])
def test_the_density_is_that_of_double_precision(scale: float) -> None:
    logits, loc, scales, z = parts(scale)
    found = mixture(NormalMixture, logits, loc, scales).log_prob(z)
    exact = mixture(
        dist.MixtureSameFamily, logits.double(), loc.double(), scales.double()
    ).log_prob(z.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-7, atol=2e-5)


@pytest.mark.parametrize("shape", [(), (5,), (4, 5)])
def test_moments_are_those_of_the_plain_mixture(shape: tuple[int, ...]) -> None:
    """They are computed once, however often they are repeated; and not for mixtures that differ."""
    logits, loc, scales, _ = parts(1.0)
    found = mixture(NormalMixture, logits, loc, scales).expand(shape)
    plain = mixture(dist.MixtureSameFamily, logits, loc, scales).expand(shape)
    for one in (found, found.expand((2, *shape))):
        torch.testing.assert_close(one.mean, plain.mean.expand(one.mean.shape))
        torch.testing.assert_close(one.variance, plain.variance.expand(one.mean.shape))
        assert not any(one.variance.stride()[:-1])
    several = torch.randn(5, K), torch.randn(5, K, D), torch.rand(5, K, D)
    found, plain = (
        mixture(kind, *several).expand((4, 5)) for kind in (NormalMixture, dist.MixtureSameFamily)
    )
    torch.testing.assert_close(found.variance, plain.variance)
    torch.testing.assert_close(found.mean, plain.mean)


def test_the_error_is_as_small_as_is_said() -> None:
    """At the smallest scale of a guide it is below what a value's own rounding makes."""
    logits, loc, scales, z = parts(1e-5)
    found = mixture(NormalMixture, logits, loc, scales).log_prob(z)
    exact = mixture(dist.MixtureSameFamily, logits.double(), loc.double(), scales.double())
    off = (found.double() - exact.log_prob(z.double())).abs()
    rounded = exact.log_prob(torch.nextafter(z, torch.tensor(9.0)).double())
    of_rounding = (rounded - exact.log_prob(z.double())).abs()
    assert float(off.max()) < 0.05 * float(of_rounding.median())
    assert float(off.max()) < 1e-14 * float((z / scales.min()).square().max())


def test_gradients_of_first_and_second_order() -> None:
    logits, loc, scales, z = (t.requires_grad_() for t in parts(0.3))
    exact = tuple(t.detach().double().requires_grad_() for t in (logits, loc, scales, z))

    def slopes(kind: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        *of_mixture, value = inputs
        log_p = mixture(kind, *of_mixture).log_prob(value)
        first = torch.autograd.grad(log_p.square().sum(), inputs, create_graph=True)
        return [
            *first,
            *torch.autograd.grad(torch.stack([t.square().sum() for t in first]).sum(), inputs),
        ]

    found = slopes(NormalMixture, (logits, loc, scales, z))
    truth = slopes(dist.MixtureSameFamily, exact)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max())
        )


@pytest.mark.parametrize("shape", [(N,), (3, N), (3, 1, N)])
def test_it_stays_fast_in_a_plate(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyro expands the components to the rows of the plate; they stay those that all rows share."""
    logits, loc, scales, z = parts(0.5)
    fast = []
    by_products = module._by_products

    def watched(*args: Tensor) -> bool:
        fast.append(by_products(*args))
        return fast[-1]

    monkeypatch.setattr(module, "_by_products", watched)
    values = z.expand(*shape, D)

    def program() -> None:
        with pyro.plate("data", N, dim=-1):
            pyro.sample("z", mixture(NormalMixture, logits, loc, scales), obs=values)

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob(site_filter=lambda name, _: name == "z")
    found = trace.nodes["z"]["log_prob"]
    exact = mixture(dist.MixtureSameFamily, logits, loc, scales).log_prob(values)
    assert fast == [True]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)


def test_anything_else_is_as_it_was() -> None:
    logits, loc, scales, z = parts(0.5)
    correlated = dist.MultivariateNormal(loc, scale_tril=torch.eye(D).expand(K, D, D))
    for components in (
        correlated,
        dist.Laplace(loc, scales).to_event(1),
        dist.Normal(loc.expand(N, K, D), scales).to_event(1),
        dist.Normal(loc.double(), scales.double()).to_event(1),
    ):
        weights = dist.Categorical(logits=logits)
        if len(components.batch_shape) == 2:
            weights = weights.expand((N,))
        value = z.to(components.mean.dtype)
        found = NormalMixture(weights, components).log_prob(value)
        exact = dist.MixtureSameFamily(weights, components).log_prob(value)
        assert torch.equal(found, exact)


def test_values_are_checked() -> None:
    logits, loc, scales, z = parts(0.5)
    z[0, 0] = float("nan")
    found = NormalMixture(
        dist.Categorical(logits=logits), dist.Normal(loc, scales).to_event(1), validate_args=True
    )
    with pytest.raises(ValueError, match="support"):
        found.log_prob(z)
    with pytest.raises(ValueError, match="mixture_distribution component"):
        mixture(NormalMixture, logits[1:], loc, scales)
