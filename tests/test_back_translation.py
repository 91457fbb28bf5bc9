"""Back-translation on languages of few sentences, where all expectations are sums over tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from tables import CopiedPair, Reader, Table
from torch import Tensor, nn

from ppl_vae import check, fit
from ppl_vae.data import Buckets
from ppl_vae.objectives import (
    ELBO,
    BackTranslation,
    EnumELBO,
    KnownLatents,
    Loss,
    ScoreFunctionELBO,
    Together,
    Turn,
    VAEGANLoss,
)
from ppl_vae.pairs import Layout, Pair, PairError, find_layout

SENTENCES = 50
BETA = 0.7


def tables(size: int) -> tuple[Table, Reader]:
    return Table(size, size, torch.float64), Reader(size, size, torch.float64)


def shares(size: int, seed: int) -> Tensor:
    """How often each sentence is said, as a share."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).softmax(0)


def layout_of(model: Any, guide: Any, x: Tensor) -> Layout:
    pair = Pair(model, guide)
    with pair.scope():
        return find_layout(pair, x)


def in_turn(name: str, objective: BackTranslation, pair: Pair, layout: Layout, x: Tensor) -> Loss:
    with pair.scope():
        (turn,) = (turn for turn in objective.turns(pair) if turn.name == name)
        return turn.loss(pair, layout, x, 1.0)


