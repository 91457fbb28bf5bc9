"""Autoencoders beside what is known exactly: PCA, ridge, Wiener filters, sparse coding, scores of mixtures."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from linear_autoencoders import SIZE, VARIANCES, Again, D, exact_rows, train
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import (
    check,
    diagnose,
    evaluate,
    fit,
    inference_gaps,
    load_run,
    refit_guide,
    refit_prior,
    save_run,
    to_arviz,
)
from ppl_vae.cli import main
from ppl_vae.diagnosis import posterior_grid
from ppl_vae.distributions import Flat
from ppl_vae.evaluation import annealed_importance_sampling
from ppl_vae.guides import DeltaEncoder, FullCovariance, MeanField
from ppl_vae.likelihoods import Bernoulli, Gaussian, LearnedGaussian, OptimalGaussian
from ppl_vae.models import (
    VAE,
    Autoencoder,
    DiagonalNormal,
    FlowPrior,
    FullNormal,
    LaplacePrior,
    MixturePrior,
    StandardNormal,
)
from ppl_vae.networks import (
    MLP,
    Convolutional,
    Denoising,
    GaussianNoise,
    MaskingNoise,
)
from ppl_vae.objectives import ELBO, MeanFieldELBO, TargetRate, WakeSleep
from ppl_vae.pairs import Pair, PairError, find_layout
from ppl_vae.runs import Comparison
from ppl_vae.tasks import encode, interpolate, outliers, reconstruct, sample, traverse


def linear_pair(size: int = SIZE, **options: Any) -> tuple[Any, DeltaEncoder]:
    torch.manual_seed(0)
    model: Any = Autoencoder((D,), size, linear=True, **options).double()
    return model, DeltaEncoder((D,), size, linear=True).double()


def matrices(model: Any, guide: Any) -> tuple[Tensor, Tensor]:
    """The weights of decoder and encoder."""
    return model.decoder.net[0].weight.detach(), guide.head.weight.detach()


def largest_angle(one: Tensor, two: Tensor) -> float:
    """Between the spaces that the columns of two matrices span; radians."""
    q, r = (torch.linalg.qr(part)[0] for part in (one, two))
    return float(torch.linalg.svdvals(q - r @ (r.T @ q)).max().clamp(max=1).asin())


def test_a_linear_autoencoder_finds_the_principal_components() -> None:
    """Its squared error is the sum of the eigenvalues that are left out (Baldi & Hornik, 1989)."""
    x, basis = exact_rows()
    model, guide = linear_pair()
    train(model, guide, x, 2000)
    weight, _ = matrices(model, guide)
    assert largest_angle(weight, basis[:, :SIZE]) < 1e-3
    error = (reconstruct(model, guide, x) - x).square().sum(1).mean()
    assert float(error) == pytest.approx(float(VARIANCES[SIZE:].sum()), rel=1e-5)
    # The distortion is half of it, and the constant of D normals.
    found = evaluate(model, guide, x, num_samples=2)
    constant = D / 2 * math.log(2 * math.pi)
    assert found.distortion.mean == pytest.approx(float(error) / 2 + constant, rel=1e-10)


DECAY = 1.0
"""Between the third eigenvalue and the fourth, which is left out."""


def decay_of_all(tensors: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(tensors, lr=lr, weight_decay=DECAY)


def decay_of_weights(tensors: Any, lr: float) -> torch.optim.Optimizer:
    """Of what has two dimensions, so that biases are free."""
    weights, biases = ([p for p in tensors if (p.dim() > 1) is it] for it in (True, False))
    groups: Any = [{"params": weights, "weight_decay": DECAY}, {"params": biases}]
    return torch.optim.Adam(groups, lr=lr)


@pytest.mark.slow(only=("0.0-decay_of_all",))
@pytest.mark.parametrize(
    ("mean", "optimizer"), [(0.0, decay_of_all), (2.0, decay_of_weights), (2.0, decay_of_all)]
)
def test_weight_decay_finds_the_directions_and_shrinks_them(mean: float, optimizer: Any) -> None:
    """W_2 = U (I - wd / Lambda)^(1/2) O and W_1 = W_2^T: "Loss Landscapes of Regularized Linear Autoencoders"
    (arXiv:1901.08168), where the sum of both squared norms is penalized, and rows have the mean 0."""
    x, basis = exact_rows()
    model, guide = linear_pair(4)
    has_closed_form = not mean or optimizer is decay_of_weights
    train(model, guide, x + mean, 2500 if has_closed_form else 500, optimizer=optimizer)
    weight, other = matrices(model, guide)
    left, sizes, _ = torch.linalg.svd(weight, full_matrices=False)
    expected = (1 - DECAY / VARIANCES[:4]).clamp_min(0).sqrt()
    if (
        mean and optimizer is decay_of_all
    ):  # biases that are shrunk leave a part of the mean to the weights
        assert float((sizes - expected).abs().max()) > 0.1
        return
    torch.testing.assert_close(weight, other.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(sizes, expected, atol=1e-3, rtol=0)
    # The left singular vectors are the directions themselves, not a basis of their span alone.
    torch.testing.assert_close(
        (left[:, :3].T @ basis[:, :3]).abs(), torch.eye(3).double(), atol=2e-3, rtol=0
    )


def test_a_linear_denoiser_is_the_wiener_filter() -> None:
    """W = S (S + s^2 I)^-1 has no gradient in expectation, and the loss that it should; training finds it."""
    x, basis = exact_rows()
    s = 0.7
    covariance = basis * VARIANCES @ basis.T
    best = basis * (VARIANCES / (VARIANCES + s**2)) @ basis.T
    network = Denoising(MLP(hidden=()), noise=s)
    torch.manual_seed(0)
    model: Any = Autoencoder((D,), D, linear=True).double()
    guide = DeltaEncoder((D,), D, network).double()
    with torch.no_grad():
        for layer, weight in ((guide.head, best), (model.decoder.net[0], torch.eye(D).double())):
            layer.weight.copy_(weight)
            layer.bias.zero_()
    rows = x.repeat(2000, 1)
    guide.train()
    residuals = model.decode(guide.encode(rows).mean).mean - rows
    least = (torch.eye(D).double() - best) @ covariance  # E of the residuals' squares: tr (I - W) S
    squares = residuals.square().sum(1)
    error = float(squares.detach().std()) / math.sqrt(len(rows))
    assert abs(float(squares.detach().mean()) - float(least.trace())) < 4 * error
    gradient = torch.autograd.grad(squares.mean(), guide.head.weight)[0]
    assert float(gradient.abs().max()) < 0.02
    with torch.no_grad():
        guide.head.weight.mul_(0.5)
    train(model, guide, x.repeat(64, 1), 600)
    weight, other = matrices(model, guide.eval())
    torch.testing.assert_close(weight @ other, best, atol=0.03, rtol=0)
    torch.testing.assert_close(guide.encode(x).mean, x @ other.T + guide.head.bias)  # without noise


def test_the_noise_of_denoising() -> None:
    noise, mask = GaussianNoise(0.5), MaskingNoise(0.25, value=-1.0)
    x = torch.full((100_000,), 2.0)
    torch.manual_seed(0)
    assert float(noise(x).std()) == pytest.approx(0.5, abs=0.005)
    masked = mask(x)
    assert {*masked.tolist()} == {2.0, -1.0}
    assert float((masked == -1).double().mean()) == pytest.approx(0.25, abs=0.006)
    for part in (noise, mask):
        assert part.eval()(x) is x
    both: Any = Denoising(MLP(hidden=(4,)), noise=0.5, masking=0.5).encoder((3,))
    assert len(both.corruptions) == 2
    counts = torch.arange(5)
    assert noise.train()(counts).is_floating_point()


@pytest.mark.slow
def test_a_denoiser_knows_the_score_of_a_mixture() -> None:
    """(r(x') - x') / s^2 = grad log p_s(x'), the score of the corrupted rows (Vincent, 2011)."""
    s, means = 0.5, torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]])
    p = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.5, 0.3, 0.2])),
        dist.Normal(means, 0.3).to_event(1),
    )
    corrupted = dist.MixtureSameFamily(
        p.mixture_distribution, dist.Normal(means, math.hypot(0.3, s)).to_event(1)
    )
    torch.manual_seed(0)
    x = p.sample((20_000,))
    network = Denoising(MLP(hidden=(64, 64), activation=nn.SiLU), noise=s)
    model, guide = Autoencoder((2,), 16, network), DeltaEncoder((2,), 16, network)
    fit(
        *(model, guide, x),
        max_epochs=40,
        batch_size=500,
        learning_rate=3e-3,
        lr_scheduler=partial(CosineAnnealingLR, T_max=40),
        seed=0,
        progress=False,
    )
    points = corrupted.sample((2000,)).requires_grad_()
    (score,) = torch.autograd.grad(corrupted.log_prob(points).sum(), points)
    found = (reconstruct(model, guide, points.detach()) - points.detach()) / s**2
    wrong = (found - score).square().sum(1).mean() / score.square().sum(1).mean()
    assert float(wrong) < 0.01


