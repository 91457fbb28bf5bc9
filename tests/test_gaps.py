"""Where the bound is lost, against models whose quantities are all known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_vae import evaluate
from ppl_vae.diagnosis import Gaps, inference_gaps
from ppl_vae.guides import (
    CategoricalEncoder,
    Exact,
    FullCovariance,
    MaskedAutoregressive,
    MeanField,
)
from ppl_vae.models import BernoulliMixture, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.stats import Estimate


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search ends after half as many steps; `monkeypatch.undo()` in a test has it search as a user's does."""
    monkeypatch.setattr("ppl_vae.diagnosis.refinement.ROUND", 25)


def correlated(latent_dim: int = 2) -> tuple[ProbabilisticPCA, Tensor, Tensor]:
    """A model, rows of it, and the precision of its posterior."""
    torch.manual_seed(0)
    model = ProbabilisticPCA((6,), latent_dim, sigma=0.5)
    with torch.no_grad():
        model.weight[:, 1] = model.weight[:, 0] + 0.3 * torch.randn(6)
        x = model.decode(torch.randn(12, latent_dim)).sample()
        precision = torch.eye(latent_dim) + model.weight.T @ model.weight / 0.25
    return model, x, precision


class OldName(nn.Module):
    """A guide of version 0.1, which called `amortize` by its British name."""

    def __init__(self, guide: MeanField) -> None:
        super().__init__()
        self.guide = guide
        self.amortise, self.family = guide.amortize, guide.family

    def forward(self, x: Tensor) -> None:
        self.guide(x)


def test_a_guide_with_the_old_name_of_amortize_has_its_own_family() -> None:
    model, x, _ = correlated()
    guide = MeanField((6,), 2, MLP((8,)))
    now = inference_gaps(model, guide, x, num_samples=20, max_steps=60, seed=0)
    with pytest.warns(DeprecationWarning, match=r"OldName\.amortise is called amortize now"):
        then = inference_gaps(model, OldName(guide), x, num_samples=20, max_steps=60, seed=0)
    assert torch.equal(then.best_elbo.values, now.best_elbo.values)


@pytest.mark.slow
def test_full_covariance_holds_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model, x, _ = correlated()
    guide = FullCovariance((6,), 2, MLP((8,)))
    gaps = inference_gaps(model, guide, x, seed=0)
    assert gaps.source == "log_evidence"
    assert torch.equal(gaps.log_likelihood.values, model.log_evidence(x).detach())
    assert bool((gaps.approximation_gap.values.abs() < 0.02).all())
    assert gaps.approximation_gap.mean == pytest.approx(0.0, abs=5e-3)
    assert not gaps.warnings
    # KL(q || p) of the guide as it is, in closed form.
    with torch.no_grad():
        kl = kl_divergence(guide.encode(x), model.posterior(x))
    off = (gaps.inference_gap.values - kl) / gaps.inference_gap_error
    assert float(off.abs().max()) < 4
    off = (gaps.amortization_gap.values - kl) / gaps.amortization_gap_error
    assert float(off.abs().max()) < 4


def test_mean_field_loses_the_closed_form_on_a_correlated_posterior() -> None:
    model, x, precision = correlated()
    expected = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert expected > 0.5
    gaps = inference_gaps(model, MeanField((6,), 2, MLP((8,))), x, num_samples=4000, seed=0)
    error = float(gaps.approximation_gap_error.square().sum().sqrt()) / 12
    assert gaps.approximation_gap.mean == pytest.approx(expected, abs=4 * error + 5e-3)
    off = (gaps.approximation_gap.values - expected) / gaps.approximation_gap_error
    assert float(off.abs().max()) < 4


def test_mean_field_holds_the_posterior_of_orthogonal_columns() -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA((6,), 2, sigma=0.5)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.qr(model.weight).Q * torch.tensor([2.0, 0.5]))
        x = model.decode(torch.randn(12, 2)).sample()
    gaps = inference_gaps(model, MeanField((6,), 2, MLP((8,))), x, seed=0)
    assert bool((gaps.approximation_gap.values.abs() < 0.01).all())
    assert not gaps.warnings


