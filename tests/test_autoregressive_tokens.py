"""A decoder of tokens: what it sees, that it sums to 1, draws, and unknown tokens in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import evaluate, fit, sample
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli, Categorical, decoded
from ppl_vae.models import VAE, ConditionalVAE
from ppl_vae.networks import MLP, AutoregressiveDecoder, Convolutional, Labels
from ppl_vae.objectives import ELBO
from ppl_vae.pairs import PairError

LATENT, TOKENS = 2, 3
SMALL = MLP(hidden=(5,))


def network(window: int = 2, layers: int = 2, **options: Any) -> AutoregressiveDecoder:
    options = {"categories": TOKENS, **options}
    return AutoregressiveDecoder(SMALL, 4, layers=layers, window=window, **options)


def built(length: int, description: AutoregressiveDecoder) -> Any:
    """In double precision, and with large weights, so that tokens depend much on each other."""
    decoder = description.decoder(LATENT, (TOKENS, length)).double().eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.mul_(2.5)
    return decoder


def latents(*batch: int) -> Tensor:
    return torch.randn(*batch, LATENT, dtype=torch.float64)


def all_rows(length: int) -> Tensor:
    return torch.tensor([*itertools.product(range(TOKENS), repeat=length)], dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 1, 3, 20])
def test_a_token_sees_those_before_it_within_the_window(window: int, layers: int) -> None:
    """By changing one token after the other."""
    length = 7
    decoder = built(length, network(window, layers))
    z, x = latents(20), torch.randint(TOKENS, (20, length)).double()
    before = decoder(z, x)
    for changed in range(length):
        other = x.clone()
        other[:, changed] = (other[:, changed] + 1) % TOKENS
        moved = (decoder(z, other) != before).any(1).any(0)
        expected = [changed < place <= changed + window for place in range(length)]
        assert moved.tolist() == expected
    assert bool((decoder(z + 1, x) != before).all()), "each token reads z"


@pytest.mark.parametrize("window", [0, 1, 5])
def test_the_probabilities_of_all_sequences_sum_to_1(window: int) -> None:
    p = decoded(built(4, network(window)), Categorical(TOKENS), latents(3), (4,))
    log_p = p.log_prob(all_rows(4)[:, None])
    assert log_p.shape == (TOKENS**4, 3)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("window", [0, 1, 2, 7])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_draw_gives_the_numbers_of_a_full_pass(layers: int, window: int) -> None:
    decoder = built(6, network(window, layers))
    parts = []

    def draw(features: Tensor) -> Tensor:
        assert features.shape == (2, 3, TOKENS, 1)
        parts.append(features)
        return torch.randint(TOKENS, (2, 3, 1)).double()

    z = latents(2, 3)
    x = decoder.ancestral(z, draw)
    torch.testing.assert_close(torch.cat(parts, -1), decoder(z, x), rtol=1e-9, atol=1e-9)


def test_draws_have_the_probabilities_of_the_density() -> None:
    p = decoded(built(3, network()), Categorical(TOKENS), latents(), (3,))
    expected = p.log_prob(all_rows(3)).exp()
    torch.manual_seed(1)
    draws = p.sample((20000,)).long()
    counts = torch.bincount((draws * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    error = (expected * (1 - expected) / 20000).sqrt()
    assert bool(((counts / 20000 - expected).abs() < 5 * error + 1e-4).all())


def test_tokens_have_no_order() -> None:
    """With other names for the tokens, and the first weights in their order, nothing changes."""
    decoder, other = (built(5, network(layers=1)) for _ in range(2))
    order = torch.tensor([2, 0, 1])
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    for name, value in state.items():
        if ".of_left" in name or ".of_above" in name:  # one-hot vectors, and what is seen
            state[name] = torch.cat([value[:, order.argsort()], value[:, 3:]], 1)
    other.load_state_dict(state)
    z, x = latents(4), torch.randint(TOKENS, (4, 5))
    torch.testing.assert_close(other(z, order[x].double()), decoder(z, x.double()))


# -- word dropout ----------------------------------------------------------------------------------------


def test_words_are_unknown_in_training_alone() -> None:
    rate, length = 0.3, 60
    decoder: Any = network(pixel_dropout=rate).decoder(LATENT, (TOKENS, length))
    plain: Any = network().decoder(LATENT, (TOKENS, length))
    plain.load_state_dict(decoder.state_dict())
    read: list[Tensor] = []
    first = decoder.layers[0]
    first.of_left.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    z, x = torch.randn(50, LATENT), torch.randint(TOKENS, (50, length)).float()
    p = decoded(decoder, Categorical(TOKENS), z, (length,))
    decoder.eval()
    exact = decoded(plain.eval(), Categorical(TOKENS), z, (length,)).log_prob(x)
    assert torch.equal(p.log_prob(x), exact), "the density is that of all tokens"
    assert torch.equal(p.log_prob(x), p.log_prob(x))
    read.clear()
    decoder.train()
    assert not torch.equal(p.log_prob(x), p.log_prob(x))
    *one_hot, known = read.pop()[:, :, 0, first.aside :].unbind(1)
    # A known token is a one-hot vector; an unknown one is none of them, whatever it was.
    torch.testing.assert_close(torch.stack(one_hot).sum(0), known)
    assert set(known.unique().tolist()) == {0.0, 1.0}
    assert abs(float(known.mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / known.numel()) ** 0.5
    assert float((known[0] != known[1]).float().mean()) > 0.2, "each row's own"
    read.clear()
    p.sample()
    assert bool((read[-1][:, -1, 0, first.aside :] == 1).all()), "draws see all"


@pytest.mark.slow
def test_word_dropout_keeps_z_in_use() -> None:
    """Copies of one coin: with all tokens known, the first one says all that is to come, and z is not used."""
    x = torch.randint(2, (256, 1)).float().expand(256, 6).contiguous()
    rates = []
    for dropout in (0.0, 0.8):
        torch.manual_seed(0)
        description = AutoregressiveDecoder(MLP((16,)), 8, 2, 6, dropout, categories=2)
        model: Any = VAE((6,), 1, description, Categorical(2))
        guide = MeanField((6,), 1, description)
        fit(model, guide, x, max_epochs=30, batch_size=64, learning_rate=0.02, seed=0)
        found = evaluate(model, guide, x, num_samples=100, method="guide", seed=0)
        rates.append(found.rate.mean)
    assert rates[0] < 0.15
    assert rates[1] > 0.4


# -- pairs -----------------------------------------------------------------------------------------------


def test_a_pair_of_tokens() -> None:
    """Trained, evaluated against a sum over z on a grid, and drawn from."""
    description = network(pixel_dropout=0.3)
    model: Any = VAE((6,), LATENT, description, Categorical(TOKENS))
    guide = MeanField((6,), LATENT, description)
    x = torch.randint(TOKENS, (64, 6)).float()
    fit(model, guide, x, objective=ELBO(), max_epochs=3, batch_size=32, seed=0)
    found = evaluate(model, guide, x[:8], num_samples=4000, seed=0)
    line = torch.linspace(-5, 5, 101)
    z = torch.cartesian_prod(line, line)
    log_prior = model.prior().log_prob(z) + 2 * torch.log(line[1] - line[0])
    with torch.no_grad():
        exact = (model.decode(z).log_prob(x[:8, None]) + log_prior).logsumexp(1)
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=0.02, rtol=0.0)
    drawn = sample(model, 5, seed=0)
    assert drawn.dtype == torch.long
    assert set(drawn.unique().tolist()) <= {0, 1, 2}


def test_a_conditional_pair() -> None:
    description = network()
    model: Any = ConditionalVAE((6,), LATENT, description, Categorical(TOKENS), context=Labels(4))
    guide = MeanField((6,), LATENT, description, context=Labels(4))
    x, c = torch.randint(TOKENS, (16, 6)).float(), torch.arange(16) % 4
    fit(model, guide, (x, c), max_epochs=1, seed=0)
    # Labels are read as they are, tokens as one-hot vectors.
    q = guide.encode(x, c).base_dist.loc
    assert not torch.equal(q, guide.encode(x, (c + 1) % 4).base_dist.loc)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: network(categories=1), ValueError, "categories must be at least 2, got 1"),
        (lambda: network(categories="all"), TypeError, "categories must be a whole number"),
        (lambda: network(scale=2.0), ValueError, "scale = 2.0 divides numbers, .* leave it at 1"),
        (
            lambda: network(categories=None).decoder(2, (1, 6)),
            ValueError,
            "needs pictures of shape",
        ),
        (
            lambda: VAE((6,), 2, network(), Bernoulli()),
            ValueError,
            r"3 categories, and the likelihood takes 1 numbers .* give the likelihood Categorical\(3\)",
        ),
        (lambda: Categorical(1), ValueError, "categories must be at least 2"),
    ],
)
def test_mistakes_are_explained(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_pictures_of_categories() -> None:
    """Two channels of categories: all rows sum to 1, and the encoder tells the categories apart."""
    description = AutoregressiveDecoder(Convolutional((4,), 8), 4, 2, window=2, categories=TOKENS)
    shape = (2, 1, 2)
    decoder: Any = description.decoder(LATENT, (TOKENS, *shape)).double().eval()
    with torch.no_grad():
        p = decoded(decoder, Categorical(TOKENS), latents(), shape)
        total = p.log_prob(all_rows(4).reshape(-1, *shape)).logsumexp(0)
    assert float(total) == pytest.approx(0.0, abs=1e-9)
    encoder = description.encoder((2, 4, 4)).eval()
    features = [encoder(torch.full((2, 4, 4), float(of))) for of in range(TOKENS)]
    assert not torch.allclose(features[1] - features[0], features[2] - features[1], atol=1e-4)
    whole = encoder(torch.ones(3, 2, 4, 4, dtype=torch.long))
    torch.testing.assert_close(whole[0], features[1])


def test_tokens_that_were_read_as_gray_levels_are_told() -> None:
    """What `load_data` makes of an array of type uint8."""
    network = AutoregressiveDecoder(MLP((8,)), channels=4, layers=1, window=2, categories=5)
    model = VAE((6,), 2, network, Categorical(5))
    tokens = torch.randint(0, 5, (20, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(PairError, match=r"k / 255, as arrays of type uint8 are read: give them as"):
        evaluate(model, MeanField((6,), 2, network), tokens.float() / 255, progress=False)
