"""A guide and the noise of p(x | z) for a decoder that stays as it is."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import catalogue
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import yaml
from ranks import Ranks
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainings import scripted

from ppl_vae import evaluate, fit, refit_guide
from ppl_vae.capture import recording, step as capture_step
from ppl_vae.checks import PairWarning
from ppl_vae.cli import main
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood, OptimalGaussian
from ppl_vae.models import VAE, VAEGAN, ConditionalVAE, ProbabilisticPCA, VampPrior
from ppl_vae.networks import MLP, AutoregressiveDecoder, Convolutional, Labels
from ppl_vae.objectives import GANLoss
from ppl_vae.pairs import PairError
from ppl_vae.runtime import make_fabric, read_tensors
from ppl_vae.training import require_noise

# Short trainings end before that; a test of its own asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:the noise had not settled")

SIZE, LATENTS, NOISE = 12, 2, 0.4
LINEAR = MLP(hidden=())


class Posterior(nn.Module):
    """N(m, V), V = (I + W^T W / s^2)^-1, m = V W^T (x - b) / s^2, of the decoder as it is now."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(LATENTS))
        self._model = [model]  # not a part of the guide

    def forward(self, x: Tensor) -> None:
        model = self._model[0]
        w, b = map(Tensor.detach, weights_of(model))
        s2 = model.likelihood.sigma**2
        precision = torch.eye(LATENTS) + w.T @ w / s2
        mean = torch.linalg.solve(precision, w.T @ (x - b).T / s2).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean + self.shift, precision_matrix=precision))


def weights_of(model: Any) -> tuple[Tensor, Tensor]:
    (layer,) = [part for part in model.decoder.modules() if isinstance(part, nn.Linear)]
    assert layer.bias is not None
    return layer.weight, layer.bias


def log_p_of(w: Tensor, residuals: Tensor, sigma: float) -> Tensor:
    """log p(x) of a linear decoder, N(x - b; 0, W W^T + s^2 I)."""
    w = w.detach().double()
    covariance = w @ w.T + sigma**2 * torch.eye(SIZE, dtype=torch.float64)
    zeros = torch.zeros(SIZE, dtype=torch.float64)
    log_p: Tensor = MultivariateNormal(zeros, covariance).log_prob(residuals.double())
    return log_p


def exact_of(model: Any, x: Tensor, sigma: float) -> Tensor:
    w, b = weights_of(model)
    return log_p_of(w, x - b.detach(), sigma)


def best_sigma(model: Any, x: Tensor) -> float:
    """The one of largest log p(x) for W and b as they are."""
    w, b = weights_of(model)
    return best_for(w, x - b.detach())