def expected(
    turn: str, model: Table, reader: Reader, real: Tensor, learn_prior: bool = False
) -> dict[str, Tensor]:
    """The gradient of a turn's loss, for rows as `shares(.., 2)`: the sum over all rows and draws."""
    size = len(model.prior)
    x, z = (each.flatten() for each in torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij"))
    if turn == "model":
        weights = shares(size, 2)[x] * reader.logits.detach().softmax(1)[x, z]
    else:
        weights = real[z] * model.rows.detach().softmax(1)[z, x]
    copied = CopiedPair(model, reader, z, x)
    objective = BackTranslation(lambda n: z, learn_prior=learn_prior)
    layout = layout_of(model, reader, x[:4]).of_another_guide
    loss = in_turn(turn, objective, Pair(*copied.programs), layout, x)
    return copied.gradients(loss.loss, weights)


@pytest.fixture(scope="module")
def languages() -> tuple[Table, Reader, Tensor]:
    """A pair with 50 sentences on each side, and the shares of the real latents."""
    return *tables(SENTENCES), shares(SENTENCES, 3)


def enumerated(model: Table, beta: float) -> dict[str, Tensor]:
    """The gradient of the ELBO with weight beta by `EnumELBO`, for rows as `shares(.., 2)`."""
    size = len(model.prior)
    x, reader = torch.arange(size), Reader(size, size, torch.float64, summed=True)
    each = shares(size, 2)
    layout, found = layout_of(model, reader, x), {}
    pair = Pair(model, reader)
    names = {"prior": model.prior, "rows": model.rows, "q": reader.logits}
    total = {name: torch.zeros_like(leaf) for name, leaf in names.items()}
    for value, share in zip(x, each, strict=True):
        with pair.scope():
            loss = EnumELBO(beta=beta)(pair, layout, value.repeat(2), beta).loss
        found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        total = {name: total[name] + share * found[name] for name in names}
    return total


def test_the_model_learns_as_from_the_elbo_and_the_prior_not_at_all(
    languages: tuple[Table, Reader, Tensor],
) -> None:
    """By p(x | z) the two gradients are the same; of the model, only the ELBO's log p(z) is left out."""
    model, reader, real = languages
    found, elbo = expected("model", model, reader, real), enumerated(model, BETA)
    q, prior = reader.logits.detach().softmax(1), model.prior.detach().softmax(0)
    assert float((found["rows"] - elbo["rows"]).abs().max()) < 1e-12
    assert float(found["rows"].abs().max()) > 1e-3
    # -beta E_q grad log p(z) = -beta (E q(z) - p(z)), by hand
    aggregate = shares(SENTENCES, 2) @ q
    left_out = elbo["prior"] - found["prior"]
    assert float((left_out + BETA * (aggregate - prior)).abs().max()) < 1e-12
    assert float(found["prior"].abs().max()) == 0.0
    assert float(found["q"].abs().max()) == 0.0  # nothing differentiates a draw


def test_the_guide_learns_from_what_the_model_makes_of_real_latents_alone(
    languages: tuple[Table, Reader, Tensor],
) -> None:
    """Its gradient and that of the ELBO differ by the two terms that the docstring names, by hand."""
    model, reader, real = languages
    found, elbo = expected("guide", model, reader, real), enumerated(model, BETA)
    log_q, log_p = reader.logits.detach().log_softmax(1), model.rows.detach().log_softmax(1)
    q = log_q.exp()
    # E_q [reward grad log q(z | x)]: by the logits of a row, q (reward - E_q reward)
    reward = -log_p.T + BETA * (log_q - model.prior.detach().log_softmax(0))
    score = shares(SENTENCES, 2)[:, None] * q * (reward - (q * reward).sum(1, keepdim=True))
    # -E grad log q(z' | x') over z' real, x' of the model: q times what x' has of them, less what has z'
    joint = (real[:, None] * log_p.exp()).T
    translated = q * joint.sum(1, keepdim=True) - joint
    assert float((elbo["q"] - score).abs().max()) < 1e-12
    assert float((found["q"] - translated).abs().max()) < 1e-12
    assert float((elbo["q"] - found["q"] - (score - translated)).abs().max()) < 1e-12
    assert float(found["rows"].abs().max()) == float(found["prior"].abs().max()) == 0.0


def test_the_prior_learns_from_real_latents_by_maximum_likelihood(
    languages: tuple[Table, Reader, Tensor],
) -> None:
    """-log p(z'), z' real: its gradient is p(z) less their shares. The rest of the turn stays as it is."""
    model, reader, _ = languages
    x = torch.arange(SENTENCES)
    objective = BackTranslation(lambda n: x)  # each value once
    pair, layout = Pair(model, reader), layout_of(model, reader, x)
    torch.manual_seed(0)
    loss = in_turn("model", objective, pair, layout, x).loss
    (found,) = torch.autograd.grad(loss, [model.prior], retain_graph=True)
    uniform = torch.full_like(found, 1 / SENTENCES)
    torch.testing.assert_close(found, model.prior.detach().softmax(0) - uniform)
    torch.manual_seed(0)
    alone = in_turn("model", BackTranslation(lambda n: x, learn_prior=False), pair, layout, x).loss
    log_prior = model.prior.log_softmax(0).mean()
    assert float((loss - alone + log_prior).detach()) == pytest.approx(0.0, abs=1e-12)


def test_fit_moves_along_these_gradients_first_the_model_and_then_the_guide() -> None:
    """One step of gradient descent on 50 sentences, by hand; greedy, so that nothing is drawn."""
    model, reader = tables(SENTENCES)
    x, rate = torch.arange(SENTENCES), 0.5
    prior, rows, q = (p.detach().clone() for p in (model.prior, model.rows, reader.logits))
    fit(
        *(model, reader, x),
        objective=BackTranslation(lambda n: x, greedy=True),
        optimizer=torch.optim.SGD,
        learning_rate=rate,
        batch_size=SENTENCES,
        max_epochs=1,
    )

    def ascended(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The gradient of the mean of log softmax(table)[row, column] is added."""
        gradient = torch.zeros_like(table)
        chosen = torch.nn.functional.one_hot(column, SENTENCES) - table.softmax(1)[row]
        return table + rate * gradient.index_add(0, row, chosen) / SENTENCES

    z = q.argmax(1)[x]
    rows = ascended(rows, z, x)
    made = rows.argmax(1)[x]  # by the model that has moved
    torch.testing.assert_close(model.rows.detach(), rows, atol=1e-12, rtol=0)
    torch.testing.assert_close(reader.logits.detach(), ascended(q, made, x), atol=1e-12, rtol=0)
    learned = prior + rate * (1 / SENTENCES - prior.softmax(0))
    torch.testing.assert_close(model.prior.detach(), learned, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [1.0, BETA])
def test_the_score_function_with_a_baseline_is_unbiased_for_whole_rows(beta: float) -> None:
    """Summed over all pairs of draws, its gradient is that of the sum over all values."""
    size = 4
    model, reader = tables(size)
    x, first, second = (
        each.flatten() for each in torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")
    )
    q = reader.logits.detach().softmax(1)
    weights = shares(size, 2)[x] * q[x, first] * q[x, second]
    copied = CopiedPair(model, reader, torch.stack([first, second]), x)
    pair = Pair(*copied.programs)
    with pair.scope():
        layout = layout_of(model, reader, x[:4]).of_another_guide
        loss = ScoreFunctionELBO(beta=beta)(pair, layout, x, beta)
    found, exact = copied.gradients(loss.loss, weights), enumerated(model, beta)
    for name, gradient in exact.items():
        assert float((found[name] - gradient).abs().max()) < 1e-12, name
        assert float(gradient.abs().max()) > 1e-3
    # What is logged is the ELBO with weight 1.
    log_weights = model.joint().detach().T[x] - reader.logits.detach().log_softmax(1)[x]
    drawn = torch.stack([log_weights.gather(1, z[:, None]) for z in (first, second)])
    assert float(loss.elbo) == pytest.approx(float(drawn.mean()), abs=1e-12)


def keyed(permutation: tuple[int, ...], prior: Tensor) -> tuple[Table, Reader]:
    """The pair in which x = permutation[z], both ways."""
    size = len(permutation)
    model, reader = tables(size)
    key = torch.tensor(permutation)
    with torch.no_grad():
        model.prior.copy_(prior.log())
        model.rows.fill_(-1000.0)[torch.arange(size), key] = 0.0
        reader.logits.fill_(-1000.0)[key, torch.arange(size)] = 0.0
    return model, reader


def test_every_bijection_is_a_fixed_point_and_the_prior_tells_them_apart() -> None:
    """All 120 keys of five sentences: both losses are 0 with gradient 0, and the ELBO is -H - KL of its key."""
    prior, truth = shares(5, 4), (3, 1, 4, 0, 2)
    rows = torch.empty_like(prior)
    rows[torch.tensor(truth)] = prior  # the shares of x: those of the z behind them
    x = torch.arange(5)
    bounds = {}
    layout = layout_of(*keyed(truth, prior), x)  # the same of all
    for permutation in itertools.permutations(range(5)):
        model, reader = keyed(permutation, prior)
        pair = Pair(model, reader)
        for turn, leaf in (("model", model.rows), ("guide", reader.logits)):
            objective = BackTranslation(x, learn_prior=False)
            loss = in_turn(turn, objective, pair, layout, x).loss
            (gradient,) = torch.autograd.grad(loss, [leaf])
            assert float(loss.detach()) == float(gradient.abs().max()) == 0.0
        elbo = torch.stack(
            [in_turn("model", objective, pair, layout, value.repeat(2)).elbo for value in x]
        )
        under = prior[torch.tensor(permutation).argsort()]  # p(z) of the z of each x
        torch.testing.assert_close(elbo, under.log())  # the bound is tight: log p(x)
        bounds[permutation] = float((rows * elbo).sum())
        divergence = float((rows * (rows / under).log()).sum())
        entropy = -float((rows * rows.log()).sum())
        assert bounds[permutation] == pytest.approx(-entropy - divergence, abs=1e-12)
    best, second = sorted(bounds.values())[-1:-3:-1]
    assert max(bounds, key=bounds.__getitem__) == truth
    assert best - second > 1e-3


def test_equal_sentences_leave_keys_that_nothing_tells_apart() -> None:
    prior = torch.tensor([0.4, 0.3, 0.15, 0.15], dtype=torch.float64)
    x, rows = torch.arange(4), prior
    bounds = []
    for permutation in ((0, 1, 2, 3), (0, 1, 3, 2), (1, 0, 2, 3)):
        model, reader = keyed(permutation, prior)
        objective = BackTranslation(x)
        pair, layout = Pair(model, reader), layout_of(model, reader, x)
        each = [in_turn("model", objective, pair, layout, v.repeat(2)).elbo for v in x]
        bounds.append(float((rows * torch.stack(each)).sum()))
    assert bounds[0] == bounds[1] > bounds[2] + 1e-3


class Shared(nn.Module):
    """One table of logits in both directions: p(x | z) its rows, q(z | x) its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(3, 3, bias=False).double()
        self.prior = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Categorical(logits=self.table.weight[z]), obs=x)


class Backwards(nn.Module):
    def __init__(self, model: Shared) -> None:
        super().__init__()
        self.table = model.table

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.table.weight.T[x]))


