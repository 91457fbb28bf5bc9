"""The refinement of the semi-amortized guide, against closed forms of the linear Gaussian model."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae import evaluate, fit
from ppl_vae.guides import MeanField, SemiAmortized
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ImportanceWeightedELBO, MeanFieldELBO, TraceELBO
from ppl_vae.pairs import Pair, ScaleLatents, find_layout

D, Q = 5, 3
LINEAR = MLP(hidden=())


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to the float32 digits of the guide's points."""
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def made(**options: Any) -> tuple[ProbabilisticPCA, SemiAmortized, Tensor]:
    torch.manual_seed(0)
    model = ProbabilisticPCA((D,), Q, sigma=0.7).double()
    options = {"steps": 3, "step_size": 0.1, "num_samples": 2 * Q, **options}
    guide = SemiAmortized(model, (D,), Q, LINEAR, **options).double()
    return model, guide, torch.randn(6, D).double()


def closed_elbo(model: ProbabilisticPCA, x: Tensor, outputs: Tensor) -> Tensor:
    """E_q[log N(x; W z + mu, sigma^2)] - KL(q || N(0, I)) for q = N(m, s^2), written out."""
    m, log_s = outputs.chunk(2, -1)
    variance, sigma2 = (2 * log_s).exp(), (2 * model.log_sigma).exp()
    residual = x - model.mean - m @ model.weight.T
    spread = (variance * model.weight.square().sum(0)).sum(-1)
    likelihood = -0.5 * ((residual.square().sum(-1) + spread) / sigma2)
    likelihood = likelihood - 0.5 * x.shape[1] * (2 * math.pi * sigma2).log()
    return likelihood - 0.5 * (m.square() + variance - 1 - 2 * log_s).sum(-1)