def best_for(w: Tensor, residuals: Tensor) -> float:
    found = minimize_scalar(
        lambda log_sigma: -float(log_p_of(w, residuals, math.exp(log_sigma)).mean()),
        bounds=(-3.0, 3.0),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


def gan() -> VAEGAN:
    return VAEGAN((SIZE,), LATENTS, LINEAR, discriminator=MLP(hidden=(8,)))


def vae(likelihood: Likelihood) -> VAE:
    return VAE((SIZE,), LATENTS, LINEAR, likelihood)


def linear(model: VAE | VAEGAN) -> tuple[Any, Tensor]:
    """A model with a linear decoder, and rows of another one: W is not the best for them."""
    torch.manual_seed(0)
    w, b = weights_of(model)
    with torch.no_grad():
        w.copy_(torch.randn(w.shape))
        b.copy_(torch.randn(b.shape))
        other = w + 0.3 * torch.randn(w.shape)
        x = torch.randn(200, LATENTS) @ other.T + b + NOISE * torch.randn(200, SIZE)
    return model, x


@pytest.mark.parametrize("kind", ["GAN", "OptimalGaussian", "LearnedGaussian"])
@pytest.mark.parametrize("first", [0.05, 3.0])
def test_with_the_posterior_it_is_that_of_largest_log_p(kind: str, first: float) -> None:
    likelihoods = {"OptimalGaussian": OptimalGaussian, "LearnedGaussian": LearnedGaussian}
    model, x = linear(gan() if kind == "GAN" else vae(likelihoods[kind]()))
    model.likelihood.set_sigma(first)
    best = best_sigma(model, x)
    assert best > 1.2 * NOISE  # W leaves out something of the rows
    # The posterior follows the noise by itself: each of the four times is a step of EM.
    options: dict[str, Any] = {"max_epochs": 5, "batch_size": 50, "learning_rate": 1e-9}
    fitted = refit_guide(model, Posterior(model), x, fit_noise=True, seed=0, **options)
    found = float(model.likelihood.sigma)
    assert found == pytest.approx(best, rel=0.01)
    assert fitted.history[0]["sigma"] == pytest.approx(first)
    assert fitted.history[-1]["sigma"] == pytest.approx(found)
    seen = evaluate(model, fitted.guide, x, num_samples=10, seed=1)
    exact = exact_of(model, x, best)
    assert seen.log_likelihood.mean == pytest.approx(float(exact.mean()), abs=0.01)
    assert seen.elbo.mean == pytest.approx(float(exact.mean()), abs=0.05)


@pytest.mark.slow
def test_with_a_guide_that_is_trained() -> None:
    model, x = linear(gan())
    guide = FullCovariance((SIZE,), LATENTS, LINEAR)
    options: dict[str, Any] = {"max_epochs": 60, "batch_size": 50, "learning_rate": 0.05}
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    plain: Any = copy.deepcopy(model)
    fitted = refit_guide(model, guide, x, fit_noise=True, seed=0, **options)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, kept[n])}
    assert changed == {"likelihood.variance"}
    best = best_sigma(model, x)
    assert float(model.likelihood.sigma) == pytest.approx(best, rel=0.03)
    found = evaluate(model, guide, x, num_samples=100, seed=1).log_likelihood.mean
    assert found == pytest.approx(float(exact_of(model, x, best).mean()), abs=0.03)
    # The noise that was there, 1, costs more.
    refit_guide(plain, FullCovariance((SIZE,), LATENTS, LINEAR), x, seed=0, max_epochs=2)
    assert float(plain.likelihood.sigma) == 1.0
    assert found > float(exact_of(plain, x, 1.0).mean()) + 1
    assert fitted.model is model


