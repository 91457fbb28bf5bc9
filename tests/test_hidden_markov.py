"""Hidden Markov models against sums over all paths, Pyro's own elimination, and hmmlearn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from hmmlearn import hmm
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import check, evaluate, fit
from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.em import fit_em
from ppl_vae.guides import Exact, Recurrent
from ppl_vae.models import CategoricalHMM, GaussianHMM
from ppl_vae.models.sequences.forward_backward import best_paths, expected_paths, posterior_chain
from ppl_vae.objectives import ELBO, EnumELBO, TraceELBO
from ppl_vae.pairs import Substitute, sample_sites, unscaled

STEPS = 4
LENGTHS = torch.tensor([4, 2, 1, 3, 4])
MODELS: dict[str, Callable[[], Any]] = {
    "diagonal": lambda: GaussianHMM((STEPS, 2), 3),
    "full": lambda: GaussianHMM((STEPS, 2), 3, covariance="full"),
    "tied": lambda: GaussianHMM((STEPS, 1, 2), 3, covariance="tied"),
    "spherical": lambda: GaussianHMM((STEPS, 2), 2, covariance="spherical"),
    "categorical": lambda: CategoricalHMM((STEPS,), 3, 4),
}
models = pytest.mark.parametrize("name", MODELS)
ragged = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape))
        if isinstance(model, GaussianHMM):
            model.centre.fill_(0.3)
    return model


def data(model: Any, n: int = 5, steps: int = STEPS) -> Tensor:
    torch.manual_seed(1)
    if isinstance(model, CategoricalHMM):
        return torch.randint(4, (n, steps))
    return 2 * torch.randn(n, steps, *model.data_shape[1:]).double()


def batch_of(x: Tensor, lengths: Tensor | None) -> Any:
    return x if lengths is None else (x, lengths)


def all_paths(states: int, steps: int = STEPS) -> Tensor:
    return torch.tensor(list(itertools.product(range(states), repeat=steps)))


def joint_of(model: Any, x: Tensor, lengths: Tensor | None, paths: Tensor) -> Tensor:
    """log p(x, z) of paths `(m, T)` or `(m, n, T)`, from the program's own sites: `(m, n)`."""
    if paths.dim() == 2:
        paths = paths.unsqueeze(1).expand(-1, len(x), -1)
    values = {f"z_{t}": paths[..., t] for t in range(paths.shape[-1])}
    with pyro.plate("paths", len(paths), dim=-2):
        trace = poutine.trace(Substitute(values)(model)).get_trace(x, lengths)
    sites = [unscaled(s).expand(len(paths), len(x)) for s in sample_sites(trace).values()]
    return torch.stack(sites).sum(0)


