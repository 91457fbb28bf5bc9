"""`evaluate` and `inference_gaps` sum over latents with few values, whatever the guide draws of them."""

from __future__ import annotations

import importlib
import math
import weakref
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import evaluate, inference_gaps

X = torch.tensor([-6.0, -1.0, 0.0, 2.0, 7.0])
MEANS = torch.tensor([-5.0, 0.0, 6.0])
PRIOR = torch.tensor([0.2, 0.5, 0.3])


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(PRIOR))
        pyro.sample("x", dist.Normal(MEANS[c], 1.0), obs=x)


def one_component(x: Tensor) -> None:
    """Always draws component 1: at x = -6 and 7 its weights are equal, and 10 to 20 nats low."""
    with pyro.plate("data", len(x)):
        pyro.sample(
            "c", dist.Categorical(logits=torch.tensor([-80.0, 0.0, -80.0]).expand(len(x), 3))
        )


def never(x: Tensor) -> None:
    """Component 1 has probability 0."""
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.0, 0.5]).expand(len(x), 3)))


def log_mixture(x: Tensor) -> Tensor:
    terms = dist.Normal(MEANS, 1.0).log_prob(x.unsqueeze(-1)) + PRIOR.log()
    return torch.logsumexp(terms.double(), -1)


@pytest.mark.parametrize("guide", [one_component, never])
def test_a_guide_that_never_draws_a_value(guide: Any) -> None:
    found = evaluate(mixture, guide, X, num_samples=50, seed=0)
    torch.testing.assert_close(
        found.log_likelihood.values.double(), log_mixture(X), atol=1e-5, rtol=0
    )
    assert not found.unreliable.any()
    assert not found.warnings
    assert float(found.log_likelihood_error.max()) == 0
    assert "exact" in found.notes[0]
    probs = poutine.trace(guide).get_trace(X).nodes["c"]["fn"].probs.double()
    log_p = (dist.Normal(MEANS, 1.0).log_prob(X.unsqueeze(-1)) + PRIOR.log()).double()
    terms = torch.where(probs > 0, probs * (log_p - probs.log()), 0.0)
    torch.testing.assert_close(found.elbo.values.double(), terms.sum(-1), atol=1e-4, rtol=1e-5)


