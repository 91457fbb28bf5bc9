"""The categorical guide of a mixture, and the three gradients that train it, against exact sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import check, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.guides import CategoricalEncoder
from ppl_vae.models import BernoulliMixture, GaussianMixture
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, EnumELBO, GumbelSoftmaxELBO, Objective, TraceELBO
from ppl_vae.pairs import Pair, PairError, find_layout

DRAWS = 20_000


class Mixture(nn.Module):
    """Two or more spherical Gaussians in the plane, with unequal weights."""

    def __init__(self, components: int) -> None:
        super().__init__()
        angles = 2 * torch.pi * torch.arange(components) / components
        self.loc = nn.Parameter(1.2 * torch.stack([angles.cos(), angles.sin()], -1))
        self.logits = nn.Parameter(torch.linspace(-0.5, 0.5, components))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            prior = dist.Categorical(logits=self.logits)
            z = pyro.sample("z", prior, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[z], 1.0).to_event(1), obs=x)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z = k), `(n, components)`."""
        log_p: Tensor = dist.Normal(self.loc, 1.0).to_event(1).log_prob(x.unsqueeze(1))
        return log_p + self.logits.log_softmax(-1)


class Logits(CategoricalEncoder):
    """Free logits for every row, so that each row of their gradient is one draw of the estimator."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__((2,), outputs.shape[-1], MLP(hidden=()))
        self.outputs = nn.Parameter(outputs.clone())

    def amortize(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.outputs


def gradients(
    objective: Objective, model: nn.Module, x: Tensor, outputs: Tensor, beta: float = 1.0
) -> Tensor:
    """Independent draws of the ELBO's gradient by the logits of one row, `(DRAWS, components)`."""
    guide = Logits(outputs.expand(DRAWS, -1))
    pair, batch = Pair.of(model, guide), x.expand(DRAWS, -1)
    with pair.scope():
        loss = objective(pair, find_layout(pair, batch), batch, beta).loss
        (gradient,) = torch.autograd.grad(loss, [guide.outputs])
    return -gradient.double() * DRAWS