@pytest.mark.parametrize("shift", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
def test_a_shifted_guide_loses_the_closed_form_kl(shift: float) -> None:
    model, x, precision = correlated()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = model.posterior(x).loc.detach() + shift
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    gaps = inference_gaps(model, guide, x, num_samples=2000, seed=0)
    expected = 0.5 * shift**2 * float(precision.sum())  # 1/2 d^T M d
    error = float(gaps.amortization_gap_error.square().sum().sqrt()) / 12
    assert gaps.amortization_gap.mean == pytest.approx(expected, abs=4 * error + 5e-3)
    assert gaps.approximation_gap.mean == pytest.approx(0.0, abs=5e-3)
    assert gaps.inference_gap.mean == pytest.approx(expected, abs=4 * error + 5e-3)
    assert not gaps.warnings


def test_the_exact_guide_loses_nothing_and_no_warning_comes_of_rounding() -> None:
    model, x, _ = correlated()
    gaps = inference_gaps(model, Exact(model), x, seed=0)
    for gap in (gaps.approximation_gap, gaps.amortization_gap):
        assert float(gap.values.abs().max()) < 1e-4
    assert not gaps.warnings


def conjugate_model(x: Tensor) -> None:
    """Gamma-Poisson and Beta-Bernoulli, with a number from `pyro.param` and names of its own."""
    shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(x)):
        rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
        chance = pyro.sample("chance", dist.Beta(2.0, 3.0))
        pyro.sample("count", dist.Poisson(rate), obs=x[:, 0])
        pyro.sample("flag", dist.Bernoulli(chance), obs=x[:, 1])


def conjugate_guide(x: Tensor) -> None:
    same = pyro.param("same", torch.tensor(1.5), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("chance", dist.Beta(same, same * torch.ones(len(x))))
        pyro.sample("rate", dist.Gamma(same, same))


COUNTS = torch.stack([torch.arange(6.0), torch.arange(6.0) % 2], -1)


def log_p_of_counts(x: Tensor) -> Tensor:
    counts = dist.NegativeBinomial(torch.tensor(2.0), probs=torch.tensor(0.5)).log_prob(x[:, 0])
    flags: Tensor = dist.Bernoulli(torch.tensor(0.4)).log_prob(x[:, 1])
    return torch.add(counts, flags)


@pytest.mark.slow
def test_a_strangers_gamma_and_beta_reach_the_conjugate_posterior() -> None:
    gaps = inference_gaps(conjugate_model, conjugate_guide, COUNTS, seed=0)
    exact = log_p_of_counts(COUNTS)
    assert gaps.source == "importance sampling"
    assert torch.allclose(gaps.best_elbo.values, exact, atol=5e-3)
    assert torch.allclose(gaps.log_likelihood.values, exact, atol=5e-3)
    assert bool((gaps.approximation_gap.values < 5e-3).all())
    q = dist.Gamma(torch.tensor(1.5), 1.5)  # what the guide says of each rate
    p = dist.Gamma(2.0 + COUNTS[:, 0], torch.tensor(2.0))
    kl = kl_divergence(q, p) + kl_divergence(
        dist.Beta(torch.tensor(1.5), 1.5), dist.Beta(2.0 + COUNTS[:, 1], 4.0 - COUNTS[:, 1])
    )
    off = (gaps.amortization_gap.values - kl) / gaps.amortization_gap_error
    assert float(off.abs().max()) < 4
    assert not pyro.get_param_store().keys()


def test_latents_without_a_derivative_reach_the_posterior_too() -> None:
    chances = torch.tensor([0.2, 0.9])

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Bernoulli(chances[z.long()]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))

    x = torch.tensor([0.0, 1.0])
    gaps = inference_gaps(model, guide, x, seed=0)
    exact = dist.Bernoulli(torch.tensor(0.3 * 0.9 + 0.7 * 0.2)).log_prob(x)
    assert torch.allclose(gaps.best_elbo.values, exact, atol=5e-3)


