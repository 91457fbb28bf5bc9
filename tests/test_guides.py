"""What every amortized guide has to do: the rows of catalogue.AMORTIZED; and the exact guide."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

from ppl_vae.guides import (
    Amortized,
    Exact,
    FullCovariance,
    LowRank,
    MeanField,
    MixtureOfGaussians,
)
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP, Network

SHAPE = (1, 5, 4)


class OwnLaplace(Amortized[dist.Independent]):
    """A guide as a user writes it."""

    @property
    def num_outputs(self) -> int:
        return 2 * self.latent_dim

    def family(self, outputs: Tensor) -> dist.Independent:
        loc, scale = outputs.chunk(2, -1)
        return dist.Independent(dist.Laplace(loc, softplus(scale) + 1e-6), 1)


Make = Callable[[], Any]


def made(guide: str, network: str = "MLP") -> Make:
    return lambda: catalogue.AMORTIZED[guide](SHAPE, 3, catalogue.NETWORKS[network])


# Three latent dimensions: every guide of the catalogue, some with other networks too.
AMORTIZED: dict[str, Make] = {guide: made(guide) for guide in catalogue.AMORTIZED} | {
    f"{guide}-{network}": made(guide, network)
    for guide, network in [
        ("MeanField", "linear"),
        ("MeanField", "Convolutional"),
        ("FullCovariance", "Convolutional"),
        ("MixtureOfGaussians", "linear"),
        ("NeuralSpline", "Convolutional"),
    ]
}
AMORTIZED["own"] = lambda: OwnLaplace(SHAPE, 3, MLP(hidden=(8,)))
KINDS = [type(made(guide)()) for guide in catalogue.AMORTIZED]
GUIDES: dict[str, Make] = AMORTIZED | {"Exact": lambda: Exact(ProbabilisticPCA(SHAPE, 3))}
amortized = pytest.mark.parametrize("make", AMORTIZED.values(), ids=AMORTIZED.keys())
guides = pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())


def is_flow(guide: Any) -> bool:
    return type(guide).__name__ in catalogue.FLOWS


@guides
def test_trace(make: Callable[[], Amortized[Any] | Exact]) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    trace: Any = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    assert set(trace.stochastic_nodes) == {"data", "z"}
    z = trace.nodes["z"]
    assert z["value"].shape == (6, 3)
    torch.testing.assert_close(z["log_prob"], guide.encode(x).log_prob(z["value"]))


@guides
def test_trace_inside_a_plate_of_samples(make: Callable[[], Amortized[Any] | Exact]) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    with pyro.plate("samples", 4, dim=-2):
        trace: Any = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]
    assert z["value"].shape == (4, 6, 3)
    assert z["log_prob"].shape == (4, 6)
    assert (z["value"][0] != z["value"][1]).all()
    torch.testing.assert_close(z["log_prob"], guide.encode(x).log_prob(z["value"]))


@amortized
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_encode(make: Callable[[], Amortized[Any]], batch: tuple[int, ...]) -> None:
    q = make().eval().encode(torch.rand(*batch, *SHAPE))
    assert q.batch_shape == batch
    assert q.event_shape == (3,)


@amortized
def test_every_parameter_gets_a_gradient(make: Callable[[], Amortized[Any]]) -> None:
    guide, model, x = make(), VAE(SHAPE, 3, MLP(hidden=(8,))), torch.rand(6, *SHAPE).round()
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    for part, module in (("guide", guide), ("model", model)):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{part}.{name} has no gradient"
            assert parameter.grad.abs().max() > 0, f"the gradient of {part}.{name} is zero"


@amortized
def test_any_output_of_the_encoder_is_a_distribution(make: Callable[[], Amortized[Any]]) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    for value in (-1e6, -200.0, 200.0, 1e6):
        q: Any = guide.family(torch.full_like(guide.amortize(x), value))
        z = q.sample()
        assert z.isfinite().all()
        assert q.log_prob(z).isfinite().all()
        if not is_flow(guide):
            assert (q.stddev > 0).all()
            assert q.stddev.isfinite().all()
            assert q.log_prob(q.mean).isfinite().all()
        if not is_flow(guide) and not isinstance(guide, MixtureOfGaussians):
            assert kl_divergence(q, standard_normal(3)).isfinite().all()


@amortized
def test_the_family_of_the_amortized_outputs_is_what_is_encoded(
    make: Callable[[], Amortized[Any]],
) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    outputs, z = guide.amortize(x), torch.randn(6, 3)
    assert outputs.shape[:-1] == (6,)
    assert torch.equal(guide.family(outputs).log_prob(z), guide.encode(x).log_prob(z))
    one = guide.family(outputs[2])
    torch.testing.assert_close(one.log_prob(z[2]), guide.encode(x).log_prob(z)[2])


@amortized
def test_the_encoder_runs_once_however_many_samples(make: Callable[[], Amortized[Any]]) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    rows: list[int] = []
    guide.encoder.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    with pyro.plate("samples", 4, dim=-2):
        guide(x)
    assert rows == [6]


@amortized
def test_half_precision(make: Callable[[], Amortized[Any]]) -> None:
    guide, x = make().eval(), torch.rand(6, *SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = guide.encode(x)
        z = q.sample()
        assert z.dtype == q.log_prob(z).dtype == torch.float32
    if not is_flow(guide):
        assert guide.bfloat16().encode(x.bfloat16()).sample().dtype == torch.float32


@amortized
def test_double_precision(make: Callable[[], Amortized[Any]]) -> None:
    q = make().double().eval().encode(torch.rand(6, *SHAPE).double())
    z = q.sample()
    assert z.dtype == q.log_prob(z).dtype == torch.float64


@amortized
def test_state(make: Callable[[], Amortized[Any]]) -> None:
    guide, other, x = make().eval(), make().eval(), torch.rand(6, *SHAPE)
    other.load_state_dict(guide.state_dict())
    z = torch.randn(6, 3)
    assert torch.equal(guide.encode(x).log_prob(z), other.encode(x).log_prob(z))


def test_mean_field_reads_its_head() -> None:
    guide, x = MeanField(SHAPE, 3, MLP(hidden=())), torch.rand(6, *SHAPE)
    outputs = guide.head(x.reshape(6, 20))
    q = guide.encode(x)
    torch.testing.assert_close(q.mean, outputs[:, :3])
    torch.testing.assert_close(q.stddev, (1 + outputs[:, 3:].exp()).log() + 1e-6)


def test_full_covariance_reads_its_head() -> None:
    guide, x = FullCovariance(SHAPE, 3, MLP(hidden=())), torch.rand(6, *SHAPE)
    torch.nn.init.normal_(guide.head.weight)
    outputs = guide.head(x.reshape(6, 20))
    q = guide.encode(x)
    torch.testing.assert_close(q.mean, outputs[:, :3])
    factor = torch.zeros(6, 3, 3)
    scale = (1 + outputs[:, 3:6].exp()).log() + 1e-6
    for i in range(3):
        factor[:, i, i] = scale[:, i]
    factor[:, 1, 0], factor[:, 2, 0], factor[:, 2, 1] = (
        outputs[:, 6:] * scale[:, [1, 2, 2]]
    ).unbind(-1)
    torch.testing.assert_close(q.covariance_matrix, factor @ factor.mT)


def test_low_rank_reads_its_head() -> None:
    guide, x = LowRank(SHAPE, 3, MLP(hidden=()), rank=2), torch.rand(6, *SHAPE)
    torch.nn.init.normal_(guide.head.weight)
    outputs = guide.head(x.reshape(6, 20))
    q = guide.encode(x)
    torch.testing.assert_close(q.mean, outputs[:, :3])
    scale = (1 + outputs[:, 3:6].exp()).log() + 1e-6
    factor = 100 * (outputs[:, 6:] / 100).tanh().reshape(6, 3, 2)
    correlation = torch.eye(3) + factor @ factor.mT
    expected = scale.unsqueeze(-1) * correlation * scale.unsqueeze(-2)
    torch.testing.assert_close(q.covariance_matrix, expected)


def test_low_rank_starts_almost_independent_and_leaves_at_once() -> None:
    torch.manual_seed(0)
    guide, x = LowRank(SHAPE, 3, MLP(hidden=(8,))), 100 * torch.rand(6, *SHAPE)
    covariance = guide.encode(x).covariance_matrix
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    assert ((correlation - torch.eye(3)).abs() < 0.15).all()
    kl_divergence(guide.encode(x), standard_normal(3)).sum().backward()
    for parameter in (guide.head.weight, guide.head.bias):
        assert parameter.grad is not None
        assert (parameter.grad[6:].abs().amax(-1) > 0).all()


def test_mixture_of_gaussians_reads_its_head() -> None:
    guide, x = MixtureOfGaussians(SHAPE, 3, MLP(hidden=()), components=2), torch.rand(6, *SHAPE)
    outputs = guide.head(x.reshape(6, 20))
    q, z = guide.encode(x), torch.randn(6, 3)
    weights = outputs[:, :2].softmax(-1)
    scale = (1 + outputs[:, 8:].exp()).log() + 1e-6
    parts = [
        dist.Normal(outputs[:, i : i + 3], scale[:, i - 2 : i + 1]).log_prob(z).sum(-1).exp()
        for i in (2, 5)
    ]
    expected = (weights[:, 0] * parts[0] + weights[:, 1] * parts[1]).log()
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(
        q.mean, weights[:, :1] * outputs[:, 2:5] + weights[:, 1:] * outputs[:, 5:8]
    )


@pytest.mark.parametrize("latent_dim", [8, 20])
def test_full_covariance_can_tell_its_density_on_large_data(latent_dim: int) -> None:
    # Its first version had a random factor of condition 1e20 here, and log q = -inf.
    x = torch.randint(0, 17, (50, 64)).float()
    q = FullCovariance((64,), latent_dim, MLP(hidden=())).encode(x)
    z = q.sample()
    exact = dist.MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double()).log_prob(z)
    torch.testing.assert_close(q.log_prob(z).double(), exact, rtol=1e-4, atol=1e-3)


def test_one_latent_dimension() -> None:
    q = FullCovariance(SHAPE, 1, MLP(hidden=(8,))).encode(torch.rand(6, *SHAPE))
    assert q.covariance_matrix.shape == (6, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent_dim", [0, -3])
def test_a_latent_needs_a_dimension(kind: type[Any], latent_dim: int) -> None:
    message = rf"^{kind.__name__}\.latent_dim must be at least 1, got {latent_dim}$"
    with pytest.raises(ValueError, match=message):
        kind(SHAPE, latent_dim)


def test_an_encoder_without_out_features_is_named() -> None:
    class Bare(Network):
        def encoder(self, data_shape: Sequence[int]) -> nn.Module:
            return nn.Flatten()

        def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
            return nn.Identity()

    for guide in KINDS:
        with pytest.raises(TypeError, match="Flatten must have the integer attribute out_features"):
            guide(SHAPE, 3, Bare())


# The exact guide -----------------------------------------------------------------------------


def test_exact_owns_nothing_and_trains_the_model() -> None:
    model = ProbabilisticPCA(SHAPE, 3)
    guide = Exact(model)
    assert not guide.state_dict()
    assert not list(guide.parameters())
    assert not [module for module in guide.modules() if module is not guide]
    guide.encode(torch.rand(6, *SHAPE)).rsample().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


def test_exact_gives_the_evidence_and_its_gradient() -> None:
    """Whatever is drawn, log p(x, z) - log q(z | x) is log p(x): value and total derivative."""
    model = ProbabilisticPCA(SHAPE, 3).double()
    x = torch.rand(6, *SHAPE).double()
    parameters = dict(model.named_parameters())
    loss = Trace_ELBO().differentiable_loss(model, Exact(model), x)
    assert isinstance(loss, Tensor)
    evidence = model.log_evidence(x).sum()
    torch.testing.assert_close(-loss, evidence)
    gradients = torch.autograd.grad(-loss, list(parameters.values()))
    expected = torch.autograd.grad(evidence, list(parameters.values()))
    torch.testing.assert_close(gradients, expected)


def test_exact_is_copied_with_its_model() -> None:
    model = ProbabilisticPCA(SHAPE, 3)
    twin, guide = copy.deepcopy((model, Exact(model)))
    x = torch.rand(6, *SHAPE)
    with torch.no_grad():
        twin.mean.add_(1.0)
    torch.testing.assert_close(guide.encode(x).mean, twin.posterior(x).mean)
    assert not torch.allclose(guide.encode(x).mean, model.posterior(x).mean)


def test_exact_needs_a_posterior() -> None:
    with pytest.raises(TypeError, match=r"closed-form posterior\(x\), but VAE has none; use Mean"):
        Exact(VAE(SHAPE))


# The registered KL ---------------------------------------------------------------------------


def standard_normal(dim: int) -> dist.Independent:
    return dist.Independent(dist.Normal(torch.zeros(dim), 1.0), 1)


def random_factor(*shape: int) -> Tensor:
    factor = torch.randn(*shape, 3, 3).double().tril(-1)
    return factor + torch.diag_embed(torch.rand(*shape, 3).double() + 0.1)


KL_SHAPES = [  # of loc, factor, and the prior
    ((), (), ()),
    ((4,), (4,), ()),
    ((4,), (), ()),
    ((), (4,), (4,)),
    ((2, 4), (4,), (4,)),
    ((4,), (4,), (2, 4)),
]


@pytest.mark.parametrize(("loc", "factor", "prior"), KL_SHAPES, ids=str)
def test_kl_equals_the_one_between_multivariate_normals(
    loc: tuple[int, ...], factor: tuple[int, ...], prior: tuple[int, ...]
) -> None:
    p = dist.MultivariateNormal(torch.randn(*loc, 3).double(), scale_tril=random_factor(*factor))
    mean, scale = torch.randn(*prior, 3).double(), torch.rand(*prior, 3).double() + 0.1
    q = dist.Normal(mean, scale).to_event(1)
    dense = dist.MultivariateNormal(mean, scale_tril=torch.diag_embed(scale))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p, dense))
    plain = torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)
    torch.testing.assert_close(kl_divergence(p, plain), kl_divergence(p, dense))

    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    wide, wide_q = p.expand((5, *shape)), q.expand((5, *shape))
    expected = kl_divergence(p, dense).expand(5, *shape)
    torch.testing.assert_close(kl_divergence(wide, wide_q), expected)
    torch.testing.assert_close(kl_divergence(wide, q), expected)
    torch.testing.assert_close(kl_divergence(p, wide_q), expected)


@pytest.mark.parametrize(("loc", "factor", "prior"), KL_SHAPES, ids=str)
def test_kl_of_low_rank_equals_the_one_of_the_same_dense_normal(
    loc: tuple[int, ...], factor: tuple[int, ...], prior: tuple[int, ...]
) -> None:
    p = dist.LowRankMultivariateNormal(
        torch.randn(*loc, 3).double(),
        torch.randn(*factor, 3, 2).double(),
        torch.rand(*factor, 3).double() + 0.1,
    )
    mean, scale = torch.randn(*prior, 3).double(), torch.rand(*prior, 3).double() + 0.1
    q = dist.Normal(mean, scale).to_event(1)
    expected = kl_divergence(
        dist.MultivariateNormal(p.mean, p.covariance_matrix),
        dist.MultivariateNormal(mean, scale_tril=torch.diag_embed(scale)),
    )
    torch.testing.assert_close(kl_divergence(p, q), expected)
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    wide = kl_divergence(p.expand((5, *shape)), q)
    torch.testing.assert_close(wide, expected.expand(5, *shape))


@pytest.mark.parametrize(
    "p",
    [
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_kl_is_refused_where_it_would_be_wrong(p: Any) -> None:
    with pytest.raises(NotImplementedError, match="one event dimension"):
        kl_divergence(p, dist.Laplace(torch.zeros(3), 1.0).to_event(1))
    with pytest.raises(NotImplementedError, match="one event dimension"):
        kl_divergence(p, dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))


@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("kind", [FullCovariance, LowRank])
def test_the_analytic_elbo_uses_it(kind: Callable[..., Any], num_particles: int) -> None:
    """Only the noise of the distortion is left: none, where the decoder ignores z."""
    model, guide = VAE(SHAPE, 3, MLP(hidden=())), kind(SHAPE, 3, MLP(hidden=(8,)))
    with torch.no_grad():
        next(model.decoder.parameters()).zero_()
    x = torch.rand(6, *SHAPE).round()
    elbo = TraceMeanField_ELBO(num_particles=num_particles, vectorize_particles=True)
    loss = elbo.differentiable_loss(model, guide, x)
    log_p = model.decode(torch.zeros(6, 3)).log_prob(x)
    kl = kl_divergence(guide.encode(x), model.prior())
    torch.testing.assert_close(loss, (kl - log_p).sum())
