"""Whether a training had ended, by its history alone."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_vae.diagnosis.history import still_training
from ppl_vae.objectives import ELBO, LinearWarmup, TargetRate


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


def test_the_held_out_elbo_counts_if_it_is_there() -> None:
    rows = [{**row, "validation_elbo": -100.0} for row in rising(10, 10.0)]
    assert still_training(rows, None) == ""


def test_nothing_is_known_of_less_than_two_epochs() -> None:
    assert still_training([], None) == ""
    assert still_training([{"elbo": -1.0}], None) == ""
    assert still_training([{"loss": 1.0}] * 9, None) == ""
    assert still_training([{"elbo": math.nan}] * 9, None) == ""
