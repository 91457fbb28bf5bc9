"""Sentences as rows: probabilities that sum to 1, draws, and what fills up a row changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ppl_vae.distributions import Sentences
from ppl_vae.networks import EncoderDecoder, SentenceNetwork
from ppl_vae.networks.encoder_decoder import Memory
from ppl_vae.runtime import BLANK, END, FIRST_WORD, PAD, UNKNOWN, lengths_of, trimmed

WORDS, LENGTH = 6, 4


def every_sentence(words: int = WORDS, length: int = LENGTH) -> Tensor:
    """All sentences of a vocabulary, `(m, length)`."""
    each = [UNKNOWN, *range(FIRST_WORD, words)]
    found = [
        [*sentence, END, *[PAD] * (length - 1 - size)]
        for size in range(length)
        for sentence in itertools.product(each, repeat=size)
    ]
    return torch.tensor(found)


@pytest.fixture
def network() -> SentenceNetwork:
    torch.manual_seed(0)
    made = EncoderDecoder(width=8, layers=2, heads=2, dropout=0.3).build(WORDS, LENGTH).double()
    with torch.no_grad():  # far from uniform
        made.bias.copy_(torch.randn(WORDS).double())
    return made.eval()


def translated(network: SentenceNetwork, source: Tensor) -> Sentences:
    writing = network.writing(1, network.read(source, 0))
    return Sentences(writing, WORDS, LENGTH, source.shape[:-1])


SOURCE = torch.tensor([[5, 4, 2, END], [4, END, PAD, PAD], [END, PAD, PAD, PAD]])


def test_probabilities_of_all_sentences_sum_to_one(network: SentenceNetwork) -> None:
    x = every_sentence()
    assert len(x) == 1 + 3 + 9 + 27
    log_p = translated(network, SOURCE).log_prob(x.unsqueeze(1))
    assert log_p.shape == (40, 3)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(3).double())
    assert float(log_p.detach().exp().max()) < 0.9
    assert not torch.allclose(log_p[:, 0], log_p[:, 1])  # the source counts


def test_a_language_model_reads_nothing() -> None:
    torch.manual_seed(1)
    network = EncoderDecoder(width=8, layers=1, heads=2).build_writer(WORDS, LENGTH).double().eval()
    p = Sentences(network.writing(0), WORDS, LENGTH)
    torch.testing.assert_close(p.log_prob(every_sentence()).logsumexp(0), torch.zeros(()).double())
    assert p.sample((2, 3)).shape == (2, 3, LENGTH)
    assert p.expand((5,)).sample().shape == (5, LENGTH)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_draws_have_their_probabilities(network: SentenceNetwork, batch: tuple[int, ...]) -> None:
    """Pearson's statistic of 40 sentences in 20,000 draws, for each source: below its 1 - 1e-6 quantile."""
    torch.manual_seed(0)
    p, x = translated(network, SOURCE), every_sentence()
    draws = p.expand((*batch, 3)).sample((20_000 // max(1, sum(batch)),)).reshape(-1, 3, LENGTH)
    expected = p.log_prob(x.unsqueeze(1)).detach().exp() * len(draws)
    for row in range(3):
        counts = (draws[:, row].unsqueeze(1) == x).all(-1).sum(0)
        assert int(counts.sum()) == len(draws)  # all of them are sentences
        statistic = (counts - expected[:, row]).square() / expected[:, row]
        assert float(statistic.sum()) < 100.0  # 39 degrees of freedom


def test_the_density_of_a_draw_is_that_of_its_row(network: SentenceNetwork) -> None:
    p = translated(network, SOURCE).expand((50, 3))
    with torch.no_grad():
        z = p.sample()
        remembered = p.log_prob(z)
        torch.testing.assert_close(remembered, p.log_prob(z.clone()))
        z = p.greedy()
        torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()))
    assert p.log_prob(z).requires_grad  # with gradients nothing is remembered


def test_greedy_takes_the_likeliest_word_each_time(network: SentenceNetwork) -> None:
    p, x = translated(network, SOURCE), every_sentence()
    for row, found in enumerate(p.greedy()):
        left = x
        for t in range(int(lengths_of(found))):
            prefix = left[(left[:, :t] == found[:t]).all(-1)]
            log_p = p.log_prob(prefix.unsqueeze(1).expand(-1, 3, -1))[:, row].detach()
            totals = {
                word: float(log_p[prefix[:, t] == word].logsumexp(0))
                for word in prefix[:, t].unique().tolist()
            }
            assert max(totals, key=totals.__getitem__) == int(found[t])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_search_with_room_for_all_finds_the_likeliest(
    network: SentenceNetwork, length_penalty: float
) -> None:
    p, x = translated(network, SOURCE), every_sentence()
    each = p.log_prob(x.unsqueeze(1)).detach()
    scores = each / lengths_of(x).unsqueeze(1) ** length_penalty
    rows, log_p = p.beam(45, length_penalty)
    for row in range(3):
        order = scores[:, row].argsort(descending=True)
        torch.testing.assert_close(log_p[row, :40], each[order, row])
        assert torch.equal(rows[row, :40], x[order])
    assert bool((log_p[:, 40:] == -torch.inf).all())
    one, of_one = p.beam(1)
    assert torch.equal(one.squeeze(1), p.greedy())
    torch.testing.assert_close(of_one.squeeze(1), p.log_prob(one.squeeze(1)).detach())
    few, of_few = p.beam(5, length_penalty)
    torch.testing.assert_close(of_few, p.log_prob(few.movedim(1, 0)).T.detach())


