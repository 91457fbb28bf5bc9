"""Bottom-up guides, q(mid | x) q(top | mid): what a latent adds to the rate is not taken for a KL."""

from __future__ import annotations

import logging
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import diagnose, fit
from ppl_vae.plots import kl_per_dimension, learning_curves
from ppl_vae.training.deaths import DEAD_EPOCHS, Deaths, dead_dimensions

X = 3**0.5 * torch.randn(2000, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> None:
    """top ~ N(0, 1), mid ~ N(top, 1), x ~ N(mid, 1)."""
    with pyro.plate("rows", len(x)):
        top = pyro.sample("top", dist.Normal(x.new_zeros(()), 1.0))
        mid = pyro.sample("mid", dist.Normal(top, 1.0))
        pyro.sample("x", dist.Normal(mid, 1.0), obs=x)


class BottomUp(nn.Module):
    """mid ~ N(slope x, scale^2), and top | mid ~ N(follows mid, above^2): by default that of the model."""

    def __init__(
        self, slope: float, scale: float, follows: float = 0.5, above: float = 0.5**0.5
    ) -> None:
        super().__init__()
        self.slope, self.scale = nn.Parameter(torch.tensor(slope)), scale
        self.follows, self.above = follows, above

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            mid = pyro.sample("mid", dist.Normal(self.slope * x, self.scale))
            pyro.sample("top", dist.Normal(self.follows * mid, self.above))


class TopDown(nn.Module):
    """The prior, in the order of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            top = pyro.sample("top", dist.Normal(self.loc.expand(len(x)), 1.0))
            pyro.sample("mid", dist.Normal(top, 1.0))


NOTHING = BottomUp(0.0, 2**0.5)
"""q(mid, top | x) = p(mid, top): mid adds -I(mid; top) = log(1 / 2) / 2 to the rate, and top the opposite."""

EXACT = BottomUp(2 / 3, (2 / 3) ** 0.5)
"""The posterior."""


def still(guide: nn.Module, **options: Any) -> Any:
    """A training that moves nothing."""
    given: dict[str, Any] = {"learning_rate": 1e-30, "max_epochs": 1, "seed": 0, "progress": False}
    return fit(model, guide, X[:100], validation=X, **(given | options))


def test_the_negative_term_is_no_kl_and_nothing_is_called_dead(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = still(NOTHING, max_epochs=2 * DEAD_EPOCHS + 1)
    epoch = fitted.history[-1]
    information = 0.5 * math.log(2)
    assert "kl_mid" not in epoch
    assert epoch["rate_mid"] == pytest.approx(-information, abs=0.03)
    assert epoch["kl_top"] == pytest.approx(information, abs=0.03)
    assert epoch["validation_rate"] == pytest.approx(0.0, abs=1e-5)
    assert fitted.dead_dimensions == ()
    (message,) = caplog.messages
    start = (
        "epoch 5: mid adds less than 0.01 nats to the rate, which does not say that it is unused: "
    )
    assert message.startswith(start)
    assert "rate_mid" in message


def test_other_sites_keep_their_analytic_kl() -> None:
    """q(top | mid) = N(0 mid, 1 / 4) has the same KL in all draws; a KL of draws would vary."""
    guide = BottomUp(0.5, 1.0, follows=0.0, above=0.5)
    exact = 0.5 * (0.25 - 1 + math.log(4))
    assert still(guide).history[0]["kl_top"] == pytest.approx(exact, rel=1e-5)


def test_in_the_order_of_the_model_both_are_kls(caplog: pytest.LogCaptureFixture) -> None:
    fitted = still(TopDown(), max_epochs=DEAD_EPOCHS)
    assert set(fitted.dead_dimensions) == {"top", "mid"}
    assert not [name for name in fitted.history[0] if name.startswith("rate_")]
    assert caplog.messages[0].startswith("epoch 5: both latent dimensions have carried less")


def test_a_negative_term_is_not_silent_among_those_that_die(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not all latent dimensions have died, if some have no KL; and a resumed training does not say it again."""
    caplog.set_level(logging.WARNING)
    epochs = [{"kl_top[0]": 0.0, "kl_top[1]": 0.0, "rate_mid[0]": -1.0, "rate_mid[1]": 2.0}] * 9
    assert dead_dimensions(epochs) == ("top[0]", "top[1]")
    deaths = Deaths([])
    for end in range(1, len(epochs) + 1):
        deaths.look(epochs[:end], end)
    first, second = caplog.messages
    assert first.startswith("epoch 5: mid[0] adds less")
    assert second.startswith("epoch 5: top[0], top[1] have carried less than 0.01 nats each")
    Deaths(epochs).look([*epochs, epochs[0]], 10)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("guide", [NOTHING, EXACT])
def test_diagnose_notes_it(guide: nn.Module) -> None:
    (note,) = [text for text in diagnose(model, guide, X, seed=0).notes if "no KL" in text]
    assert note.startswith(
        "the prior of 'mid' depends on 'top', which the guide computes from 'mid'"
    )
    assert not [text for text in diagnose(model, TopDown(), X, seed=0).notes if "no KL" in text]


def test_the_prior_is_the_prior_whatever_single_terms_are() -> None:
    """It was a posterior "which is not the prior", as top adds 0.35 nats to a rate of 0."""
    found = diagnose(model, NOTHING, X, seed=0)
    assert found.collapsed.tolist() == [True, True]
    assert {cause.name for cause in found.causes.values()} == {"lagging guide"}
    elsewhere = diagnose(model, BottomUp(0.0, 0.5), X, seed=0)
    assert elsewhere.collapsed.tolist() == [False, False]
    assert {cause.name for cause in elsewhere.causes.values()} == {"constant posterior"}


def test_pictures_show_negative_terms() -> None:
    epochs = [{"epoch": i, "kl_top": 0.3, "rate_mid": -0.3} for i in (1, 2)]
    (axes,) = learning_curves(epochs).axes
    assert axes.get_ylabel() == "rate by\ndimension (nats)"
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert axes.lines[1].get_label() == "no KL"
    low, high = axes.get_ylim()
    assert low < -0.3 < 0.3 < high
    upper = kl_per_dimension([0.35, -0.35], [0.1, 0.1]).axes[0]
    assert upper.get_ylim()[0] < -0.35
