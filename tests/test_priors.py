"""Priors against numerical integration, their own samples, and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import NETWORKS, PRIORS
from scipy.stats import kstest
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_vae import diagnose, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.capture import step as capture
from ppl_vae.guides import Exact, FullCovariance, MeanField, SemiAmortized
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import (
    VAE,
    AutoregressivePrior,
    DiagonalNormal,
    FlowPrior,
    LaplacePrior,
    MixturePrior,
    ProbabilisticPCA,
    StandardNormal,
    VampPrior,
)
from ppl_vae.models.priors import Prior, flow as flow_prior
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, LinearWarmup, MeanFieldELBO, Objective, TraceELBO
from ppl_vae.pairs import Pair
from ppl_vae.training import refit_guide, refit_prior

SHAPE = (4,)
NETWORK = NETWORKS["MLP"]
DENSITIES = {name: prior for name, prior in PRIORS.items() if name != "FlatPrior"}
priors = pytest.mark.parametrize("prior", DENSITIES.values(), ids=DENSITIES.keys())
others = pytest.mark.parametrize("prior", list(DENSITIES.values())[1:], ids=list(DENSITIES)[1:])
FIXED = ("StandardNormal", "LaplacePrior", "AutoregressivePrior")
LEARNED = [name for name in DENSITIES if name not in FIXED]
learned = pytest.mark.parametrize("prior", [PRIORS[name] for name in LEARNED], ids=LEARNED)


def pair(prior: Prior | None, latent_dim: int = 2, guide: Any = MeanField) -> tuple[Any, Any]:
    if isinstance(prior, AutoregressivePrior) and latent_dim == 1:
        pytest.skip("a chain has two latents or more")
    model: Any = VAE(SHAPE, latent_dim, NETWORK, Gaussian(0.5), prior)
    made = guide(SHAPE, latent_dim, NETWORK)
    if isinstance(prior, VampPrior):
        model.prior.attach_guide(made)
    return model, made


def bent(prior: Prior, latent_dim: int) -> tuple[Any, Any]:
    """A pair in double precision whose p(z) is far from the standard normal that it may start as."""
    model, guide = (program.double() for program in pair(prior, latent_dim))
    with torch.no_grad():
        for parameter in [*model.prior.parameters(), *guide.head.parameters()]:
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model, guide


def grid(latent_dim: int, half_width: float = 12.0, size: int = 1201) -> tuple[Tensor, float]:
    """Points `(m, latent_dim)` and the volume of the cell of each."""
    line = torch.linspace(-half_width, half_width, size, dtype=torch.float64)
    axes = torch.cartesian_prod(*[line] * latent_dim).reshape(-1, latent_dim)
    return axes, float(line[1] - line[0]) ** latent_dim


@priors
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_density_integrates_to_one(prior: Prior, latent_dim: int) -> None:
    model, _ = bent(prior, latent_dim)
    p = model.prior()
    assert p.batch_shape == ()
    assert p.event_shape == (latent_dim,)
    z, cell = grid(latent_dim, size=6001 if latent_dim == 1 else 401)
    with torch.no_grad():
        assert float(p.log_prob(z).exp().sum()) * cell == pytest.approx(1.0, abs=1e-3)


@priors
def test_samples_follow_the_density(prior: Prior) -> None:
    """Each coordinate's samples against its marginal distribution function, from the density."""
    model, _ = bent(prior, 2)
    with torch.no_grad():
        z = model.prior().sample((4000,))
        points, cell = grid(2, size=401)
        density = model.prior().log_prob(points).exp().reshape(401, 401)
    line = points.reshape(401, 401, 2)[:, 0, 0]
    step = math.sqrt(cell)
    for axis in range(2):
        # The sum up to a point has half of that point's cell too much.
        mass = density.sum(1 - axis) * cell
        below = mass.cumsum(0) - mass / 2

        def cdf(value: Any, below: Tensor = below) -> Any:
            place = ((torch.as_tensor(value) - line[0]) / step).clamp(0, 399.999)
            left = place.long()
            return (below[left] + (place - left) * (below[left + 1] - below[left])).numpy()

        assert kstest(z[:, axis].numpy(), cdf).pvalue > 1e-3
    # And jointly: the entropy from samples is that from the density.
    with torch.no_grad():
        found = model.prior().log_prob(z)
    expected = float((density * density.clamp_min(1e-300).log()).sum() * cell)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 4000**0.5)