def test_nothing_else_of_a_gan_changes() -> None:
    torch.manual_seed(0)
    network = Convolutional(channels=(4, 8), hidden=8)
    model = VAEGAN((1, 8, 8), 2, network, discriminator=MLP(hidden=(8,)))
    x = torch.rand(64, 1, 8, 8)
    fit(model, MeanField((1, 8, 8), 2, network), x, objective=GANLoss(), max_epochs=2, seed=0)
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.decoder.modules())
    z = torch.randn(5, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    means = model.eval().decode(z).mean
    model.train()
    needs = [p.requires_grad for p in model.parameters()]
    guide = MeanField((1, 8, 8), 2, network)
    refit_guide(model, guide, x, fit_noise=True, max_epochs=3, batch_size=16, seed=0)
    after = model.state_dict()
    assert {n for n in before if not torch.equal(after[n], before[n])} == {"likelihood.variance"}
    assert model.training
    assert model.likelihood.training
    assert [p.requires_grad for p in model.parameters()] == needs
    assert torch.equal(model.eval().decode(z).mean, means)


@pytest.mark.parametrize("likelihood", [LearnedGaussian, OptimalGaussian])
def test_recorded_steps_and_those_of_pyro_find_the_same(
    likelihood: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Mock(wraps=recording.record)
    monkeypatch.setattr(capture_step, "RECORD_AFTER", 0)
    monkeypatch.setattr(capture_step, "record", recorded)
    found = []
    for capture in (True, False):
        model, x = linear(vae(likelihood()))
        guide = MeanField((SIZE,), LATENTS, LINEAR)
        options: dict[str, Any] = {"max_epochs": 4, "batch_size": 50, "capture": capture}
        found.append(refit_guide(model, guide, x, fit_noise=True, seed=0, **options).history)
        assert recorded.call_count > 0
    one, other = ([{n: v for n, v in row.items() if n != "seconds"} for row in h] for h in found)
    assert one == other
    assert len({row["sigma"] for row in one}) == 4


def test_early_stopping_counts_from_the_last_update_on(tmp_path: Path) -> None:
    """Also if a training that has ended goes on with more epochs, and so with more updates."""
    model, x = linear(gan())
    model.likelihood.set_sigma(3.0)
    guide, best = Posterior(model), best_sigma(model, x)
    options: dict[str, Any] = {"batch_size": 50, "learning_rate": 1e-9, "validation": x[:20]}
    options |= {"fit_noise": True, "patience": 1, "run_dir": tmp_path}
    short = refit_guide(model, guide, x, seed=0, max_epochs=3, **options)
    assert short.best_epoch == 3
    fitted = refit_guide(model, guide, x, max_epochs=30, resume=True, **options)
    # Before the epochs after 6, 12, 18 and 24 ones.
    assert fitted.best_epoch > 24
    assert fitted.epochs == fitted.best_epoch + 1 < 30
    assert fitted.stopped.startswith("no better held-out ELBO")
    since = [row["validation_elbo"] for row in fitted.history[24:]]
    assert since[fitted.best_epoch - 25] == max(since)
    assert float(model.likelihood.sigma) == pytest.approx(fitted.history[24]["sigma"])
    assert float(model.likelihood.sigma) == pytest.approx(best, rel=0.01)


def test_a_plateau_is_one_of_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ELBO is lower after each update, and rises between them: no sign that a step is too long."""
    model, x = linear(gan())
    scripted(monkeypatch, [-1.0, -0.5, -5.0, -4.0, -9.0, -8.0, -8.5, -7.0, -9.0, -8.0])
    options: dict[str, Any] = {"batch_size": 50, "learning_rate": 1.0, "validation": x[:20]}
    options |= {"lr_scheduler": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5)}
    how = {"optimizer": torch.optim.SGD, "clip_grad_norm": 1e-6, "max_epochs": 10, "seed": 0}
    fitted = refit_guide(model, Posterior(model), x, fit_noise=True, **options, **how)
    # Before the epochs 3, 5, 7 and 9: nothing falls between two of them.
    assert [row["learning_rate"] for row in fitted.history] == [1.0] * 10


def test_it_says_whether_the_noise_has_settled() -> None:
    model, x = linear(gan())
    model.likelihood.set_sigma(3.0)
    options: dict[str, Any] = {
        "fit_noise": True,
        "batch_size": 50,
        "learning_rate": 1e-9,
        "seed": 0,
    }
    with pytest.warns(PairWarning, match="had not settled"):
        fitted = refit_guide(model, Posterior(model), x, max_epochs=2, **options)
    after = float(model.likelihood.sigma)
    told = f"the last update changed sigma from 3 to {after:.3g}; give more max_epochs"
    assert fitted.warnings == (f"the noise had not settled: {told}",)
    assert refit_guide(model, Posterior(model), x, max_epochs=5, **options).warnings == ()


class Number(nn.Module):
    """Rows that are single numbers, N(2 z, s^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = OptimalGaussian()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2 * z, self.likelihood.sigma), obs=x)


class OfNumber(nn.Module):
    """Its posterior, N(2 x / (4 + s^2), s^2 / (4 + s^2))."""

    def __init__(self, model: Number) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))
        self._model = [model]

    def forward(self, x: Tensor) -> None:
        s2 = self._model[0].likelihood.variance
        with pyro.plate("data", len(x)):
            q = dist.Normal(2 * x / (4 + s2) + self.shift, (s2 / (4 + s2)).sqrt())
            pyro.sample("z", q)


def test_rows_may_be_single_numbers() -> None:
    """The M step: the mean of (x - 2 m)^2 + 4 v."""
    torch.manual_seed(0)
    x = 2.5 * torch.randn(4000)
    model = Number()
    model.likelihood.set_sigma(3.0)
    expected = (9 / 13) ** 2 * float(x.square().mean()) + 4 * 9 / 13
    options: dict[str, Any] = {
        "max_epochs": 2,
        "batch_size": 2000,
        "learning_rate": 1e-9,
        "seed": 0,
    }
    refit_guide(model, OfNumber(model), x, fit_noise=True, **options)
    assert float(model.likelihood.variance) == pytest.approx(expected, rel=0.03)