class MaskedBits:
    """Four bits for each row, of which masks leave some out, written in three ways.

    b_ij ~ Bernoulli(0.3), x_ij ~ N(2 b_ij, 1).
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def bits(self, x: Tensor, there: Any, probs: Tensor, obs: bool) -> None:
        if self.how == "event":  # all bits of a row, or none
            with pyro.plate("data", len(x)), poutine.mask(mask=there[:, 0]):
                b = pyro.sample("b", dist.Bernoulli(probs).to_event(1))
                if obs:
                    pyro.sample("x", dist.Normal(2 * b, 1.0).to_event(1), obs=x)
        elif self.how == "inner plate":
            rows, bits = pyro.plate("data", len(x), dim=-2), pyro.plate("bits", 4, dim=-1)
            with rows, bits, poutine.mask(mask=there):
                b = pyro.sample("b", dist.Bernoulli(probs))
                if obs:
                    pyro.sample("x", dist.Normal(2 * b, 1.0), obs=x)
        else:
            with pyro.plate("data", len(x)):
                for j in range(4):
                    with poutine.mask(mask=there[:, j]):
                        b = pyro.sample(f"b_{j}", dist.Bernoulli(probs[:, j]))
                        if obs:
                            pyro.sample(f"x_{j}", dist.Normal(2 * b, 1.0), obs=x[:, j])

    def model(self, x: Tensor, there: Tensor) -> None:
        self.bits(x, there, torch.full(x.shape, 0.3), obs=True)

    def guide(self, x: Tensor, there: Tensor) -> None:
        self.bits(x, there, torch.full(x.shape, 0.9), obs=False)


@pytest.mark.parametrize("how", ["event", "inner plate", "loop"])
def test_masked_values_count_once(how: str) -> None:
    x = torch.randn(6, 4) * 2
    there = torch.rand(6, 4) < 0.6
    if how == "event":
        there = there[:, :1].expand(6, 4).contiguous()
    pair = MaskedBits(how)
    found = evaluate(pair.model, pair.guide, (x, there), num_samples=20, seed=0)
    one, zero = (dist.Normal(m, 1.0).log_prob(x.double()) for m in (2.0, 0.0))
    both = torch.stack([one + math.log(0.3), zero + math.log(0.7)])
    truth = torch.where(there, torch.logsumexp(both, 0), 0.0).sum(1)
    torch.testing.assert_close(found.log_likelihood.values.double(), truth, atol=1e-5, rtol=0)
    q = torch.tensor([0.9, 0.1]).double().reshape(2, 1, 1)
    bound = torch.where(there, (q * (both - q.log())).sum(0), 0.0).sum(1)
    torch.testing.assert_close(found.elbo.values.double(), bound, atol=1e-5, rtol=0)


class Mixed:
    """c, then z given c in the model; the guide draws z first or c first.

    c ~ Categorical, z ~ N(m_c, 1), x ~ N(z, 1): log p(x) is that of a mixture of N(m_c, 2).
    """

    def __init__(self, c_first: bool, loop: bool = False, sizes: int = 3) -> None:
        self.c_first, self.loop, self.sizes = c_first, loop, sizes
        self.means = torch.linspace(-4, 4, sizes)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(self.sizes) / self.sizes))
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0))
            if self.loop and z.dim() > 1:
                raise ValueError("no samples to the left of the rows")
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        n = len(x)
        with pyro.plate("data", n):
            if self.c_first:
                logits = torch.full((n, self.sizes), -30.0)
                logits[:, 0] = 0.0  # never anything but the first component
                c = pyro.sample("c", dist.Categorical(logits=logits))
                pyro.sample("z", dist.Normal((x + self.means[c]) / 2, 0.8))
            else:
                z = pyro.sample("z", dist.Normal(0.8 * x, 1.2))
                logits = torch.stack([z, torch.zeros_like(z), -z], -1)
                pyro.sample("c", dist.Categorical(logits=logits))

    def log_evidence(self, x: Tensor) -> Tensor:
        terms = dist.Normal(self.means, 2**0.5).log_prob(x.unsqueeze(-1))
        return torch.logsumexp(terms.double(), -1) - math.log(self.sizes)


@pytest.mark.parametrize(
    ("c_first", "loop"),
    [
        (True, False),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_with_continuous_latents(c_first: bool, loop: bool) -> None:
    pair = Mixed(c_first, loop)
    x = torch.linspace(-6, 6, 9)
    samples = 150 if loop else 20_000
    found = evaluate(pair.model, pair.guide, x, num_samples=samples, seed=0, method="guide")
    error = found.log_likelihood_error.double() + 1e-4
    off = (found.log_likelihood.values.double() - pair.log_evidence(x)).abs()
    assert float((off / error).max()) < 5
    assert float(off.max()) < (0.5 if loop else 0.05)
    assert "drawn for each of them" in found.notes[0]
    if not c_first:  # E_q[log p(x, z, c) - log q(z, c)] by quadrature over z
        z = torch.linspace(-20, 20, 8001).double().unsqueeze(-1)
        q_z = dist.Normal(0.8 * x.double(), 1.2)
        log_q_c = torch.stack([z, torch.zeros_like(z), -z], -1).log_softmax(-1)
        log_p_c = dist.Normal(pair.means.double(), 1.0).log_prob(z.unsqueeze(-1)) - math.log(3)
        inner = (log_q_c.exp() * (log_p_c - log_q_c)).sum(-1)
        f = inner + dist.Normal(z, 1.0).log_prob(x.double()) - q_z.log_prob(z)
        truth = (q_z.log_prob(z).exp() * f).sum(0) * 40 / 8000
        second = (q_z.log_prob(z).exp() * f.square()).sum(0) * 40 / 8000
        error = (
            (second - truth.square()) / samples + 1e-4
        ).sqrt()  # without the noise of c given z
        assert float(((found.elbo.values.double() - truth).abs() / error).max()) < 6


def test_many_chunks_give_the_same() -> None:
    """Sums over values are not recorded: supports and plates may differ from chunk to chunk."""
    pair = Mixed(True)
    x = torch.linspace(-6, 6, 40 * 64 + 1)
    options: dict[str, Any] = {"num_samples": 40, "seed": 3}
    found = evaluate(pair.model, pair.guide, x, **options)
    plain = evaluate(pair.model, pair.guide, x, capture=False, **options)
    for name in ("log_likelihood", "elbo"):
        values = getattr(found, name).values
        torch.testing.assert_close(values, getattr(plain, name).values, atol=1e-4, rtol=1e-5)


def test_supports_and_plates_that_differ_from_batch_to_batch() -> None:
    """Binomial latents of n and 5 trials, and rows of 2 and 4 numbers, in two batches of one shape."""

    def counts(x: Tensor, n: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Binomial(int(n[0]), torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def count_guide(x: Tensor, n: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Binomial(int(n[0]), torch.full((len(x),), 0.1)))

    x = torch.tensor([0.0, 4.5, 2.0])
    batches = [(x, torch.full((3,), float(n))) for n in (2, 5)]
    found = evaluate(counts, count_guide, batches, num_samples=10, seed=0)
    truth = []
    for n in (2, 5):
        values = torch.arange(n + 1).double()
        prior = dist.Binomial(n, torch.tensor(0.4).double()).log_prob(values)
        log_p = dist.Normal(values, 1.0).log_prob(x.double().unsqueeze(-1)) + prior
        truth.append(torch.logsumexp(log_p, -1))
    torch.testing.assert_close(
        found.log_likelihood.values.double(), torch.cat(truth), atol=1e-5, rtol=0
    )

    def steps(x: Tensor, lengths: Tensor, obs: bool = True) -> None:
        size = int(lengths.max())
        there: Any = torch.arange(size) < lengths.unsqueeze(-1)
        rows, times = pyro.plate("data", len(x), dim=-2), pyro.plate("t", size, dim=-1)
        with rows, times, poutine.mask(mask=there):
            b = pyro.sample("b", dist.Bernoulli(0.3 if obs else 0.8))
            if obs:
                pyro.sample("x", dist.Normal(2 * b, 1.0), obs=x[:, :size])

    y = torch.randn(2, 3, 4) * 2
    lengths = [torch.tensor([2, 1, 2]), torch.tensor([4, 3, 1])]
    guide: Any = lambda x, lengths: steps(x, lengths, obs=False)  # noqa: E731
    found = evaluate(steps, guide, list(zip(y, lengths, strict=True)), num_samples=10, seed=0)
    one, zero = (dist.Normal(m, 1.0).log_prob(y.double()) for m in (2.0, 0.0))
    each = torch.logsumexp(torch.stack([one + math.log(0.3), zero + math.log(0.7)]), 0)
    inside = torch.arange(4) < torch.stack(lengths).unsqueeze(-1)
    sums = torch.where(inside, each, 0.0).sum(-1).flatten()
    torch.testing.assert_close(found.log_likelihood.values.double(), sums, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 20])
def test_a_support_that_depends_on_another_draw_is_drawn(n: int) -> None:
    """a ~ Categorical on 1 to 3, b ~ Binomial(a, 0.5), x ~ N(a + b, 1)."""

    def program(x: Tensor, obs: bool) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(torch.ones(3) / 3)) + 1.0
            b = pyro.sample("b", dist.Binomial(a, torch.tensor(0.5)))
            if obs:
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    x = torch.linspace(0, 6, n)
    model: Any = lambda x: program(x, True)  # noqa: E731
    guide: Any = lambda x: program(x, False)  # noqa: E731
    found = evaluate(model, guide, x, num_samples=4000, seed=0)
    assert any("are discrete and are drawn" in text for text in found.warnings)
    p = torch.zeros(7)
    for a in (1, 2, 3):
        for b in range(a + 1):
            p[a + b] += math.comb(a, b) / 2**a / 3
    log_p = dist.Normal(torch.arange(7.0), 1.0).log_prob(x.unsqueeze(-1)) + p.log()
    off = (found.log_likelihood.values - torch.logsumexp(log_p, -1)).abs()
    assert float((off / found.log_likelihood_error).max()) < 5


def test_a_guide_of_fewer_values_than_the_model_is_not_exact() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.full((len(x), 2), 0.5)))

    found = evaluate(mixture, guide, X, num_samples=100, seed=0)
    assert "exact" not in str(found)
    assert any("not the same ones in both programs" in text for text in found.warnings)
    assert any("the guide draws integers from 0 to 1 only" in text for text in found.warnings)


def test_sums_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many joint values, few are in memory at once, and no runs but their numbers are kept."""
    finite: Any = importlib.import_module("ppl_vae.pairs.finite")
    sizes: list[int] = []
    alive: list[Any] = []

    def counted(pair: Any, layout: Any, batch: Any, samples: int, values: Any = None) -> Any:
        found = sample_rows(pair, layout, batch, samples, values=values)
        sizes.append(samples)
        assert not any(reference() for reference in alive), "an earlier run is still in memory"
        alive.append(weakref.ref(found.guide_trace))
        return found

    sample_rows = finite.sample_rows
    monkeypatch.setattr(finite, "sample_rows", counted)
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**14)
    pair = MaskedBits("inner plate")
    there = torch.ones(3, 4, dtype=torch.bool)
    evaluate(pair.model, pair.guide, (torch.randn(3, 4), there), num_samples=20, seed=0)
    assert len(sizes) > 3
    assert max(sizes) < 16