class GuideAlone(BackTranslation):
    """The second turn alone."""

    def turns(self, pair: Pair) -> Sequence[Turn]:
        return super().turns(pair)[1:]


def test_what_both_programs_share_learns_from_both_losses() -> None:
    model = Shared()
    guide, x = Backwards(model), torch.tensor([0, 1, 2, 2])
    pair = Pair(model, guide)
    with pair.scope():
        leaves = pair.parameters(x)
        named = {turn.name: turn for turn in BackTranslation(x).turns(pair)}
    assert set(leaves) == {"model.prior", "model.table.weight"}
    before = model.table.weight.detach().clone()
    fit(
        *(model, guide, x),
        objective=BackTranslation(x),
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        max_epochs=1,
        seed=0,
    )
    assert any(part is model.table.weight for part in named["guide"].moves)
    assert not torch.equal(model.table.weight, before)
    again = Shared()
    again.table.weight.data = before.clone()
    again.prior.requires_grad_(False)
    fit(
        *(again, Backwards(again), x),
        objective=GuideAlone(x),
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        max_epochs=1,
        seed=0,
    )
    assert not torch.equal(again.table.weight, before)  # by the guide's loss alone
    assert torch.equal(again.prior, torch.zeros(3))


def test_pairs_that_are_known_are_learned() -> None:
    """From pairs alone, p(x | z) and q(z | x) become the shares among these pairs."""
    torch.manual_seed(0)
    x, z = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 0, 2])
    model, reader = Table(3, 3, torch.float64), Reader(3, 3, torch.float64)
    objective = KnownLatents((x, z))
    pair = Pair(model, reader)
    layout = layout_of(model, reader, x)
    with pair.scope():
        (turn,) = objective.turns(pair)
        optimizer = torch.optim.Adam([*model.parameters(), *reader.parameters()], lr=0.1)
        average = None
        for step in range(400):
            optimizer.zero_grad()
            turn.loss(pair, layout, x.repeat(50), 1.0).loss.backward()
            optimizer.step()
            if step >= 200:
                found = torch.stack([model.rows.softmax(1), reader.logits.softmax(1)]).detach()
                average = found if average is None else average + found
    assert average is not None
    counts = torch.zeros(3, 3, dtype=torch.float64).index_put_((z, x), torch.ones(4).double(), True)
    truth = torch.stack([counts, counts.T])
    torch.testing.assert_close(
        average / 200, truth / truth.sum(2, keepdim=True), atol=0.02, rtol=0.0
    )