@learned
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_every_parameter_gets_a_gradient(prior: Prior, latent_dim: int) -> None:
    model, guide = pair(prior, latent_dim)
    own = dict(model.prior.named_parameters())
    (-model.prior().log_prob(torch.randn(50, latent_dim)).mean()).backward()
    without = [n for n, p in own.items() if p.grad is None or not bool(p.grad.any())]
    assert not without
    if isinstance(prior, VampPrior):
        assert guide.head.weight.grad is not None


def test_a_vae_without_a_prior_has_the_standard_normal() -> None:
    torch.manual_seed(3)
    plain = VAE(SHAPE, 2, NETWORK)
    torch.manual_seed(3)
    named = VAE(SHAPE, 2, NETWORK, prior=StandardNormal())
    assert not any(name.startswith("prior") for name in plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(named.state_dict()[name], value)
    z = torch.randn(7, 2)
    expected = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)
    assert torch.equal(plain.prior().log_prob(z), expected)


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_a_flow_starts_next_to_the_standard_normal(latent_dim: int) -> None:
    z = 2 * torch.randn(200, latent_dim)
    p = FlowPrior().build(SHAPE, latent_dim)()
    expected = dist.Normal(torch.zeros(latent_dim), 1.0).to_event(1).log_prob(z)
    assert torch.allclose(p.log_prob(z), expected, atol=0.02)


def test_a_mixture_starts_apart_at_the_scale_of_a_standard_normal() -> None:
    p = MixturePrior(components=2000).build(SHAPE, 2)()
    assert torch.allclose(p.mean, torch.zeros(2), atol=0.06)
    assert torch.allclose(p.variance, torch.ones(2), atol=0.06)
    loc = p.component_distribution.mean
    assert len(torch.unique(loc, dim=0)) == 2000


# -- VampPrior -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [MeanField, FullCovariance])
def test_vamp_prior_is_the_mixture_of_the_guides_posteriors(guide: Any) -> None:
    model, made = pair(VampPrior(components=4), 2, guide)
    z = torch.randn(9, 2)
    u = model.prior.inputs
    each = torch.stack([made.encode(u[k]).log_prob(z) for k in range(4)])
    assert torch.allclose(model.prior().log_prob(z), each.logsumexp(0) - math.log(4), atol=1e-5)


def test_vamp_prior_leaves_the_guides_parameters_to_the_guide() -> None:
    model, guide = pair(VampPrior(components=4))
    assert [n for n in model.state_dict() if "prior" in n] == ["prior.inputs"]
    found = Pair(model, guide)
    tensors = list(found.parameters(torch.rand(5, *SHAPE)).values())
    assert len({id(t) for t in tensors}) == len(tensors)
    assert len(tensors) == len([*model.parameters()]) + len([*guide.parameters()])
    before = model.prior().log_prob(torch.zeros(2))
    with torch.no_grad():
        guide.head.bias.add_(1.0)
    assert model.prior().log_prob(torch.zeros(2)) != before


def test_vamp_prior_starts_at_rows_and_stays_in_range() -> None:
    model, _ = pair(VampPrior(components=4, low=-1.0, high=2.0))
    start = model.prior.inputs.detach()
    assert bool(((start >= -1) & (start <= 2)).all())
    assert float(start.max() - start.min()) > 1.5
    rows = torch.rand(10, *SHAPE)
    model.prior.start_at(rows)
    distances = torch.cdist(model.prior.inputs.detach(), rows)
    assert bool((distances.min(1).values == 0).all())
    assert len(distances.argmin(1).unique()) == 4
    z = torch.zeros(2)
    with torch.no_grad():
        model.prior.inputs.fill_(2.0)
        edge = model.prior().log_prob(z)
        model.prior.inputs.fill_(50.0)
        assert torch.equal(model.prior().log_prob(z), edge)
    unbounded: Any = VampPrior(3, low=-math.inf, high=math.inf).build((5000,), 2)
    assert float(unbounded.inputs.detach().std()) == pytest.approx(1.0, abs=0.05)