def every_path(name: str, lengths: Tensor | None) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A model, its data, all paths `(m, T)`, and log p(x, z) of each, `(m, n)`."""
    model = made(name)
    x, paths = data(model), all_paths(model.states)
    return model, x, paths, joint_of(model, x, lengths, paths)


def chain(steps: int = STEPS, states: int = 3, batch: tuple[int, ...] = (2,)) -> MarkovChain:
    torch.manual_seed(3)
    first = torch.randn(*batch, states).double()
    return MarkovChain(first, 2 * torch.randn(*batch, steps - 1, states, states).double())


# -- the chain -------------------------------------------------------------------------------------------


def test_chain_against_all_of_its_paths() -> None:
    p = chain()
    paths = all_paths(3)
    log_p = p.log_prob(paths.unsqueeze(1))
    weights = log_p.exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(2).double())
    one_hot = torch.nn.functional.one_hot(paths, 3).double()
    torch.testing.assert_close(p.marginals, torch.einsum("mn,mtk->ntk", weights, one_hot))
    pairs = torch.einsum("mn,mti,mtj->ntij", weights, one_hot[:, :-1], one_hot[:, 1:])
    torch.testing.assert_close(p.pair_marginals, pairs)
    torch.testing.assert_close(p.entropy(), -(weights * log_p).sum(0))
    assert torch.equal(p.mode, paths[log_p.argmax(0)])
    torch.manual_seed(4)
    q = MarkovChain(torch.randn(3).double(), torch.randn(STEPS - 1, 3, 3).double())
    by_sum = (weights * (log_p - q.log_prob(paths).unsqueeze(-1))).sum(0)
    torch.testing.assert_close(kl_divergence(p, q), by_sum)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_samples_are_those_of_a_categorical_for_each_step(
    shape: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    chain = MarkovChain(torch.randn(*batch, 4), 3.0 * torch.randn(*batch, 5, 4, 4))
    generators = torch.get_rng_state()
    found = chain.sample(shape)
    torch.set_rng_state(generators)
    path = [chain.step(0).sample(torch.Size(shape))]
    for t in range(1, 6):
        path.append(chain.step(t, path[-1]).sample())
    assert torch.equal(found, torch.stack(path, -1))
    assert found.shape == (*shape, *batch, 6)


def test_samples_of_a_chain_follow_its_marginals() -> None:
    p = chain()
    torch.manual_seed(5)
    n = 40_000
    paths = p.sample(torch.Size([n]))
    assert paths.shape == (n, 2, STEPS)
    one_hot = torch.nn.functional.one_hot(paths, 3).double()
    pairs = torch.einsum("mnti,mntj->ntij", one_hot[:, :, :-1], one_hot[:, :, 1:]) / n
    error = (p.pair_marginals * (1 - p.pair_marginals) / n).sqrt()
    assert ((pairs - p.pair_marginals).abs() <= 5 * error + 1e-12).all()


def test_a_chain_expands_and_can_have_one_step() -> None:
    p = chain(batch=())
    paths = p.expand(torch.Size([6])).sample()
    assert paths.shape == (6, STEPS)
    torch.testing.assert_close(p.expand(torch.Size([6])).log_prob(paths), p.log_prob(paths))
    one = MarkovChain(torch.tensor([0.0, IMPOSSIBLE]), torch.zeros(0, 2, 2))
    assert one.sample(torch.Size([50])).eq(0).all()
    assert one.mode.tolist() == [0]
    assert one.log_prob(torch.tensor([0])) == 0
    with pytest.raises(
        ValueError, match=r"transition_logits of shape \(\*batch, steps - 1, 2, 2\)"
    ):
        MarkovChain(torch.zeros(2), torch.zeros(3, 2))


# -- the model -------------------------------------------------------------------------------------------


@models
@ragged
def test_evidence_and_posterior_are_sums_over_all_paths(name: str, lengths: Tensor | None) -> None:
    model, x, paths, joint = every_path(name, lengths)
    log_evidence = model.log_evidence(x, lengths)
    torch.testing.assert_close(log_evidence, joint.logsumexp(0))
    q = model.posterior(x, lengths)
    weights = joint.softmax(0)
    one_hot = torch.nn.functional.one_hot(paths, model.states).double()
    torch.testing.assert_close(q.marginals, torch.einsum("mn,mtk->ntk", weights, one_hot))
    pairs = torch.einsum("mn,mti,mtj->ntij", weights, one_hot[:, :-1], one_hot[:, 1:])
    torch.testing.assert_close(q.pair_marginals, pairs)
    torch.testing.assert_close(q.log_prob(paths.unsqueeze(1)).exp(), weights)
    assert torch.equal(q.mode, paths[joint.argmax(0)])


@models
@ragged
def test_pyro_and_the_exact_guide_have_the_same_evidence(name: str, lengths: Tensor | None) -> None:
    model = made(name)
    x = data(model)
    with torch.no_grad():
        expected = model.log_evidence(x, lengths)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    total = expected.sum().item()
    assert -elbo.loss(model, lambda *args: None, x, lengths) == pytest.approx(total)
    assert -elbo.loss(model, Exact(model), x, lengths) == pytest.approx(total)
    result = evaluate(model, Exact(model), batch_of(x, lengths), num_samples=3, seed=0)
    torch.testing.assert_close(result.elbo.values, expected)


@models
def test_what_stands_beyond_a_length_does_not_matter(name: str) -> None:
    model = made(name)
    x = data(model)
    other = x.clone()
    for row, length in zip(other, LENGTHS.tolist(), strict=True):
        row[length:] = 1
    statistics = [model.expected_statistics(rows, LENGTHS) for rows in (x, other)]
    for key, value in statistics[0].items():
        assert torch.equal(value, statistics[1][key]), key
    cut = model.log_evidence(x[1:2, :2])
    torch.testing.assert_close(model.log_evidence(x, LENGTHS)[1:2], cut)


@models
@pytest.mark.parametrize("guide", ["none", "exact"])
def test_enumeration_trains_every_parameter(name: str, guide: str) -> None:
    model = made(name)
    x = (data(model), LENGTHS)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    q: Any = Exact(model) if guide == "exact" else lambda *args: None
    assert check(model, q, x, objective=EnumELBO()).ok
    fitted = fit(model, q, x, objective=EnumELBO(), max_epochs=1, seed=0, capture=False)
    assert math.isfinite(fitted.history[-1]["elbo"])
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_gradients_of_log_evidence_and_of_pyro_agree() -> None:
    model = made("diagonal")
    x = data(model)
    ours = torch.autograd.grad(model.log_evidence(x, LENGTHS).sum(), list(model.parameters()))
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        model, lambda *args: None, x, LENGTHS
    )
    theirs = torch.autograd.grad(-loss, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


# -- the E step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 400], ids=["few", "many"])
@pytest.mark.parametrize("zeros", [False, True], ids=["scaled", "logarithms"])
@pytest.mark.parametrize("full", [False, True], ids=["ragged", "full"])
def test_e_step_is_the_derivative_of_the_evidence(n: int, zeros: bool, full: bool) -> None:
    """Few sequences go through the scaled recursion in blocks, many do not."""
    lengths = None if full else torch.tensor([30, 1, 17, 30]).repeat(n // 4)
    torch.manual_seed(0)
    initial, transition = torch.randn(3).double(), torch.randn(3, 3).double()
    if zeros:
        transition[0, 2] = transition[2, 0] = -math.inf
        initial[1] = -math.inf
    log_likelihood = 20 * torch.randn(n, 30, 3).double()
    inputs = (initial.log_softmax(-1), transition.log_softmax(-1), log_likelihood)
    found = expected_paths(*inputs, lengths=lengths)
    leaves = [v.clamp_min(IMPOSSIBLE).requires_grad_() for v in inputs]
    _, log_evidence = posterior_chain(leaves[0], leaves[1], leaves[2], lengths)
    _, transitions, states = torch.autograd.grad(log_evidence.sum(), leaves)
    torch.testing.assert_close(found.log_evidence, log_evidence.sum())
    torch.testing.assert_close(found.states, states, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.transitions, transitions, atol=1e-8, rtol=1e-8)
    assert torch.isfinite(transitions).all()


def test_no_path_is_lost_to_underflow() -> None:
    """Two chains that never meet: the one that is 2000 nats behind halfway wins in the end."""
    log_likelihood = torch.zeros(1, 40, 2).double()
    log_likelihood[:, :20, 0] = 100.0
    log_likelihood[:, 20:, 1] = 150.0
    half = torch.full((2,), 0.5).double().log()
    found = expected_paths(half, torch.eye(2).double().log(), log_likelihood)
    torch.testing.assert_close(found.states[0, :, 1], torch.ones(40).double())
    assert found.log_evidence.item() == pytest.approx(3000 - math.log(2))
    # the same where the two can meet, and where the first step is impossible for what it shows
    stay = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double().log()
    first = torch.tensor([1.0, 0.0]).double().log()
    first_likelihood = torch.tensor([[[-2000.0, 0.0], [0.0, 0.0]]]).double()
    found = expected_paths(first, stay, first_likelihood)
    assert found.log_evidence.item() == pytest.approx(-2000, abs=1e-6)


@models
@ragged
def test_viterbi_training_counts_the_best_path(name: str, lengths: Tensor | None) -> None:
    model, x, paths, joint = every_path(name, lengths)
    best, index = joint.max(0)
    statistics = model.expected_statistics(x, lengths, hard=True)
    torch.testing.assert_close(statistics["log_evidence"], best.sum().detach())
    log_likelihood = model.decode(torch.arange(model.states)).log_prob(x.unsqueeze(2))
    initial, transition = model._log_chain()
    found = best_paths(initial, transition, log_likelihood, lengths)
    steps = [STEPS] * len(x) if lengths is None else lengths.tolist()
    for row, (i, length) in enumerate(zip(index.tolist(), steps, strict=True)):
        expected = torch.nn.functional.one_hot(paths[i, :length], model.states).double()
        assert torch.equal(found.states[row, :length], expected)
        assert found.states[row, length:].sum() == 0
    assert found.transitions.sum() == sum(steps) - len(x)


@models
@pytest.mark.parametrize("hard", [False, True])
def test_the_m_step_is_stationary(name: str, hard: bool) -> None:
    """No gradient is left of E_q log p(x, z), summed over all paths, and batches add up."""
    model = made(name)
    x = data(model, 12)
    lengths = torch.tensor([4, 3, 4, 4, 2, 4, 4, 1, 4, 4, 3, 4])
    paths = all_paths(model.states)
    with torch.no_grad():
        joint = joint_of(model, x, lengths, paths)
        weights = joint.softmax(0)
        if hard:
            weights = torch.nn.functional.one_hot(joint.argmax(0), len(paths)).double().T
    statistics = model.expected_statistics(x, lengths, hard=hard)
    parts = [
        model.expected_statistics(x[s], lengths[s], hard=hard) for s in (slice(0, 5), slice(5, 12))
    ]
    for key, value in statistics.items():
        torch.testing.assert_close(parts[0][key] + parts[1][key], value)
    model.maximize(statistics)
    expected = (weights * joint_of(model, x, lengths, paths)).sum()
    named = dict(model.named_parameters())
    for key, slope in zip(named, torch.autograd.grad(expected, list(named.values())), strict=True):
        assert slope.abs().max() < 1e-8, key


# -- hmmlearn --------------------------------------------------------------------------------------------


def simulated(n: int = 30, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Two-dimensional sequences of three states, of different lengths."""
    generator = np.random.default_rng(0)
    reference = hmm.GaussianHMM(3, "diag", random_state=0)
    reference.startprob_ = np.array([0.6, 0.3, 0.1])
    reference.transmat_ = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    reference.means_ = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]])
    reference.covars_ = np.array([[1.0, 0.5], [0.3, 1.0], [0.5, 0.5]])
    rows = [
        torch.tensor(reference.sample(steps, random_state=int(s))[0])
        for s in generator.integers(2**31, size=n)
    ]
    return torch.stack(rows), torch.as_tensor(generator.integers(5, steps + 1, size=n))