def by_hand(
    model: ProbabilisticPCA, guide: SemiAmortized, x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The steps with derivatives taken by hand, for a linear encoder of this weight and bias.

    dL/dm = W^T (x - mu) / sigma^2 - M m and dL/dlog s = 1 - s^2 diag(M).
    """
    sigma2 = (2 * model.log_sigma).exp()
    precision = torch.eye(Q).double() + model.weight.T @ model.weight / sigma2
    pull = (x - model.mean) @ model.weight / sigma2
    m, raw = (x @ weight.T + bias).chunk(2, -1)
    log_s = (softplus(raw) + 1e-6).log()
    for _ in range(guide.steps):
        variance = (2 * log_s).exp()
        m = m + guide.step_size * variance * (pull - m @ precision)
        log_s = log_s + guide.step_size / 2 * (1 - variance * precision.diagonal())
    return torch.cat([m, log_s], -1)


@pytest.mark.parametrize("num_samples", [2 * Q, 20])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_steps_are_those_of_the_closed_form(steps: int, num_samples: int) -> None:
    model, guide, x = made(steps=steps, num_samples=num_samples)
    expected = by_hand(model, guide, x, guide.head.weight, guide.head.bias)
    close(guide.amortize(x), expected)
    q = guide.encode(x)
    close(q.mean, expected[:, :Q])
    close(q.stddev, expected[:, Q:].exp())


def test_few_points_tend_to_the_closed_form() -> None:
    """With fewer points than 2 d the correlations of the points enter; they average out."""
    model, guide, x = made(steps=1)
    expected = by_hand(model, guide, x, guide.head.weight, guide.head.bias)
    found = []
    for seed in range(400):
        half = torch.randn(2, Q, generator=torch.Generator().manual_seed(seed)).double()
        half = half / half.square().mean(0).sqrt()
        guide.noise = torch.cat([half, -half])
        found.append(guide.amortize(x))
    values = torch.stack(found).detach()
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("num_samples", [2, 4, 6, 50])
def test_points_are_balanced(num_samples: int) -> None:
    noise = made(num_samples=num_samples)[1].noise
    assert noise.shape == (num_samples, Q)
    torch.testing.assert_close(noise.mean(0), torch.zeros(Q).double(), atol=1e-6, rtol=0)
    second = noise.T @ noise / num_samples
    torch.testing.assert_close(second.diagonal(), torch.ones(Q).double(), atol=1e-6, rtol=0)
    if num_samples >= 2 * Q:
        torch.testing.assert_close(second, torch.eye(Q).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("step_size", [0.3, 2.0, 100.0])
def test_a_row_never_gets_worse(step_size: float) -> None:
    model, guide, x = made(steps=8, step_size=step_size)
    before = closed_elbo(model, x, guide.propose(x))
    after = closed_elbo(model, x, guide.amortize(x))
    assert (after >= before).all()
    assert (after > before).any()


def test_a_scale_that_is_far_off_does_not_overflow() -> None:
    """dL/dlog s = 1 - s^2 M_ii is -10^7 at s = 2000: log s moves by 1 per step all the same."""
    model, guide, x = made(steps=1, step_size=1.0)
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.copy_(torch.cat([model.posterior(x).mean[0], torch.full((Q,), 2e3)]))
    _, log_scale = guide.amortize(x).chunk(2, -1)
    close(log_scale[0], torch.full((Q,), math.log(2e3) - 1).double())


def test_many_steps_reach_the_best_mean_field() -> None:
    model, guide, x = made(steps=200, step_size=0.4)
    posterior = model.posterior(x)
    q = guide.encode(x)
    torch.testing.assert_close(q.mean, posterior.mean, atol=1e-4, rtol=0)
    precision = posterior.precision_matrix[0]
    best = (1 / precision.diagonal()).expand(6, Q)
    torch.testing.assert_close(q.variance, best, atol=1e-4, rtol=0)


def test_gradients_through_the_steps_are_finite_differences() -> None:
    """d sum_rows L(m_K, s_K; theta) / d theta, through encoder, steps and model."""
    model, guide, x = made()
    parameters = dict(guide.named_parameters()) | {"W": model.weight, "log_sigma": model.log_sigma}

    def loss() -> Tensor:
        weight, bias = guide.head.weight, guide.head.bias
        return closed_elbo(model, x, by_hand(model, guide, x, weight, bias)).sum()

    objective = closed_elbo(model, x, guide.amortize(x)).sum()
    gradients = torch.autograd.grad(objective, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        flat, step = parameter.detach().view(-1), 1e-5
        for i in range(0, flat.numel(), 4):
            value = float(flat[i])
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    flat[i] = value + sign * step
                    sides.append(float(loss()))
                    flat[i] = value
            difference = (sides[0] - sides[1]) / (2 * step)
            assert difference == pytest.approx(float(gradient.view(-1)[i]), rel=1e-5, abs=1e-6), (
                name
            )


def test_not_differentiable_trains_the_encoder_on_its_own_bound() -> None:
    """Encoder: the ELBO's gradient at the proposal. Model: at the refined q, taken as a constant."""
    model, guide, x = made(differentiable=False)
    _, other, _ = made(differentiable=True)
    refined = guide.amortize(x)
    assert torch.equal(refined, other.amortize(x))
    assert not refined.requires_grad
    of_encoder = [guide.head.weight, guide.head.bias]

    def constant(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", guide.family(refined))

    for objective in (TraceELBO(num_particles=3), MeanFieldELBO(), ImportanceWeightedELBO()):
        found: list[Tensor] = []
        expected: list[Tensor] = []
        for program, leaves, into in (
            (guide, [*of_encoder, model.weight], found),
            (constant, [model.weight], expected),
        ):
            pair = Pair(model, program)
            with pair.scope():
                layout = find_layout(pair, x)
                torch.manual_seed(3)
                loss = objective(pair, layout, x)
                into += [loss.loss.detach(), *torch.autograd.grad(loss.loss, leaves)]
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[3], expected[1])
        own = closed_elbo(model, x, guide.propose(x)).mean()
        for mine, theirs in zip(found[1:3], torch.autograd.grad(-own, of_encoder), strict=True):
            close(mine, theirs)


def test_without_gradients() -> None:
    _, guide, x = made()
    expected = guide.amortize(x)
    with torch.no_grad():
        found = guide.amortize(x)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not torch.is_grad_enabled() or guide.head.weight.grad is None
    for parameter in guide.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(guide.amortize(x), expected)


def test_handlers_around_it_see_one_site_and_change_nothing() -> None:
    _, guide, x = made()
    expected = guide.encode(x)
    with pyro.plate("samples", 4, dim=-2):
        trace: Any = poutine.trace(ScaleLatents(7.0)(guide)).get_trace(x)
    assert set(trace.stochastic_nodes) == {"data", "z"}
    assert trace.nodes["z"]["value"].shape == (4, 6, Q)
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean[2], expected.mean)
    assert {"head.weight", "head.bias"} == {name for name, _ in guide.named_parameters()}
    assert guide.state_dict().keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_encode_takes_any_batch(batch: tuple[int, ...]) -> None:
    _, guide, _ = made()
    x = torch.randn(*batch, D).double()
    q = guide.encode(x)
    assert q.batch_shape == batch
    assert q.event_shape == (Q,)
    torch.testing.assert_close(q.mean.reshape(-1, Q), guide.encode(x.reshape(-1, D)).mean)


