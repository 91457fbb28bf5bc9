"""EM against scikit-learn, against gradients of log p(x), and against SVI with the exact posterior."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor, nn

from ppl_vae import fit
from ppl_vae.em import EMError, GradientSteps, StepSize, fit_em, overfitting
from ppl_vae.em.steps import Enumeration
from ppl_vae.guides import Exact
from ppl_vae.models import BernoulliMixture, GaussianMixture, ProbabilisticPCA
from ppl_vae.objectives import EnumELBO
from ppl_vae.pairs import Pair, PairError, find_layout
from ppl_vae.stats import Estimate

COVARIANCES = {"full": "full", "diagonal": "diag", "tied": "tied", "spherical": "spherical"}


def clusters(n: int = 300, dtype: torch.dtype = torch.float64) -> Tensor:
    """Three overlapping groups of different shapes, far from the origin."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    group = torch.arange(n) % 3
    mixing = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    centers = 2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x = (mixing[group] @ x.unsqueeze(-1)).squeeze(-1) + centers[group] + 50.0
    return x.to(dtype)


def start(covariance: Any, x: Tensor, components: int = 3) -> GaussianMixture:
    model = GaussianMixture((3,), components, covariance, min_scale=1e-6).to(x.dtype)
    model.initialize(x, seed=0)
    return model


def reference_from(model: GaussianMixture, covariance: str, **options: Any) -> Reference:
    """scikit-learn's mixture, started where the model stands."""
    z = torch.arange(model.components)
    p = model.decode(z)
    if covariance in ("full", "tied"):
        precisions = torch.linalg.inv(p.covariance_matrix.double())
    else:
        precisions = p.base_dist.variance.double().reciprocal()
    chosen = {"tied": precisions[0], "spherical": precisions[:, 0]}.get(covariance, precisions)
    return Reference(
        model.components,
        covariance_type=COVARIANCES[covariance],
        reg_covar=0.0,
        weights_init=model.logits.detach().double().softmax(0).numpy(),
        means_init=model.means.detach().double().clone().numpy(),
        precisions_init=chosen.detach().numpy(),
        **options,
    )


