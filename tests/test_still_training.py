"""Whether a training had ended, by its history alone."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_vae import diagnose, fit
from ppl_vae.diagnosis.collapse import _nats_of
from ppl_vae.diagnosis.history import still_training
from ppl_vae.guides import MeanField
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, LinearWarmup, TargetRate, VAEGANLoss


def rising(epochs: int, scale: float, noise: float = 0.0, seed: int = 0) -> list[dict[str, float]]:
    """An ELBO that approaches -100 from -150 with a time of `scale` epochs."""
    generator = torch.Generator().manual_seed(seed)
    values = -100 - 50 * (-torch.arange(1.0, epochs + 1) / scale).exp()
    values += noise * torch.randn(epochs, generator=generator)
    return [{"elbo": float(value)} for value in values]


@pytest.mark.parametrize("epochs", [2, 5, 10, 40])
def test_an_elbo_that_rises_has_not_ended(epochs: int) -> None:
    assert still_training(rising(epochs, scale=epochs), None)


@pytest.mark.parametrize("epochs", [20, 60, 200])
def test_one_that_has_come_near_its_end_has(epochs: int) -> None:
    assert still_training(rising(epochs, scale=epochs / 8), None) == ""
    assert still_training(rising(epochs, scale=epochs / 8, noise=1.0), None) == ""


def test_noise_alone_is_no_rise() -> None:
    said = [
        still_training(rising(epochs, 1e-3, noise=0.5, seed=seed), None)
        for epochs in (10, 30)
        for seed in range(100)
    ]
    assert sum(map(bool, said)) <= 6


def test_a_rise_that_noise_could_be_is_not_told() -> None:
    assert still_training(rising(100, scale=100.0), None)
    assert still_training(rising(100, scale=100.0, noise=20.0), None) == ""


def test_beta_that_is_still_to_rise_is() -> None:
    history = rising(6, 0.1)
    warming = ELBO(beta=LinearWarmup(epochs=20))
    assert still_training(history, warming) == "beta was 0.3 after 6 epochs, and still rises to 1"
    assert still_training(rising(20, 0.1), warming) == ""
    assert still_training(rising(20, 0.1), ELBO(beta=TargetRate(nats=3))) == ""


def test_epochs_of_another_beta_are_not_compared() -> None:
    """An ELBO that has risen with beta by 50 nats, and by 0.1 in each epoch since."""
    warming, slow = rising(20, 4.0), [-100 + 0.1 * i for i in range(20)]
    history = [*warming, *({"elbo": elbo} for elbo in slow)]
    objective = ELBO(beta=LinearWarmup(epochs=20))
    assert "the last 4 are 0.4 nats above" in still_training(history, objective)
    assert still_training(history, None) == ""  # 5 percent of 50 nats
    assert still_training(history[:26], objective) == ""  # not known of so few


@pytest.mark.parametrize("jump", [-60.0, 60.0])
def test_epochs_of_another_noise_are_not_compared(jump: float) -> None:
    """As `refit_guide(fit_noise=True)` finds it, the last time before the last fifth of the epochs."""
    levels = [
        {"elbo": jump * (i // 10) + 0.01 * (i % 2), "sigma": 1.0 + i // 10} for i in range(50)
    ]
    assert still_training(levels, None) == ""
    for i, row in enumerate(levels[40:]):
        row["elbo"] += 0.5 * i
    assert "the last 2 are" in still_training(levels, None)


def test_an_adversary_is_not_after_the_elbo() -> None:
    history = rising(20, 20.0)
    assert still_training(history, ELBO())
    assert still_training(history, VAEGANLoss()) == ""


def test_the_held_out_elbo_counts_if_it_is_there() -> None:
    rows = [{**row, "validation_elbo": -100.0} for row in rising(10, 10.0)]
    assert still_training(rows, None) == ""


def test_nothing_is_known_of_less_than_two_epochs() -> None:
    assert still_training([], None) == ""
    assert still_training([{"elbo": -1.0}], None) == ""
    assert still_training([{"loss": 1.0}] * 9, None) == ""
    assert still_training([{"elbo": math.nan}] * 9, None) == ""


@pytest.mark.parametrize(("beta", "named"), [(1.0, "still training"), (20.0, "large beta")])
def test_a_large_beta_is_named_though_the_training_goes_on(beta: float, named: str) -> None:
    """With beta = 20 the second direction never pays, 4 < 20 * 0.3, so more epochs are no remedy."""
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([9.0, 4.0, 0.3, 0.3, 0.3, 0.3]).sqrt()
    model = ProbabilisticPCA((6,), latent_dim=2, sigma=0.3**0.5, learn_sigma=False)
    guide = MeanField((6,), 2, MLP(hidden=()))
    with torch.no_grad():
        model.mean.fill_(2.0)  # of which the ELBO learns first
        model.weight.mul_(0.01)
        guide.head.weight.mul_(0.01)
        guide.head.bias.zero_()
    fitted = fit(
        model, guide, x, objective=ELBO(beta=beta), max_epochs=3, learning_rate=1e-3, seed=0
    )
    assert still_training(fitted.history, fitted.objective)
    causes = diagnose(model, guide, x, fit=fitted, seed=0, progress=False).causes
    assert {cause.name for cause in causes.values()} == {named}
    assert all("the ELBO still rises" in cause.evidence for cause in causes.values())


def test_many_dimensions_are_told_in_short() -> None:
    nats = {f"z[{i}]": 0.1 * (i + 1) for i in range(9)}
    assert _nats_of(nats) == "0.9 nats in z[8], 0.8 in z[7], 0.7 in z[6], and less in 6 more"
    assert _nats_of({"z[0]": 1.4, "z[2]": 1.2}) == "1.4 and 1.2 nats in z[0] and z[2]"