def test_any_program_is_refined() -> None:
    """A function with a mask, a subsampled plate's scale and no plate of name "data"."""
    mask = torch.tensor([True, True, False]).repeat(100)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 50 * len(x), subsample=x, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            keep = mask[: len(x)]
            with poutine.mask(mask=keep):  # type: ignore[call-overload]
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    x = torch.tensor([1.0, -2.0, 3.0])
    guide = SemiAmortized(model, (), 1, LINEAR, steps=60, num_samples=2)
    q = guide.encode(x)
    torch.testing.assert_close(q.mean[:, 0], torch.tensor([0.5, -1.0, 0.0]), atol=1e-4, rtol=0)
    variance = torch.tensor([0.5, 0.5, 1.0])
    torch.testing.assert_close(q.variance[:, 0], variance, atol=1e-4, rtol=0)


def test_a_second_latent_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1) + w, 1.0), obs=x)

    with pytest.raises(ValueError, match="latent site 'w' beside 'z'"):
        SemiAmortized(model, (), 2, LINEAR).encode(torch.zeros(3))


def test_a_site_outside_of_the_rows_is_named() -> None:
    def model(x: Tensor) -> None:
        pyro.factor("penalty", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'penalty' is not inside a plate over the 24 rows"):
        SemiAmortized(model, (), 2, LINEAR).encode(torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"step_size": 0.0}, "step_size must be positive, got 0"),
        ({"num_samples": 3}, "num_samples must be an even number"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model = ProbabilisticPCA((D,), Q)
    with pytest.raises(ValueError, match=message):
        SemiAmortized(model, (D,), **options)


@pytest.mark.parametrize("differentiable", [True, False])
def test_every_parameter_is_trained_with_a_network(differentiable: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(12, 4, 4).round()
    model = VAE((4, 4), 2, MLP(hidden=(8,)), Bernoulli())
    guide = SemiAmortized(
        model, (4, 4), 2, MLP(hidden=(8,)), steps=2, num_samples=2, differentiable=differentiable
    )
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    fit(model, guide, x, max_epochs=2, batch_size=6, seed=0, progress=False, capture=False)
    after: list[nn.Parameter] = [*model.parameters(), *guide.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_evaluate_finds_the_smaller_gap() -> None:
    """With one encoder for both, the ELBO rises by what the steps gain; log p(x) stays exact."""
    model, guide, x = made(steps=20)
    plain = MeanField((D,), Q, LINEAR).double()
    plain.load_state_dict(guide.state_dict())
    exact_evidence = float(model.log_evidence(x).mean().detach())
    options: Any = {"num_samples": 2000, "method": "guide", "seed": 0, "progress": False}
    found = evaluate(model, guide, x, **options)
    exact = closed_elbo(model, x, guide.amortize(x))
    assert found.elbo.mean == pytest.approx(float(exact.mean().detach()), abs=0.1)
    assert found.log_likelihood.mean == pytest.approx(exact_evidence, abs=0.1)
    unrefined = evaluate(model, plain, x, **options)
    assert found.elbo.mean > unrefined.elbo.mean + 1
