"""The enumerated posterior, against Bayes' rule written out."""

from __future__ import annotations

from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import check, evaluate, fit
from ppl_vae.distributions import Given
from ppl_vae.guides import Enumerated, Exact
from ppl_vae.models import GaussianMixture
from ppl_vae.objectives import ELBO, EnumELBO
from ppl_vae.pairs import Pair, ScaleLatents, find_layout

X = torch.tensor([-1.5, 0.2, 0.9, 4.0])
PRIOR = torch.tensor([0.2, 0.5, 0.3])
LOCS = torch.tensor([-1.0, 0.5, 3.0])


def normal_log_prob(x: Tensor, loc: Tensor) -> Tensor:
    return -0.5 * (x - loc).square() - 0.9189385


class Mixture(nn.Module):
    """Three normals in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.locs = nn.Parameter(LOCS.clone())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(PRIOR))
            pyro.sample("x", dist.Normal(self.locs[z], 1.0), obs=x)


def by_bayes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(x), p(z | x)) of `Mixture`."""
    joint = PRIOR.log() + normal_log_prob(x.unsqueeze(-1), LOCS)
    evidence = joint.exp().sum(-1)
    return evidence.log(), joint.exp() / evidence.unsqueeze(-1)


def bernoulli(x: Tensor) -> None:
    """Values 0. and 1., a float."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def one_hot(x: Tensor) -> None:
    """Values that are vectors."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(PRIOR))
        pyro.sample("x", dist.Normal(z @ LOCS, 1.0), obs=x)