class OfLabelled(nn.Module):
    """The posterior of a linear decoder of z and a label."""

    def __init__(self, model: ConditionalVAE, w: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(LATENTS))
        self._model, self._w = [model], w

    def forward(self, x: Tensor, c: Tensor) -> None:
        model, w = self._model[0], self._w
        b = model.decode(torch.zeros(len(x), LATENTS), c).mean.detach()
        s2 = model.likelihood.sigma**2  # type: ignore[operator]
        precision = torch.eye(LATENTS) + w.T @ w / s2
        mean = torch.linalg.solve(precision, w.T @ (x - b).T / s2).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean + self.shift, precision_matrix=precision))


def test_what_a_model_is_given_is_left_out() -> None:
    torch.manual_seed(0)
    model = ConditionalVAE((SIZE,), LATENTS, LINEAR, OptimalGaussian(), context=Labels(3))
    for parameter in model.decoder.parameters():
        nn.init.normal_(parameter)
    c = torch.arange(200) % 3
    with torch.no_grad():
        z, unit = torch.randn(200, LATENTS), torch.eye(LATENTS)
        x = model.decode(z, c).mean
        x = x + NOISE * torch.randn(x.shape) + 0.3 * torch.randn(200, 1)
        none = model.decode(torch.zeros(200, LATENTS), c).mean
        w = (model.decode(unit, c[:1].expand(LATENTS)).mean - none[0]).T
        assert torch.allclose(none + z @ w.T, model.decode(z, c).mean, atol=1e-4)
    assert not torch.allclose(none[0], none[1])
    options: dict[str, Any] = {"max_epochs": 5, "batch_size": 50, "learning_rate": 1e-9, "seed": 0}
    refit_guide(model, OfLabelled(model, w), (x, c), fit_noise=True, **options)
    assert float(model.likelihood.sigma) == pytest.approx(best_for(w, x - none), rel=0.01)  # type: ignore[arg-type]


def test_a_model_that_is_made_of_its_guide() -> None:
    """The M step of q(z | x) = N(m, v): the mean of |x - W m - b|^2 + sum_ij W_ij^2 v_j, over D."""
    torch.manual_seed(0)
    prior = VampPrior(components=3)
    model, x = linear(VAE((SIZE,), LATENTS, LINEAR, OptimalGaussian(), prior=prior))
    model.prior.attach_guide(MeanField((SIZE,), LATENTS, LINEAR))
    other = MeanField((SIZE,), LATENTS, LINEAR)
    refit_guide(model, other, x, max_epochs=1, seed=0)  # keeps its guide from here on
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"max_epochs": 2, "batch_size": 50, "learning_rate": 1e-9, "seed": 0}
    refit_guide(model, other, x, fit_noise=True, **options)
    after = model.state_dict()
    assert {n for n in before if not torch.equal(after[n], before[n])} == {"likelihood.variance"}
    w, b = map(Tensor.detach, weights_of(model))
    q: Any = poutine.trace(other).get_trace(x).nodes["z"]["fn"]
    errors = (x - q.mean @ w.T - b).square().sum(1) + (q.variance @ w.T.square()).sum(1)
    expected = float(errors.mean().detach()) / SIZE
    assert float(model.likelihood.variance) == pytest.approx(expected, rel=0.03)


CALLS = [0]


def stopping(x: Tensor) -> Tensor:
    """Leaves rows as they are, and stops a training after some batches."""
    CALLS[0] -= 1
    if not CALLS[0]:
        raise KeyboardInterrupt
    return x