def test_pseudo_inputs_can_leave_the_limits_again() -> None:
    """At binary rows, where training starts, and beyond a limit: the gradients of a loss over a box."""
    torch.manual_seed(0)
    model, _ = pair(VampPrior(components=4))
    model.prior.start_at(torch.rand(9, *SHAPE).round())
    inputs = model.prior.inputs
    with torch.no_grad():
        inputs[0].mul_(1.1)  # ones are beyond the limit
        inputs[1].fill_(0.4)
    z = torch.randn(20, 2)
    (found,) = torch.autograd.grad(-model.prior().log_prob(z).sum(), inputs)
    clamped = inputs.detach().clamp(0, 1).requires_grad_()
    components = model.prior._guide().encode(clamped)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(4)), components)
    (free,) = torch.autograd.grad(-mixture.log_prob(z).sum(), clamped)
    at = inputs.detach()
    outward = ((at <= 0) & (free > 0)) | ((at >= 1) & (free < 0))
    torch.testing.assert_close(found, free * ~outward, rtol=1e-4, atol=1e-5)
    assert 0.2 < float((found != 0)[2:].float().mean()) < 0.8
    assert bool((found[1] != 0).all())
    # After some steps of a training, pseudo-inputs are no binary rows any more.
    rows = torch.rand(30, *SHAPE).round()
    model, guide = pair(VampPrior(components=4))
    model.prior.start_at(rows)
    fit(model, guide, rows, max_epochs=20, learning_rate=0.02, seed=0, progress=False)
    inside = (model.prior.inputs > 0.05) & (model.prior.inputs < 0.95)
    assert float(inside.float().mean()) > 0.1


def test_vamp_prior_says_what_it_lacks() -> None:
    model: Any = VAE(SHAPE, 2, NETWORK, prior=VampPrior(components=4))
    with pytest.raises(RuntimeError, match="attach_guide"):
        model.prior()
    with pytest.raises(TypeError, match=r"Linear has none"):
        model.prior.attach_guide(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="attach_guide"):
        model.prior.keep_guide()
    model.prior.attach_guide(SemiAmortized(model, SHAPE, 2, NETWORK))
    for _ in range(2):  # not the depth of Python's stack
        with pytest.raises(TypeError, match=r"SemiAmortized.encode\(x\), which runs the model"):
            model.prior()
    with pytest.raises(TypeError, match=r"which runs the model"):
        model(torch.rand(3, *SHAPE).round())  # inside of the plate
    with pytest.raises(ValueError, match="got 3 rows"):
        model.prior.start_at(torch.rand(3, *SHAPE))
    with pytest.raises(ValueError, match="low and high"):
        model.prior.start_at(16 * torch.rand(9, *SHAPE))


