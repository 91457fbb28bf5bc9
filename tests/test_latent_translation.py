"""Sentences whose latents are sentences: so few of them that log p(x) is a sum over all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from test_sentences import LENGTH, WORDS, every_sentence
from torch import Tensor, nn

from ppl_vae import (
    bidirectional_monte_carlo,
    check,
    diagnose,
    evaluate,
    fit,
    load_run,
    save_run,
    to_arviz,
)
from ppl_vae.data import Buckets
from ppl_vae.distributions import Sentences
from ppl_vae.guides import Translator
from ppl_vae.models import VAE, LanguageModel, LatentTranslation
from ppl_vae.networks import MLP, EncoderDecoder, WordNoise
from ppl_vae.objectives import (
    ELBO,
    BackTranslation,
    KnownLatents,
    Objective,
    ScoreFunctionELBO,
    SentenceDenoising,
    Together,
    TraceELBO,
)
from ppl_vae.pairs import Pair, PairError, find_layout
from ppl_vae.plots import draw_run
from ppl_vae.runtime import END, PAD
from ppl_vae.tasks import encode, sample, translate, translating
from ppl_vae.training import checkpoints

NETWORK = EncoderDecoder(width=8, layers=1, heads=2, dropout=0.3)


def made(seed: int = 0) -> tuple[LatentTranslation, Translator]:
    """A pair whose densities are far from uniform."""
    torch.manual_seed(seed)
    model = LatentTranslation((LENGTH,), WORDS, NETWORK).double()
    with torch.no_grad():
        model.network.bias.copy_(torch.randn(WORDS))
        model.prior.network.bias.copy_(torch.randn(WORDS))
    return model.eval(), Translator(model).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[LatentTranslation, Translator]:
    return made()


@pytest.fixture(scope="module")
def x() -> Tensor:
    every = every_sentence()
    return every[torch.randint(len(every), (12,), generator=torch.Generator().manual_seed(0))]


def tables(model: LatentTranslation, guide: Translator, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(z), log p(x | z) and log q(z | x) for all z: the first `(m)`, the others `(m, n)`."""
    z = every_sentence()
    decoded = model.decode(z.unsqueeze(1).expand(-1, len(x), -1))
    return model.prior().log_prob(z), decoded.log_prob(x), guide.encode(x).log_prob(z.unsqueeze(1))


