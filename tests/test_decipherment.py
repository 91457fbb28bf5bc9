"""A secret script against sums over all plaintexts, a hidden Markov model of the same tables, and hmmlearn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from hmmlearn import hmm
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import one_hot

from ppl_vae import (
    check,
    diagnose,
    encode,
    evaluate,
    fit,
    load_run,
    save_run,
    to_arviz,
)
from ppl_vae.distributions import IMPOSSIBLE
from ppl_vae.em import fit_em
from ppl_vae.guides import Exact, PerRow, Recurrent
from ppl_vae.models import CategoricalHMM, SubstitutionCipher
from ppl_vae.objectives import ELBO, ElementwiseELBO, LinearWarmup
from ppl_vae.pairs import Pair, PairError, Substitute, find_layout, sample_sites, unscaled

K, SYMBOLS, STEPS = 3, 4, 4
INITIAL = [0.5, 0.2, 0.3]
TRANSITION = [
    [0.7, 0.2, 0.1],
    [0.0, 0.4, 0.6],
    [0.5, 0.25, 0.25],
]  # the second never leads to the first
WITHOUT_ZEROS = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]]
LENGTHS = torch.tensor([4, 2, 1, 3, 4])
PATHS = torch.tensor(list(itertools.product(range(K), repeat=STEPS)))
ragged = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])


def made(
    symbols: int | None = SYMBOLS, transition: list[list[float]] = TRANSITION
) -> SubstitutionCipher:
    torch.manual_seed(0)
    model = SubstitutionCipher((STEPS,), INITIAL, transition, symbols).double()
    with torch.no_grad():
        model.key.copy_(torch.randn(model.key.shape))
    return model


def ciphertexts() -> Tensor:
    return torch.randint(SYMBOLS, (5, STEPS), generator=torch.Generator().manual_seed(1))


def recurrent(model: SubstitutionCipher) -> Recurrent:
    torch.manual_seed(2)
    guide = Recurrent((STEPS,), K, hidden=8, symbols=SYMBOLS, whole=True).double()
    with torch.no_grad():
        guide.head.weight.mul_(20.0)
    return guide


def with_lengths(x: Tensor, lengths: Tensor | None) -> Any:
    return x if lengths is None else (x, lengths)


def joint_of(model: SubstitutionCipher, x: Tensor, lengths: Tensor | None) -> Tensor:
    """log p(x, z) of all plaintexts, from the program's own sites, `(m, n)`."""
    values = {"z": PATHS.unsqueeze(1).expand(-1, len(x), -1)}
    with pyro.plate("paths", len(PATHS), dim=-2):
        trace = poutine.trace(Substitute(values)(model)).get_trace(x, lengths)
    sites = sample_sites(trace)
    assert [*sites] == ["z", "x"]
    return torch.stack([unscaled(site) for site in sites.values()]).sum(0)


def by_hand(key: Tensor, x: Tensor) -> Tensor:
    """log p(x, z) of all plaintexts from tables of probabilities."""
    initial, transition = (torch.tensor(p).double() for p in (INITIAL, TRANSITION))
    p = initial[PATHS[:, 0]] * transition[PATHS[:, :-1], PATHS[:, 1:]].prod(-1)
    of_symbols = key.softmax(-1)[PATHS.unsqueeze(1), x].prod(-1)
    return (p.unsqueeze(1) * of_symbols).log()


# -- the model -------------------------------------------------------------------------------------------


@ragged
def test_evidence_and_posterior_are_sums_over_all_plaintexts(lengths: Tensor | None) -> None:
    model, x = made(), ciphertexts()
    joint = joint_of(model, x, lengths)
    torch.testing.assert_close(model.log_evidence(x, lengths), joint.logsumexp(0))
    q, weights = model.posterior(x, lengths), joint.softmax(0)
    every = one_hot(PATHS, K).double()
    torch.testing.assert_close(q.marginals, torch.einsum("mn,mtk->ntk", weights, every))
    torch.testing.assert_close(q.log_prob(PATHS.unsqueeze(1)).exp(), weights)
    assert torch.equal(q.mode, PATHS[joint.argmax(0)])
    if lengths is None:
        reachable = (PATHS[:, :-1] * K + PATHS[:, 1:] != K).all(-1)  # no step from letter 1 to 0
        torch.testing.assert_close(
            joint[reachable], by_hand(model.key, x)[reachable], rtol=1e-6, atol=0
        )
        assert (joint[~reachable] < 0.9 * IMPOSSIBLE).all()