NOT_DEFINED = ("ELBO, log p(x)", "not defined")


def pyro_pair() -> tuple[Any, Any]:
    """An autoencoder as a stranger writes it, in plain Pyro."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(D, 2), nn.Linear(2, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.ImproperUniform(constraints.real_vector, (), (2,)))
            pyro.sample("obs", dist.Normal(decoder(code), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            pyro.sample("code", dist.Delta(encoder(x), event_dim=1))

    return model, guide


def our_pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return Autoencoder((D,), 2, linear=True), DeltaEncoder((D,), 2, linear=True)


@pytest.mark.parametrize("pair", [pyro_pair, our_pair])
def test_no_number_looks_like_a_bound(pair: Any) -> None:
    x, _ = exact_rows()
    x = x.float()
    model, guide = pair()
    assert check(model, guide, x).ok
    fitted = fit(model, guide, x, validation=x, patience=5, max_epochs=20, seed=0, progress=False)
    for row in fitted.history:
        assert not {"elbo", "rate", "validation_elbo", "validation_rate"} & row.keys()
        assert row["validation_distortion"] > 0
    assert repr(fitted).startswith("Fit(distortion=")
    assert "ELBO, " not in fitted._repr_html_()
    model, guide = fitted.model, fitted.guide
    found = evaluate(model, guide, x, num_samples=10)
    lines = found.lines()
    assert [name for name, _ in lines] == ["distortion", NOT_DEFINED[0]]
    assert NOT_DEFINED in lines
    for number in (found.elbo, found.rate, found.log_likelihood):
        assert bool(number.values.isnan().all())
        assert str(number).startswith("not defined, because p(z) of")
    assert [w for w in found.warnings if "is improper" in w] == list(found.warnings)
    summary = found.to_dict()
    assert not {"elbo", "rate"} & summary.keys()
    assert math.isnan(summary["log_likelihood"]["mean"])
    # The distortion is the same as by hand.
    by_hand = -dist.Normal(reconstruct(model, guide, x), 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(found.distortion.values.float(), by_hand, atol=1e-4, rtol=0)
    worst = outliers(model, guide, x, num=3, seed=0)
    assert worst.table()[0] == ["row", "distortion"]
    assert worst.index.tolist() == by_hand.argsort(descending=True)[:3].tolist()
    for call in (
        partial(sample, model, 3, like=x),
        partial(annealed_importance_sampling, model, None, x[:2]),
    ):
        with pytest.raises(PairError, match="is improper, as an autoencoder's is"):
            call()


def test_what_follows_a_training() -> None:
    x, _ = exact_rows()
    x = x.float()
    model, guide = our_pair()
    z = encode(model, guide, x)["z"]
    torch.testing.assert_close(z, guide.encode(x).mean)
    given = sample(model, 3, given={"z": z[:3]}, means=True)
    torch.testing.assert_close(given, model.decode(z[:3]).mean)
    path = interpolate(model, guide, x[:2], x[2:4], steps=3)
    torch.testing.assert_close(path[:, 1], model.decode((z[:2] + z[2:4]) / 2).mean)
    moved = traverse(model, guide, x, 1, steps=3)
    there = z.clone()
    there[:, 1] = z[:, 1].mean() + 3 * z[:, 1].std()
    torch.testing.assert_close(moved[:, 2], model.decode(there).mean, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="give it two rows or more"):
        traverse(model, guide, x[:1], 1)


LIKELIHOODS = (Gaussian(0.5), LearnedGaussian(0.7), OptimalGaussian())


DENSITIES = (DiagonalNormal(), FullNormal(), MixturePrior(3))


@pytest.mark.parametrize("prior", DENSITIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda p: type(p).__name__)
def test_a_density_of_linear_codes_has_an_exact_evidence(prior: Any, likelihood: Any) -> None:
    """N(W m + b, W C W^T + sigma^2 I), and sums of these."""
    x, _ = exact_rows()
    model, guide = linear_pair(2, likelihood=likelihood)
    refitted = refit_prior(model, guide, x, prior, seed=0)
    weight, _ = matrices(model, guide)
    bias = model.decoder.net[0].bias.detach()
    p = refitted.prior()
    sigma2 = (
        model.decode(torch.zeros(1, 2).double()).variance[0, 0].detach() * torch.eye(D).double()
    )

    def normal(mean: Tensor, covariance: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(
            weight @ mean + bias, weight @ covariance @ weight.T + sigma2
        )

    if isinstance(prior, MixturePrior):
        parts, weights = p.component_distribution, p.mixture_distribution.logits.log_softmax(0)
        both = zip(parts.mean.double(), parts.variance.double(), strict=True)
        logs = [normal(mean, variance.diag()).log_prob(x) for mean, variance in both]
        expected = (torch.stack(logs) + weights[:, None]).logsumexp(0)
    else:
        z = guide.encode(x).mean.detach()
        covariance = torch.cov(z.T, correction=0)
        if isinstance(prior, DiagonalNormal):
            covariance = covariance.diag().diag()
        expected = normal(z.mean(0), covariance).log_prob(x)
    torch.testing.assert_close(refitted.log_evidence(x), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.slow(only=("FullNormal",))
@pytest.mark.parametrize("prior", [FullNormal(), MixturePrior(3)], ids=lambda p: type(p).__name__)
def test_what_evaluate_says_of_a_density_is_its_exact_evidence(prior: Any) -> None:
    """By importance samples of a guide that is trained for it: of normals it may be the posterior itself."""
    x, _ = exact_rows()
    model, guide = linear_pair(2, likelihood=Gaussian(0.7))
    train(model, guide, x, 150)
    refitted: Any = refit_prior(model, guide, x, prior, seed=0)
    exact = refitted.log_evidence(x).detach()
    sampling = FullCovariance((D,), 2, MLP(hidden=())).double()
    steps: dict[str, Any] = {"max_epochs": 8, "learning_rate": 0.05, "progress": False}
    schedule = partial(CosineAnnealingLR, T_max=8)
    refit_guide(refitted, sampling, Again(x), lr_scheduler=schedule, seed=0, **steps)
    found = evaluate(refitted, sampling, x, num_samples=500, seed=0, progress=False)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=0.15, rtol=0)
    assert found.log_likelihood.mean == pytest.approx(float(exact.mean()), abs=0.02)
    assert not bool(found.unreliable.any())
    gap = float(exact.mean()) - found.elbo.mean
    assert -0.02 < gap < (0.02 if isinstance(prior, FullNormal) else 0.1)


def test_where_there_is_no_closed_form() -> None:
    x = torch.zeros(4, 3)
    for model, told in (
        (Autoencoder((3,), 2), "only if its decoder is linear"),
        (Autoencoder((3,), 2, linear=True), "and p.z. is Flat"),
        (Autoencoder((3,), 2, linear=True, prior=LaplacePrior()), "and p.z. is Laplace"),
        (Autoencoder((3,), 2, linear=True, likelihood=Bernoulli()), "not Bernoulli"),
        (Autoencoder((3,), 2, linear=True, prior=FlowPrior()), "and p.z. is FlowDistribution"),
    ):
        with pytest.raises(ValueError, match=told):
            model.log_evidence(x)


def test_a_full_normal_has_the_moments_of_the_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 50, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    prior: Any = FullNormal().build((5,), 3)
    assert float(prior().log_prob(torch.zeros(3)).detach()) == pytest.approx(
        -1.5 * math.log(2 * math.pi)
    )
    prior.fit_to(draws.mean(0), draws.var(0), draws)
    z = draws.flatten(0, 1)
    torch.testing.assert_close(prior().mean, z.mean(0))
    covariance = torch.cov(z.T, correction=0)
    torch.testing.assert_close(prior().covariance_matrix.detach(), covariance, atol=1e-4, rtol=1e-4)
    # A number that never varies is no obstacle.
    prior.fit_to(draws.mean(0), draws.var(0), draws * torch.tensor([1.0, 0.0, 1.0]))
    assert bool(prior().log_prob(z).isfinite().all())


def test_a_point_with_a_density_of_its_codes_is_no_bound() -> None:
    """log p(x, z) at the point exceeds log p(x), so that it is not called an ELBO."""
    x, _ = exact_rows()
    model, guide = linear_pair(2, likelihood=Gaussian(0.05))
    train(model, guide, x, 300)
    refitted = refit_prior(model, guide, x, FullNormal(), seed=0)
    found = evaluate(refitted, guide, x, num_samples=10)
    assert [name for name, _ in found.lines()] == [
        "log p(x, z), at the point",
        "-log p(z)",
        "distortion",
        "log p(x)",
    ]
    assert found.at_points
    assert found.elbo.mean > float(refitted.log_evidence(x).detach().mean()) + 1
    assert found.log_likelihood.missing.startswith("not defined, because the guide gives a point")


def test_diagnose_counts_the_units_that_are_used() -> None:
    """The worth of a principal component is half of its variance, in units of the noise."""
    x, _ = exact_rows()
    model, guide = linear_pair(D)
    values, basis = torch.linalg.eigh(x.T @ x / len(x))
    with torch.no_grad():
        guide.head.weight.copy_(basis.T)
        model.decoder.net[0].weight.copy_(basis)
        for layer in (guide.head, model.decoder.net[0]):
            layer.bias.zero_()
        guide.head.weight[0].zero_()  # dead
        model.decoder.net[0].weight[:, 1].zero_()  # not read
    found = diagnose(model, guide, x)
    worth = torch.tensor([use.worth for use in found.of_points], dtype=torch.float64)
    torch.testing.assert_close(worth[2:], values[2:] / 2)
    assert worth[:2].tolist() == [0.0, pytest.approx(0.0, abs=1e-9)]
    assert found.active_units == D - 2
    assert found.causes["z[0]"].name == "dead units"
    assert found.causes["z[1]"].name == "units without worth"
    assert ("numbers of the code in use", f"{D - 2} of {D}") in found.lines()
    assert bool(found.kl.isnan().all())
    assert found.mutual_information.missing


def test_a_number_that_only_harms_is_worth_nothing() -> None:
    """The distortion falls without it, so that it does not rise by a negative number."""
    x = exact_rows()[0].float()
    model, guide = our_pair()
    with torch.no_grad():
        for part in (guide.head, model.decoder.net[0]):
            part.bias.zero_()
        model.decoder.net[0].weight.copy_(-guide.head.weight.T)
    (cause,) = {*diagnose(model, guide, x).causes.values()}
    assert cause.name == "units without worth"
    assert cause.evidence == "without one of them, the distortion rises by nothing"


@pytest.mark.slow
def test_an_autoencoder_that_overfits_is_told() -> None:
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = MLP(hidden=(64,))
    model, guide = Autoencoder((D,), 3, network), DeltaEncoder((D,), 3, network)
    train_rows, others = x[:20], x[20:]
    fitted = fit(
        model, guide, train_rows, max_epochs=400, learning_rate=1e-2, seed=0, progress=False
    )
    train_found = evaluate(model, guide, train_rows, num_samples=2)
    for given in ({"train": train_found}, {"fit": fitted}):
        told = diagnose(model, guide, others, **given).faults["overfit"]
        assert told.startswith("The pair overfits: its distortion is higher on these rows")
    assert "overfit" not in diagnose(model, guide, train_rows, train=train_found, fit=fitted).faults


def gradients(pair: Pair, x: Tensor, beta: float) -> dict[str, Tensor]:
    """Of the loss of the ELBO with a weight of the rate, at the same draws each time."""
    with pair.scope():
        layout = find_layout(pair, x)
        torch.manual_seed(0)
        MeanFieldELBO()(pair, layout, x, beta).loss.backward()
        return {n: p.grad.clone() for n, p in pair.parameters(x).items() if p.grad is not None}


def test_on_the_road_to_a_vae_only_beta_sigma_squared_matters() -> None:
    """beta = 0.04 with sigma = 1 trains as beta = 1 with sigma = 0.2 does: the loss is that times 0.04."""
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for sigma, beta in ((0.2, 1.0), (1.0, 0.04)):
        torch.manual_seed(0)
        model: Any = VAE((5,), 2, MLP(hidden=(8,)), Gaussian(sigma))
        found.append(gradients(Pair(model, MeanField((5,), 2, MLP(hidden=(8,)))), x, beta))
    one, other = found
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], 0.04 * gradient, rtol=1e-4, atol=1e-6)


def test_a_vae_without_noise_is_the_autoencoder() -> None:
    """As sigma -> 0, sigma^2 times the gradient of the VAE is that of the autoencoder with the same weights."""
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    network = MLP(hidden=(8,))
    torch.manual_seed(0)
    model: Any = VAE((5,), 2, network, Gaussian(1e-3)).double()
    guide = MeanField((5,), 2, network).double()
    with torch.no_grad():
        guide.head.weight[2:].zero_()
        guide.head.bias[2:].fill_(-30.0)  # a scale of 1e-6
    of_vae = gradients(Pair(model, guide), x.double(), 1.0)
    auto: Any = Autoencoder((5,), 2, network).double()
    encoder = DeltaEncoder((5,), 2, network).double()
    auto.decoder.load_state_dict(model.decoder.state_dict())
    encoder.encoder.load_state_dict(guide.encoder.state_dict())
    with torch.no_grad():
        encoder.head.weight.copy_(guide.head.weight[:2])
        encoder.head.bias.copy_(guide.head.bias[:2])
    pair = Pair(auto, encoder)
    with pair.scope():
        ELBO()(pair, find_layout(pair, x.double()), x.double()).loss.backward()
    for module, whose in ((auto.decoder, "model.decoder"), (encoder, "guide")):
        for name, parameter in module.named_parameters():
            expected = 1e-6 * of_vae[f"{whose}.{name}"]
            if name.startswith("head."):
                expected = expected[:2]  # of the means
            assert parameter.grad is not None
            assert bool(parameter.grad.any())
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_q_of_a_linear_pair_shrinks_to_a_point() -> None:
    """A linear VAE is probabilistic PCA: its q has the variance sigma^2 / l along a component of the variance l
    (arXiv:1911.02469). Each training goes on where the one with more noise ended. With one latent nothing has
    to turn, which is slow."""
    x, _ = exact_rows()
    torch.manual_seed(0)
    guide = MeanField((D,), 1, MLP(hidden=())).double()
    weights: dict[str, Tensor] = {}
    for sigma in (0.5, 0.25, 0.125):
        model: Any = VAE((D,), 1, MLP(hidden=()), Gaussian(sigma)).double()
        if weights:
            model.decoder.load_state_dict(weights)
        train(model, guide, x, 500, learning_rate=0.05)
        weights = model.decoder.state_dict()
        found = guide.encode(x).base_dist.scale.detach()
        expected = torch.full_like(found, sigma / math.sqrt(float(VARIANCES[0])))
        torch.testing.assert_close(found, expected, rtol=0.15, atol=0)


def test_vanilla_vae_is_a_configuration() -> None:
    """The tutorials' network, written out, and their loss w KL + mean squared error of values from -1 to 1."""
    channels, shape, latent_dim, w = (4, 6, 8), (3, 16, 16), 5, 0.00025
    network = Convolutional(channels, hidden=0, refine=True, output=nn.Sigmoid)
    torch.manual_seed(0)
    model: Any = VAE(shape, latent_dim, network, Gaussian(1.0)).eval()
    guide = MeanField(shape, latent_dim, network).eval()
    down = nn.Sequential()
    for before, after in pairwise((3, *channels)):
        down.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        down.append(nn.BatchNorm2d(after)).append(nn.LeakyReLU())
    up = nn.Sequential(nn.Linear(latent_dim, 8 * 2 * 2), nn.Unflatten(1, (8, 2, 2)))
    for before, after in pairwise((8, 6, 4, 4)):
        up.append(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1))
        up.append(nn.BatchNorm2d(after)).append(nn.LeakyReLU())
    up.append(nn.Conv2d(4, 3, 3, padding=1)).append(nn.Tanh())
    for theirs, ours in ((down, guide.encoder.net), (up, model.decoder.net)):
        theirs.eval()
        ours_state = iter(ours.state_dict().items())  # type: ignore[union-attr]
        batch_norms = {n for n, m in theirs.named_modules() if isinstance(m, nn.BatchNorm2d)}
        for name, value in theirs.state_dict().items():
            module, _, kind = name.rpartition(".")
            before_norm = str(int(module) + 1) in batch_norms
            if kind == "bias" and before_norm:
                value.zero_()  # batch norm has its own shift
                continue
            value.copy_(next(ours_state)[1])
        assert next(ours_state, None) is None
    with torch.no_grad():  # sigmoid(2 a) = (tanh(a) + 1) / 2
        for parameter in up[-2].parameters():
            parameter.div_(2)
    x = torch.rand(7, *shape)
    features = down(x).flatten(1)
    torch.testing.assert_close(features, guide.encoder(x))
    q = guide.family(guide.head(features))
    z = q.rsample()
    theirs_x = up(z)
    torch.testing.assert_close((theirs_x + 1) / 2, model.decode(z).mean, atol=1e-5, rtol=0)
    kl = kl_divergence(q, dist.Normal(torch.zeros(latent_dim), 1.0).to_event(1)).mean()
    their_loss = ((2 * x - 1) - theirs_x).square().mean() + w * kl
    size = x[0].numel()
    distortion = -model.decode(z).log_prob(x).mean() - size / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(distortion + w * size / 8 * kl, size / 8 * their_loss)
    file = Path(__file__).parents[1] / "analyses" / "configs" / "vanilla_vae.yaml"
    config = yaml.safe_load(file.read_text())
    options = config["model"]["init_args"]["network"]["init_args"]
    assert options == {
        "channels": [32, 64, 128, 256, 512],
        "hidden": 0,
        "refine": True,
        "output": "torch.nn.Sigmoid",
    }
    assert config["objective"]["init_args"]["beta"] == pytest.approx(w * 3 * 32 * 32 / 8)