class Amortized:
    """A guide with a family whose distribution does not say what it is made of."""

    def __init__(self, with_family: bool) -> None:
        if with_family:
            self.amortize: Callable[[Tensor], Tensor] = lambda x: torch.stack([x, 0 * x], -1)
            self.family = self.make

    def make(self, numbers: Tensor) -> Any:
        q = Opaque()
        q.inside = dist.Normal(numbers[..., 0], numbers[..., 1].exp())
        return q

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", self.make(torch.stack([x, 0 * x], -1)))


class Opaque(dist.TorchDistribution):
    inside: Any
    has_rsample = True
    arg_constraints: Any = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self) -> None:
        pass

    @property
    def batch_shape(self) -> torch.Size:
        shape: torch.Size = self.inside.batch_shape
        return shape

    event_shape = torch.Size()

    def rsample(self, sample_shape: Any = ()) -> Any:
        return self.inside.rsample(sample_shape)

    def log_prob(self, value: Any) -> Any:
        return self.inside.log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = Opaque()
        new.inside = self.inside.expand(batch_shape)
        return new


def normal_model(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_amortize_and_family_free_what_cannot_be_looked_into() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0])
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    gaps = inference_gaps(normal_model, Amortized(True), x, seed=0)
    assert torch.allclose(gaps.best_elbo.values, exact, atol=0.01)
    with pytest.raises(PairError, match=r"'z' is drawn from a Opaque.*amortize\(x\)"):
        inference_gaps(normal_model, Amortized(False), x, seed=0)