@pytest.mark.parametrize("same", [False, True], ids=["another-guide", "the-same-guide"])
def test_vamp_prior_stays_when_the_guide_is_swapped(same: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, guide = pair(PRIORS["VampPrior"])
    x, z = torch.rand(30, *SHAPE), torch.randn(20, 2)
    before = model.prior().log_prob(z).detach()
    of_guide = {name: value.clone() for name, value in guide.state_dict().items()}
    new = guide if same else FullCovariance(SHAPE, 2, NETWORK)
    refit_guide(model, new, x, max_epochs=2, learning_rate=0.1, seed=0, capture=False)
    assert torch.equal(model.prior().log_prob(z), before)
    assert same or all(torch.equal(guide.state_dict()[n], v) for n, v in of_guide.items())
    model.prior.attach_guide(new)  # as `load_run` does
    assert torch.equal(model.prior().log_prob(z), before)
    save_run(tmp_path / "run", model, new)
    other, other_guide = pair(PRIORS["VampPrior"])
    other.prior.keep_guide()
    load_run(tmp_path / "run", other, other_guide if same else FullCovariance(SHAPE, 2, NETWORK))
    assert torch.equal(other.prior().log_prob(z), before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MixturePrior(0), "MixturePrior.components"),
        (lambda: VampPrior(0), "VampPrior.components"),
        (lambda: VampPrior(low=1.0, high=0.0), "VampPrior.low"),
        (lambda: FlowPrior(transforms=0), "FlowPrior.transforms"),
        (lambda: FlowPrior(hidden=()), "FlowPrior.hidden"),
    ],
)
def test_descriptions_say_what_is_wrong(make: Callable[[], Prior], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# -- with the engine -------------------------------------------------------------------------------


@priors
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_log_p_meets_quadrature(prior: Prior, latent_dim: int) -> None:
    model, guide = bent(prior, latent_dim)
    x = 0.5 * torch.randn(5, *SHAPE, dtype=torch.float64)
    z, cell = grid(latent_dim, size=4001 if latent_dim == 1 else 241)
    with torch.no_grad():
        # A wide guide, so that importance sampling can be trusted.
        guide.head.weight[latent_dim:].zero_()
        guide.head.bias[latent_dim:].fill_(1.5)
        log_p_z, p_x = model.prior().log_prob(z), model.decode(z)
        log_p = torch.stack([log_p_z + p_x.log_prob(row) for row in x])
        truth = log_p.logsumexp(1) + math.log(cell)
    found = evaluate(model, guide, x, num_samples=10_000, method="guide", seed=1)
    off = (found.log_likelihood.values - truth).abs() / found.log_likelihood_error
    assert float(off.max()) < 4.5, off
    heavy = isinstance(prior, LaplacePrior)  # its tails: a normal guide reaches less of them
    assert float(found.log_likelihood_error.max()) < (0.3 if heavy else 0.1)


OBJECTIVES: dict[str, Objective] = {
    "beta": ELBO(beta=LinearWarmup(2, start=0.5)),
    "particles": ELBO(num_particles=3),
    "free-bits": ELBO(free_bits=0.1),
}


@pytest.mark.slow(only=("particles-FullNormal", "beta-MixturePrior", "beta-AutoregressivePrior"))
@pytest.mark.parametrize(
    ("prior", "objective"),
    [
        pytest.param(
            *(DENSITIES[prior], OBJECTIVES[objective]),
            id=f"{objective}-{prior}",
            # Each prior with one objective.
            marks=() if i % len(OBJECTIVES) == j else pytest.mark.slow,
        )
        for i, prior in enumerate([*DENSITIES][1:])
        for j, objective in enumerate(OBJECTIVES)
    ],
)
def test_recorded_steps_are_pyros(
    prior: Prior, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "RECORD_AFTER", 1)
    x = torch.rand(12, *SHAPE)
    fitted = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model, guide = pair(prior)
        history = fit(
            model,
            guide,
            x,
            objective=objective,
            max_epochs=4,
            batch_size=6,
            seed=0,
            capture=recorded,
        ).history
        fitted.append((Pair.of(model, guide).state(), [row["loss"] for row in history]))
    (plain, losses), (recorded_state, recorded_losses) = fitted
    assert losses == recorded_losses
    for name, value in plain.items():
        assert torch.equal(recorded_state[name], value), name


@pytest.mark.parametrize(
    ("name", "guide"),
    [
        ("MixturePrior", FullCovariance),
        *((name, MeanField) for name in ("MixturePrior", "VampPrior", "FlowPrior")),
        *(
            pytest.param(name, FullCovariance, marks=pytest.mark.slow)
            for name in ("VampPrior", "FlowPrior")
        ),
    ],
)
def test_the_elbo_samples_a_kl_that_has_no_closed_form(name: str, guide: Any) -> None:
    """The chosen estimator agrees with quadrature over z, and beta weighs the whole KL."""
    torch.manual_seed(1)
    model, made = pair(PRIORS[name], 2, guide)
    x = torch.rand(2, *SHAPE)
    both = Pair(model, made)
    with both.scope():
        assert isinstance(ELBO().resolve(both, x), MeanFieldELBO | TraceELBO)
    z, cell = grid(2, 8.0, 201)
    z = z.float()
    with torch.no_grad():
        q, p = made.encode(x), model.prior().log_prob(z)
        log_q = q.log_prob(z.unsqueeze(1))
        kl = (log_q.exp() * (log_q - p.unsqueeze(1))).sum(0) * cell
    found = evaluate(model, made, x, num_samples=10_000, method="guide", seed=0)
    assert torch.allclose(found.rate.values, kl, atol=0.03)
    diagnosis = diagnose(model, made, x, seed=0)
    assert any("need not add up" in note for note in diagnosis.notes)


def test_a_learned_normal_keeps_the_analytic_kl() -> None:
    model, guide = bent(DiagonalNormal(), 2)
    x = torch.rand(6, *SHAPE, dtype=torch.float64)
    kl = kl_divergence(guide.encode(x), model.prior())
    single = kl_divergence(guide.encode(x).base_dist, model.prior().base_dist)
    diagnosis = diagnose(model, guide, x, seed=0)
    assert torch.allclose(diagnosis.kl, single.mean(0))
    assert torch.allclose(diagnosis.kl.sum(), kl.mean())
    assert not any("need not add up" in note for note in diagnosis.notes)


@others
def test_a_run_is_rebuilt_from_its_description(prior: Prior, tmp_path: Path) -> None:
    model, guide = bent(prior, 2)
    for program in (model, guide):
        program.float()
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(prior).items()}
    described = {"class_path": f"ppl_vae.models.{type(prior).__name__}", "init_args": options}
    network = {"class_path": "ppl_vae.networks.MLP", "init_args": {"hidden": [8]}}
    sizes: dict[str, Any] = {"data_shape": [4], "latent_dim": 2, "network": network}
    likelihood = {"class_path": "ppl_vae.likelihoods.Gaussian", "init_args": {"sigma": 0.5}}
    of_model = {**sizes, "prior": described, "likelihood": likelihood}
    config = {
        "model": {"class_path": "ppl_vae.models.VAE", "init_args": of_model},
        "guide": {"class_path": "ppl_vae.guides.MeanField", "init_args": sizes},
    }
    save_run(tmp_path / "run", model, guide, config=config)
    x = torch.rand(6, *SHAPE)
    expected = evaluate(model, guide, x, num_samples=20, seed=0)
    run = load_run(tmp_path / "run")
    found = evaluate(run.model, run.guide, x, num_samples=20, seed=0)
    assert torch.equal(found.log_likelihood.values, expected.log_likelihood.values)
    # A guide of one's own is introduced to the model that is built.
    other = MeanField(SHAPE, 2, NETWORK)
    again = load_run(tmp_path / "run", guide=other)
    found = evaluate(again.model, other, x, num_samples=20, seed=0)
    assert torch.equal(found.log_likelihood.values, expected.log_likelihood.values)