def sparse_pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    prior = LaplacePrior(0.5)
    return Autoencoder((D,), 2, linear=True, prior=prior), DeltaEncoder((D,), 2, linear=True)


def test_no_bound_on_log_p_is_made_of_a_flat_density() -> None:
    """Also with a guide that samples, whose log q(z | x) is there."""
    x = exact_rows()[0].float()
    torch.manual_seed(0)
    model, guide = Autoencoder((D,), 2, linear=True), MeanField((D,), 2)
    found = evaluate(model, guide, x, num_samples=4)
    assert NOT_DEFINED in found.lines()
    for call in (
        partial(inference_gaps, model, guide, x[:2], num_samples=4, max_steps=1),
        partial(posterior_grid, model, guide, x[:2]),
        partial(diagnose, model, guide, x),
    ):
        with pytest.raises(PairError, match=r"p.z. of 'z' is improper"):
            call()
    with pytest.raises(
        PairError, match=r"TargetRate sets beta by rate and distortion, but p.z. of"
    ):
        fit(model, guide, x, objective=ELBO(beta=TargetRate(nats=3.0)), max_epochs=1)


def test_draws_of_a_flat_density_are_refused_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        main(["train", "--model.prior", "FlatPrior", "--max_rows", "20", "--run_dir", str(run)])
        == 1
    )
    assert "Take a guide that gives points (--guide DeltaEncoder)" in capsys.readouterr().err
    assert not run.exists()