@pytest.mark.slow(only=("tied-dtype0",))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_converges_where_scikit_learn_does(covariance: str, dtype: torch.dtype) -> None:
    x = clusters(dtype=dtype)
    model = start(covariance, x)
    reference = reference_from(model, covariance, tol=1e-9, max_iter=3000).fit(x.double().numpy())
    fitted = fit_em(model, x, initialize=False, tolerance=1e-9, max_iterations=3000)
    expected = reference.score(x.double().numpy())
    assert fitted.log_likelihood == pytest.approx(expected, abs=1e-4)
    assert float(model.log_evidence(x).detach().mean()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_each_iteration_is_that_of_scikit_learn(covariance: str) -> None:
    x = clusters()
    model = start(covariance, x)
    reference = reference_from(model, covariance, tol=0.0, max_iter=1, warm_start=True)
    fitted = fit_em(model, x, initialize=False, max_iterations=4, tolerance=0.0)
    ours = [row["log_likelihood"] for row in fitted.history]
    theirs = []
    for _ in range(4):
        with pytest.warns(match="converge"):
            reference.fit(x.numpy())
        theirs.append(reference.score(x.numpy()))
    assert ours[1:] == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_probabilistic_pca_reaches_its_closed_form(learn_sigma: bool) -> None:
    x = clusters()
    make = partial(ProbabilisticPCA, (3,), 2, sigma=0.7, learn_sigma=learn_sigma)
    best = make().double().maximum_likelihood(x)
    model = make().double()
    fitted = fit_em(model, x, tolerance=1e-12, max_iterations=5000, seed=0)
    expected = float(best.log_evidence(x).detach().mean())
    assert fitted.log_likelihood == pytest.approx(expected, abs=1e-8)
    both = [m.weight.detach() @ m.weight.detach().T for m in (model, best)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.mean.detach(), best.mean.detach())


def test_probabilistic_pca_without_noise_stops_at_the_floor() -> None:
    x = torch.randn(200, 1, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0]) + 5
    fitted = fit_em(ProbabilisticPCA((3,), 1).double(), x, seed=0)
    model: Any = fitted.model
    assert float(model.log_sigma.exp().detach()) == pytest.approx(1e-3)
    assert any("sigma" in note for note in fitted.notes)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_clusters_far_apart_cost_no_digits(covariance: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    group = torch.randint(3, (900, 1), generator=generator)
    x = torch.randn(900, 3, generator=generator) + 1000.0 * group
    single = GaussianMixture((3,), 3, covariance)
    single.initialize(x, seed=0)
    double = GaussianMixture((3,), 3, covariance).double()
    double.load_state_dict(single.state_dict())
    expected = float(double.log_evidence(x.double()).detach().sum())
    for model, rows in ((single, x), (single, x.double()), (double, x), (double, x.double())):
        found = float(model.expected_statistics(rows)["log_evidence"])
        assert found / 900 == pytest.approx(expected / 900, abs=1e-5)
        model.maximize(model.expected_statistics(rows))
        after = float(model.log_evidence(rows).detach().double().mean())
        assert after == pytest.approx(expected / 900, abs=1e-3)  # k-means++ was right already


def test_batches_change_nothing() -> None:
    x = clusters()
    results = [
        fit_em(GaussianMixture((3,), 3).double(), data, seed=0, max_iterations=10, batch_size=size)
        for data, size in ((x, None), (x, 77), (list(x.split(50)), None))
    ]
    whole = [row["log_likelihood"] for row in results[0].history]
    for result in results[1:]:
        assert [row["log_likelihood"] for row in result.history] == pytest.approx(whole, abs=1e-9)


def test_the_history_is_that_of_the_parameters() -> None:
    x = clusters()
    model = GaussianMixture((3,), 3).double()
    fitted = fit_em(model, x, seed=0, max_iterations=5, tolerance=0.0)
    assert [row["iteration"] for row in fitted.history] == [0, 1, 2, 3, 4, 5]
    assert [row["passes"] for row in fitted.history] == [1, 2, 3, 4, 5, 6]
    assert fitted.log_likelihood == pytest.approx(float(model.log_evidence(x).detach().mean()))
    assert not fitted.converged
    assert fitted.model is model


# -- generalized EM: the same steps as gradient ascent and as SVI ------------------------------------------


class DetachedExact(nn.Module):
    """q(z | x) = p(z | x) of a mixture, with no gradient into it, and summed over."""

    def __init__(self, model: GaussianMixture) -> None:
        super().__init__()
        self.posterior = model.posterior

    def forward(self, x: Tensor) -> None:
        with torch.no_grad():
            q = self.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q, infer={"enumerate": "parallel"})


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_fisher_identity(covariance: str) -> None:
    x = clusters(150)
    model = start(covariance, x)
    expected = gradients(model, model.log_evidence(x).mean())
    pair = Pair(model, DetachedExact(model))
    with pair.scope():
        layout = find_layout(pair, x)
        of_elbo = gradients(model, -EnumELBO()(pair, layout, x).loss)
    pair = Pair(model, lambda x: None)
    with pair.scope():
        steps = Enumeration(pair, GradientSteps(), x, hard=False)
        q, log_evidence = steps.infer(x)
        of_em = gradients(model, steps.expected_log_joint(x, q, share=1.0) / len(x))
    torch.testing.assert_close(log_evidence, model.log_evidence(x).sum().detach())
    torch.testing.assert_close(of_elbo, expected)
    torch.testing.assert_close(of_em, expected)