def binomial(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Binomial(3, torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def chain(x: Tensor) -> None:
    """Two sites, of which the second depends on the first."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(PRIOR))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.3 * a))
        pyro.sample("x", dist.Normal(LOCS[a] - b, 1.0), obs=x)


def pixels(x: Tensor) -> None:
    """The rows' plate is not the last dimension; the last one has 8 values, as many as 4 rows have
    combinations.
    """
    with pyro.plate("data", x.shape[0], dim=-2):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def joint_of(model: Any, x: Tensor) -> Tensor:
    """log p(x, z) at all values, `(n, ...)`, written out."""
    column = x.unsqueeze(-1)
    if model is bernoulli:
        return torch.tensor([0.7, 0.3]).log() + normal_log_prob(column, torch.tensor([0.0, 2.0]))
    if model is binomial:
        prior = torch.tensor([0.216, 0.432, 0.288, 0.064])  # 0.6^3, 3 0.4 0.6^2, ...
        return prior.log() + normal_log_prob(column, torch.arange(4.0))
    if model is chain:
        one = 0.2 + 0.3 * torch.arange(3.0)
        prior = PRIOR.unsqueeze(-1) * torch.stack([1 - one, one], -1)
        locs = LOCS.unsqueeze(-1) - torch.tensor([0.0, 1.0])
        return prior.log() + normal_log_prob(column.unsqueeze(-1), locs)
    if model is pixels:
        likelihood = normal_log_prob(column, torch.tensor([0.0, 1.0])).sum(1)
        return torch.tensor([0.7, 0.3]).log() + likelihood
    return PRIOR.log() + normal_log_prob(column, LOCS)


MODELS: list[Any] = [Mixture(), bernoulli, one_hot, binomial, chain, pixels]
models = pytest.mark.parametrize("model", MODELS, ids=lambda m: getattr(m, "__name__", "mixture"))


def data_of(model: Any) -> Tensor:
    return torch.stack([X * 0.1 * i for i in range(8)], -1) if model is pixels else X


@models
def test_the_posterior_is_bayes_rule(model: Any) -> None:
    x = data_of(model)
    joint = joint_of(model, x)
    evidence = joint.flatten(1).logsumexp(-1)
    expected = joint - evidence.reshape(-1, *(1,) * (joint.dim() - 1))
    torch.testing.assert_close(Enumerated(model).log_posterior(x), expected)


@models
def test_every_sample_has_the_evidence_for_its_weight(model: Any) -> None:
    x = data_of(model)
    evidence = joint_of(model, x).flatten(1).logsumexp(-1)
    guide = Enumerated(model)
    assert check(model, guide, x).ok
    found = evaluate(model, guide, x, num_samples=20, seed=0, progress=False)
    torch.testing.assert_close(found.elbo.values, evidence)
    torch.testing.assert_close(found.log_likelihood.values, evidence)
    torch.testing.assert_close(found.ess, torch.full((4,), 20.0))  # weights that do not vary


@models
def test_samples_follow_their_probabilities(model: Any) -> None:
    x, n = data_of(model), 20000
    torch.manual_seed(0)
    guide = Enumerated(model)
    with pyro.plate("samples", n, dim=-3):
        trace: Any = poutine.trace(ScaleLatents(5.0)(guide)).get_trace(x)
    expected = guide.log_posterior(x).exp().detach()
    if model is chain:
        pair = (2 * trace.nodes["a"]["value"] + trace.nodes["b"]["value"]).long().reshape(n, 4)
    else:
        value = trace.nodes["z"]["value"]
        pair = (value.argmax(-1) if model is one_hot else value).long().reshape(n, 4)
    expected = expected.flatten(1)
    counts = torch.stack([(pair == k).float().mean(0) for k in range(expected.shape[1])], -1)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((counts - expected).abs() <= 4.5 * error + 1e-6).all()


def test_gradients_are_those_of_the_evidence() -> None:
    model = Mixture()
    (expected,) = torch.autograd.grad(
        (PRIOR.log() + normal_log_prob(X.unsqueeze(-1), model.locs)).logsumexp(-1).mean(),
        [model.locs],
    )
    pair = Pair(model, Enumerated(model))
    with pair.scope():
        layout = find_layout(pair, X)
        objective = ELBO().resolve(pair, X)
        assert isinstance(objective, EnumELBO)
        loss = objective(pair, layout, X)
        (found,) = torch.autograd.grad(loss.loss, [model.locs])
    torch.testing.assert_close(-found, expected)
    torch.testing.assert_close(loss.elbo, by_bayes(X)[0].mean())


def test_several_sites_are_summed_exactly_in_training() -> None:
    shift = torch.zeros(3, requires_grad=True)

    def shifted(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(PRIOR))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.3 * a))
            pyro.sample("x", dist.Normal((LOCS + shift)[a] - b, 1.0), obs=x)

    pair = Pair(shifted, Enumerated(shifted))
    with pair.scope():
        loss = EnumELBO()(pair, find_layout(pair, X), X)
    expected = joint_of(chain, X).flatten(1).logsumexp(-1).mean()
    torch.testing.assert_close(-loss.loss, expected)


CONTEXT = torch.tensor([[0.0, 1.0], [0.5, -1.0], [1.0, 0.3], [2.0, 0.0]])


class Conditional(nn.Module):
    """p(a | c) p(b | a, c) p(x | a, b, c): all of it depends on two attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.5, -0.2]))

    def forward(self, x: Tensor, c: Tensor, offset: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", Given(c, dist.constraints.real_vector), obs=c)
            first, second = c.unbind(-1)
            a = pyro.sample("a", dist.Categorical(logits=first.unsqueeze(-1) * LOCS))
            b = pyro.sample("b", dist.Bernoulli(logits=second - a))
            loc = LOCS[a] - b + c @ self.shift + (0 if offset is None else offset)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def joint(self, x: Tensor, c: Tensor) -> Tensor:
        """log p(x, a, b | c) at all values, `(n, 3, 2)`, written out."""
        first, second = c[:, 0, None], c[:, 1, None]
        log_a = (first * LOCS).log_softmax(-1).unsqueeze(-1)
        logit = second - torch.arange(3.0)
        log_b = torch.stack([-logit.exp().log1p(), -(-logit).exp().log1p()], -1)
        locs = LOCS.unsqueeze(-1) - torch.tensor([0.0, 1.0]) + (c @ self.shift)[:, None, None]
        return log_a + log_b + normal_log_prob(x[:, None, None], locs)


def test_the_posterior_given_a_context_is_bayes_rule() -> None:
    model = Conditional()
    joint = model.joint(X, CONTEXT)
    evidence = joint.flatten(1).logsumexp(-1)
    guide = Enumerated(model)
    found = guide.log_posterior(X, CONTEXT)
    torch.testing.assert_close(found, joint - evidence[:, None, None])
    assert not torch.allclose(found, guide.log_posterior(X, CONTEXT.flip(0)))
    x = (X, CONTEXT)
    assert check(model, guide, x).ok
    result = evaluate(model, guide, x, num_samples=20, method="guide", seed=0, progress=False)
    torch.testing.assert_close(result.elbo.values, evidence.detach())
    torch.testing.assert_close(result.log_likelihood.values, evidence.detach())


def test_gradients_given_a_context_are_those_of_the_evidence() -> None:
    model = Conditional()
    evidence = model.joint(X, CONTEXT).flatten(1).logsumexp(-1).mean()
    (expected,) = torch.autograd.grad(evidence, [model.shift])
    pair = Pair(model, Enumerated(model))
    with pair.scope():
        loss = EnumELBO()(pair, find_layout(pair, (X, CONTEXT)), (X, CONTEXT))
        (found,) = torch.autograd.grad(loss.loss, [model.shift])
    torch.testing.assert_close(-found, expected)
    rows = (torch.cat([X, X + 1]), torch.cat([CONTEXT, CONTEXT]))
    fit(model, pair.guide, rows, max_epochs=2, batch_size=3, seed=0, progress=False)


def test_an_argument_may_be_absent() -> None:
    guide, none = Enumerated(Conditional()), torch.zeros(4)
    found = guide.log_posterior(X, CONTEXT, None)
    torch.testing.assert_close(found, guide.log_posterior(X, CONTEXT, none))
    torch.testing.assert_close(found, guide.log_posterior(X + 3, CONTEXT, none + 3))


def test_a_categorical_stays_one() -> None:
    trace: Any = poutine.trace(Enumerated(Mixture())).get_trace(X)
    fn = trace.nodes["z"]["fn"]
    assert isinstance(fn, dist.Categorical)
    torch.testing.assert_close(fn.probs, by_bayes(X)[1])


def test_it_agrees_with_a_model_that_knows_its_posterior() -> None:
    torch.manual_seed(0)
    model = GaussianMixture((2,), components=4)
    x = torch.randn(7, 2)
    found = Enumerated(model).log_posterior(x)
    expected = Exact(model).encode(x)
    assert isinstance(expected, dist.Categorical)
    torch.testing.assert_close(found, expected.logits)


def test_it_owns_no_parameters_and_trains_the_models() -> None:
    model = Mixture()
    guide = Enumerated(model)
    assert not list(guide.parameters())
    x = torch.cat([X, X + 1, X - 1])
    fit(model, guide, x, max_epochs=3, batch_size=5, seed=0, progress=False)
    assert not torch.equal(model.locs, LOCS)


def test_a_value_outside_of_the_support_has_no_probability() -> None:
    trace: Any = poutine.trace(Enumerated(bernoulli)).get_trace(X)
    fn = trace.nodes["z"]["fn"]
    assert fn.log_prob(torch.tensor(0.5)).eq(-torch.inf).all()
    assert fn.log_prob(torch.tensor(1.0)).isfinite().all()
    assert fn.enumerate_support().shape == (2, 4)
    assert fn.enumerate_support(expand=False).shape == (2, 1)


def outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def inside(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 2, dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1).expand(-1, 2))


def many(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = sum(pyro.sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(13))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def none(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (programs.normal, "site 'z' is a Normal, whose values cannot be counted"),
        (outside, "site 'z' is not inside a plate over the 4 rows"),
        (inside, "'z' has batch shape \\(4, 2\\), more than one value per row"),
        (many, "have 8192 combinations"),
        (none, "has no latent site"),
    ],
)
def test_what_cannot_be_enumerated_is_named(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Enumerated(model)(X)