@pytest.mark.parametrize("kind", [OptimalGaussian, LearnedGaussian])
def test_after_an_error_all_is_as_trainable_as_before(kind: Any) -> None:
    model, x = linear(vae(kind()))
    model.decoder.eval()
    weights_of(model)[1].requires_grad_(False)
    guide = MeanField((SIZE,), LATENTS, LINEAR)

    def state() -> tuple[list[bool], list[bool]]:
        parts, weights = model.modules(), model.parameters()
        return [part.training for part in parts], [p.requires_grad for p in weights]

    before = state()
    assert {*before[0]} == {*before[1]} == {True, False}
    model.likelihood.set_sigma(3.0)
    CALLS[0] = 16  # the noise was found before
    options: dict[str, Any] = {"max_epochs": 5, "batch_size": 50, "transform": stopping}
    with pytest.raises(KeyboardInterrupt):
        refit_guide(model, guide, x, fit_noise=True, seed=0, **options)
    assert float(model.likelihood.sigma) < 2.9
    assert not CALLS[0]
    assert state() == before


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        pytest.param("GAN", 8, marks=pytest.mark.slow),
        ("GAN", 12),
        pytest.param("GAN", 30, marks=pytest.mark.slow),
        ("LearnedGaussian", 30),
    ],
)
def test_a_refit_that_was_stopped_goes_on_with_the_noise_that_it_had(
    kind: str, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.training.checkpoints.CHECKPOINT_SECONDS", (0.0, 0.0))
    model, x = linear(gan() if kind == "GAN" else vae(LearnedGaussian()))
    torch.manual_seed(1)
    guide = MeanField((SIZE,), LATENTS, LINEAR)
    options: dict[str, Any] = {"max_epochs": 5, "batch_size": 50, "transform": stopping}

    def refit(folder: str, **more: Any) -> Any:
        own = copy.deepcopy((model, guide))
        how = {"fit_noise": True, "run_dir": tmp_path / folder, **options, **more}
        return own[0], refit_guide(*own, x, **how)

    CALLS[0] = -1
    whole, all_of_it = refit("whole", seed=0)
    CALLS[0] = batches
    with pytest.raises(KeyboardInterrupt):
        refit("stopped", seed=0)
    CALLS[0] = -1
    with pytest.raises(ValueError, match="fit_noise"):
        refit("stopped", resume=True, fit_noise=False)
    resumed, rest = refit("stopped", resume=True)
    assert float(resumed.likelihood.sigma) == float(whole.likelihood.sigma)
    assert rest.warnings == all_of_it.warnings
    assert [row["elbo"] for row in rest.history] == [row["elbo"] for row in all_of_it.history]
    assert [row["sigma"] for row in rest.history] == [row["sigma"] for row in all_of_it.history]


def found_by(rank: int, count: int) -> float:
    """The noise that a process of several finds, which has its part of each batch."""
    model, x = linear(gan())
    options: dict[str, Any] = {"max_epochs": 5, "batch_size": 33, "learning_rate": 1e-9, "seed": 0}
    fabric = make_fabric("cpu", num_processes=count)
    refit_guide(model, Posterior(model), x, fit_noise=True, fabric=fabric, **options)
    return float(model.likelihood.sigma)


@pytest.mark.slow
def test_processes_find_the_noise_of_all_rows(tmp_path: Path) -> None:
    one, other = Ranks(lambda rank: found_by(rank, 2), tmp_path).end(60)
    assert one == other
    model, x = linear(gan())
    assert one == pytest.approx(best_sigma(model, x), rel=0.01)


class TwoSites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.likelihood = OptimalGaussian()

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


class OfBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * (x + y), 1.0))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
def test_likelihoods_without_a_noise_that_is_found_are_refused(likelihood: Likelihood) -> None:
    model, guide = vae(likelihood), MeanField((SIZE,), LATENTS, LINEAR)
    name = type(likelihood).__name__
    told = rf"finds the noise of OptimalGaussian\(\) and LearnedGaussian\(\), and VAE has {name}: leave"
    with pytest.raises(TypeError, match=told):
        refit_guide(model, guide, torch.rand(8, SIZE), fit_noise=True)


class Forgets(Gaussian):
    def set_sigma(self, sigma: float) -> None:
        self.sigma = sigma


class Several(OptimalGaussian):
    @property
    def sigma(self) -> Tensor:
        return torch.ones(2)