@pytest.mark.parametrize("guide", [DetachedExact, Exact])
def test_svi_with_the_exact_posterior_takes_the_steps_of_generalized_em(guide: Any) -> None:
    x = clusters(150)
    by_em, by_svi = start("diagonal", x), start("diagonal", x)
    sgd = GradientSteps(steps=1, learning_rate=0.02, optimizer=torch.optim.SGD)
    fitted = fit_em(by_em, x, m_step=sgd, initialize=False, max_iterations=7, tolerance=0.0)
    trained = fit(
        by_svi,
        guide(by_svi),  # through Exact's q flows a gradient, too: at the posterior it is 0
        x,
        max_epochs=7,
        batch_size=len(x),
        optimizer=torch.optim.SGD,
        learning_rate=0.02,
        capture=False,
        seed=0,
    )
    for name, value in by_em.named_parameters():
        torch.testing.assert_close(value, by_svi.state_dict()[name], msg=name)
    # fit reports the ELBO before each step: the exact posterior's is log p(x).
    elbos = [row["elbo"] for row in trained.history]
    assert elbos == pytest.approx([r["log_likelihood"] for r in fitted.history[:-1]], abs=1e-9)
    assert fitted.history[-1]["gradient_evaluations"] == 7


def test_several_gradient_steps_keep_q_fixed() -> None:
    x = clusters(150)
    model = start("spherical", x)
    with torch.no_grad():
        q = model.posterior(x)
    other = start("spherical", x)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        z = torch.arange(3).unsqueeze(-1)
        log_joint = other.decode(z).log_prob(x) + other.prior().log_prob(z)
        (-(q.probs.T * log_joint).sum(0).mean()).backward()
        optimizer.step()
    m_step = GradientSteps(steps=4, learning_rate=0.01, optimizer=torch.optim.SGD)
    fit_em(model, x, m_step=m_step, initialize=False, max_iterations=1, batch_size=25)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


class Chain(nn.Module):
    """A hidden Markov model of three steps, without any closed form of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = nn.Parameter(torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z: Any = torch.tensor(0)
            for t in pyro.markov(range(3)):
                z = pyro.sample(
                    f"z_{t}",
                    dist.Categorical(logits=self.moves[z]),
                    infer={"enumerate": "parallel"},
                )
                pyro.sample(f"x_{t}", dist.Normal(self.loc[z], 1.0), obs=x[:, t])

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) of all eight paths, `(8, n)`, by hand."""
        log_p = []
        moves = self.moves.log_softmax(-1)
        for path in torch.cartesian_prod(*[torch.arange(2)] * 3):
            before = torch.cat([torch.tensor([0]), path[:-1]])
            emission = dist.Normal(self.loc[path], 1.0).log_prob(x).sum(-1)
            log_p.append(moves[before, path].sum() + emission)
        return torch.stack(log_p)


@pytest.mark.parametrize("hard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_enumeration_follows_any_dependencies(hard: bool) -> None:
    model, x = Chain(), torch.randn(20, 3, dtype=torch.float64)
    log_joint = model.log_joint(x)
    pair = Pair(model, lambda x: None)
    with pair.scope():
        steps = Enumeration(pair, GradientSteps(), x, hard)
        q, found = steps.infer(x)
        slope = gradients(model, steps.expected_log_joint(x, q, share=1.0))
    bound = log_joint.amax(0).sum() if hard else log_joint.logsumexp(0).sum()
    torch.testing.assert_close(found, bound.detach())
    torch.testing.assert_close(slope, gradients(model, bound))
    before = fit_em(model, x, hard=hard, max_iterations=30, tolerance=0.0).history
    assert all(b["bound"] >= a["bound"] for a, b in itertools.pairwise(before))
    assert before[-1]["bound"] > before[0]["bound"] + 0.05


@pytest.mark.parametrize("hard", [False, True])
def test_values_of_density_zero_count_for_nothing(hard: bool) -> None:
    table = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7], [0.1, 0.9, 0.0]]).double().log()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.1]).double())
            self.tilt = torch.nn.Parameter(torch.zeros(3).double())

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", dist.Categorical(logits=(table + self.tilt)[z]), obs=x)

    x = torch.tensor([0, 0, 1, 1, 2, 2, 2, 1])
    model = Model()
    prior = model.logits.log_softmax(0)
    log_joint = (prior.unsqueeze(1) + (table + model.tilt).log_softmax(1))[:, x]
    # Each row over the values that it can come from: autograd never sees an infinity.
    rows = [column[column > -math.inf] for column in log_joint.T]
    each = torch.stack([row.max() if hard else row.logsumexp(0) for row in rows])
    wanted = torch.autograd.grad(each.mean(), model.logits)[0]
    moved = (model.logits + 0.1 * wanted).detach()
    steps = GradientSteps(1, 0.1, torch.optim.SGD)
    fitted = fit_em(model, x, m_step=steps, hard=hard, max_iterations=1, tolerance=0.0)
    assert fitted.history[0]["bound"] == pytest.approx(float(each.detach().mean()), abs=1e-12)
    torch.testing.assert_close(model.logits.detach(), moved)
    assert torch.isfinite(model.tilt).all()
    table[:, 2] = -math.inf
    with pytest.raises(EMError, match="a row is impossible under the model"):
        fit_em(Model(), x, m_step=steps, hard=hard, max_iterations=1)