def test_evaluate_is_right_about_all_sums(
    pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    """ELBO, rate, distortion and log p(x) of each row, within five of their errors."""
    with torch.no_grad():
        log_prior, log_x, log_q = tables(*pair, x)
    q, log_joint = log_q.exp(), log_prior[:, None] + log_x
    torch.testing.assert_close(q.sum(0), torch.ones(len(x)).double())
    found = evaluate(*pair, x, num_samples=1000, seed=0)
    weights = log_joint - log_q
    rate = (q * (log_q - log_prior[:, None])).sum(0)
    for name, exact, each in (
        ("elbo", (q * weights).sum(0), weights),
        ("rate", rate, log_q - log_prior[:, None]),
        ("distortion", -(q * log_x).sum(0), -log_x),
    ):
        variance = (q * each.square()).sum(0) - (q * each).sum(0).square()
        error = 5 * (variance / 1000).sqrt() + 1e-6
        values = getattr(found, name).values.double()
        assert bool(((values - exact).abs() < error).all()), name
    exact = log_joint.logsumexp(0)
    relative = ((q * (weights - exact).exp().square()).sum(0) - 1).clamp(min=0)
    error = 5 * (relative / 1000).sqrt() + 1e-6
    assert bool(((found.log_likelihood.values.double() - exact).abs() < error).all())
    assert any("'z' are discrete and are drawn" in each for each in found.warnings)


def test_narrower_rows_are_the_same_rows(
    pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    short = x[(x != 0).sum(1) <= 2]
    assert len(short) > 1
    one = evaluate(*pair, short, num_samples=5, seed=0)
    other = evaluate(*pair, short[:, :2], num_samples=5, seed=0)
    torch.testing.assert_close(one.elbo.values, other.elbo.values)


def gradient(
    objective: Objective, turn: str | None, x: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the gradient of the network, over draws of a batch."""
    model, guide = made()
    both, each = Pair(model, guide), []
    leaves = [p for p in model.network.parameters()]
    torch.manual_seed(1)
    with both.scope():
        layout = find_layout(both, x)
        loss: Any = objective
        if turn is not None:
            (loss,) = (t.loss for t in objective.turns(both) if t.name == turn)  # type: ignore[attr-defined]
        for _ in range(count):
            found = torch.autograd.grad(loss(both, layout, x, 1.0).loss, leaves, allow_unused=True)
            each.append(torch.cat([g.flatten() for g in found if g is not None]))
    stacked = torch.stack(each)
    return stacked.mean(0), stacked.std(0) / count**0.5


def exact_gradient(loss: str, x: Tensor) -> Tensor:
    """The gradient of the network by sums over all sentences."""
    model, guide = made()
    log_prior, log_x, log_q = tables(model, guide, x)
    q = log_q.exp()
    if loss == "elbo":
        total = (q * (log_q - log_prior.detach()[:, None] - log_x)).sum(0).mean()
    elif loss == "model":
        total = -(q.detach() * log_x).sum(0).mean()
    else:  # every z once, each with all x of the model
        z = every_sentence()
        log_p = model.decode(z).log_prob(z.unsqueeze(1)).T.detach()  # x given z
        log_back = guide.encode(z).log_prob(z.unsqueeze(1))  # z given x
        total = -(log_p.exp() * log_back).sum(1).mean()
    found = torch.autograd.grad(total, list(model.network.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize(
    ("objective", "turn", "loss"),
    [
        (ScoreFunctionELBO(num_particles=4), None, "elbo"),
        (BackTranslation(lambda n: every_sentence()[:n], learn_prior=False), "model", "model"),
        (BackTranslation(lambda n: every_sentence()[:n], learn_prior=False), "guide", "guide"),
    ],
    ids=["score", "model", "guide"],
)
def test_gradients_are_those_of_sums_over_all_sentences(
    objective: Objective, turn: str | None, loss: str, x: Tensor
) -> None:
    """Of a network that both programs share: chi-square of all its numbers, which depend on each other."""
    rows = every_sentence() if loss == "guide" else x
    mean, error = gradient(objective, turn, rows, 80)
    exact = exact_gradient(loss, rows)
    assert exact.shape == mean.shape
    assert bool(((mean - exact).abs() < 6 * error + 1e-9).all())
    assert float((mean - exact).norm()) < 0.4 * float(exact.norm())


def same_every_time(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout that always takes the same numbers out."""
    kept = torch.arange(x.shape[-1]) % 3 != 0
    return x * kept / (1 - p) if training else x


@pytest.mark.parametrize("training", [False, True], ids=["without dropout", "with dropout"])
@pytest.mark.parametrize("loss", ["elbo", "model", "guide"])
def test_sums_over_all_draws_are_exactly_those_gradients(
    loss: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirteen sentences: every draw, or every pair of draws, counts by its probability; nothing is random.

    What is drawn is scored as it was drawn, without dropout in what writes it; what is given, with dropout.
    """
    monkeypatch.setattr("ppl_vae.networks.attention.dropout", same_every_time)
    monkeypatch.setattr("ppl_vae.networks.encoder_decoder.dropout", same_every_time)
    length = 3
    torch.manual_seed(1)
    model = LatentTranslation((length,), WORDS, NETWORK).double().train(training)
    guide, every = Translator(model).train(training), every_sentence(WORDS, length)

    def as_drawn(p: Sentences, rows: Tensor = every) -> Tensor:
        p._latest = rows, rows
        with torch.enable_grad():
            found = p.log_prob(rows)
        p._latest = rows, found.detach()
        return found

    x = every[7:8].repeat(2, 1)  # one row, twice
    leaves = list(model.network.parameters())
    both = Pair(model, guide)
    log_prior = model.prior().log_prob(every).detach()
    log_x = model.decode(every).log_prob(x[0].expand(len(every), -1))
    log_q = as_drawn(guide.encode(x[:1].expand(len(every), -1)))
    assert log_q.exp().sum().item() == pytest.approx(1)
    if loss == "elbo":
        objective: Any = ScoreFunctionELBO(num_particles=2)
        exact = (log_q.exp() * (log_q - log_prior - log_x)).sum()
        draws: list[tuple[int, ...]] = [
            (i, j) for i in range(len(every)) for j in range(len(every))
        ]
        weights = [float((log_q[i] + log_q[j]).detach().exp()) for i, j in draws]
    else:  # of the guide, x stands for a real latent
        objective = BackTranslation(lambda n: x[:n], learn_prior=False)
        draws = [(i,) for i in range(len(every))]
        log_p = log_q
        exact = -(log_q.exp().detach() * log_x).sum()
        if loss == "guide":
            log_p = as_drawn(model.decode(x[:1].expand(len(every), -1)))
            log_back = guide.encode(every).log_prob(x[0].expand(len(every), -1))
            exact = -(log_p.exp().detach() * log_back).sum()
        weights = log_p.detach().exp().tolist()
    wanted = torch.autograd.grad(exact, leaves, allow_unused=True)

    given: list[tuple[int, ...]] = []

    def sample(self: Sentences, shape: Any = ()) -> Tensor:
        batch = torch.Size(shape) + self.batch_shape
        rows = every[[*given[-1]]][: batch.numel() // 2]  # a run of one sample takes the first
        drawn = rows.unsqueeze(1).expand(-1, 2, -1).reshape(*batch, length)
        as_drawn(self, drawn)
        return drawn

    with both.scope():
        layout = find_layout(both, x)
        monkeypatch.setattr(Sentences, "sample", sample)
        turns = [] if loss == "elbo" else objective.turns(both)
        run = next((turn.loss for turn in turns if turn.name == loss), objective)
        total = [torch.zeros_like(leaf) for leaf in leaves]
        for drawn, weight in zip(draws, weights, strict=True):
            given.append(drawn)
            found = torch.autograd.grad(run(both, layout, x, 1.0).loss, leaves, allow_unused=True)
            for sums, gradient in zip(total, found, strict=True):
                sums += 0 if gradient is None else weight * gradient
    for sums, gradient in zip(total, wanted, strict=True):
        right = torch.zeros_like(sums) if gradient is None else gradient
        torch.testing.assert_close(sums, right, atol=1e-10, rtol=1e-7)
    assert max(float(sums.abs().max()) for sums in total) > 1e-3


def noise(rows: Tensor) -> Tensor:
    """Hides half of the words."""
    return rows.where((torch.rand(rows.shape) < 0.5) | (rows < 4), 3)


def test_denoising_is_the_density_given_the_noisy_row(x: Tensor) -> None:
    model, guide = made()
    both, z = Pair(model, guide), every_sentence()[: len(x)]
    objective = SentenceDenoising(lambda n: z, noise=noise)
    with both.scope():
        layout = find_layout(both, x)
        rows, latents = objective.turns(both)
        torch.manual_seed(0)
        loss = rows.loss(both, layout, x, 1.0).loss
        torch.manual_seed(0)
        expected = -model.restore(noise(x)).log_prob(x).mean()
        torch.testing.assert_close(loss, expected)
        torch.manual_seed(0)
        loss = latents.loss(both, layout, x, 1.0).loss
        torch.manual_seed(0)
        expected = -(guide.restore(noise(z)).log_prob(z) + model.prior().log_prob(z)).mean()
        torch.testing.assert_close(loss, expected)
        assert torch.autograd.grad(loss, [model.prior.network.bias])[0].abs().max() > 0
    # Within a language, and not into the other one.
    assert not torch.allclose(model.restore(x).log_prob(x), model.decode(x).log_prob(x))


WRONG_LATENTS: dict[str, tuple[Any, str]] = {
    "another vocabulary": (
        [[WORDS, END]],
        r"site 'z' .* sentences of 6 words, .* first is \[6, 1\]",
    ),
    "negative": ([[-1, END]], r"values of site 'z' .* sentences of 6 words, .* first is \[-1, 1\]"),
    "without an end": (
        [[4, 4]],
        r"values of site 'z' .* sentences of 6 words, .* first is \[4, 4\]",
    ),
    "too long": (
        [[4] * LENGTH + [END]],
        "values of site 'z' .* at most 4 including the end, then z",
    ),
    "not whole": (
        [[4.5, 1.0]],
        r"values of site 'z' .* sentences of 6 words, .* first is \[4.5, 1",
    ),
    "one row": ([4, END], r"the values of site 'z' must have the shape \(m, 4\) .* the shape \(\)"),
}


@pytest.mark.parametrize("learn_prior", [True, False])
@pytest.mark.parametrize("case", WRONG_LATENTS)
def test_latents_are_looked_at_before_they_are_restored(
    case: str, learn_prior: bool, x: Tensor
) -> None:
    given, told = WRONG_LATENTS[case]
    for of_noise in (noise, WordNoise()):
        objective = SentenceDenoising(
            torch.tensor(given), noise=of_noise, learn_prior=learn_prior, elbo_rows=0
        )
        with pytest.raises(PairError, match=f"^SentenceDenoising.latents: .*{told}"):
            fit(*made(), x, objective=objective, max_epochs=1, seed=0)


def test_latents_of_a_stranger_are_looked_at_once_restored(x: Tensor) -> None:
    """Without a p(z) that says what it draws, it is the support of what is restored."""
    model, guide = made()

    class Stranger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> None:
            self.inner(x)

        def restore(self, noisy: Tensor) -> Sentences:
            return self.inner.restore(noisy)

    for given, told in (
        (
            [[4, 4]],
            r"^SentenceDenoising.latents, site 'z': 12 of 12 rows are outside of the support of what",
        ),
        (
            [[4.5, 1.0]],
            "SentenceDenoising.latents: the values of site 'z' must hold whole numbers, got 4.5",
        ),
    ):
        objective = SentenceDenoising(torch.tensor(given), noise=noise, learn_prior=False)
        with pytest.raises(PairError, match=told):
            fit(Stranger(), guide, x, objective=objective, max_epochs=1, seed=0)


@pytest.mark.parametrize(
    "objective",
    [
        TraceELBO(),
        ScoreFunctionELBO(),
        Together(
            [
                BackTranslation(every_sentence(), greedy=True),
                SentenceDenoising(every_sentence(), noise=noise, learn_prior=False, elbo_rows=0),
                KnownLatents((every_sentence(), every_sentence()), learn_prior=False),
            ]
        ),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_it_is_trained_saved_and_loaded(objective: Objective, x: Tensor, tmp_path: Path) -> None:
    """The network that both share is saved once, and shared again."""
    model, guide = made()
    before = model.network.bias.detach().clone()
    fitted = fit(
        *(model, guide, x), validation=x, objective=objective, batch_size=8, max_epochs=1, seed=0
    )
    assert fitted.history[0]["validation_elbo"] < 0
    assert not torch.equal(model.network.bias, before)
    save_run(tmp_path / "run", model, guide)
    run = load_run(tmp_path / "run")
    assert isinstance(run.model, LatentTranslation)
    assert isinstance(run.guide, Translator)
    assert run.guide.network is run.model.network
    one, other = (
        evaluate(*programs, x, num_samples=3, seed=0)
        for programs in ((model, guide), (run.model, run.guide))
    )
    assert torch.equal(one.elbo.values, other.elbo.values)


def test_memory_does_not_grow_with_sentences_or_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor at any time is within what is allowed, of log p of all words, too."""
    words, length = 100, 6
    model = LatentTranslation((length,), words, NETWORK)
    guide = Translator(model)
    x = model.prior().sample((160,))
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**20)
    monkeypatch.setattr(translating, "_NUMBERS_AT_ONCE", 2**13)
    largest: dict[str, list[int]] = {"evaluate": [], "translate": []}
    for n, num in ((80, 2), (160, 2), (80, 12)):
        with programs.Memory() as memory:
            evaluate(model, guide, x[:n], num_samples=num, method="guide", seed=0)
        largest["evaluate"].append(memory.largest)
        with programs.Memory() as memory:
            translate(model, guide, x[:n], num=num, beams=num)
        largest["translate"].append(memory.largest)
    # Six draws of the first 64 rows, by which the sizes of the parts are found, are 64 x 6 x 6 x 100 logits.
    # All logits at once would be 80 x 12 x 6 x 100, 2.3 MB.
    assert max(largest["evaluate"]) < 2**20, largest
    assert max(largest["translate"]) < 2**16, largest  # all logits of a place: 384 kB


def test_one_draw_of_a_sentence_has_no_baseline_and_check_says_so(
    x: Tensor,
) -> None:
    model = LatentTranslation((6,), WORDS, NETWORK)
    pair = model, Translator(model)
    report = check(*pair, x, objective=ELBO())
    (problem,) = report.problems
    assert "ELBO(num_particles=4)" in problem.message
    assert problem.site == "z"
    for objective in (
        ELBO(num_particles=4),
        TraceELBO(),
        BackTranslation(model.prior().sample((9,))),
    ):
        assert not check(*pair, x, objective=objective).problems


@pytest.mark.parametrize("width", [LENGTH, 2])
def test_the_sandwich_of_sentences_holds_the_sum_over_all(
    width: int, pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    """E[exp(lower)] = p(x) and E[exp(-upper)] = 1 / p(x), on sentences that the model writes.

    They are as wide as the model says, also in the place of narrower rows, which it fills up.
    """
    rows = x[(x != PAD).sum(1) <= 2][:1, :width].expand(300, -1)
    found = bidirectional_monte_carlo(*pair, rows, num_chains=4, num_steps=1, seed=0)
    assert isinstance(found.data, Tensor)
    assert found.data.shape == (300, LENGTH)
    with torch.no_grad():
        log_prior, log_x, _ = tables(*pair, found.data)
    truth = (log_prior[:, None] + log_x).logsumexp(0)
    for ratio in ((found.lower.values - truth).exp(), (truth - found.upper.values).exp()):
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / len(truth) ** 0.5
    assert found.lower.mean < float(truth.mean()) < found.upper.mean


class Stopped(Exception):
    pass


@pytest.mark.parametrize("steps", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_bit_by_bit(
    steps: int, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real latents, pairs, noise and dropout are drawn as if nothing had happened."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    every = every_sentence()

    def train(most: float = math.inf, **options: Any) -> list[Tensor]:
        model, guide = made()
        seen = 0

        def stopped(rows: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            if seen > most:
                raise Stopped
            return rows

        objective = Together(
            [
                BackTranslation(every, greedy=True),
                SentenceDenoising(
                    Buckets(every, batch_size=4),
                    noise=WordNoise(),
                    learn_prior=False,
                    elbo_rows=0,
                ),
                KnownLatents(Buckets(every, every, batch_size=4), learn_prior=False),
            ]
        )
        rows = Buckets(x.clone(), batch_size=6)
        settings: dict[str, Any] = {"max_epochs": 3, "seed": 0, "transform": stopped}
        fit(model, guide, rows, objective=objective, **settings, **options)
        return [p.detach().clone() for p in model.parameters()]

    whole = train()
    with pytest.raises(Stopped):
        train(steps, run_dir=tmp_path)
    goes_on = train(run_dir=tmp_path, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(goes_on, whole, strict=True))


def test_words_begin_as_they_come_in_each_language(x: Tensor) -> None:
    """With states of 0 the first word of a sentence has the share of that word among all."""
    model, guide = made()
    z = torch.tensor([[5, 5, END, PAD], [4, END, PAD, PAD]])
    model.count_words(x, z)
    with torch.no_grad():
        for norm in (model.network.decoded, model.prior.network.decoded):
            norm.weight.zero_()
            norm.bias.zero_()
    shares = torch.tensor([0.0, 2, 0, 0, 1, 2]) + 0.01
    shares = (shares / shares[[1, 2, 4, 5]].sum()).double()
    rows = torch.tensor([[4, END, PAD, PAD], [5, END, PAD, PAD]])
    expected = (shares[[4, 5]] * shares[END]).log()
    torch.testing.assert_close(model.prior().log_prob(rows).detach(), expected)
    torch.testing.assert_close(guide.encode(x[:2]).log_prob(rows).detach(), expected)
    counts = x.flatten().bincount(minlength=WORDS).double() + 0.01
    shares = counts / counts[[1, 2, 4, 5]].sum()
    expected = (shares[[4, 5]] * shares[END]).log()
    torch.testing.assert_close(model.decode(z).log_prob(rows).detach(), expected)


def test_a_language_model_has_no_latent_and_is_exact(x: Tensor) -> None:
    torch.manual_seed(0)
    model = LanguageModel((LENGTH,), WORDS, NETWORK).double().eval()
    every = every_sentence()
    torch.testing.assert_close(model.log_evidence(every).logsumexp(0), torch.zeros(()).double())
    found = evaluate(model, lambda x: None, x, num_samples=1)
    torch.testing.assert_close(found.log_likelihood.values.double(), model.log_evidence(x).detach())
    torch.testing.assert_close(model.log_evidence(every[:1, :1]), model.log_evidence(every[:1]))


def test_other_functions_take_such_pairs(
    pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    assert not check(*pair, x).problems
    support = pair[0].prior().support
    draws = encode(*pair, x, num_samples=3, seed=0)["z"]
    assert draws.shape == (3, len(x), LENGTH)
    assert bool(support.check(draws).all())
    with pytest.raises(PairError, match="the numbers of latent 'z' name categories"):
        encode(*pair, x)
    assert bool(support.check(sample(pair[0], 4, like=x, seed=0)).all())
    found = to_arviz(*pair, x, num_samples=10, seed=0)
    assert found.posterior["z"].shape[-1] == LENGTH


class OfNumbers(nn.Module):
    """Decodes to what is no sentence."""

    def forward(self, x: Tensor) -> None:
        pass

    def decode(self, z: Tensor) -> Any:
        return torch.distributions.Normal(z.double(), 1.0)


def test_no_picture_takes_words_for_numbers(
    pair: tuple[LatentTranslation, Translator], x: Tensor, tmp_path: Path
) -> None:
    history = [{"epoch": 1, "elbo": -7.0, "rate": 1.0, "distortion": 6.0}]
    found = evaluate(*pair, x, num_samples=3, seed=0), diagnose(*pair, x, seed=0)
    assert draw_run(tmp_path, *pair, x, history, *found) == []
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["khat.png", "learning_curves.png"]


def test_translations_are_the_likeliest_sentences_or_draws(
    pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    z, (model, guide) = every_sentence(), pair
    with torch.no_grad():
        log_q = guide.encode(x).log_prob(z.unsqueeze(1))
        log_p = model.decode(z).log_prob(x[:3].unsqueeze(1)).T  # of x given z
    found = translate(*pair, x, num=3, beams=50, length_penalty=0.0)
    best = log_q.topk(3, 0)
    torch.testing.assert_close(found.log_probs, best.values.T)
    assert torch.equal(found.rows, z[best.indices.T])
    per_word = found.log_probs / (found.rows != 0).sum(-1)
    torch.testing.assert_close(found.log_probs_per_word, per_word)
    back = translate(*pair, z, back=True, num=1, beams=50, length_penalty=0.0)
    assert bool((back.log_probs + 1e-9 >= log_p).all())
    drawn = translate(*pair, x, num=7, draws=True, seed=0)
    assert drawn.rows.shape == (len(x), 7, LENGTH)
    each = guide.encode(x).log_prob(drawn.rows.transpose(0, 1)).T.detach()
    torch.testing.assert_close(drawn.log_probs, each)
    again = translate(*pair, x, num=7, draws=True, seed=0)
    assert torch.equal(drawn.rows, again.rows)
    assert translate(*pair, x[:0], num=2).rows.shape == (0, 2, LENGTH)
    for penalty in (-0.5, torch.inf, torch.nan):
        for rows in (x, x[:0]):
            with pytest.raises(
                ValueError, match="length_penalty must be finite and at least 0, got"
            ):
                translate(*pair, rows, length_penalty=penalty)
    with pytest.raises(PairError, match="translate needs a method encode"):
        translate(model, lambda x: guide(x), x)
    with pytest.raises(PairError, match="needs distributions of sentences, and decode of"):
        translate(OfNumbers(), guide, x, back=True)


def test_translate_takes_whole_numbers_of_any_dtype(
    pair: tuple[LatentTranslation, Translator], x: Tensor
) -> None:
    found = translate(*pair, x)
    for dtype in (torch.uint8, torch.int32, torch.float64):
        assert torch.equal(translate(*pair, x.to(dtype)).rows, found.rows)


NO_SENTENCES: dict[str, tuple[Any, type[Exception], str]] = {
    "no end": (torch.tensor([[4, 5]]), ValueError, "x: row 0, counted from 0, is no sentence"),
    "no columns": (torch.zeros(2, 0).long(), ValueError, "x: row 0, counted from 0, is no sent"),
    "one row": (torch.tensor([4, END]), ValueError, r"x must have the shape \(n, T\), got \(2,\)"),
    "negative": (
        torch.tensor([[4, END], [-5, END]]),
        ValueError,
        "x: row 1, counted from 0, holds -5, which is no word: expected words, then END = 1",
    ),
    "another vocabulary": (
        torch.tensor([[4, END], [WORDS, END], [4, END]]),
        ValueError,
        "x, row 1, counted from 0: sentences that the network reads must hold numbers from 0 to 5, as the "
        "vocabulary has 6, got 6",
    ),
    "too long": (
        torch.tensor([[4, 4, 4, 4, END], [4, 4, END, PAD, PAD]]),
        ValueError,
        "x, row 0, counted from 0: sentences that the network reads must have at most 4 tokens, including "
        r"the end, got one of 5: leave it out, or cut it, as Vocabulary.rows\(..., max_length=4, too_long",
    ),
    "not whole": (torch.tensor([[4.5, 1.0]]), ValueError, "x must hold whole numbers, got 4.5"),
    "NaN": (torch.tensor([[torch.nan]]), ValueError, "x must hold whole numbers, got nan"),
    "bools": (torch.tensor([[True]]), TypeError, "x must hold whole numbers, got torch.bool"),
    "a list": (
        [[4, END]],
        TypeError,
        "x must be a tensor of whole numbers, as Vocabulary.rows makes it, got an object of list",
    ),
    "a text": (
        "a dog",
        TypeError,
        "x must be a tensor of whole numbers, .*, got the string 'a dog'",
    ),
}


@pytest.mark.parametrize("case", NO_SENTENCES)
@pytest.mark.parametrize("back", [False, True])
def test_translate_says_what_is_no_sentence(
    pair: tuple[LatentTranslation, Translator], case: str, back: bool
) -> None:
    rows, kind, told = NO_SENTENCES[case]
    with pytest.raises(kind, match=told):
        translate(*pair, rows, back=back)


def test_translate_reads_the_longest_row_and_the_largest_number_first(
    pair: tuple[LatentTranslation, Translator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are translated in the order of their lengths: the longest would be refused after all others."""
    monkeypatch.setattr(Sentences, "beam", None)  # which would not be called
    for wrong in ([4, 4, 4, 4, END], [4, WORDS, END, PAD, PAD]):
        with pytest.raises(
            ValueError, match="x, row 2, counted from 0: sentences that the network"
        ):
            translate(*pair, torch.tensor([[4, END, PAD, PAD, PAD]] * 2 + [wrong]))


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            torch.nan,
            "the parameter 'model.network.bias' is NaN in 12 of its 12 numbers: its training has",
        ),
        (
            torch.inf,
            "log p of translations is NaN, though no parameter is: parameters may be infinite",
        ),
    ],
)
def test_translations_of_a_diverged_training_are_refused(
    draws: bool, number: float, told: str, x: Tensor
) -> None:
    model, guide = made()
    with torch.no_grad():
        model.network.bias.fill_(number)
    for back in (False, True):
        with pytest.raises(PairError, match=told):
            translate(model, guide, x, back=back, draws=draws)


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        (
            [[WORDS, END]],
            ValueError,
            "must hold numbers from 0 to 5, as the vocabulary has 6, got 6",
        ),
        ([[-1, END]], ValueError, "must hold numbers from 0 to 5, as the vocabulary has 6, got -1"),
        ([[4.5, 1.0]], ValueError, "must hold whole numbers, got 4.5"),
        (
            "a dog",
            TypeError,
            "must be a tensor of whole numbers, as Vocabulary.rows makes it, got the",
        ),
    ],
)
def test_only_words_of_the_vocabulary_are_counted_and_read(
    wrong: Any, kind: type[Exception], told: str, x: Tensor
) -> None:
    model, guide = made()
    rows: Any = wrong if isinstance(wrong, str) else torch.tensor(wrong)
    with pytest.raises(kind, match=f"^x {told}"):
        model.count_words(rows, x)
    with pytest.raises(kind, match=f"^z {told}"):
        model.count_words(x, rows)
    with pytest.raises(kind, match=f"^x {told}"):
        LanguageModel((LENGTH,), WORDS, NETWORK).count_words(rows)
    if isinstance(rows, Tensor):
        for read in (model.decode, model.restore, guide.encode, guide.restore):
            with pytest.raises(kind, match=f"^sentences that the network reads {told}"):
                read(rows)


def test_arguments_that_do_not_suit() -> None:
    with pytest.raises(ValueError, match=r"data_shape must be \(T,\), the most numbers of a sent"):
        LatentTranslation((3, 4), WORDS)
    with pytest.raises(ValueError, match="words must be at least 5, got 4"):
        LanguageModel((5,), 4)
    with pytest.raises(ValueError, match=r"latent_length|data_shape must be"):
        LatentTranslation((5,), WORDS, latent_length=1)
    with pytest.raises(TypeError, match="Translator needs a model with a network that reads and"):
        Translator(VAE((3,), 2, MLP((4,))))
    model, guide = made()
    with pytest.raises(ValueError, match="was built for data of shape"):
        model(torch.zeros(3, LENGTH + 1, dtype=torch.long))
    with pytest.raises(PairError, match=r"needs a guide with a method restore\(noisy\)"):
        fit(
            *(model, lambda x: guide(x), every_sentence()),
            objective=SentenceDenoising(every_sentence(), noise=noise),
        )