class Keeps(Gaussian):
    """One of one's own that has its noise in a buffer, and bounds."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__(1.0)
        del self.sigma
        self.register_buffer("kept", torch.tensor(0.7))

    def __getattr__(self, name: str) -> Any:
        return self.kept if name == "sigma" else super().__getattr__(name)

    def set_sigma(self, sigma: float) -> None:
        self.kept.fill_(min(sigma, 0.7))


def test_a_likelihood_of_ones_own_keeps_its_noise_in_its_state() -> None:
    guide, x = MeanField((SIZE,), LATENTS, LINEAR), torch.rand(8, SIZE)
    own = Forgets(0.3)
    with pytest.raises(TypeError, match="parameter or a buffer, and that of Forgets changes none"):
        refit_guide(vae(own), guide, x, fit_noise=True)
    assert own.sigma == 0.3
    with pytest.raises(TypeError, match="a number `sigma`, and Several has none"):
        require_noise(vae(Several()))
    for kept in (Keeps(), LearnedGaussian(0.3), OptimalGaussian()):
        before = copy.deepcopy(kept.state_dict())
        assert require_noise(vae(kept)) is kept
        assert all(torch.equal(value, before[n]) for n, value in kept.state_dict().items())


def test_a_decoder_that_reads_the_row_is_refused() -> None:
    network = AutoregressiveDecoder(MLP(hidden=(4,)), channels=2, layers=1, window=2)
    model = VAE((1, 4, 4), 2, network, LearnedGaussian())
    guide = MeanField((1, 4, 4), 2, MLP(hidden=(4,)))
    with pytest.raises(PairError, match=r"that of 'x' reads the row, too.*Leave fit_noise out"):
        refit_guide(model, guide, torch.rand(8, 1, 4, 4), fit_noise=True, max_epochs=2)


def test_what_does_not_suit_is_named() -> None:
    guide, x = MeanField((SIZE,), LATENTS, LINEAR), torch.rand(8, SIZE)
    with pytest.raises(TypeError, match="ProbabilisticPCA has no `likelihood`: leave"):
        refit_guide(ProbabilisticPCA((SIZE,), LATENTS), guide, x, fit_noise=True)
    with pytest.raises(ValueError, match="max_epochs of at least 2, got 1"):
        refit_guide(vae(OptimalGaussian()), guide, x, fit_noise=True, max_epochs=1)
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="fit_noise"):
        refit_guide(vae(OptimalGaussian()), guide, x, fit_noise=wrong)
    rows = (torch.randn(8), torch.randn(8))
    with pytest.raises(PairError, match=r"one observed site.*observes x, y"):
        refit_guide(TwoSites(), OfBoth(), rows, fit_noise=True, max_epochs=2)


def weights_in(folder: Path) -> dict[str, Tensor]:
    found = read_tensors(folder / "weights.safetensors")[0]
    return {name: value for name, value in found.items() if name.startswith("model.")}


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder, usual = (str(tmp_path / name) for name in ("gan", "noise", "usual"))
    bare = ("--posterior", "never", "--report", "false", "--quiet")
    small = (*catalogue.SMALL_RUN, *bare, "--max_epochs", "2")
    gan = ("--model", "VAEGAN", "--model.network.hidden", "[8]", "--objective", "GANLoss")
    elbo = ("--max_epochs", "3", *bare)
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main(["train", "--run_dir", run, *gan, *small]) == 0
        assert main(["refit", run, "--run_dir", folder, "--fit_noise", *elbo]) == 0
        assert yaml.safe_load((Path(folder) / "config.yaml").read_text())["fit_noise"] is True
        before, after = weights_in(Path(run)), weights_in(Path(folder))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"model.likelihood.variance"}
        with (Path(folder) / "metrics.csv").open() as lines:
            sigmas = [float(row["sigma"]) for row in csv.DictReader(lines)]
        assert sigmas[-1] ** 2 == pytest.approx(float(after["model.likelihood.variance"]))
        # A refit of it does so only if that is asked again; one that is resumed goes on with the noise.
        assert main(["refit", folder, "--run_dir", usual, *elbo]) == 0
        assert not yaml.safe_load((Path(usual) / "config.yaml").read_text()).get("fit_noise")
        kept = weights_in(Path(usual))["model.likelihood.variance"]
        assert torch.equal(kept, after["model.likelihood.variance"])
        assert main(["refit", "--resume", folder, "--max_epochs", "4", *bare]) == 0
        with (Path(folder) / "metrics.csv").open() as lines:
            again = [float(row["sigma"]) for row in csv.DictReader(lines)]
        assert again[:3] == sigmas
        assert len(again) == 4
        capsys.readouterr()
        counts = ("--model.network.hidden", "[8]")
        assert main(["train", "--run_dir", str(tmp_path / "vae"), *counts, *small]) == 0
        refused = ["refit", str(tmp_path / "vae"), "--run_dir", str(tmp_path / "no"), "--fit_noise"]
        assert main([*refused, *bare]) == 2
        told = "--fit_noise finds the noise of OptimalGaussian() and LearnedGaussian(), and VAE has Binomial"
        assert told in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
