"""Effect handlers, the kinds of sites, and the KL of single numbers."""

from __future__ import annotations

from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_vae.pairs import (
    PairError,
    ScaleLatents,
    Substitute,
    elementwise,
    elementwise_kl,
    latent_sites,
    likeliest,
    observed_sites,
    sample_sites,
    unscaled,
)

model = programs.everything


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 4.0])
def test_scale_latents_scales_latents_alone(scale: float) -> None:
    x = torch.randn(5, 3)
    trace = poutine.trace(ScaleLatents(scale)(model)).get_trace(x)
    trace.compute_log_prob()
    for name in ("mu", "z", "v"):
        node: Any = trace.nodes[name]
        torch.testing.assert_close(node["log_prob"], scale * node["fn"].log_prob(node["value"]))
    for name in ("x", "label", "twice"):
        assert trace.nodes[name]["scale"] == 1.0


def test_scale_latents_multiplies_with_other_scales() -> None:
    def plain() -> None:
        with poutine.scale(scale=3.0), pyro.plate("data", 10, subsample_size=5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(5))

    trace = poutine.trace(ScaleLatents(0.5)(plain)).get_trace()
    assert trace.nodes["z"]["scale"] == 3.0
    assert trace.nodes["x"]["scale"] == 6.0


def test_substitute_leaves_data_alone() -> None:
    values = {"z": torch.tensor(5.0), "x": torch.tensor(7.0)}

    def plain() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    nodes: Any = poutine.trace(Substitute(values)(plain)).get_trace().nodes
    assert float(nodes["z"]["value"]) == 5.0
    assert float(nodes["x"]["value"]) == 1.0
    assert float(nodes["x"]["fn"].loc) == 5.0


def test_the_kinds_of_sites() -> None:
    def plain(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("d", z)
            pyro.factor("f", 0 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    trace = poutine.trace(plain).get_trace(torch.zeros(4))
    assert list(sample_sites(trace)) == ["z", "f", "x"]
    assert list(latent_sites(trace)) == ["z"]
    assert list(observed_sites(trace)) == ["f", "x"]


def test_unscaled_keeps_the_mask() -> None:
    def plain() -> None:
        seen = poutine.mask(mask=torch.tensor([True, False, True]))  # type: ignore[call-overload]
        with pyro.plate("data", 3), poutine.scale(scale=9.0), seen:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))

    trace = poutine.trace(plain).get_trace()
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor([0.0, 1.0, 2.0]))
    expected[1] = 0.0
    torch.testing.assert_close(unscaled(trace.nodes["x"]), expected)


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (dist.Normal(torch.zeros(4, 3), 1.0).to_event(1), (4, 3)),
        (dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2), (4, 3)),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([4]), (4, 3)),
        (dist.Bernoulli(torch.full((4,), 0.5)), (4,)),
        (dist.MultivariateNormal(torch.zeros(4, 3), torch.eye(3)), None),
        (dist.Delta(torch.zeros(4)), None),
    ],
)
def test_the_distribution_of_single_numbers(fn: Any, shape: tuple[int, ...] | None) -> None:
    single = elementwise(fn)
    if shape is None:
        assert single is None
    else:
        assert single.batch_shape == shape  # type: ignore[union-attr]
        assert single.event_shape == ()  # type: ignore[union-attr]


def site(fn: Any, value: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Any]:
    return {"fn": fn, "value": fn.sample() if value is None else value, "mask": mask}


def test_the_kl_of_single_numbers() -> None:
    loc, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.5
    q = site(dist.Normal(loc, scale).to_event(1))
    p = site(dist.Normal(torch.zeros(3), 2.0).to_event(1), q["value"])
    expected = 0.5 * ((scale**2 + loc**2) / 4 - 1 - (scale**2 / 4).log())
    kl = elementwise_kl(q, p)
    assert kl is not None
    torch.testing.assert_close(kl, expected)
    sampled = elementwise_kl(q, p, analytic=False)
    assert sampled is not None
    by_hand = dist.Normal(loc, scale).log_prob(q["value"]) - dist.Normal(0.0, 2.0).log_prob(
        q["value"]
    )
    torch.testing.assert_close(sampled, by_hand)
    masked = elementwise_kl({**q, "mask": torch.tensor([True, False, True, True])}, p)
    assert masked is not None
    assert bool((masked[1] == 0).all())
    torch.testing.assert_close(masked[2:], expected[2:])


def test_the_kl_of_a_distribution_without_a_closed_form_is_one_draw() -> None:
    q = site(dist.LogNormal(torch.zeros(5), 1.0))
    p = site(dist.Gamma(2.0, 1.0), q["value"])
    kl = elementwise_kl(q, p)
    assert kl is not None
    torch.testing.assert_close(
        kl[:, 0],
        dist.LogNormal(0.0, 1.0).log_prob(q["value"]) - dist.Gamma(2.0, 1.0).log_prob(q["value"]),
    )


def test_likeliest_values() -> None:
    inside = dist.Categorical(torch.tensor([0.2, 0.5, 0.3])).expand((4,)).mask(torch.ones(4).bool())
    assert likeliest(inside).tolist() == [1, 1, 1, 1]
    normal = dist.Normal(torch.tensor([[1.0, 2.0]]), 1.0).to_event(1)
    assert torch.equal(likeliest(normal), torch.tensor([[1.0, 2.0]]))
    assert set(likeliest(dist.Bernoulli(torch.full((99,), 0.5))).tolist()) == {0.0, 1.0}  # as good
    moved = dist.TransformedDistribution(dist.Normal(-1.0, 1.0), dist.transforms.ExpTransform())
    with pytest.raises(PairError, match="TransformedDistribution states no likeliest value"):
        likeliest(moved)