def concatenated(x: Tensor, lengths: Tensor) -> Any:
    return np.concatenate(
        [row[:length].numpy() for row, length in zip(x, lengths.tolist(), strict=True)]
    )


@pytest.mark.parametrize(
    ("ours", "theirs"), [("diagonal", "diag"), ("full", "full"), ("tied", "tied")]
)
def test_em_of_gaussian_emissions_is_hmmlearns(ours: Any, theirs: str) -> None:
    x, lengths = simulated()
    model = GaussianHMM((40, 2), 3, covariance=ours).double()
    model.initialize(x, lengths, seed=0)
    options = {"params": "stmc", "init_params": "", "covars_prior": 0.0, "tol": -np.inf}
    reference = hmm.GaussianHMM(3, theirs, n_iter=25, min_covar=0, **options)
    reference.startprob_ = model.initial_logits.detach().softmax(-1).numpy()
    reference.transmat_ = model.transition_logits.detach().softmax(-1).numpy()
    reference.means_ = model.means.detach().numpy().copy()
    with torch.no_grad():
        z = torch.arange(3)
        p: Any = model.decode(z)
        covariances = p.variance if ours == "diagonal" else p.covariance_matrix
        reference.covars_ = (covariances[0] if ours == "tied" else covariances).numpy().copy()
    if theirs != "diag":
        reference.covars_weight = 0  # no prior on covariances: theirs is an inverse Wishart
    rows = concatenated(x, lengths)
    reference.fit(rows, lengths.tolist())
    values = []
    for _ in range(25):
        statistics = model.expected_statistics(x, lengths)
        values.append(statistics["log_evidence"].item())
        model.maximize(statistics)
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(values))
    np.testing.assert_allclose(values, list(reference.monitor_.history), rtol=1e-9)
    np.testing.assert_allclose(
        model.log_evidence(x, lengths).sum().item(), reference.score(rows, lengths.tolist())
    )
    found = model.posterior(x, lengths)
    np.testing.assert_allclose(
        concatenated(found.marginals.detach(), lengths),
        reference.predict_proba(rows, lengths.tolist()),
        atol=1e-9,
    )
    assert (concatenated(found.mode, lengths) == reference.predict(rows, lengths.tolist())).all()