def test_greedy_takes_the_likeliest_values() -> None:
    model, reader = tables(6)
    x = torch.arange(6)
    pair, layout = Pair(model, reader), layout_of(model, reader, x)
    objective = BackTranslation(lambda n: x, greedy=True)
    found = in_turn("model", replace(objective, learn_prior=False), pair, layout, x)
    greedy = -model.rows.detach().log_softmax(1)[reader.logits.argmax(1), x].mean()
    torch.testing.assert_close(found.loss.detach(), greedy)
    # What is logged is an ELBO nevertheless: by draws, of 8 rows, here all.
    torch.testing.assert_close(found.elbo, -found.rate - found.distortion)
    assert abs(float(found.distortion - greedy)) > 1e-3
    found = in_turn("guide", objective, pair, layout, x)
    assert torch.equal(found.traces[0][0].nodes["x"]["value"], model.rows.argmax(1))


class WithDropout(Table):
    """Says in which mode each of its runs was."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> None:
        self.modes.append((self.training, torch.is_grad_enabled()))
        super().forward(x)


def test_draws_are_made_in_evaluation_mode_and_scored_in_training_mode() -> None:
    model, reader = WithDropout(), Reader(3, 3)
    x = torch.arange(3)
    pair, layout = Pair(model, reader), layout_of(model, reader, x)
    model.train()
    model.modes.clear()
    in_turn("guide", BackTranslation(x), pair, layout, x)
    assert model.modes == [(False, False)]
    in_turn("model", BackTranslation(x), pair, layout, x)
    assert model.modes[1:] == [(True, True), (True, True)]


def test_buckets_of_other_sentences_are_other_latents() -> None:
    one, other = torch.tensor([[4, 1, 0], [5, 6, 1]]), torch.tensor([[4, 1, 0], [5, 7, 1]])
    names = [repr(BackTranslation(Buckets(rows))) for rows in (one, one.clone(), other)]
    assert names[0] == names[1] != names[2]


def test_a_training_goes_on_bit_by_bit_and_not_with_other_latents(tmp_path: Path) -> None:
    x = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))

    def run(epochs: int, latents: Tensor, folder: Path, resume: bool = False) -> Table:
        torch.manual_seed(0)
        model, reader = Table(3, 3), Reader(3, 3)
        objective = BackTranslation(latents)
        options: dict[str, Any] = {"max_epochs": epochs, "batch_size": 8, "seed": 0}
        fit(model, reader, x, objective=objective, run_dir=folder, resume=resume, **options)
        return model

    whole = run(4, x, tmp_path / "whole")
    run(2, x, tmp_path / "parts")
    torch.testing.assert_close(
        run(4, x, tmp_path / "parts", resume=True).rows, whole.rows, rtol=0, atol=0
    )
    run(2, x, tmp_path / "other")
    with pytest.raises(ValueError, match="objective"):
        run(4, x.flip(0), tmp_path / "other", resume=True)


def test_check_finds_nothing() -> None:
    x = torch.arange(3)
    assert not check(Table(3, 3), Reader(3, 3), x, objective=BackTranslation(x)).problems


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            torch.tensor([3]),
            r"^BackTranslation.latents: 4 of the 4 rows that were drawn from it have values of site 'z' that "
            r"are outside of its support in the model, IntegerInterval\(lower_bound=0, upper_bound=2\): the "
            r"first is 3\. Give values that the model may draw$",
        ),
        (torch.tensor([0.5]), "site 'z' that are outside of its support .*: the first is 0.5"),
        (
            torch.zeros(3, 2).long(),
            r"^BackTranslation.latents: the values of site 'z' must have the shape \(m,\) for m rows, got "
            r"rows of the shape \(2,\)$",
        ),
        ({"y": torch.zeros(3).long()}, r"given for the sites \['y'\], and the pair draws \['z'\]"),
        (lambda n: torch.zeros(n + 1).long(), r"draw\(4\) of .* has returned 5 rows: expected 4"),
        (lambda n: (torch.zeros(n), torch.zeros(n)), "has returned .*: expected the latents alone"),
    ],
)
def test_real_values_that_do_not_suit(given: Any, told: str) -> None:
    x = torch.tensor([0, 1, 2, 2])
    with pytest.raises(PairError, match=told):
        fit(Table(3, 3), Reader(3, 3), x, objective=BackTranslation(given), max_epochs=1)


@pytest.mark.parametrize(
    ("rows", "z", "told"),
    [
        (
            [3, 0],
            [0, 1],
            "have values of site 'x' that are outside of its support .*: the first is 3",
        ),
        ([-1, -1], [0, 1], "4 of the 4 rows .* values of site 'x' that .*: the first is -1"),
        ([0, 1], [3, 4], "4 of the 4 rows .* values of site 'z' that are outside of its support"),
        ([0.5, 0.5], [0, 1], r"the rows x hold 0.5, and those of the batch are whole .*int64\)$"),
        ([0, 1], [[0, 1]] * 2, r"site 'z' must have the shape \(m,\) .* rows of the shape \(2,\)$"),
    ],
)
def test_known_pairs_that_do_not_suit(rows: Any, z: Any, told: str) -> None:
    x, known = torch.tensor([0, 1, 2, 2]), KnownLatents((torch.tensor(rows), torch.tensor(z)))
    with pytest.raises(PairError, match=f"^KnownLatents.pairs: .*{told}"):
        fit(Table(3, 3), Reader(3, 3), x, objective=known, max_epochs=1, seed=0)


def test_errors_inside_of_a_trace_are_what_they_say() -> None:
    """Pyro adds the shapes of all sites to errors that pass through its trace."""

    class Modeless(dist.Categorical):
        @property
        def mode(self) -> Tensor:
            raise NotImplementedError

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(3, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Modeless(logits=logits[x]))

    x = torch.tensor([0, 1, 2, 2])
    told = r"^Modeless states no likeliest value: .*, or draw its values$"
    with pytest.raises(PairError, match=told):
        fit(Table(3, 3), guide, x, objective=BackTranslation(x, greedy=True), max_epochs=1)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("german.txt", TypeError, "must be real values of the latent"),
        (torch.zeros(0, 3), ValueError, "has no rows"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, ValueError, r"as each other, got \[2, 3\]"),
        ({"a": [1, 2]}, TypeError, "must hold tensors of rows"),
    ],
)
def test_latents_that_are_none(given: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        BackTranslation(given)


def test_fewer_latents_than_rows_are_a_mean_over_fewer() -> None:
    model, reader = tables(4)
    x, z = torch.arange(4), torch.tensor([2, 1])
    pair, layout = Pair(model, reader), layout_of(model, reader, x)
    torch.manual_seed(0)
    found = in_turn("guide", BackTranslation(lambda n: z), pair, layout, x)
    dreamed = found.traces[0][0].nodes["x"]["value"]
    assert dreamed.shape == (2,)
    torch.testing.assert_close(found.loss, -reader.logits.log_softmax(1)[dreamed, z].mean())


def test_rows_that_come_with_more_are_refused() -> None:
    """Lengths of the rows of a batch are not those of the real latents."""
    table, reader = Table(3, 3), Reader(3, 3)

    def model(x: Tensor, lengths: Tensor) -> None:
        table(x)

    def guide(x: Tensor, lengths: Tensor) -> None:
        reader(x)

    x = torch.arange(3)
    with pytest.raises(PairError, match="what else belongs to the rows"):
        fit(model, guide, (x, x + 1), objective=BackTranslation(x), max_epochs=1)


def test_settings_that_do_not_suit() -> None:
    z = torch.arange(3)
    with pytest.raises(ValueError, match="leave beta at 1"):
        BackTranslation(z, beta=0.5)
    with pytest.raises(ValueError, match="back-translation has no KL"):
        BackTranslation(z, free_bits=0.1)
    with pytest.raises(ValueError, match="all translations of a row are the same"):
        BackTranslation(z, greedy=True, num_particles=2)
    with pytest.raises(ValueError, match=r"beta = 1, got VAEGANLoss with 0\.5"):
        Together([BackTranslation(z), VAEGANLoss(beta=0.5)])
    with pytest.raises(TypeError, match=r"write Together\(\[\.\.\.\]\)"):
        Together(BackTranslation(z))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="greedy"):
        BackTranslation(z, greedy="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pairs must be rows and their latents, \(x, z\)"):
        KnownLatents(z)
    with pytest.raises(ValueError, match="must be two or more, got 1"):
        Together([BackTranslation(z)])
    with pytest.raises(ValueError, match="got two of BackTranslation"):
        Together([BackTranslation(z), BackTranslation(z)])
    with pytest.raises(
        ValueError, match=r"learn from BackTranslation and KnownLatents.*learn_prior=False"
    ):
        Together([BackTranslation(z), KnownLatents((z, z))])
    with pytest.raises(TypeError, match="must be objectives with turns"):
        Together([BackTranslation(z), ELBO()])  # type: ignore[list-item]