def test_draws_of_a_posterior_do_where_there_is_nothing_else() -> None:
    class Shift(nn.Module):
        """z ~ N(loc, 1), x ~ N(z, 1): the best loc is the mean of x."""

        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def posterior(self, x: Tensor) -> Any:
            return dist.Normal((x + self.loc) / 2, 0.5**0.5)

        def log_evidence(self, x: Tensor) -> Tensor:
            log_p: Tensor = dist.Normal(self.loc, 2**0.5).log_prob(x)
            return log_p

    model, x = Shift(), 2 + torch.randn(500)
    m_step = GradientSteps(steps=5, learning_rate=0.5, optimizer=torch.optim.SGD)
    fit_em(model, x, m_step=m_step, max_iterations=30, seed=0, tolerance=0.0)
    # 16 draws of 500 rows with variance 1/2: a standard error of 0.008 in each iteration
    assert float(model.loc.detach()) == pytest.approx(float(x.mean()), abs=0.05)


@pytest.mark.slow
def test_the_exact_guide_has_a_bound_without_a_gap() -> None:
    x = clusters(100)
    model = ProbabilisticPCA((3,), 1).double()
    best = float(
        ProbabilisticPCA((3,), 1).double().maximum_likelihood(x).log_evidence(x).detach().mean()
    )
    with torch.no_grad():
        model.mean.copy_(x.mean(0))
    m_step = GradientSteps(steps=10, learning_rate=0.1)
    fitted = fit_em(
        model,
        x,
        guide=Exact(model),
        m_step=m_step,
        max_iterations=30,
        tolerance=0.0,
        seed=0,
        initialize=False,
    )
    row = fitted.history[-1]
    assert row["bound"] == pytest.approx(row["log_likelihood"], abs=1e-9)
    assert best - 0.01 < row["log_likelihood"] <= best


# -- hard and online ---------------------------------------------------------------------------------------


def test_hard_em_maximizes_the_classification_likelihood() -> None:
    x = clusters()
    model = GaussianMixture((3,), 3, "spherical").double()
    fitted = fit_em(model, x, hard=True, seed=0, max_iterations=100)
    z = torch.arange(3).unsqueeze(-1)
    joint = model.decode(z).log_prob(x) + model.prior().log_prob(z)
    row = fitted.history[-1]
    assert fitted.converged
    assert row["bound"] == pytest.approx(float(joint.amax(0).mean().detach()), abs=1e-9)
    assert row["log_likelihood"] == pytest.approx(
        float(model.log_evidence(x).mean().detach()), abs=1e-9
    )
    nearest = joint.argmax(0)
    for k in range(3):  # a fixed point: each mean is that of the rows assigned to it
        torch.testing.assert_close(model.means[k].detach(), x[nearest == k].mean(0))