@pytest.mark.parametrize("guide", [one_component, never])
def test_gaps_sum_over_them(guide: Any) -> None:
    found = inference_gaps(mixture, guide, X, num_samples=20, max_steps=1, seed=0)
    exact = log_mixture(X)
    torch.testing.assert_close(found.log_likelihood.values.double(), exact, atol=1e-5, rtol=0)
    assert float(found.log_likelihood_error.max()) == 0
    assert not found.unreliable.any()
    torch.testing.assert_close(found.elbo.values, evaluate(mixture, guide, X, seed=0).elbo.values)
    assert bool((found.best_elbo.values.double() <= exact + 1e-5).all())
    assert any("summed over their 3 joint values" in text for text in found.notes)


def test_gaps_sum_over_them_with_continuous_latents() -> None:
    """The guide draws the first component alone."""
    pair = Mixed(c_first=True)
    x = torch.linspace(-6, 6, 5)
    found = inference_gaps(pair.model, pair.guide, x, num_samples=2000, max_steps=1, seed=0)
    off = (found.log_likelihood.values.double() - pair.log_evidence(x)).abs()
    assert float((off / (found.log_likelihood_error.double() + 1e-4)).max()) < 5
    assert float(off.max()) < 0.05
    # log p(x, z, 0) - log q(z | 0) under q(z | 0) = N((x + m) / 2, 0.64), where N(., 1/2) is exact.
    kl = kl_divergence(dist.Normal(0.0, 0.8), dist.Normal(0.0, 0.5**0.5))
    elbo = dist.Normal(-4.0, 2**0.5).log_prob(x) - math.log(3) - kl
    assert float((found.elbo.values - elbo).abs().max()) < 6 * float(found.elbo_error.max())