@pytest.mark.slow(but=("MixturePrior", "VampPrior", "AutoregressivePrior"))
@others
def test_arviz_export_draws_from_the_prior(prior: Prior) -> None:
    model, guide = bent(prior, 2)
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=100, seed=1)
    drawn = torch.as_tensor(exported["prior"]["z"].values).reshape(-1, 2)
    with torch.no_grad():
        expected = model.prior().sample((20_000,))
    error = expected.std(0) / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - expected.mean(0)).abs() < 5 * error).all())


# -- refit_prior -----------------------------------------------------------------------------------


def linear_pair() -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    """A linear VAE, its exact posterior, data, and mean and covariance of the aggregate posterior."""
    torch.manual_seed(0)
    x = torch.randn(400, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 1.0
    pca = ProbabilisticPCA(SHAPE, 2, sigma=0.8, learn_sigma=False).double()
    with torch.no_grad():
        pca.mean.copy_(x.mean(0) + 0.3)
    model: Any = VAE(SHAPE, 2, MLP(hidden=()), Gaussian(0.8)).double()
    with torch.no_grad():
        (linear,) = (m for m in model.decoder.modules() if isinstance(m, nn.Linear))
        linear.weight.copy_(pca.weight)
        linear.bias.copy_(pca.mean)
        w, s2 = pca.weight.detach(), 0.8**2
        inverse = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + w.T @ w / s2)
        gain = inverse @ w.T / s2
        mean = gain @ (x.mean(0) - pca.mean)
        covariance = gain @ torch.cov(x.T, correction=0) @ gain.T + inverse
    return model, Exact(pca), x, mean, covariance