@ragged
def test_evidence_is_that_of_a_hidden_markov_model(lengths: Tensor | None) -> None:
    model, x = made(), ciphertexts()
    other = CategoricalHMM((STEPS,), K, SYMBOLS).double()
    with torch.no_grad():
        other.initial_logits.copy_(model.initial_logits)
        other.transition_logits.copy_(model.transition_logits)
        other.emission_logits.copy_(model.key)
    torch.testing.assert_close(model.log_evidence(x, lengths), other.log_evidence(x, lengths))
    q, p = model.posterior(x, lengths), other.posterior(x, lengths)
    torch.testing.assert_close(q.pair_marginals, p.pair_marginals)
    assert torch.equal(q.mode, p.mode)
    assert (q.whole, p.whole) == (True, False)


def test_evidence_posterior_and_viterbi_are_hmmlearns() -> None:
    torch.manual_seed(3)
    x, lengths = torch.randint(SYMBOLS, (20, 30)), torch.randint(3, 31, (20,))
    model = made()
    reference = hmm.CategoricalHMM(K)
    reference.startprob_, reference.transmat_ = np.array(INITIAL), np.array(TRANSITION)
    reference.emissionprob_ = model.key.detach().softmax(-1).numpy()
    reference.n_features = SYMBOLS
    texts = [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]
    rows = torch.cat(texts).unsqueeze(-1).numpy()
    total = float(model.log_evidence(x, lengths).detach().sum())
    assert total == pytest.approx(reference.score(rows, lengths.tolist()), rel=1e-6)
    q = model.posterior(x, lengths)
    inside = torch.arange(30) < lengths.unsqueeze(-1)
    np.testing.assert_allclose(
        q.marginals.detach()[inside], reference.predict_proba(rows, lengths.tolist()), atol=1e-6
    )
    # Of paths that are equally probable, the two may choose different ones.
    z = q.mode
    joint = model.prior(30, lengths).log_prob(z)
    joint += torch.where(inside, model.decode(z).log_prob(x), 0.0).sum(-1)
    best, _ = reference.decode(rows, lengths.tolist())
    assert float(joint.detach().sum()) == pytest.approx(best, rel=1e-6)


def test_under_the_true_key_the_ciphertext_is_as_probable_as_the_plaintext() -> None:
    model, key = made(symbols=K), torch.tensor([2, 0, 1])
    with torch.no_grad():
        model.key.fill_(IMPOSSIBLE).scatter_(1, key.unsqueeze(1), 0.0)
    torch.manual_seed(4)
    plain = model.prior(12).sample(torch.Size([6]))
    secret = key[plain]
    q = model.posterior(secret)
    assert torch.equal(q.mode, plain)
    torch.testing.assert_close(model.log_evidence(secret), model.prior(12).log_prob(plain))
    torch.testing.assert_close(q.marginals, one_hot(plain, K).double())
    initial, transition = torch.tensor(INITIAL).log(), torch.tensor(TRANSITION).log()
    expected = initial[plain[:, 0]] + transition[plain[:, :-1], plain[:, 1:]].sum(-1)
    torch.testing.assert_close(model.log_evidence(secret), expected.double(), rtol=1e-6, atol=0)