@pytest.mark.parametrize("length_penalty", [-1.0, -1e-9, torch.inf, torch.nan])
def test_length_penalties_of_no_meaning_are_refused(
    network: SentenceNetwork, length_penalty: float
) -> None:
    """Below 0, short sentences would be preferred by more than their probability."""
    told = "length_penalty must be finite and at least 0, got"
    with pytest.raises(ValueError, match=told):
        translated(network, SOURCE).beam(3, length_penalty)
    with pytest.raises(TypeError, match="length_penalty must be a number, got the string '1'"):
        translated(network, SOURCE).beam(3, "1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("beams", "kind", "told"),
    [
        (0, ValueError, "beams must be at least 1, got 0"),
        (-1, ValueError, "beams must be at least 1, got -1"),
        (1.5, TypeError, "beams must be a whole number, got 1.5"),
        (True, TypeError, "beams must be a whole number, got True"),
    ],
)
def test_a_search_keeps_a_number_of_beginnings(
    network: SentenceNetwork, beams: Any, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        translated(network, SOURCE).beam(beams)


def test_what_fills_up_and_what_is_beside_a_row_changes_nothing(network: SentenceNetwork) -> None:
    x = torch.tensor([[5, END, PAD, PAD], [4, 5, END, PAD], [END, PAD, PAD, PAD]])
    together = translated(network, SOURCE).log_prob(x)
    for row in range(3):
        source, value = trimmed(SOURCE[row : row + 1]), x[row : row + 1]
        alone = translated(network, source).log_prob(value)
        torch.testing.assert_close(alone, together[row : row + 1])
        torch.testing.assert_close(translated(network, source).log_prob(trimmed(value)), alone)
    each = translated(network, SOURCE).log_prob_of_words(x)
    assert each.shape == x.shape
    assert bool((each[x == PAD] == 0).all())
    torch.testing.assert_close(each.sum(-1), together)


def test_the_longest_sentences_end_for_certain(network: SentenceNetwork) -> None:
    each = translated(network, SOURCE).log_prob_of_words(torch.tensor([4, 5, 4, END]))
    assert each[:, -1].tolist() == [0.0, 0.0, 0.0]
    assert bool((each[:, :-1] < 0).all())


@pytest.mark.parametrize(
    "row",
    [
        [4, 5, 4, 5],  # has no end
        [4, END, END, PAD],
        [4, PAD, END, PAD],
        [4, END, 5, PAD],
        [BLANK, END, PAD, PAD],
        [WORDS, END, PAD, PAD],
        [-1, END, PAD, PAD],
        [PAD, PAD, PAD, PAD],
    ],
)
def test_what_is_no_sentence_has_no_probability(network: SentenceNetwork, row: list[int]) -> None:
    p = translated(network, SOURCE)
    value = torch.tensor(row)
    assert not bool(p.support.check(value))
    p._validate_args = False
    assert p.log_prob(value).tolist() == [-torch.inf] * 3
    assert bool(p.support.check(torch.tensor([4, END, PAD, PAD])))


def test_an_independent_transformer_gives_the_same_states(network: SentenceNetwork) -> None:
    """torch's own layers, with our weights."""
    from torch.nn import TransformerDecoderLayer, TransformerEncoderLayer

    def copied(ours: Any, theirs: Any, reads: bool) -> Any:
        theirs = theirs.double().eval()
        pairs = [
            (theirs.self_attn.out_proj, ours.attended),
            (theirs.linear1, ours.mlp[0]),
            (theirs.linear2, ours.mlp[2]),
            (theirs.norm1, ours.before_attention),
            (theirs.norm3 if reads else theirs.norm2, ours.before_mlp),
        ]
        if reads:
            pairs += [
                (theirs.multihead_attn.out_proj, ours.read),
                (theirs.norm2, ours.before_reading),
            ]
            both = theirs.multihead_attn
            weight = torch.cat([ours.queries.weight, ours.keys_values.weight])
            bias = torch.cat([ours.queries.bias, ours.keys_values.bias])
            both.in_proj_weight.data, both.in_proj_bias.data = weight, bias
        for one, other in pairs:
            one.weight.data, one.bias.data = other.weight.data, other.bias.data
        theirs.self_attn.in_proj_weight.data = ours.queries_keys_values.weight.data
        theirs.self_attn.in_proj_bias.data = ours.queries_keys_values.bias.data
        return theirs

    options: dict[str, Any] = {
        **{"d_model": 8, "nhead": 2, "dim_feedforward": 32, "activation": "gelu"},
        **{"batch_first": True, "norm_first": True},
    }
    assert network.encoder is not None
    assert network.encoded is not None
    absent = SOURCE == PAD
    x = network.vectors(SOURCE, 0)
    for block in network.encoder:
        layer = copied(block, TransformerEncoderLayer(**options), reads=False)
        layer.train()  # without the fast path; its dropout is 0.1, so:
        for part in layer.modules():
            part.training = True
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        layer.self_attn.dropout = 0.0
        x = layer(x, src_key_padding_mask=absent)
    memory = network.encoded(x)
    rows = torch.tensor([[4, 5, END], [5, END, PAD], [4, 4, END]])
    start = (network.languages[1] + network.places[0]).expand(3, 1, -1)
    y = torch.cat([start, network.vectors(rows[:, :-1], 1)], 1)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    for block in network.decoder:
        layer = copied(block, TransformerDecoderLayer(**options), reads=True)
        y = layer(y, memory, tgt_mask=mask, memory_key_padding_mask=absent)
    expected = network.decoded(y)
    found = network.writing(1, network.read(SOURCE, 0)).states(rows)
    there = rows != PAD
    torch.testing.assert_close(found[there], expected[there])
    assert not bool(found[~there].any())  # what fills up rows is not computed


def test_rows_are_chosen_on_the_device_of_the_network() -> None:
    """By indices on the CPU, as for several draws of each row; without a GPU, of tensors without numbers."""
    with FakeTensorMode():
        there = torch.ones(3, 1, 1, 5, dtype=torch.bool, device="cuda")
        memory = Memory([torch.ones(2, 3, 2, 5, 4, device="cuda")], there)
        found = memory.of_rows(torch.tensor([2, 0, 0, 1]))
        assert found.layers[0].shape == (2, 4, 2, 5, 4)
        assert {found.layers[0].device.type, found.there.device.type} == {"cuda"}


def test_arguments_that_do_not_suit() -> None:
    with pytest.raises(ValueError, match="width must be even and a multiple of heads = 3"):
        EncoderDecoder(width=8, heads=3)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        EncoderDecoder(dropout=1.0)
    with pytest.raises(ValueError, match="words must be at least 1"):
        EncoderDecoder().build(words=4, length=5)
    with pytest.raises(ValueError, match="length must be at least 2"):
        Sentences(EncoderDecoder(width=8).build_writer(9, 1).writing(0), 9, 1)


def test_a_draw_in_training_mode_has_the_density_of_what_drew_it(network: SentenceNetwork) -> None:
    """Dropout of the decoder is not in the steps, so it is not in the density of what they have drawn."""
    network.train()
    torch.manual_seed(0)
    p = translated(network, SOURCE).expand((40, 3))
    z = p.sample()
    with torch.no_grad():
        remembered = p.log_prob(z)
    scored = p.log_prob(z)
    assert scored.requires_grad
    torch.testing.assert_close(scored.detach(), remembered)
    assert not torch.allclose(p.log_prob(z.clone()).detach(), remembered)  # of given rows it is


def test_draws_of_nan_have_a_density_of_nan(network: SentenceNetwork) -> None:
    """A pair that has diverged: its draws are words, and their density says what is wrong."""
    with torch.no_grad():
        network.bias.fill_(torch.nan)
    p = translated(network, SOURCE)
    drawn = p.sample()
    assert bool((drawn < WORDS).all())
    assert bool(p.log_prob(drawn).isnan().all())


def test_no_rows_have_no_densities(network: SentenceNetwork) -> None:
    p = translated(network, SOURCE[:0])
    none = SOURCE.new_zeros(0, 3)
    assert p.log_prob(none).shape == (0,)
    assert p.log_prob_of_words(none).shape == (0, 3)


@pytest.mark.parametrize("row", [[4, WORDS, 1], [4, 0, 1], [4, 4, 4, 4, 4, 4, 4, 1], [4, 4, 4]])
def test_words_of_what_is_no_sentence(network: SentenceNetwork, row: list[int]) -> None:
    """Another vocabulary, a hole, too long, without an end."""
    p = translated(network, SOURCE[:1])
    assert p.length < 8
    with pytest.raises(ValueError, match="log_prob_of_words: a row is outside of the support"):
        p.log_prob_of_words(torch.tensor([row]))


def test_draws_of_one_source(network: SentenceNetwork) -> None:
    p = Sentences(network.writing(1, network.read(SOURCE[:1], 0)), WORDS, LENGTH)
    drawn = p.sample((64,))
    assert bool(p.support.check(drawn).all())
    together = translated(network, SOURCE[:1]).log_prob(drawn.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(p.log_prob(drawn.clone()), together)