def test_refitted_normal_has_the_moments_of_the_aggregate_posterior() -> None:
    model, guide, x, mean, covariance = linear_pair()
    before = copy.deepcopy(model.state_dict())
    refitted = refit_prior(model, guide, x, DiagonalNormal(), num_draws=2, seed=0)
    assert torch.allclose(refitted.prior().mean, mean, atol=1e-6)
    assert torch.allclose(refitted.prior().variance, covariance.diagonal(), rtol=1e-5)
    # The given model is as it was, and shares nothing with the new one.
    assert isinstance(model.prior(), dist.Independent)
    assert not list(model.prior.parameters())
    with torch.no_grad():
        for parameter in refitted.parameters():
            parameter.add_(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "prior",
    [MixturePrior(1), pytest.param(FlowPrior(2, (16,)), marks=pytest.mark.slow)],
    ids=["mixture", "flow"],
)
def test_refitted_by_draws(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    """One component has the moments; a flow, the whole Gaussian of aggregate covariance."""
    monkeypatch.setattr(flow_prior, "_STEPS", 400)
    model, guide, x, mean, covariance = linear_pair()
    refitted = refit_prior(model, guide, x, prior, num_draws=20, seed=0)
    with torch.no_grad():
        z = refitted.prior().sample((20_000,))
    error = covariance.diagonal().sqrt() / 400**0.5
    assert bool(((z.mean(0) - mean).abs() < 1.5 * error).all())
    found = torch.cov(z.T)
    assert torch.allclose(found.diagonal(), covariance.diagonal(), rtol=0.1)
    if isinstance(prior, FlowPrior):
        scale = float(covariance.diagonal().prod().sqrt())
        assert abs(float(covariance[0, 1])) > 0.2 * scale  # something to tell it from the mixture
        assert float(found[0, 1]) == pytest.approx(float(covariance[0, 1]), abs=0.1 * scale)


def test_refitted_mixture_finds_separate_codes() -> None:
    """A guide whose posteriors are two narrow clusters: weights, means and scales are known."""

    class Clusters(nn.Module):
        def encode(self, x: Tensor) -> dist.Independent:
            side = 3 * torch.sign(x[..., :1] - 0.25)
            loc = torch.cat([side, -side], -1)
            return dist.Independent(dist.Normal(loc, 0.5), 1)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.encode(x))

    model: Any = VAE(SHAPE, 2, NETWORK, Gaussian(0.5))
    x = torch.arange(2000).remainder(4).eq(0).float().unsqueeze(1).expand(-1, 4)
    refitted = refit_prior(model, Clusters(), x, MixturePrior(2), seed=0)
    p = refitted.prior()
    order = p.component_distribution.mean[:, 0].argsort()
    weights = p.mixture_distribution.probs[order]
    assert torch.allclose(weights, torch.tensor([0.75, 0.25]), atol=1e-3)
    means = p.component_distribution.mean[order]
    assert torch.allclose(means, torch.tensor([[-3.0, 3.0], [3.0, -3.0]]), atol=0.03)
    scales = p.component_distribution.variance.sqrt()
    assert torch.allclose(scales, torch.full((2, 2), 0.5), atol=0.02)


def test_refit_raises_the_elbo_of_its_rows_by_the_marginal_kl() -> None:
    """rate = information + KL(q(z) || p(z)): a perfect prior takes the second part away."""
    model, guide, x, mean, covariance = linear_pair()
    q_z = dist.MultivariateNormal(mean, covariance)
    before = evaluate(model, guide, x, num_samples=400, method="guide", seed=0)
    after = evaluate(
        refit_prior(model, guide, x, DiagonalNormal()),
        guide,
        x,
        num_samples=400,
        method="guide",
        seed=0,
    )
    best = dist.Normal(mean, covariance.diagonal().sqrt()).to_event(1)
    standard = dist.Normal(torch.zeros_like(mean), 1.0).to_event(1)
    # E_q(z) log p(z) of a Gaussian depends on the moments of q(z) alone, whose own entropy cancels.
    gain = kl_divergence(q_z, standard) - kl_divergence(q_z, best)
    assert float(gain) > 0.01
    assert after.elbo.mean - before.elbo.mean == pytest.approx(float(gain), abs=0.02)
    assert after.distortion.mean == pytest.approx(before.distortion.mean, abs=1e-6)


def test_refit_says_what_it_cannot_do() -> None:
    model, guide = pair(None)
    x = torch.rand(20, *SHAPE)
    with pytest.raises(TypeError, match=r"VampPrior cannot be fitted"):
        refit_prior(model, guide, x, VampPrior(3))
    with pytest.raises(ValueError, match="num_draws"):
        refit_prior(model, guide, x, DiagonalNormal(), num_draws=1)
    pca = ProbabilisticPCA(SHAPE, 2)
    with pytest.raises(TypeError, match="ProbabilisticPCA has no such module"):
        refit_prior(pca, guide, x, DiagonalNormal())


def test_refit_of_a_vamp_model_lets_go_of_the_guide() -> None:
    model, guide = pair(VampPrior(4))
    x = torch.rand(30, *SHAPE)
    state = torch.get_rng_state()
    refitted = refit_prior(model, guide, x, MixturePrior(2), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(n for n, _ in refitted.prior.named_parameters()) == ["loc", "logits", "raw_scale"]
    assert refitted.training == model.training
    assert torch.isfinite(evaluate(refitted, guide, x, num_samples=10).elbo.values).all()
    assert torch.isfinite(diagnose(refitted, guide, x).kl).all()