def improper_functions() -> tuple[Any, Any]:
    """The linear autoencoder, its model written as a function with a density of its choice."""
    model, guide = our_pair()

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", program.density)  # type: ignore[attr-defined]
            pyro.sample("x", dist.Normal(model.decode(z).mean, 1.0).to_event(1), obs=x)

    program.density = Flat(2)  # type: ignore[attr-defined]
    return program, guide


def test_the_remedy_of_a_flat_density_works_for_each_kind_of_model() -> None:
    x = exact_rows()[0].float()
    model, guide = our_pair()
    fits = r"fit one to the codes: refit_prior\(model, guide, x, MixturePrior\(\)\)"
    with pytest.raises(PairError, match=f"sample needs a density of it; {fits}"):
        sample(model, 3, like=x)
    assert re.search(fits, " ".join(evaluate(model, guide, x, num_samples=2).warnings))
    refitted = refit_prior(model, guide, x, MixturePrior(), seed=0)
    assert sample(refitted, 3, seed=0).shape == (3, D)

    program, guide = improper_functions()
    writes = "where the model samples 'z', write one, such as a Normal with mean and standard deviation of"
    with pytest.raises(PairError, match=writes) as told:
        sample(program, 3, like=x)
    assert "refit_prior" not in str(told.value)
    with pytest.raises(TypeError, match="has no such module"):
        refit_prior(program, guide, x, MixturePrior(), seed=0)
    warned = " ".join(evaluate(program, guide, x, num_samples=2).warnings)
    assert writes in warned
    assert "refit_prior" not in warned
    z = encode(program, guide, x)["z"]
    program.density = dist.Normal(z.mean(0), z.std(0)).to_event(1)
    assert sample(program, 3, like=x, seed=0).shape == (3, D)