def exact(model: Mixture, x: Tensor, outputs: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """q and f, f_k = log p(x | k) + beta (log p(k) - log q_k): the ELBO is sum_k q_k f_k."""
    log_q = outputs.log_softmax(-1)
    log_prior = model.logits.log_softmax(-1)
    f = model.log_joint(x[None])[0] - log_prior + beta * (log_prior - log_q)
    return log_q.exp().double().detach(), f.double().detach()


X = torch.tensor([1.0, 0.4])


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_enumeration_is_exact(beta: float) -> None:
    model, outputs = Mixture(3), torch.tensor([0.2, -0.4, 1.0])
    q, f = exact(model, X, outputs, beta)
    found = gradients(EnumELBO(), model, X, outputs, beta)
    assert torch.allclose(found.mean(0), q * (f - q @ f), rtol=1e-4, atol=1e-5)
    assert found.var(0).max() < 1e-8  # nothing is drawn


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_score_function_is_unbiased_with_the_variance_that_it_must_have(beta: float) -> None:
    model, outputs = Mixture(3), torch.tensor([0.2, -0.4, 1.0])
    q, f = exact(model, X, outputs, beta)
    found = gradients(TraceELBO(), model, X, outputs, beta)
    # One draw z = k gives f_k d log q_k; d log q_k / d logits = e_k - q.
    draws = f[:, None] * (torch.eye(3).double() - q)
    mean = q @ draws
    variance = q @ (draws - mean).square()
    assert torch.allclose(mean, q * (f - q @ f), atol=1e-12)
    assert ((found.mean(0) - mean).abs() < 4 * (variance / DRAWS).sqrt()).all()
    assert torch.allclose(found.var(0), variance, rtol=0.05)


def relaxed_draws(q: Tensor, f: Tensor, temperature: float) -> Tensor:
    """The Gumbel-softmax gradient by the log odds, at the quantiles of its noise.

    The difference of two Gumbels is logistic, so that y_1 = sigmoid((log odds + noise) / temperature).
    """
    noise = ((torch.arange(400_000).double() + 0.5) / 400_000).logit()
    y = torch.sigmoid(((q[0] / q[1]).log() + noise) / temperature)
    return (f[0] - f[1]) * y * (1 - y) / temperature


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gumbel_softmax_has_the_bias_and_variance_of_quadrature(
    temperature: float, beta: float
) -> None:
    model, outputs = Mixture(2), torch.tensor([0.7, -0.3])
    q, f = exact(model, X, outputs, beta)
    truth = relaxed_draws(q, f, temperature)
    found = gradients(GumbelSoftmaxELBO(temperature=temperature), model, X, outputs, beta)
    assert torch.allclose(found[:, 0], -found[:, 1], atol=1e-4)
    assert (found.mean(0)[0] - truth.mean()).abs() < 4 * (truth.var() / DRAWS).sqrt()
    assert torch.allclose(found.var(0)[0], truth.var(), rtol=0.1)


def test_the_three_gradients_compared() -> None:
    """Bias and standard deviation in units of the exact gradient, at q = (0.73, 0.27)."""
    model, outputs = Mixture(2), torch.tensor([0.7, -0.3])
    q, f = exact(model, X, outputs)
    gradient = (q * (f - q @ f))[0]
    score = f * torch.stack([q[1], -q[0]])
    assert (q @ score).item() == pytest.approx(gradient.item())
    assert (q @ (score - gradient).square()).sqrt() / gradient.abs() > 10
    draws = {tau: relaxed_draws(q, f, tau) / gradient for tau in (0.02, 0.1, 0.5, 1.0, 2.0)}
    bias = {tau: d.mean().item() - 1 for tau, d in draws.items()}
    spread = {tau: d.std().item() for tau, d in draws.items()}
    # Colder: less bias and more variance; the bias at temperature 0.5 is no matter of noise.
    assert abs(bias[0.02]) < 0.001 < 0.05 < -bias[0.5] < -bias[1.0] < -bias[2.0]
    assert spread[0.02] > 3 > spread[0.1] > 1 > spread[0.5] > spread[2.0]


def test_gumbel_softmax_trains_the_model_without_bias() -> None:
    model, outputs = Mixture(2), torch.tensor([1.5, -0.5])
    q, _ = exact(model, X, outputs)
    truth = torch.autograd.grad(model.log_joint(X[None])[0].double() @ q, [model.loc])[0]
    pair, batch = Pair.of(model, Logits(outputs.expand(DRAWS, -1))), X.expand(DRAWS, -1)
    with pair.scope():
        loss = GumbelSoftmaxELBO(temperature=1.5)(pair, find_layout(pair, batch), batch).loss
        found = -torch.autograd.grad(loss, [model.loc])[0]
    error = (q.prod() / DRAWS).sqrt() * (X - model.loc).abs().max()
    assert (found - truth).abs().max() < 4 * error


OBJECTIVES: dict[str, Objective] = {
    "ELBO": ELBO(),
    "TraceELBO": TraceELBO(num_particles=8),
    "GumbelSoftmaxELBO": GumbelSoftmaxELBO(temperature=0.2, num_particles=2),
}


@pytest.mark.slow(only=("ELBO",))
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_each_objective_finds_the_posterior(objective: Objective) -> None:
    """The posterior logits of this mixture are linear in x: a linear encoder loses nothing."""
    model = Mixture(3).requires_grad_(False)
    data = torch.randn(512, 2) * 1.3
    guide = CategoricalEncoder((2,), 3, MLP(hidden=()))
    assert check(model, guide, data, objective=objective).ok
    options = {"max_epochs": 60, "batch_size": 64, "learning_rate": 0.02, "progress": False}
    fit(model, guide, data, objective=objective, seed=0, **options)  # type: ignore[arg-type]
    log_joint = model.log_joint(data)
    with torch.no_grad():
        log_q = guide.encode(data).logits
        gap = (log_q.exp() * (log_q - log_joint.log_softmax(-1))).sum(-1)
    limit = {EnumELBO: 1e-3, ELBO: 1e-3, TraceELBO: 0.01, GumbelSoftmaxELBO: 0.02}
    assert gap.mean() < limit[type(objective)]
    found = evaluate(model, guide, data, num_samples=200, seed=1, progress=False, method="guide")
    evidence = log_joint.logsumexp(-1)
    assert (found.log_likelihood.values - evidence).abs().mean() < 0.05
    assert found.elbo.mean == pytest.approx((evidence - gap).mean().item(), abs=0.02)


MIXTURES: dict[str, Callable[[], GaussianMixture | BernoulliMixture]] = {
    "GaussianMixture": lambda: GaussianMixture((1, 2, 2), 3),
    "BernoulliMixture": lambda: BernoulliMixture((1, 2, 2), 3),
}


@pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES.keys())
def test_it_fits_the_mixtures(
    make: Callable[[], GaussianMixture | BernoulliMixture], tmp_path: Path
) -> None:
    x = (torch.rand(48, 1, 2, 2) > 0.5).float()
    model, guide = make(), CategoricalEncoder((1, 2, 2), 3, MLP(hidden=(8,)))
    for objective in OBJECTIVES.values():
        report = check(model, guide, x, objective=objective)
        assert not report.problems, str(report)
        before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
        fitted = fit(
            model,
            guide,
            x,
            objective=objective,
            max_epochs=1,
            seed=0,
            capture=False,
            progress=False,
        )
        assert math.isfinite(fitted.history[-1]["elbo"])
        after = [*model.parameters(), *guide.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    found = evaluate(model, guide, x, num_samples=400, seed=1, progress=False, method="guide")
    evidence = model.log_evidence(x).detach()
    q = guide.encode(x)
    gap = torch.distributions.kl_divergence(q, model.posterior(x)).detach()
    assert found.log_likelihood.mean == pytest.approx(evidence.mean().item(), abs=0.05)
    assert found.elbo.mean == pytest.approx((evidence - gap).mean().item(), abs=0.05)
    save_run(tmp_path / "run", model, guide)
    other, other_guide = make(), CategoricalEncoder((1, 2, 2), 3, MLP(hidden=(8,)))
    run = load_run(tmp_path / "run", other, other_guide)
    assert torch.equal(run.guide.encode(x).logits, q.logits)  # type: ignore[attr-defined]
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    assert exported["posterior"]["z"].shape == (1, 3, 48)


def test_default_objective_enumerates() -> None:
    model, guide = Mixture(3), CategoricalEncoder((2,), 3, MLP(hidden=()))
    pair = Pair.of(model, guide)
    assert isinstance(ELBO().resolve(pair, torch.randn(4, 2)), EnumELBO)


def test_encode_is_the_family_at_the_amortized_outputs() -> None:
    guide = CategoricalEncoder((1, 4, 4), 5, MLP(hidden=(6,)))
    x = torch.rand(3, 7, 1, 4, 4)
    outputs = guide.amortize(x)
    assert outputs.shape == (3, 7, 5)
    q = guide.encode(x)
    assert q.batch_shape == (3, 7)
    assert q.event_shape == ()
    torch.testing.assert_close(q.probs, outputs.softmax(-1))
    torch.testing.assert_close(guide.family(outputs[0, 0]).probs, q.probs[0, 0])


def test_double_precision() -> None:
    model, guide = Mixture(3).double(), CategoricalEncoder((2,), 3, MLP(hidden=())).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    pair = Pair.of(model, guide)
    for objective in OBJECTIVES.values():
        with pair.scope():
            assert objective(pair, find_layout(pair, x), x).loss.dtype == torch.float64


def continuous(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, 0], 1.0))


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([len(x), 2]).to_event(1), obs=x)


def two_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Categorical(logits=torch.zeros(2)))
        pyro.sample("w", dist.Normal(x[:, 0], 1.0))


def two_latents_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(2)))
        w = pyro.sample("w", dist.Normal(z.float(), 1.0))
        pyro.sample("x", dist.Normal(w[..., None], 1.0).expand([len(x), 2]).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (normal_model, continuous, r"site 'z', but the guide draws it from Normal .*TraceELBO"),
        (two_latents_model, two_latents, r"the latents are 'z', 'w': use EnumELBO"),
    ],
)
def test_gumbel_softmax_refuses_what_it_cannot_relax(
    model: Callable[..., None], guide: Callable[..., None], message: str
) -> None:
    pair, x = Pair.of(model, guide), torch.randn(4, 2)
    with pair.scope(), pytest.raises(PairError, match=message):
        GumbelSoftmaxELBO()(pair, find_layout(pair, x), x)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"components must be at least 1, got 0"):
        CategoricalEncoder((2,), components=0)
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0"):
        GumbelSoftmaxELBO(temperature=0.0)
    with pytest.raises(ValueError, match=r"no free bits"):
        GumbelSoftmaxELBO(free_bits=0.1)