def test_online_em_averages_statistics() -> None:
    # With a single component q does not depend on the parameters, and with gamma_t = 1 / (t + 1) the average
    # is that of all rows: one pass gives the maximum likelihood exactly.
    x = clusters(256)
    model = GaussianMixture((3,), 1).double()
    fit_em(model, x, online=StepSize(1.0, 1.0), batch_size=32, max_iterations=1, seed=0)
    p = model.decode(torch.tensor(0))
    torch.testing.assert_close(p.mean.detach(), x.mean(0))
    torch.testing.assert_close(p.covariance_matrix.detach(), x.T.cov(correction=0))


@pytest.mark.parametrize("as_loader", [False, True])
def test_online_em_comes_close_to_the_maximum(as_loader: bool) -> None:
    x = clusters(2000)
    exact = fit_em(GaussianMixture((3,), 3).double(), x, seed=0)
    model = GaussianMixture((3,), 3).double()
    data = list(x.split(100)) if as_loader else x
    fit_em(model, data, online=StepSize(), batch_size=100, max_iterations=20, seed=0)
    found = float(model.log_evidence(x).detach().mean())
    assert exact.log_likelihood - 0.01 < found


# -- what can go wrong ---------------------------------------------------------------------------------------


def test_a_wrong_m_step_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = GaussianMixture.maximize, 0

    def wrong(self: GaussianMixture, statistics: dict[str, Tensor]) -> None:
        nonlocal calls
        right(self, statistics)
        calls += 1
        if calls == 4:  # the first is that of the start
            with torch.no_grad():
                self.means.add_(0.5)

    monkeypatch.setattr(GaussianMixture, "maximize", wrong)
    with pytest.raises(EMError, match=r"fell by \S+ nats per row at iteration 3") as caught:
        fit_em(GaussianMixture((3,), 2).double(), clusters(), seed=0)
    assert caught.value.iteration == 3
    assert caught.value.fall > 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_data_are_named(bad: float) -> None:
    x = clusters()
    x[123, 1] = bad
    with pytest.raises(PairError, match=r"row 123 of x .*'x'"):
        fit_em(GaussianMixture((3,), 2).double(), x, seed=0)
    with pytest.raises(PairError, match=r"'x'"):
        fit_em(GaussianMixture((3,), 2).double(), x[123:], seed=0)
    with pytest.raises(PairError, match=r"row 70 of x .*support"):
        fit_em(BernoulliMixture((3,), 2), torch.arange(100.0).eq(70)[:, None] * torch.ones(3) / 2)


def test_a_collapsing_component_stops_at_the_floor() -> None:
    x = torch.cat([clusters(), torch.full((5, 3), 90.0, dtype=torch.float64)])  # equal rows
    fitted = fit_em(GaussianMixture((3,), 4, min_scale=0.01).double(), x, seed=0)
    model: Any = fitted.model
    smallest = torch.linalg.eigvalsh(model.decode(torch.arange(4)).covariance_matrix).min()
    assert float(smallest.detach()) == pytest.approx(1e-4, rel=1e-6)
    assert any("min_scale" in note for note in fitted.notes), fitted.notes
    assert fitted.converged


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_component_without_rows_is_split_off(covariance: Any) -> None:
    x = clusters()
    model = start(covariance, x)
    with torch.no_grad():
        model.means[1] = 1e4
    fitted = fit_em(model, x, initialize=False)
    assert any("component 1 has no rows" in note for note in fitted.notes), fitted.notes
    assert (model.prior().probs > 0.02).all()
    assert float(torch.pdist(model.means.detach()).min()) > 0.1
    bernoulli = BernoulliMixture((3,), 2)
    with torch.no_grad():
        bernoulli.logits.copy_(torch.tensor([0.0, -80.0]))
    fitted = fit_em(bernoulli, (x > 50).float(), initialize=False)
    assert any("component 1 has no rows" in note for note in fitted.notes), fitted.notes


def test_fewer_different_rows_than_components_are_survived() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(20, 1)
    for hard in (False, True):
        fitted = fit_em(GaussianMixture((2,), 4), x, seed=0, hard=hard, max_iterations=20)
        assert math.isfinite(fitted.history[-1]["bound"])
        assert fitted.notes


