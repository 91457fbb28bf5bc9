"""What diagnose() says beside collapse: each fault on a pair built to have exactly that one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import fitted_pca, gaussian_data
from torch import Tensor, nn

import ppl_vae
from ppl_vae import diagnose, evaluate
from ppl_vae.diagnosis import faults
from ppl_vae.diagnosis.faults import MomentGap, overfitting
from ppl_vae.evaluation import Evaluation
from ppl_vae.guides import Exact, MeanField, WithinPicture
from ppl_vae.models import VAE, IndependentSegments, LatentColors, ProbabilisticPCA
from ppl_vae.networks import MLP, UNet
from ppl_vae.objectives import ELBO, LinearWarmup, TargetRate
from ppl_vae.stats import Estimate

SPECTRUM = [9.0, 4.0, *[0.25] * 10]
"""Two large directions of twelve."""


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_collapse.py."""
    monkeypatch.setattr("ppl_vae.diagnosis.refinement.ROUND", 15)


class Memorizing(nn.Module):
    """The exact posterior of the rows that it knows, and one whose mean is off by `shift` for all others."""

    def __init__(self, model: ProbabilisticPCA, known: Tensor, shift: float) -> None:
        super().__init__()
        self.model, self.known, self.shift = model, known, shift

    def forward(self, x: Tensor) -> None:
        is_known = (x[:, None] == self.known).all(-1).any(-1, keepdim=True)
        q = self.model.posterior(x)
        loc = q.mean + torch.where(is_known, 0.0, self.shift)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, q.variance.sqrt()).to_event(1))


def results(model: Any, guide: Any, *rows: Tensor) -> list[Evaluation]:
    return [evaluate(model, guide, x, num_samples=200, seed=0) for x in rows]


def true_pair(shift: float) -> tuple[ProbabilisticPCA, Memorizing, Tensor, Tensor]:
    """The model that the data are drawn from, and training and held-out rows."""
    everything = gaussian_data(SPECTRUM, n=3000)
    model = fitted_pca(everything, latent_dim=2, sigma=0.5)
    train, held = everything[:200], everything[200:400]
    return model, Memorizing(model, train, shift), train, held


def overfit_model(n: int) -> tuple[ProbabilisticPCA, Exact, Tensor, Tensor]:
    """The model of the largest likelihood of n rows, with its posterior; those rows and others."""
    everything = gaussian_data(SPECTRUM, n=3000)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    train, held = everything[order[:n]], everything[order[-300:]]
    model = ProbabilisticPCA((12,), 2).double().maximum_likelihood(train)
    return model, Exact(model), train, held


def test_nothing_is_said_of_a_healthy_pair() -> None:
    model, guide, train, held = true_pair(shift=0.0)
    of_train, of_held = results(model, guide, train, held)
    found = diagnose(model, guide, held, train=of_train, evaluation=of_held, seed=0)
    assert found.faults == {}
    assert found.summary() == (
        f"No collapse: 2 of 2 latent dimensions are active and z carries "
        f"{found.mutual_information.mean:.1f} nats about x."
    )


@pytest.mark.slow
def test_an_encoder_that_overfits() -> None:
    """A shift s of a mean with posterior variance v costs s^2 / 2v of KL."""
    model, guide, train, held = true_pair(shift=0.3)
    of_train, of_held = results(model, guide, train, held)
    found = diagnose(model, guide, held, train=of_train, evaluation=of_held, seed=0)
    assert next(iter(found.faults)) == "overfit encoder"
    assert not {"overfit", "overfit decoder"} & found.faults.keys()
    sentence = found.faults["overfit encoder"]
    assert sentence.startswith("The encoder overfits: its gap log p(x) - ELBO is ")
    variance = model.posterior(held).variance[0].detach()
    gap = float((0.3**2 / variance / 2).sum())
    said = float(sentence.split(" - ELBO is ")[1].split()[0])
    assert said == pytest.approx(gap, rel=0.1)
    assert found.summary().splitlines()[1] == sentence
    # The same pair on rows that the encoder knows.
    again = diagnose(model, guide, train, train=of_train, evaluation=of_train, seed=0)
    assert not any("overfit" in name for name in again.faults)