def test_em_of_categorical_emissions_is_hmmlearns() -> None:
    torch.manual_seed(0)
    x, lengths = torch.randint(5, (20, 30)), torch.randint(3, 31, (20,))
    model = CategoricalHMM((30,), 3, 5).double()
    model.initialize(x, lengths, seed=0)
    reference = hmm.CategoricalHMM(3, n_iter=30, tol=-np.inf, init_params="")
    reference.startprob_ = model.initial_logits.detach().softmax(-1).numpy()
    reference.transmat_ = model.transition_logits.detach().softmax(-1).numpy()
    reference.emissionprob_ = model.emission_logits.detach().softmax(-1).numpy()
    reference.n_features = 5
    reference.fit(concatenated(x, lengths).reshape(-1, 1), lengths.tolist())
    values = []
    for _ in range(30):
        statistics = model.expected_statistics(x, lengths)
        values.append(statistics["log_evidence"].item())
        model.maximize(statistics)
    np.testing.assert_allclose(values, list(reference.monitor_.history), rtol=1e-9)


def test_fit_em_takes_sequences_with_their_lengths() -> None:
    x, lengths = simulated()
    model = GaussianHMM((40, 2), 3).double()
    fitted = fit_em(model, (x, lengths), seed=0, tolerance=1e-6, device="cpu", batch_size=7)
    assert fitted.converged
    # what generated the data, up to the order of the states: of 30 short sequences
    order = model.means[:, 1].argsort()
    truth = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]]).double()
    torch.testing.assert_close(model.means[order].detach(), truth, atol=0.25, rtol=0)
    hard = fit_em(model, (x, lengths), seed=0, hard=True, device="cpu", max_iterations=5)
    assert hard.history[-1]["bound"] > hard.history[0]["bound"]