def chained_model(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


@pytest.mark.slow
def test_a_guide_whose_latents_depend_on_each_other_keeps_that() -> None:
    """b | x ~ N(2 x / 3, 2 / 3) and a | b ~ N(b / 2, 1 / 2): independent normals would lose 0.2 nats."""

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            b = pyro.sample("b", dist.Normal(x, 1.0))
            pyro.sample("a", dist.Normal(b / 2 + 1, 1.0))

    x = torch.tensor([-1.0, 0.5, 2.0])
    gaps = inference_gaps(chained_model, guide, x, seed=0)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    assert torch.allclose(gaps.best_elbo.values, exact, atol=0.01)
    assert "site 'a' depends on another latent" in gaps.notes[0]


@pytest.mark.slow(but=("LogNormal",))
@pytest.mark.parametrize(
    "kind",
    [
        *("LowRank", "LogNormal", "looped"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("masked", "mixture")),
    ],
)
def test_families_of_many_kinds(kind: str) -> None:
    """Each contains its model's posterior."""
    torch.manual_seed(0)
    x = torch.randn(4)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            if kind == "LowRank":
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum(-1)
            elif kind == "LogNormal":
                z = pyro.sample("z", dist.LogNormal(0.0, 1.0)).log()
            elif kind == "looped":
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                assert z.dim() == 1
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        n = len(x)
        with pyro.plate("rows", n):
            q: Any
            if kind == "LowRank":
                factor = torch.tensor([[0.3], [-0.1]]).expand(n, 2, 1)
                q = dist.LowRankMultivariateNormal(torch.zeros(n, 2), factor, torch.ones(n, 2))
            elif kind == "LogNormal":
                q = dist.LogNormal(x, 1.0)
            elif kind == "mixture":
                logits = torch.tensor([0.0, 0.5]).expand(n, 2)
                parts = dist.Normal(torch.tensor([-0.5, 0.5]).expand(n, 2), 1.0)
                q = dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
            else:
                q = dist.Normal(x, 1.0).mask(True) if kind == "masked" else dist.Normal(x, 1.0)
            pyro.sample("z", q)

    # Without a dimension of samples, each takes a run of its own.
    samples, steps = (60, 90) if kind == "looped" else (500, 2000)
    gaps = inference_gaps(model, guide, x, seed=0, num_samples=samples, max_steps=steps)
    variance = 3.0 if kind == "LowRank" else 2.0
    exact = dist.Normal(0.0, math.sqrt(variance)).log_prob(x)
    off = (gaps.best_elbo.values - exact).abs()
    assert bool((off < 4 * gaps.best_elbo_error + 5e-3).all())
    assert float(gaps.best_elbo_error.max()) < 0.02


def test_a_flow_says_that_its_networks_are_held() -> None:
    torch.manual_seed(0)
    model, x, _ = correlated()
    with_networks = MaskedAutoregressive((6,), 2, MLP((8,)))
    gaps = inference_gaps(model, with_networks, x[:3], num_samples=20, max_steps=60, seed=0)
    assert any("shared by all rows, which are held" in note for note in gaps.notes)
    assert gaps.amortization_gap.mean > 1.0
    plain = inference_gaps(
        model, MeanField((6,), 2, MLP((8,))), x[:3], num_samples=20, max_steps=60, seed=0
    )
    assert not plain.notes


def test_discrete_latents_of_our_own_have_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    x = torch.rand(3, 5).round()
    mixture = BernoulliMixture((5,), 3)
    gaps = inference_gaps(mixture, CategoricalEncoder((5,), 3, MLP((8,))), x, seed=0)
    assert gaps.source == "log_evidence"
    assert float(gaps.approximation_gap.values.abs().max()) < 5e-3


@pytest.mark.slow
def test_rows_do_not_depend_on_the_chunks_they_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = correlated()
    x = x[:6]
    guide = FullCovariance((6,), 2, MLP((8,)))
    whole = inference_gaps(model, guide, x, num_samples=100, max_steps=400, seed=0)
    monkeypatch.setattr("ppl_vae.checks.session.chunk_sizes", lambda *_: (3, 8))
    parts = inference_gaps(model, guide, [x[:4], x[4:]], num_samples=100, max_steps=400, seed=0)
    exact = model.log_evidence(x).detach()  # the family holds the posterior
    for gaps in (whole, parts):
        off = (gaps.best_elbo.values - exact).abs()
        assert bool((off < 4 * gaps.best_elbo_error + 5e-3).all())
        assert float(gaps.best_elbo_error.max()) < 0.02
    assert parts.num_rows == 6
    assert torch.allclose(whole.log_likelihood.values, parts.log_likelihood.values)


def test_weights_generators_and_gradients_are_left_alone() -> None:
    model, x, _ = correlated()
    guide = MeanField((6,), 2, MLP((8,)))
    before = {n: t.clone() for n, t in [*model.state_dict().items(), *guide.state_dict().items()]}
    state = torch.get_rng_state()
    first = inference_gaps(model, guide, x, seed=3, num_samples=50, max_steps=60)
    assert torch.equal(torch.get_rng_state(), state)
    after = {n: t for n, t in [*model.state_dict().items(), *guide.state_dict().items()]}
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])
    again = inference_gaps(model, guide, x, seed=3, num_samples=50, max_steps=60)
    assert torch.equal(first.best_elbo.values, again.best_elbo.values)


def test_an_optimization_that_was_cut_short_is_reported() -> None:
    model, x, _ = correlated()
    gaps = inference_gaps(model, MeanField((6,), 2, MLP((8,))), x, seed=0, max_steps=20)
    assert not gaps.converged.any()
    assert any("still improving on 12 of 12 rows" in w for w in gaps.warnings)