def test_the_best_of_several_starts_is_kept() -> None:
    x = clusters()
    make = partial(GaussianMixture, (3,), 5)
    options: dict[str, Any] = {"max_iterations": 8, "tolerance": 0.0}
    singles = [fit_em(make().double(), x, seed=s, **options).log_likelihood for s in range(4)]
    model = make().double()
    fitted = fit_em(model, x, seed=0, restarts=4, **options)
    assert fitted.log_likelihood == pytest.approx(max(singles), abs=1e-12)
    assert float(model.log_evidence(x).detach().mean()) == pytest.approx(max(singles), abs=1e-9)
    assert "of 4" in fitted.notes[-1]


def test_options_that_make_no_sense_are_refused() -> None:
    model, x = GaussianMixture((3,), 2), clusters(20, torch.float32)
    for options, message in (
        ({"max_iterations": 0}, "max_iterations"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"batch_size": 0}, "batch_size"),
        ({"restarts": 2, "initialize": False}, "restarts=2"),
        ({"hard": True, "guide": Exact(model)}, "guide"),
        ({"online": StepSize(), "m_step": GradientSteps()}, "online"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_em(model, x, **options)
    for wrong in (lambda: StepSize(0.5), lambda: StepSize(delay=0.0), lambda: GradientSteps(0)):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    with pytest.raises(ValueError, match="at least as many rows"):
        fit_em(GaussianMixture((3,), 21), x)

    def continuous(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(PairError, match=r"site 'z' has no exact posterior"):
        fit_em(continuous, x)


def test_programs_with_pyro_param_are_fitted() -> None:
    def program(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Categorical(logits=torch.zeros(2)), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(loc[z], 0.3), obs=x)

    x = torch.cat([torch.randn(50) * 0.1 - 2, torch.randn(50) * 0.1 + 3])
    fitted = fit_em(program, x, m_step=GradientSteps(10, 0.05), seed=0)
    values: Any = fitted.model
    loc = values.store["params"]["loc"].detach()
    torch.testing.assert_close(loc, torch.stack([x[:50].mean(), x[50:].mean()]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("gap", "spread", "rows", "numbers", "found"),
    [
        (5.0, 10.0, 400, 64, True),  # 9 standard errors of 0.56
        (5.0, 10.0, 16, 64, False),  # within chance
        (2.0, 10.0, 400, 64, False),  # 3.6 of them
        (0.5, 0.1, 400, 64, False),  # sure, and too small for rows of 64 numbers: 0.8
        (0.5, 0.1, 400, 2, True),
        (0.2, 0.1, 400, 2, False),
        (-5.0, 10.0, 400, 64, False),  # the test rows fit better
        (math.nan, 10.0, 400, 64, False),  # log p(x) is not known
        (5.0, 10.0, 1, 2, False),  # no standard error
    ],
)
def test_a_gap_to_the_test_rows_counts_if_it_is_sure_and_large(
    gap: float, spread: float, rows: int, numbers: int, found: bool
) -> None:
    values = torch.arange(rows) % 2 * 2.0 - 1.0
    test = Estimate(spread * values - 3.0 if rows > 1 else torch.tensor([-3.0]))
    text = overfitting(-3.0 + gap, test, 4 * rows, numbers)
    assert bool(text) is found
    if found:
        assert f"is {gap - 3:.1f} on the training rows and -3.0 on the test rows" in text


def test_rows_of_the_same_kind_have_no_gap_unless_the_model_overfits() -> None:
    x, other = torch.randn(2, 300, 8)
    for components, found in ((1, False), (30, True)):
        fitted = fit_em(GaussianMixture((8,), components, min_scale=1e-3), x, seed=0)
        test = Estimate(fitted.model.log_evidence(other).detach())  # type: ignore[attr-defined]
        assert bool(overfitting(fitted.log_likelihood, test, 300, 8)) is found