@pytest.mark.slow
def test_a_decoder_that_overfits() -> None:
    model, guide, train, held = overfit_model(8)
    of_train, of_held = results(model, guide, train, held)
    found = diagnose(model, guide, held, train=of_train, evaluation=of_held, seed=0)
    assert "overfit decoder" in found.faults
    assert not {"overfit", "overfit encoder"} & found.faults.keys()
    evidence = [float(model.log_evidence(x).detach().mean()) for x in (train, held)]
    sentence = found.faults["overfit decoder"]
    said = float(sentence.split("log p(x) is ")[1].split()[0])
    assert said == pytest.approx(evidence[0] - evidence[1], abs=0.1)
    # It has no network, and EM fits it as well as anything else.
    assert "make the model simpler (fewer components or latent dimensions" in sentence
    assert "patience" not in sentence
    assert "network" not in sentence
    # With rows enough, the same model does not.
    model, guide, train, held = overfit_model(2000)
    of_train, of_held = results(model, guide, train[:300], held)
    assert not diagnose(
        model, guide, held, train=of_train, evaluation=of_held, seed=0
    ).faults.keys() & {"overfit", "overfit encoder", "overfit decoder"}


@pytest.mark.slow
def test_both_overfit() -> None:
    model, _, train, held = overfit_model(8)
    guide = Memorizing(model, train, 0.5)
    assert list(overfitting(*results(model, guide, train, held))) == [
        "overfit decoder",
        "overfit encoder",
    ]


@pytest.mark.slow
def test_without_log_p_it_is_not_said_which_of_the_two_overfits() -> None:
    model, guide, train, held = true_pair(shift=0.3)
    of_train, of_held = results(model, guide, train, held)
    alone = diagnose(model, guide, held, train=of_train, seed=0)
    assert "evaluation=evaluate(...) tells" in alone.faults["overfit"]
    assert overfitting(of_train, of_train.elbo) == {}
    untrusted = replace(of_held, khat=torch.full_like(of_held.khat, 2.0), ess=0 * of_held.ess + 1.1)
    (sentence,) = overfitting(of_train, untrusted).values()
    assert "is not known, as log p(x) is not reliable on 100% of the rows" in sentence


def test_few_rows_that_differ_by_chance_are_not_called_overfit() -> None:
    """A difference of 2 nats among rows that vary by 20."""
    few = Estimate(20 * torch.randn(50, generator=torch.Generator().manual_seed(0)))
    none, sure = torch.zeros(50, dtype=torch.bool), ["guide"] * 50

    class Found:
        elbo, log_likelihood, unreliable, method = few, few, none, sure

    class Held(Found):
        elbo = log_likelihood = Estimate(few.values - 2)

    assert overfitting(Found(), Held()) == {}
    Held.elbo = Held.log_likelihood = Estimate(few.values - 20)
    assert list(overfitting(Found(), Held())) == ["overfit decoder"]


def test_the_epoch_whose_weights_are_kept_counts() -> None:
    """With early stopping these are of an earlier epoch; the training ELBO went on to rise."""
    model, _, train, held = true_pair(shift=0.0)
    fitted = ppl_vae.fit(model, Exact(model), train, max_epochs=1, seed=0)
    (row,) = fitted.history
    rising = [{**row, "elbo": row["elbo"] + 100 * later} for later in range(4)]
    early = replace(fitted, history=rising, epochs=4, best_epoch=1)
    assert not diagnose(model, Exact(model), held, fit=early, seed=0).faults
    second = replace(early, best_epoch=2)
    found = diagnose(model, Exact(model), held, fit=second, seed=0).faults["overfit"]
    assert f"training {row['elbo'] + 100:.1f} in epoch 2, whose weights are kept" in found
    # A prior was fitted for two epochs, after those of the pair.
    of_prior = [{"validation_rate": 1.0}] * 2
    later = replace(early, history=[*rising, *of_prior], epochs=6, best_epoch=6, prior_epochs=2)
    found = diagnose(model, Exact(model), held, fit=later, seed=0).faults["overfit"]
    assert f"training {row['elbo'] + 300:.1f} in the last epoch" in found