def test_a_truth_is_taken_at_its_word_and_its_doubts_with_it() -> None:
    model, x, _ = correlated()
    guide = MeanField((6,), 2, MLP((8,)))
    poor = evaluate(model, guide, x, num_samples=100, method="guide", seed=0)
    assert poor.unreliable.any()
    gaps = inference_gaps(model, guide, x, truth=poor, seed=0, num_samples=200, max_steps=60)
    assert gaps.source == "Evaluation"
    assert torch.equal(gaps.log_likelihood.values, poor.log_likelihood.values)
    assert torch.equal(gaps.unreliable, poor.unreliable)
    assert any("log p(x) by Evaluation is unreliable" in w for w in gaps.warnings)
    assert [f"about log p(x): {text}" for text in poor.warnings] == list(gaps.warnings[:1])
    with pytest.raises(ValueError, match=r"12 rows, but x has 5"):
        inference_gaps(model, guide, x[:5], truth=poor, seed=0)


def by_hand(log_p: float, best: float, elbo: float, error: float = 0.1) -> Gaps:
    errors = torch.full((4,), error)
    rows = torch.zeros(4)
    return Gaps(
        log_likelihood=Estimate(rows + log_p),
        log_likelihood_error=errors,
        best_elbo=Estimate(rows + best),
        best_elbo_error=errors,
        elbo=Estimate(rows + elbo),
        elbo_error=errors,
        source="importance sampling",
        unreliable=torch.zeros(4, dtype=torch.bool),
        converged=torch.ones(4, dtype=torch.bool),
        num_samples=10,
    )


def test_a_gap_of_the_wrong_sign_is_never_reported_without_saying_so() -> None:
    assert not by_hand(-1.0, -2.0, -3.0).warnings
    assert not by_hand(-1.0, -1.0 + 1e-6, -3.0).warnings  # rounding
    (warning,) = by_hand(-2.0, -1.0, -3.0).warnings
    assert "the approximation gap has the wrong sign" in warning
    assert "log p(x) is too low" in warning
    (warning,) = by_hand(-1.0, -3.0, -2.0).warnings
    assert "the amortization gap has the wrong sign" in warning
    assert "raise max_steps" in warning
    (warning,) = by_hand(-1.02, -1.0, -2.0).warnings
    assert "within its Monte-Carlo error" in warning
    one = by_hand(-1.0, -2.0, -3.0)
    rows = one.best_elbo.values.clone()
    rows[0] = 0.0  # a single row, clearly
    (warning,) = replace(one, best_elbo=Estimate(rows)).warnings
    assert "1 of 4 rows, 1 by more than 3 errors" in warning


def test_errors_and_words() -> None:
    gaps = by_hand(-1.0, -2.0, -4.5)
    assert gaps.approximation_gap.mean == 1.0
    assert gaps.amortization_gap.mean == 2.5
    assert gaps.inference_gap.mean == 3.5
    assert torch.allclose(gaps.amortization_gap_error, torch.full((4,), 0.1 * math.sqrt(2)))
    assert "amortization gap" in str(gaps)
    assert "Monte Carlo 0.071" in str(gaps)  # of the mean of 4 rows
    found = gaps.to_dict()
    assert found["approximation_gap"]["mean"] == 1.0
    assert gaps.rows()["approximation_gap"].tolist() == [1.0] * 4
    assert found["source"] == "importance sampling"


def test_latents_of_all_rows_and_point_estimates_are_refused() -> None:
    def shared_model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def shared_guide(x: Tensor) -> None:
        pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def point(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(x))

    with pytest.raises(PairError, match=r"'scale' is outside of plate 'rows'"):
        inference_gaps(shared_model, shared_guide, torch.randn(4), seed=0)
    with pytest.raises(PairError, match="a point for 'z'"):
        inference_gaps(normal_model, point, torch.randn(4), seed=0)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        inference_gaps(normal_model, point, torch.randn(4), num_samples=1)


def test_double_precision() -> None:
    gaps = inference_gaps(
        normal_model, lambda x: normal_guide(x), torch.randn(3, dtype=torch.float64), seed=0
    )
    assert gaps.best_elbo.values.dtype == torch.float64
    assert float(gaps.approximation_gap.values.abs().max()) < 5e-3


def normal_guide(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x, torch.ones_like(x)))