def test_padded_rows_are_the_rows_by_themselves() -> None:
    model, x = made(transition=WITHOUT_ZEROS), ciphertexts()
    guide = recurrent(model)
    other = x.clone()
    for row, length in zip(other, LENGTHS.tolist(), strict=True):
        row[length:] = 99  # what stands beyond does not matter
    alone = torch.cat(
        [
            model.log_evidence(row[None, :length])
            for row, length in zip(x, LENGTHS.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(model.log_evidence(other, LENGTHS), alone)
    assert (model.log_likelihoods(other, LENGTHS)[2, 1:] == 0).all()
    statistics = [model.expected_statistics(rows, LENGTHS) for rows in (x, other)]
    for name, value in statistics[0].items():
        assert torch.equal(value, statistics[1][name]), name
    elbo = evaluate(model, guide, (x, LENGTHS), num_samples=2, seed=0).elbo.values
    for i, length in enumerate(LENGTHS.tolist()):
        one = evaluate(model, guide, x[i : i + 1, :length], num_samples=2, seed=0).elbo.values
        torch.testing.assert_close(elbo[i : i + 1], one)
    # Beyond its length, the plaintext of a draw stays where it is, and its symbol is 0.
    torch.manual_seed(5)
    drawn: Any = poutine.trace(poutine.uncondition(model)).get_trace(x, LENGTHS).nodes
    assert (drawn["z"]["value"][1, 2:] == drawn["z"]["value"][1, 1]).all()
    assert (drawn["x"]["value"][1, 2:] == 0).all()


# -- expectation maximization ----------------------------------------------------------------------------


@ragged
@pytest.mark.parametrize("hard", [False, True])
def test_the_em_step_moves_the_key_alone(lengths: Tensor | None, hard: bool) -> None:
    model, x = made(), ciphertexts()
    joint = joint_of(model, x, lengths).detach()
    weights = one_hot(joint.argmax(0), len(PATHS)).double().T if hard else joint.softmax(0)
    inside = torch.ones_like(x, dtype=torch.bool)
    if lengths is not None:
        inside = torch.arange(STEPS) < lengths.unsqueeze(-1)
    counts = torch.zeros(K, SYMBOLS).double()
    for path, of_rows in zip(PATHS, weights, strict=True):
        for row, symbols, weight in zip(inside, x, of_rows, strict=True):
            for t in row.nonzero().flatten().tolist():
                counts[path[t], symbols[t]] += weight
    chain = {name: value.clone() for name, value in model.named_buffers()}
    statistics = model.expected_statistics(x, lengths, hard=hard)
    torch.testing.assert_close(statistics["symbols"], counts)
    expected = joint.max(0).values if hard else joint.logsumexp(0)
    torch.testing.assert_close(statistics["log_evidence"], expected.sum())
    model.maximize(statistics)
    seen = counts.sum(1) > 0
    found = model.key.detach().softmax(-1)
    torch.testing.assert_close(found[seen], (counts / counts.sum(1, keepdim=True))[seen])
    assert [*chain] == ["initial_logits", "transition_logits"]
    for name, value in model.named_buffers():
        assert torch.equal(value, chain[name])


def planted(habits: Tensor, texts: int, steps: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A language, plaintexts in it, a key, and the ciphertexts."""
    letters = len(habits)
    language = torch.full((letters,), 1 / letters).tolist(), habits.tolist()
    torch.manual_seed(1)
    plain = SubstitutionCipher((steps,), *language).prior(steps).sample(torch.Size([texts]))
    key = torch.randperm(letters)
    return language, plain, key, key[plain]


def test_em_reads_a_planted_script() -> None:
    generator = torch.Generator().manual_seed(0)
    habits = torch.softmax(3.0 * torch.randn(6, 6, generator=generator), -1)
    language, plain, key, secret = planted(habits, 30, 40)
    model = SubstitutionCipher((40,), *language)
    chain = model.transition_logits.clone()
    fitted = fit_em(model, secret, restarts=8, seed=0, device="cpu", progress=False)
    assert torch.equal(model.key.argmax(1), key)
    assert (model.posterior(secret).mode == plain).double().mean() > 0.97
    assert torch.equal(model.transition_logits, chain)
    assert fitted.log_likelihood > float(
        model.prior(40).log_prob(plain).mean()
    )  # the best key fits more
    # `fit_em` says what it cannot use.
    secret[3, 5] = 6
    with pytest.raises(ValueError, match=r"row 3 of x .*: step 5 is 6, outside of the support"):
        fit_em(model, secret, device="cpu", progress=False)


def test_a_letter_that_no_text_has_keeps_its_row() -> None:
    never = [[1.0, 0.0], [1.0, 0.0]]
    model = SubstitutionCipher((4,), [1.0, 0.0], never)
    before = model.key.detach().clone()
    model.maximize(model.expected_statistics(torch.tensor([[0, 1, 1, 1]])))
    assert torch.equal(model.key[1], before[1])
    torch.testing.assert_close(model.key[0].detach().exp(), torch.tensor([0.25, 0.75]))


# -- guides ----------------------------------------------------------------------------------------------


@ragged
def test_the_exact_guide_has_no_gap_and_no_noise(lengths: Tensor | None) -> None:
    model, x = made(), ciphertexts()
    expected, q = model.log_evidence(x, lengths).detach(), model.posterior(x, lengths)
    result = evaluate(model, Exact(model), with_lengths(x, lengths), num_samples=3, seed=0)
    torch.testing.assert_close(result.elbo.values, expected)
    torch.testing.assert_close(result.log_likelihood.values, expected)
    z = q.sample((50,))
    index = (z * K ** torch.arange(STEPS - 1, -1, -1)).sum(-1)
    weights = joint_of(model, x, lengths).gather(0, index) - q.log_prob(z)
    torch.testing.assert_close(weights.detach(), expected.expand(50, -1))


@ragged
def test_the_exact_guide_learns_by_the_gradient_of_the_evidence(lengths: Tensor | None) -> None:
    model, x = made(), ciphertexts()
    (expected,) = torch.autograd.grad(-model.log_evidence(x, lengths).mean(), model.key)
    pair, batch = Pair(model, Exact(model)), with_lengths(x, lengths)
    with pair.scope():
        loss = ElementwiseELBO()(pair, find_layout(pair, batch), batch)
    (found,) = torch.autograd.grad(loss.loss, model.key)
    torch.testing.assert_close(found, expected)
    assert float(loss.elbo) == pytest.approx(float(model.log_evidence(x, lengths).detach().mean()))


@ragged
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_bound_of_the_recurrent_guide_is_exact(lengths: Tensor | None, beta: float) -> None:
    model, x = made(transition=WITHOUT_ZEROS), ciphertexts()
    guide = recurrent(model)
    q, p = guide.encode(x, lengths), model.prior(STEPS, lengths)
    log_q, log_p = (each.log_prob(PATHS.unsqueeze(1)) for each in (q, p))
    rest = joint_of(model, x, lengths) - log_p - beta * (log_q - log_p)
    by_sum = torch.where(log_q > 0.5 * IMPOSSIBLE, log_q.exp() * rest, 0.0).sum(0)
    parameters = [model.key, *guide.parameters()]
    expected = torch.autograd.grad(-by_sum.mean(), parameters)
    pair, batch = Pair(model, guide), with_lengths(x, lengths)
    with pair.scope():
        loss = ElementwiseELBO()(pair, find_layout(pair, batch), batch, beta)
    assert float(loss.loss.detach()) == pytest.approx(-float(by_sum.detach().mean()))
    for a, b in zip(torch.autograd.grad(loss.loss, parameters), expected, strict=True):
        torch.testing.assert_close(a, b)
    gap = kl_divergence(q, model.posterior(x, lengths)).detach()
    assert (gap > 0.01).all()
    elbo = evaluate(model, guide, batch, num_samples=2, seed=0).elbo.values
    torch.testing.assert_close(elbo, model.log_evidence(x, lengths).detach() - gap)


def test_elbo_sums_over_letters_and_learns_the_key() -> None:
    habits = torch.tensor([[0.8, 0.15, 0.05], [0.3, 0.1, 0.6], [0.9, 0.05, 0.05]])
    language, plain, key, secret = planted(habits, 60, 8)
    model = SubstitutionCipher((8,), *language)
    guide = Recurrent((8,), 3, hidden=8, symbols=3, whole=True)
    assert not check(model, guide, secret).problems
    options: Any = {"batch_size": 20, "learning_rate": 0.03, "seed": 0, "max_epochs": 60}
    fitted = fit(model, guide, secret, objective=ELBO(beta=LinearWarmup(30, start=0.1)), **options)
    assert isinstance(fitted.resolved, ElementwiseELBO)
    assert torch.equal(model.key.argmax(1), key)
    with torch.no_grad():
        gap = kl_divergence(guide.encode(secret), model.posterior(secret))
    result = evaluate(model, guide, secret, num_samples=2, seed=0)
    torch.testing.assert_close(
        result.elbo.values, model.log_evidence(secret).detach() - gap, atol=1e-4, rtol=0
    )
    assert gap.mean() < 0.05  # nats per row
    assert (guide.encode(secret).mode == plain).double().mean() > 0.97


def test_guides_draw_the_path_at_one_site() -> None:
    model, x = made(transition=WITHOUT_ZEROS), ciphertexts()
    guide = recurrent(model)
    for each in (Exact(model), guide, PerRow(guide, x)):
        sites: Any = sample_sites(poutine.trace(each).get_trace(x))
        assert [*sites] == ["z"]
        assert sites["z"]["value"].shape == x.shape
        assert not check(model, each, x).problems
    torch.testing.assert_close(PerRow(guide, x).encode(x).mode, guide.encode(x).mode)
    fewer = Recurrent((STEPS,), 2, hidden=8, symbols=SYMBOLS, whole=True).double()
    with pytest.raises(
        PairError, match=r"has 3 states, but z of Recurrent has 2 values: .* states=3"
    ):
        evaluate(model, fewer, x)
    steps = Recurrent((STEPS,), K, hidden=8, symbols=SYMBOLS).double()
    assert "'z' is not sampled by the guide" in str(check(model, steps, x))


# -- the engine ------------------------------------------------------------------------------------------


@ragged
def test_a_pair_is_diagnosed_and_exported(lengths: Tensor | None) -> None:
    model, x = made(transition=WITHOUT_ZEROS), ciphertexts()
    batch, guide = with_lengths(x, lengths), Exact(model)
    rate = kl_divergence(model.posterior(x, lengths), model.prior(STEPS, lengths)).detach()
    exported: Any = to_arviz(model, guide, batch, num_samples=4, num_draws=3, seed=0)
    log_p = model.log_evidence(x, lengths).detach().numpy()
    statistics = exported["sample_stats"]
    np.testing.assert_allclose(statistics["elbo"], log_p)
    np.testing.assert_allclose(statistics["rate"], rate, atol=1e-9)
    assert exported["posterior"]["z"].shape == (1, 3, 5, STEPS)
    assert exported["posterior"]["z"].values.max() < K
    found = diagnose(model, guide, batch, seed=0)
    assert found.rate.mean == pytest.approx(float(rate.mean()), abs=1e-6)  # without draws
    # Numbers of states are names: a path is one latent, however short.
    assert found.names == ("z",)
    assert found.of_elements is not None
    assert found.of_elements.values == K
    torch.testing.assert_close(
        encode(model, guide, batch)["z"], model.posterior(x, lengths).marginals.detach()
    )


def test_many_letters_are_diagnosed_together() -> None:
    torch.manual_seed(0)
    model = SubstitutionCipher((100,), INITIAL, WITHOUT_ZEROS, SYMBOLS)
    x = torch.randint(SYMBOLS, (6, 100))
    with torch.no_grad():
        model.key.mul_(30.0)
    rate = kl_divergence(model.posterior(x), model.prior(100)).detach().double()
    found = diagnose(model, Exact(model), x, seed=0)
    assert (found.names, found.active.tolist()) == (("z",), [True])
    torch.testing.assert_close(found.rate.values, rate)


def test_a_saved_run_knows_its_language(tmp_path: Path) -> None:
    model, x = made(), ciphertexts()
    save_run(tmp_path / "run", model, Exact(model))
    run: Any = load_run(tmp_path / "run")
    assert torch.equal(run.model.log_evidence(x), model.log_evidence(x))
    assert torch.equal(run.guide.encode(x).marginals, model.posterior(x).marginals)


def test_bigrams_are_counted() -> None:
    plain = torch.tensor([[0, 1, 0, 0], [1, 0, 2, 2]])
    initial, transition = SubstitutionCipher.bigrams_of(plain, 3, torch.tensor([4, 2]))
    shares = torch.tensor([5, 3, 1]).double() / 9  # 4, 2 and 0 letters, one more of each
    counts = torch.tensor([[1, 1, 0], [2, 0, 0], [0, 0, 0]]).double()
    expected = (counts + 3 * shares) / (counts.sum(1, keepdim=True) + 3)
    torch.testing.assert_close(torch.tensor(transition).double(), expected)
    first = (torch.tensor([1, 1, 0]).double() + 3 * shares) / 5
    torch.testing.assert_close(torch.tensor(initial).double(), first)
    with pytest.raises(ValueError, match=r"plain must hold letters 0, \.\.\., 1, got from 0 to 2"):
        SubstitutionCipher.bigrams_of(plain, 2)
    with pytest.raises(ValueError, match=r"plain must hold texts of whole numbers, \(m, T\), got"):
        SubstitutionCipher.bigrams_of(plain.float(), 3)


def test_errors_say_what_is_wrong() -> None:
    for transition, kind, words in (
        (
            torch.eye(3),
            TypeError,
            r"transition must be a list of K lists .* write \.tolist\(\) behind",
        ),
        ([0.5, 0.5], ValueError, r"transition must be K lists of K numbers, got shape \(2,\)"),
        ([[0.5, 0.5], [1.0]], TypeError, r"transition must be a list of K lists of K numbers, got"),
        (
            [[0.5, 0.5], [1.0, 0.0]],
            ValueError,
            r"transition must have 3 rows of 3 .* initial has 3",
        ),
        ([[0.5, 0.6, 0.0]] * 3, ValueError, r"must be probabilities that sum to 1 in each row"),
        ([[1.5, -0.5, 0.0]] * 3, ValueError, r"they go from -0\.5 to 1\.5"),
    ):
        with pytest.raises(kind, match=words):
            SubstitutionCipher((4,), INITIAL, transition)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data_shape must be \(steps,\)"):
        SubstitutionCipher((4, 1), INITIAL, TRANSITION)
    with pytest.raises(ValueError, match=r"SubstitutionCipher\.symbols must be at least 1"):
        SubstitutionCipher((4,), INITIAL, TRANSITION, 0)
    with pytest.raises(ValueError, match=r"symbols 0, \.\.\., 3, but x goes from 0 to 7"):
        made().expected_statistics(torch.tensor([[0, 7]]))
    with pytest.raises(ValueError, match="lengths must lie between 1 and 4"):
        made().log_evidence(ciphertexts(), torch.tensor([0, 1, 1, 1, 1]))