def test_the_elbo_of_the_last_epoch_shows_it_too() -> None:
    model, guide, train, held = true_pair(shift=0.0)
    fitted = ppl_vae.fit(model, Exact(model), train, max_epochs=1, seed=0)
    bound = fitted.history[-1]["elbo"]
    assert not diagnose(model, guide, held, fit=fitted, seed=0).faults
    lower = Memorizing(model, train, 0.3)
    found = diagnose(model, lower, held, fit=fitted, seed=0)
    assert list(found.faults) == ["overfit", "prior mismatch"][: len(found.faults)]
    assert f"training {bound:.1f} in the last epoch" in found.faults["overfit"]
    assert "stop earlier (patience)" in found.faults["overfit"]
    controlled = replace(fitted, objective=ELBO(beta=TargetRate(nats=1)))  # without early stopping
    found = diagnose(model, lower, held, fit=controlled, seed=0)
    assert "stop earlier (fewer max_epochs)" in found.faults["overfit"]


# -- the prior ---------------------------------------------------------------------------------------------


def off_the_prior(noise: float, mean: float, scale: float, n: int) -> ppl_vae.diagnosis.Diagnosis:
    """z ~ N(0, 1) by the model, but N(mean, scale^2) in truth; x is z with little noise."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            variance = noise**2 / (1 + noise**2)
            pyro.sample("z", dist.Normal(x / (1 + noise**2), variance**0.5))

    x = mean + math.hypot(scale, noise) * (gaussian_data([1.0], n=n)[:, 0].float() - 1)
    return diagnose(model, guide, x, seed=0)


def test_an_aggregate_posterior_off_the_prior() -> None:
    """q(z) has the mean 3 / 1.01 and the variance 0.265: (0.265 + 8.82 - 1 - log 0.265) / 2 = 4.7 nats."""
    found = off_the_prior(0.1, 3.0, 0.5, 2000)
    assert list(found.faults) == ["prior mismatch"]
    # refit_prior has nothing to replace in a function.
    assert "refit_prior" not in found.faults["prior mismatch"]
    assert "where it samples z, such as a mixture of normals" in found.faults["prior mismatch"]
    said = float(found.faults["prior mismatch"].split("by a KL of ")[1].split()[0])
    assert not found.saturated
    assert said == pytest.approx(4.7, abs=0.2)
    assert off_the_prior(0.1, 0.0, 1.0, 2000).faults == {}


def test_the_prior_is_judged_by_moments_where_the_rows_are_too_few_for_more() -> None:
    """100 rows with posteriors so narrow that I = log 100: the marginal KL is only an upper bound."""
    found = off_the_prior(1e-4, 3.0, 0.5, 100)
    assert found.saturated
    (sentence,) = found.faults.values()
    assert "by a KL of at least 4.8 nats" in sentence
    healthy = off_the_prior(1e-4, 0.0, 1.0, 100)
    assert healthy.marginal_kl.mean > 2
    assert healthy.faults == {}


def test_a_low_beta_is_named_as_a_cause_of_that() -> None:
    model, guide, _, held = true_pair(shift=2.0)
    found = diagnose(model, guide, held, beta=0.1, seed=0)
    assert "raise beta, which is 0.1, or give the model" in found.faults["prior mismatch"]


def test_the_advice_for_models_of_colors_is_about_them() -> None:
    """They take no MixturePrior, and their commands no method."""
    model = IndependentSegments(2, LatentColors(), UNet((4,)))
    y, x = torch.zeros(2, 4, 4, 2), torch.full((2, 4, 4), 128.0)
    off = faults.off_the_prior(Estimate(torch.full((9,), 5.0)), False, 0.0, 1.0, model)
    assert off["prior mismatch"].endswith("the scale of the latent colors is learned.")
    assert "MixturePrior" not in off["prior mismatch"]
    evaluation = evaluate(model, WithinPicture(model), (y, x), num_samples=100, method="guide")
    doubted = replace(evaluation, khat=torch.full((2,), math.nan))
    told = faults.not_trusted(doubted, 1.0, model)["log p(x) not trusted"]
    assert told.endswith("; evaluate(..., method='auto') looks for better proposals.")
    assert "the default" not in told


def test_latents_that_are_not_normal_have_no_bound_by_moments() -> None:
    gap = MomentGap()
    gap.update(torch.full((4, 10, 2), 5.0))
    assert gap.nats > 10
    gap.update(None)
    assert gap.nats == 0


# -- log p(x) ----------------------------------------------------------------------------------------------


def test_log_p_that_is_not_to_be_trusted_is_not_called_healthy() -> None:
    model, guide, _, held = true_pair(shift=1.5)
    alone = evaluate(model, guide, held, num_samples=200, method="guide", seed=0)
    share = float(alone.unreliable.double().mean())
    assert share > 0.5
    found = diagnose(model, guide, held, evaluation=alone, seed=0)
    told = found.faults["log p(x) not trusted"]
    assert f"not to be trusted on {share:.0%} of the rows" in told
    assert "or use a better guide; method='auto', the default, looks for better" in told
    few = evaluate(model, guide, held, num_samples=50, seed=0)  # of which "auto" makes nothing
    found = diagnose(model, guide, held, evaluation=few, seed=0)
    told = found.faults["log p(x) not trusted"]
    assert "raise num_samples (below 100 no better proposals are looked for), or use" in told
    ladder = evaluate(model, guide, held, num_samples=200, seed=0)
    assert not ladder.unreliable.any()
    found = diagnose(model, guide, held, evaluation=ladder, seed=0)
    assert "log p(x) not trusted" not in found.faults
    missed = sum(name != "guide" for name in ladder.method) / len(held)
    assert f"the posterior of {missed:.0%} of the rows" in found.faults["poor guide"]
    assert "use a richer guide" in found.faults["poor guide"]
    found = diagnose(model, guide, held, evaluation=ladder, beta=4.0, seed=0)
    assert "it was trained with beta = 4; refit_guide" in found.faults["poor guide"]


# -- beta --------------------------------------------------------------------------------------------------


def untrained(**options: Any) -> Any:
    torch.manual_seed(0)
    model, guide = VAE((6,), 2, MLP((8,))), MeanField((6,), 2, MLP((8,)))
    x = (torch.randn(200, 1) + 0.5 * torch.randn(200, 6) > 0).float()
    return ppl_vae.fit(model, guide, x, learning_rate=0.02, seed=0, **options), x


def test_beta_comes_from_the_fit() -> None:
    """Fits with a beta of 20 use no latents: beta is the cause, although it has warmed up."""
    fitted, x = untrained(objective=ELBO(beta=LinearWarmup(epochs=5, end=20.0)), max_epochs=20)
    found = diagnose(fitted.model, fitted.guide, x, fit=fitted, seed=0)
    assert found.active_units == 0
    assert found.cause == "large beta"
    assert found.beta == 20
    assert "beta is 20, so that their KL costs 20 times" in found.summary()
    assert "lower beta" in found.remedy
    assert "local optimum" not in {cause.name for cause in found.causes.values()}
    # What is given goes before the fit's.
    assert diagnose(fitted.model, fitted.guide, x, fit=fitted, beta=1.0, seed=0).beta == 1
    json.dumps(found.to_dict())


@pytest.mark.filterwarnings("ignore:beta warms up for 10 epochs")
def test_beta_is_that_of_the_last_epoch() -> None:
    fitted, x = untrained(objective=ELBO(beta=LinearWarmup(epochs=10, end=1.0)), max_epochs=5)
    assert diagnose(fitted.model, fitted.guide, x, fit=fitted, seed=0).beta == 0.5


def test_other_things_in_place_of_results_are_refused() -> None:
    fitted, x = untrained(max_epochs=1)
    wrong: Any = x
    for name in ("train", "evaluation"):
        given: Any = {name: wrong}
        with pytest.raises(
            TypeError, match=f"{name} must be what evaluate has returned, got an object of Tensor"
        ):
            diagnose(fitted.model, fitted.guide, x, **given)
    with pytest.raises(TypeError, match="fit must be what fit has returned"):
        diagnose(fitted.model, fitted.guide, x, fit=wrong)


# -- a dead encoder ----------------------------------------------------------------------------------------


def pixels() -> tuple[VAE, MeanField, Tensor]:
    """A decoder that uses both latents, a guide with a hidden layer of ReLUs, and pixels of that decoder."""
    torch.manual_seed(0)
    model, guide = VAE((12,), 2, MLP(())), MeanField((12,), 2, MLP((8,)))
    with torch.no_grad():
        for layer in linear(model.decoder):
            layer.weight.normal_(std=3.0)
    return model, guide, model.decode(torch.randn(200, 2)).sample()


def linear(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def kill(guide: MeanField) -> None:
    """All hidden units are inactive on all rows."""
    with torch.no_grad():
        linear(guide)[0].bias.fill_(-100.0)


def ignore_latents(model: VAE) -> None:
    with torch.no_grad():
        for layer in linear(model.decoder):
            layer.weight.zero_()


@pytest.mark.parametrize("uses", [True, False])
@pytest.mark.parametrize("on_prior", [True, False])
def test_inactive_units_are_a_dead_encoder(uses: bool, on_prior: bool) -> None:
    model, guide, x = pixels()
    if not uses:
        ignore_latents(model)
    kill(guide)
    head = linear(guide)[-1]
    with torch.no_grad():
        head.bias.zero_()
        if not on_prior:
            head.bias[:2] = 1.0
        q = guide.encode(x[:1]).base_dist
        if on_prior:  # a scale of 1
            for _ in range(20):
                head.bias[2:] += 1 - q.scale[0]
                q = guide.encode(x[:1]).base_dist
    found = diagnose(model, guide, x, seed=0)
    assert bool(found.collapsed.all()) == on_prior
    assert found.cause == "dead encoder"
    assert "the encoder is dead" in found.summary()
    assert "train for longer" not in found.summary()
    assert "prior mismatch" not in found.faults


def test_an_encoder_without_weights_in_its_last_layer_can_learn() -> None:
    """One posterior for all rows, but a gradient that depends on the row: training on does help."""
    model, guide, x = pixels()
    with torch.no_grad():
        linear(guide)[-1].weight.zero_()
        linear(guide)[-1].bias[:2] = 1.0
    assert diagnose(model, guide, x, seed=0).cause == "constant posterior"


def test_one_unit_that_is_active_on_one_row_is_alive() -> None:
    model, guide, x = pixels()
    kill(guide)
    with torch.no_grad():
        linear(guide)[-1].weight.zero_()
        linear(guide)[-1].bias[:2] = 1.0
        linear(guide)[0].weight[0] = 10.0
        linear(guide)[0].bias[0] = -10.0 * float(x[:64].sum(1).max()) + 5
    assert diagnose(model, guide, x, seed=0).cause == "constant posterior"


class NoX(nn.Module):
    """A guide that forgot x; its numbers are parameters, or fixed."""

    def __init__(self, learned: bool, mean: float) -> None:
        super().__init__()
        loc = torch.full((2,), mean)
        self.loc = nn.Parameter(loc) if learned else loc

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 2), 1.0).to_event(1))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_a_guide_that_does_not_use_x(learned: bool, mean: float) -> None:
    model, _, x = pixels()
    found = diagnose(model, NoX(learned, mean), x, seed=0)
    assert found.cause == "dead encoder"
    assert found.remedy.startswith("check that the guide uses x")


def test_a_decoder_that_ignores_its_latents_is_no_dead_encoder() -> None:
    """q = p for all rows is then the best: of a fixed guide, and of an encoder that can learn."""
    model, guide, x = pixels()
    ignore_latents(model)
    assert diagnose(model, NoX(False, 0.0), x, seed=0).cause == "local optimum"
    with torch.no_grad():
        linear(guide)[-1].weight.zero_()
        linear(guide)[-1].bias.zero_()
        for _ in range(20):
            linear(guide)[-1].bias[2:] += 1 - guide.encode(x[:1]).base_dist.scale[0]
    found = diagnose(model, guide, x, seed=0)
    assert bool(found.collapsed.all())
    assert found.cause == "local optimum"


@pytest.mark.slow
def test_an_encoder_that_works_is_not_called_dead() -> None:
    model, guide, x = pixels()
    ppl_vae.fit(model, guide, x, max_epochs=60, learning_rate=0.02, seed=0)
    assert diagnose(model, guide, x, seed=0).cause == "none"