def test_gaps_weigh_rare_values_by_a_wide_guide() -> None:
    """x = z + 4 c + noise, and the guide's z knows nothing of c: its best q is narrow, at one of two modes."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 4 * c, 0.3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=torch.full((len(x),), -4.0)))
            pyro.sample("z", dist.Normal(0.0 * x, 2.0))

    x = torch.tensor([1.9, 2.0])
    found = inference_gaps(model, guide, x, num_samples=2000, max_steps=100, seed=0)
    spread = (1 + 0.3**2) ** 0.5
    zero = math.log(0.6) + dist.Normal(0.0, spread).log_prob(x)
    exact = torch.logaddexp(zero, math.log(0.4) + dist.Normal(4.0, spread).log_prob(x))
    off = (found.log_likelihood.values - exact).abs()
    assert bool((off < 5 * found.log_likelihood_error).all())
    assert float(off.max()) < 0.15
    assert not found.unreliable.any()


def test_too_many_values_are_unreliable() -> None:
    """100 components with a continuous latent, and a Poisson latent: what is not drawn is not seen."""
    pair = Mixed(True, sizes=100)
    found = evaluate(pair.model, pair.guide, torch.tensor([-6.0, 6.0]), num_samples=100, seed=0)
    assert any("are discrete and are drawn" in text for text in found.warnings)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Poisson(5.0))
            pyro.sample("x", dist.Normal(c, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Poisson(torch.full((len(x),), 1e-6)))

    found = evaluate(model, guide, torch.tensor([0.0, 5.0, 9.0]), num_samples=200, seed=0)
    assert found.unreliable.all()
    assert any("same weight on 3 of 3 rows" in text for text in found.warnings)
    gaps = inference_gaps(
        model, guide, torch.tensor([0.0, 5.0, 9.0]), num_samples=200, max_steps=1, seed=0
    )
    assert gaps.unreliable.all()
    assert any("are discrete and are drawn" in text for text in gaps.warnings)


def test_a_sum_over_words_of_one_hot() -> None:
    """One-hot latents, and two of them: the sum goes over all pairs of values."""
    prior = torch.tensor([0.1, 0.6, 0.3])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.OneHotCategorical(prior))
            b = pyro.sample("b", dist.OneHotCategorical(prior))
            pyro.sample("x", dist.Normal(((a + 2 * b) * MEANS).sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            flat = torch.ones(len(x), 3) / 3
            pyro.sample("a", dist.OneHotCategorical(flat))
            pyro.sample("b", dist.OneHotCategorical(flat))

    found = evaluate(model, guide, X, num_samples=10, seed=0)
    means = MEANS.unsqueeze(-1) + 2 * MEANS
    log_p = (
        dist.Normal(means.T, 1.0).log_prob(X.reshape(-1, 1, 1))
        + (prior.unsqueeze(-1) * prior).log()
    )
    truth = torch.logsumexp(log_p.flatten(1).double(), -1)
    torch.testing.assert_close(found.log_likelihood.values.double(), truth, atol=1e-5, rtol=0)
    assert "9 joint values" in found.notes[0]


# -- verdicts --------------------------------------------------------------------------------------------


def normal_pair(scale: float) -> tuple[Any, Any]:
    """x ~ N(z, 1), z ~ N(0, 1), and a guide of the given scale around the exact mean."""

    model = programs.normal

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return model, guide


def test_rows_that_one_weight_rules_are_unreliable() -> None:
    """ESS 1 of 1,000 and an infinite k-hat: no verdict is not a good verdict."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1e-3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 40), 1.0).to_event(1))

    x = torch.linspace(20, 60, 20)
    found = evaluate(model, guide, x, num_samples=1000, method="guide", seed=0)
    assert float(found.ess.max()) < 3
    assert found.unreliable.all()
    assert any("cannot be estimated" in text for text in found.warnings)


@pytest.mark.parametrize("samples", [1, 15])
def test_few_samples_give_no_verdict(samples: int) -> None:
    found = evaluate(*normal_pair(1.0), torch.randn(6), num_samples=samples, seed=0)
    assert found.unreliable.all()
    assert any("cannot be estimated on 6 of 6 rows" in text for text in found.warnings)


def test_an_exact_guide_is_reliable_with_few_samples() -> None:
    found = evaluate(*normal_pair(0.5**0.5), torch.randn(6), num_samples=15, seed=0)
    assert not found.unreliable.any()


def test_the_error_is_too_small_above_one_half() -> None:
    """A guide that is too narrow by a factor s has weights of shape k = 1 - s^2."""
    model, guide = normal_pair(0.5**0.5 * 0.65)  # k = 1 - 0.65^2 = 0.58
    found = evaluate(model, guide, torch.randn(30), num_samples=5000, method="guide", seed=0)
    between = (found.khat > 0.5) & (found.khat <= found.khat_limit)
    count = int(between.sum())
    assert count > 5
    told = [text for text in found.warnings if "larger than log_likelihood_error says" in text]
    assert told
    assert f"on {count} of 30 rows" in told[0]