@pytest.mark.parametrize("least", [1e-95, 1e-40, 1e-12])
def test_blocks_of_a_long_sequence_do_not_underflow(least: float) -> None:
    # Steps that are only likely in the one state or the other, which are hardly ever left.
    transition = torch.tensor([[1 - least, least], [least, 1 - least]]).double().log()
    initial = torch.tensor([0.5, 0.5]).double().log()
    torch.manual_seed(0)
    favored = torch.randint(2, (1, 600, 1))
    log_likelihood = torch.where(torch.arange(2) == favored, 0.0, -1000.0).double()
    found = expected_paths(initial, transition, log_likelihood)
    chain, log_evidence = posterior_chain(initial, transition, log_likelihood)
    torch.testing.assert_close(found.states, chain.marginals)
    torch.testing.assert_close(found.transitions, chain.pair_marginals.sum((0, 1)))
    torch.testing.assert_close(found.log_evidence, log_evidence.sum())


# -- degenerate cases and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@models
def test_a_state_without_steps_is_split_off_and_comes_back(name: str, hard: bool) -> None:
    model = made(name)
    x = data(model, n=40)
    with torch.no_grad():  # nothing starts or goes there
        model.initial_logits[0] = IMPOSSIBLE
        model.transition_logits[:, 0] = IMPOSSIBLE
    before = model.expected_statistics(x, hard=hard)
    assert before["counts"][0] == 0
    with pytest.warns(UserWarning, match=r"state 0 has no steps: it was split off from state \d"):
        model.maximize(before)
    # Twins: as likely to be entered, and left alike.
    twin = int(before["counts"].argmax())
    for entering in (model.initial_logits, *model.transition_logits):
        assert entering[0].item() == entering[twin].item()
    assert torch.equal(model.transition_logits[0], model.transition_logits[twin])
    rows = model.transition_logits.detach().exp().sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    after = model.expected_statistics(x, hard=hard)
    assert after["counts"][0] > 0.02 * after["counts"].sum()
    # and from there on EM climbs, with all of its states
    fitted = fit_em(model, x, initialize=False, hard=hard, max_iterations=5, device="cpu")
    assert not fitted.notes