def test_a_loss_of_draws_says_how_to_build_the_model() -> None:
    """There are no codes yet to which a density could be fitted."""
    x = exact_rows()[0].float()
    for (model, _), told in (
        (
            our_pair(),
            r"build the model with a prior that is a density, such as prior=StandardNormal\(\)",
        ),
        (improper_functions(), "where the model samples 'z', write one, such as a Normal$"),
    ):
        with pytest.raises(PairError, match=told):
            fit(model, MeanField((D,), 2), x, objective=WakeSleep(), max_epochs=1, progress=False)
    built = Autoencoder((D,), 2, linear=True, prior=StandardNormal())
    fit(built, MeanField((D,), 2), x, objective=WakeSleep(), max_epochs=1, seed=0, progress=False)


def test_a_point_beside_draws_leaves_a_bound() -> None:
    """A point for what all rows share, and draws for each row: the ELBO is one given that point."""
    x = torch.randn(6)

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Delta(torch.tensor(0.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - 0.5) / 2, 0.5**0.5))

    found = evaluate(model, guide, x, num_samples=10)
    assert not found.at_points
    assert found.lines()[0][0] == "ELBO"
    exact = dist.Normal(0.5, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.elbo.values, exact)


def test_what_was_maximized_at_points_is_nowhere_called_an_elbo(tmp_path: Path) -> None:
    x = exact_rows()[0].float()
    model, guide = sparse_pair()
    found = evaluate(model, guide, x, num_samples=4)
    assert "ELBO" not in str(found)
    assert "ELBO" not in " ".join(found.warnings)
    worst = outliers(model, guide, x, num=3)
    assert worst.table()[0] == ["row", "log p(x, z)", "distortion", "-log p(z)"]
    for name, pair in (("sparse", sparse_pair()), ("plain", our_pair())):
        evaluation = evaluate(*pair, x, num_samples=4)
        save_run(tmp_path / name, *pair, evaluation=evaluation, rows=x)
    told = load_run(tmp_path / "sparse")._repr_html_()
    assert "log p(x, z)" in told
    assert "ELBO" not in told
    assert "nan" not in load_run(tmp_path / "plain")._repr_html_()
    table = Comparison.of([load_run(tmp_path / name) for name in ("sparse", "plain")]).table()
    for row in table[1:]:
        line = dict(zip(table[0], row, strict=True))
        assert (line["ELBO"], line["rate"], line["log p(x)"]) == ("not defined",) * 3
        assert line["unreliable"] == "-"
        assert line["distortion"] != "not defined"
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=2, seed=0)
    assert "log_likelihood" not in exported
    assert diagnose(model, guide, x).information_bounds[0] == 0.0
    assert math.isnan(diagnose(model, guide, x).information_bounds[1])


def test_autoencoders_in_double_precision_can_be_used() -> None:
    x, _ = exact_rows()
    model, guide = linear_pair(2)
    z = encode(model, guide, x)["z"]
    torch.testing.assert_close(
        sample(model, 2, given={"z": z[:2]}, means=True), model.decode(z[:2]).mean
    )
    assert interpolate(model, guide, x[:1], x[1:2], steps=3).dtype == torch.float64
    assert traverse(model, guide, x, 0, steps=3).dtype == torch.float64
