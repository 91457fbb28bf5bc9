"""A new guide for a model that stays as it is."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.nn
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_vae import check, evaluate, fit
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import Bound, PairError
from ppl_vae.training import refit_guide


def test_the_guide_reaches_log_p_and_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA((3,), 1, sigma=0.5)
    x = model.decode(torch.randn(100, 1)).sample()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    # A linear encoder can hold the exact posterior.
    guide = MeanField((3,), 1, MLP(hidden=()))
    fitted = refit_guide(model, guide, x, max_epochs=80, batch_size=20, learning_rate=0.02, seed=0)
    assert fitted.model is model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    assert fitted.guide is guide
    with torch.no_grad():
        kl = kl_divergence(guide.encode(x), model.posterior(x))
        exact = model.log_evidence(x)
    assert float(kl.mean()) < 0.005
    found = evaluate(model, guide, x, num_samples=20, seed=1)
    assert found.elbo.mean == pytest.approx(float(exact.mean()), abs=0.03)


class Noisy(nn.Module):
    """A decoder with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def test_batch_norm_and_dropout_stay_as_in_evaluation() -> None:
    torch.manual_seed(0)
    model = Noisy()
    seen: list[bool] = []
    model.net.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    x = torch.randn(32, 5)
    refit_guide(model, MeanField((5,), 2, MLP((4,))), x, max_epochs=3, batch_size=16, seed=0)
    assert seen
    assert not any(seen)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_what_was_trainable_is_so_again_after_an_error() -> None:
    model = VAE((3,), 2, MLP((4,)))
    frozen = next(model.parameters()).requires_grad_(False)
    with pytest.raises(PairError, match="z"):
        refit_guide(model, lambda x: None, torch.rand(8, 3).round(), max_epochs=1, seed=0)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert model.training


def model_with_param(x: Tensor) -> None:
    spread = pyro.param("spread", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, spread))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_with_param(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    width = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, width))


def other_guide(x: Tensor) -> None:
    slope = pyro.param("other_slope", torch.tensor(0.0))
    width = pyro.param("other_width", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, width))


@pytest.mark.parametrize("capture", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_values_of_pyro_param_are_held_at_what_was_trained(capture: bool) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(64)
    options: dict[str, Any] = {"learning_rate": 0.05, "seed": 0, "capture": capture}
    first = fit(model_with_param, guide_with_param, x, max_epochs=100, **options)
    assert isinstance(first.model, Bound)
    unconstrained = first.model.store["params"]["spread"]
    value = unconstrained.detach().clone()
    assert float(value.exp()) > 1.5
    second = refit_guide(first.model, other_guide, x, max_epochs=150, **options)
    assert second.model is first.model
    assert torch.equal(unconstrained, value)
    assert unconstrained.requires_grad
    assert isinstance(second.guide, Bound)
    variance = float(value.exp()) ** 2  # the posterior is N(v x / (1 + v), v / (1 + v))
    slope = float(second.guide.store["params"]["other_slope"].detach())
    width = float(second.guide.store["params"]["other_width"].detach().exp())
    assert slope == pytest.approx(variance / (1 + variance), abs=0.04)
    assert width == pytest.approx((variance / (1 + variance)) ** 0.5, abs=0.06)
    assert "spread" not in second.guide.store["params"]
    assert not pyro.get_param_store().keys()
    exact = dist.Normal(0.0, (1 + variance) ** 0.5).log_prob(x)
    found = evaluate(second.model, second.guide, x, num_samples=100, seed=1, method="guide")
    assert torch.allclose(found.log_likelihood.values, exact, atol=0.03)
    # The programs as they were given find what was learned, as after a fit.
    again = evaluate(model_with_param, other_guide, x, num_samples=100, seed=1, method="guide")
    assert torch.equal(again.elbo.values, found.elbo.values)


def test_a_model_without_its_trained_values_is_refused() -> None:
    with pytest.raises(PairError, match=r"'spread'.*fit\(\.\.\.\)\.model"):
        refit_guide(model_with_param, other_guide, torch.randn(8), max_epochs=1, seed=0)


class WithPyroParam(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.spread: Any = pyro.nn.PyroParam(
            torch.tensor(2.0), constraint=dist.constraints.positive
        )
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.shift, self.spread))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_pyro_module_is_held_as_well() -> None:
    model = WithPyroParam()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fitted = refit_guide(model, other_guide, torch.randn(16), max_epochs=5, seed=0)
    assert fitted.steps == 5
    assert before.keys() == {"spread_unconstrained", "shift"}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad
    assert "param.other_slope" not in {n for n, _ in model.named_parameters()}


def test_rows_with_labels_are_cut_as_for_fit() -> None:
    model = VAE((3,), 2, MLP((4,)))
    guide = FullCovariance((3,), 2, MLP((4,)))
    loader = [(torch.rand(4, 3).round(), torch.zeros(4)) for _ in range(2)]
    assert refit_guide(model, guide, loader, max_epochs=1, seed=0).steps == 2
    assert check(model, guide, loader).ok