def test_fewer_different_steps_than_states_are_survived() -> None:
    x = torch.tensor([0.0, 1.0]).repeat(4, 5).unsqueeze(-1)
    for hard in (False, True):
        fitted = fit_em(GaussianHMM((10, 1), 4), x, seed=0, hard=hard, max_iterations=5)
        assert torch.isfinite(torch.tensor(fitted.history[-1]["bound"]))
        assert any("has no steps" in note for note in fitted.notes), fitted.notes


def test_a_long_sequence_costs_no_site_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("the program was run")

    monkeypatch.setattr(GaussianHMM, "forward", never)
    torch.manual_seed(0)
    x = torch.randn(1, 3000, 1) + 4.0 * (torch.arange(3000) // 50 % 2).unsqueeze(-1)
    model = GaussianHMM((3000, 1), 2)
    assert fit_em(model, x, seed=0, device="cpu").converged
    means = model.means.detach().sort(0).values
    torch.testing.assert_close(means, torch.tensor([[0.0], [4.0]]), atol=0.1, rtol=0)


def test_unusable_steps_are_named() -> None:
    x = data(made("diagonal"), n=6)
    x[4, 2, 1] = torch.nan
    for bad, what in ((torch.nan, "NaN"), (torch.inf, "infinite")):
        x[4, 2, 1] = bad
        for batch_size in (None, 2):
            with pytest.raises(ValueError, match=rf"row 4 of x .*: step 2 is {what}"):
                fit_em(made("diagonal"), x, batch_size=batch_size)
    # not beyond the sequence's length
    fitted = fit_em(made("diagonal"), (x, torch.tensor([4, 4, 4, 4, 2, 4])), max_iterations=1)
    assert fitted.iterations == 1
    symbols = torch.tensor([[0, 1], [3, 4]])
    with pytest.raises(ValueError, match=r"row 1 of x .*: step 1 is 4, outside of the support"):
        fit_em(CategoricalHMM((2,), 2, 4), symbols)
    with pytest.raises(ValueError, match=r"row 0 of x .*: step 0 is 0.5, outside of the support"):
        fit_em(CategoricalHMM((2,), 2, 4), symbols[:1] + 0.5)


def test_a_state_on_equal_steps_is_held_at_the_least_scale() -> None:
    model: Any = GaussianHMM((6, 1), 2, min_scale=0.1).double()
    x = torch.tensor([[0.0, 1.0, 5.0, 5.0, 0.5, 5.0]]).double().unsqueeze(-1)
    with pytest.warns(UserWarning, match=r"variances of states \[\d\] would fall"):
        model.initialize(x, seed=0)
    assert model.covariance.log_scale.exp().min().item() == pytest.approx(0.1)


def test_errors_say_what_is_wrong() -> None:
    model = made("diagonal")
    x = data(model)
    with pytest.raises(
        ValueError, match=r"data of shape \(n, steps, 2\), but x has shape \(5, 4\)"
    ):
        model.log_evidence(x[..., 0])
    with pytest.raises(ValueError, match="lengths must lie between 1 and 4, the steps of x"):
        model.log_evidence(x, torch.tensor([5, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"lengths must be whole numbers, got torch.float32"):
        model.log_evidence(x, torch.ones(5))
    with pytest.raises(ValueError, match=r"lengths must have shape \(5,\)"):
        model.log_evidence(x, torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"symbols 0, ..., 3, but x goes from 0 to 7"):
        made("categorical").expected_statistics(torch.tensor([[0, 7]]))
    with pytest.raises(ValueError, match=r"GaussianHMM\.states must be at least 1"):
        GaussianHMM((3, 1), 0)
    with pytest.raises(ValueError, match="must be one of full, diagonal, tied, spherical"):
        GaussianHMM((3, 1), 2, covariance="diag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data_shape must be \(steps,\)"):
        CategoricalHMM((3, 1), 2)


# -- the recurrent guide ---------------------------------------------------------------------------------


def recurrent(model: Any) -> Recurrent:
    torch.manual_seed(2)
    symbols = 4 if isinstance(model, CategoricalHMM) else None
    guide = Recurrent(model.data_shape, model.states, hidden=8, symbols=symbols).double()
    with torch.no_grad():
        guide.head.weight.mul_(20.0)
    return guide


@pytest.mark.parametrize("name", ["diagonal", "tied", "categorical"])
@ragged
def test_the_recurrent_guides_bound_is_log_p_less_its_kl(name: str, lengths: Tensor | None) -> None:
    model = made(name)
    guide, x = recurrent(model), data(model)
    with torch.no_grad():
        q = guide.encode(x, lengths)
        gap = kl_divergence(q, model.posterior(x, lengths))
        expected = model.log_evidence(x, lengths) - gap
        paths = all_paths(model.states)
        log_q = q.log_prob(paths.unsqueeze(1))
        difference = joint_of(model, x, lengths, paths) - log_q
        by_sum = torch.where(log_q > -1e20, log_q.exp() * difference, 0.0).sum(0)
    assert (gap > 0.01).all()
    torch.testing.assert_close(expected, by_sum)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x, lengths)
    assert elbo == pytest.approx(by_sum.sum().item())
    # and by samples, within five standard errors of each row
    result = evaluate(model, guide, batch_of(x, lengths), num_samples=1000, seed=0)
    with torch.no_grad():
        square = torch.where(log_q > -1e20, log_q.exp() * (difference - by_sum) ** 2, 0.0).sum(0)
    assert ((result.elbo.values - by_sum).abs() <= 5 * (square / 1000).sqrt() + 1e-9).all()


def test_a_row_does_not_see_what_is_beyond_its_length() -> None:
    model = made("diagonal")
    guide, x = recurrent(model), data(model)
    q = guide.encode(x, LENGTHS)
    alone = guide.encode(x[1:2, :2])
    torch.testing.assert_close(q.marginals[1:2, :2], alone.marginals)
    torch.testing.assert_close(q.marginals[1, 3], q.marginals[1, 1])


@pytest.mark.parametrize(
    "objective",
    [pytest.param(ELBO(), marks=pytest.mark.slow), TraceELBO()],
    ids=["enumeration", "score"],
)
def test_the_recurrent_guide_learns_the_posterior(objective: Any) -> None:
    model = made("diagonal").requires_grad_(False)
    x = data(model, 64)
    guide = Recurrent((STEPS, 2), 3, hidden=16).double()

    def gap() -> float:
        with torch.no_grad():
            return float(kl_divergence(guide.encode(x), model.posterior(x)).mean())

    before = gap()
    assert check(model, guide, x, objective=objective).ok
    fit(
        model,
        guide,
        x,
        objective=objective,
        max_epochs=60,
        batch_size=64,
        optimizer=torch.optim.Adam,
        learning_rate=0.02,
        seed=0,
        capture=False,
    )
    assert gap() < (0.1 if isinstance(objective, ELBO) else 0.6) * before
