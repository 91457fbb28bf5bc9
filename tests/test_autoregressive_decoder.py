"""A decoder that reads the pixels before: what it sees, that it sums to 1, and draws of its density."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import catalogue
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from ppl_vae import (
    PairTransformer,
    check,
    diagnose,
    evaluate,
    fit,
    interpolate,
    load_run,
    reconstruct,
    sample,
    save_run,
    traverse,
)
from ppl_vae.capture import step as capture
from ppl_vae.cli import main
from ppl_vae.distributions import Ancestral
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli, Binomial, DiscretizedLogistic, Likelihood, decoded
from ppl_vae.models import VAE, ConditionalVAE, HierarchicalVAE
from ppl_vae.networks import (
    MLP,
    AutoregressiveDecoder,
    Convolutional,
    Labels,
    Network,
    ReadingDecoder,
)
from ppl_vae.pairs import PairError
from ppl_vae.tasks import partners

SMALL = MLP(hidden=(5,))
LATENT = 2


def network(window: int = 2, layers: int = 2, **options: Any) -> AutoregressiveDecoder:
    return AutoregressiveDecoder(SMALL, channels=4, layers=layers, window=window, **options)


def strong(module: nn.Module, factor: float = 2.5) -> Any:
    """In float64 and with large weights, so that pixels depend much on each other and on z."""
    module = module.double().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module


def built(
    shape: Sequence[int], likelihood: Likelihood, description: Network, factor: float = 2.5
) -> tuple[Any, Callable[[Tensor], Any]]:
    """A decoder, and p(x | z) from it."""
    decoder = strong(description.decoder(LATENT, (likelihood.num_params, *shape)), factor)
    return decoder, lambda z: decoded(decoder, likelihood, z, shape)


def latents(*batch: int) -> Tensor:
    return torch.randn(*batch, LATENT, dtype=torch.float64)


def all_rows(shape: Sequence[int], values: Sequence[float]) -> Tensor:
    size = torch.Size(shape).numel()
    rows = [*itertools.product(values, repeat=size)]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, *shape)


# -- what a pixel sees -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("window", [0, 1, 2, 3, 4, 20])
@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 5), (1, 1, 6), (6, 1)], ids=str)
def test_a_pixel_sees_those_before_it_within_the_window(
    shape: tuple[int, ...], window: int, layers: int
) -> None:
    decoder = network(window, layers).decoder(LATENT, (2, *shape)).double()
    z, x = latents(), torch.rand(shape, dtype=torch.float64)
    found: Any = torch.autograd.functional.jacobian(lambda rows: decoder(z, rows), x)
    *channels, height, width = shape
    planes = torch.Size(channels).numel()
    found = found.reshape(2 * planes, height, width, planes, height, width)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    number = row * width + column
    before = number[:, :, None, None] > number
    near_rows = (row[:, :, None, None] - row).abs() <= window
    near_columns = (column[None, :, None, None] - column).abs() <= window
    seen = (before & near_rows & near_columns)[None, :, :, None].expand_as(found)
    assert torch.equal(found != 0, seen)


def test_without_a_window_the_pixels_are_independent() -> None:
    shape = (1, 3, 4)
    decoder, p = built(shape, Bernoulli(), network(window=0))
    z = latents(7)
    x, other = (torch.rand(7, *shape, dtype=torch.float64).round() for _ in range(2))
    assert torch.equal(decoder(z, x), decoder(z, other))
    independent = Bernoulli()(decoder(z, other), 3)  # as of a decoder that does not read x
    torch.testing.assert_close(p(z).log_prob(x), independent.log_prob(x))
    torch.manual_seed(3)
    draws = p(z).sample((4000,))
    expected = independent.mean
    error = (expected * (1 - expected) / len(draws)).sqrt()
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-12).all()


@pytest.mark.parametrize("window", [0, 3])
def test_every_layer_reads_z(window: int) -> None:
    """Of one layer at a time, both ways: z itself, and its picture."""
    smooth = MLP(hidden=(5,), activation=nn.Tanh)
    description = AutoregressiveDecoder(smooth, channels=4, layers=3, window=window)
    decoder: Any = description.decoder(LATENT, (1, 1, 4, 4)).double()
    z, x = latents(), torch.rand(1, 4, 4, dtype=torch.float64)
    readers = [(layer, name) for layer in decoder.layers for name in ("place", "latent")]
    kept = [getattr(layer, name).weight.detach().clone() for layer, name in readers]

    def slope(reader: int | None) -> Tensor:
        with torch.no_grad():
            for i, (layer, name) in enumerate(readers):
                getattr(layer, name).weight.copy_(kept[i] * (i == reader))
        found: Any = torch.autograd.functional.jacobian(lambda of: decoder(of, x), z)
        smallest: Tensor = found.abs().reshape(-1, LATENT).amin(0)
        return smallest

    assert bool((slope(None) == 0).all())
    for reader in range(len(readers)):
        assert bool((slope(reader) > 0).all()), readers[reader]


# -- skip connections ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda skip: MLP(hidden=(4, 5, 6), activation=nn.Tanh, skip=skip),
        lambda skip: Convolutional(channels=(3, 4), hidden=5, skip=skip),
    ],
    ids=["MLP", "Convolutional"],
)
def test_with_skip_every_layer_reads_z(make: Callable[[bool], Network]) -> None:
    """Cut off what the layer before gives: z still arrives, or without skip does not."""
    z = latents()
    for skip in (True, False):
        decoder = make(skip).decoder(LATENT, (1, 6, 5)).double().eval()
        main = [m for m in decoder.modules() if isinstance(m, nn.Linear | nn.ConvTranspose2d)]
        main = [m for m in main if getattr(m, "in_features", None) != LATENT]
        assert len(main) == 3
        for layer in main:
            weight = layer.weight.detach().clone()
            with torch.no_grad():
                layer.weight.zero_()
            found: Any = torch.autograd.functional.jacobian(decoder, z)
            assert bool((found.abs().reshape(-1, LATENT).amax(0) > 0).all()) == skip, layer
            with torch.no_grad():
                layer.weight.copy_(weight)


def test_skip_is_the_formula() -> None:
    decoder: Any = MLP(hidden=(4, 5), activation=nn.Tanh, skip=True).decoder(2, (3,)).double()
    z = latents(6)
    first, second, third = (decoder.net.layers[i] for i in (0, 2, 4))
    g, h = (decoder.net.latent[i] for i in ("2", "4"))
    expected = third(torch.tanh(second(torch.tanh(first(z))) + g(z))) + h(z)
    torch.testing.assert_close(decoder(z), expected)


def test_without_skip_networks_and_their_weights_are_as_before() -> None:
    assert MLP((3,)) == MLP((3,), skip=False)
    names = [*MLP(hidden=(7,)).decoder(2, (3,)).state_dict()]
    assert names == [f"net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    convolutional = Convolutional((4,), 5).decoder(2, (1, 4, 4))
    assert [*convolutional.state_dict()][:2] == ["net.0.weight", "net.0.bias"]
    for kind in (MLP, Convolutional):
        with pytest.raises(TypeError, match=f"{kind.__name__}.skip must be True or False, got 1"):
            kind(skip=1)  # type: ignore[arg-type]


# -- a density -------------------------------------------------------------------------------------------

DENSITIES = {
    "Bernoulli-3x3": ((3, 3), Bernoulli(), (0.0, 1.0)),
    "Bernoulli-2-channels": ((2, 2, 2), Bernoulli(), (0.0, 1.0)),
    "Binomial": ((2, 2), Binomial(3), (0.0, 1.0, 2.0, 3.0)),
    "DiscretizedLogistic": ((1, 2, 2), DiscretizedLogistic(3), (0.0, 0.5, 1.0)),
}


# At which pixels depend on each other, and yet most rows are drawn.
FACTORS = {"Binomial": 4.0, "DiscretizedLogistic": 2.2}


@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_probabilities_of_all_rows_sum_to_1(name: str, window: int) -> None:
    shape, likelihood, values = DENSITIES[name]
    _, p = built(shape, likelihood, network(window))
    rows = all_rows(shape, values)
    log_p = p(latents(3)).log_prob(rows[:, None])
    assert log_p.shape == (len(rows), 3)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_have_the_probabilities_of_the_density(name: str) -> None:
    shape, likelihood, values = DENSITIES[name]
    _, p = built(shape, likelihood, network(window=2), FACTORS.get(name, 2.5))
    rows, z = all_rows(shape, values), latents()
    probability = p(z).log_prob(rows).exp()
    torch.manual_seed(1)
    draws = p(z).sample((20000,)).reshape(20000, -1)
    found = (draws * (len(values) - 1) / max(values)).round().long()
    place = torch.tensor(len(values)) ** torch.arange(found.shape[1] - 1, -1, -1)
    counts = torch.bincount((found * place).sum(1), minlength=len(rows)).double()
    expected = len(draws) * probability
    rare = expected < 5
    both = [torch.cat([v[~rare], v[rare].sum()[None]]).numpy() for v in (counts, expected)]
    if both[1][-1] < 5:  # all rare ones together
        both = [v[:-1] for v in both]
        both[1] *= both[0].sum() / both[1].sum()
    assert len(both[0]) > 10
    assert scipy.stats.chisquare(*both).pvalue > 1e-3
    # The same test finds draws of independent pixels with the same means.
    alone = torch.stack([draws[torch.randperm(len(draws)), i] for i in range(draws.shape[1])], 1)
    found = (alone * (len(values) - 1) / max(values)).round().long()
    counts = torch.bincount((found * place).sum(1), minlength=len(rows)).double()
    shuffled = counts[~rare].numpy()
    wanted = expected[~rare].numpy() * shuffled.sum() / expected[~rare].sum().item()
    assert scipy.stats.chisquare(shuffled, wanted).pvalue < 1e-6


@pytest.mark.parametrize("window", [0, 1, 2, 7])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("shape", [(4, 5), (3, 5, 4), (1, 1, 6), (5, 1), (2, 3, 2, 3)], ids=str)
def test_a_draw_gives_the_numbers_of_a_full_pass(
    shape: tuple[int, ...], layers: int, window: int
) -> None:
    decoder: ReadingDecoder = strong(
        network(window, layers, scale=3.0).decoder(LATENT, (2, *shape))
    )
    parts = []

    def draw(features: Tensor) -> Tensor:
        assert features.shape == (2, 3, 2, *shape[:-2], 1, 1)
        parts.append(features)
        return torch.rand(2, 3, *shape[:-2], 1, 1, dtype=torch.float64).mul(4).round()

    z = latents(2, 3)
    x = decoder.ancestral(z, draw)
    pixels = torch.cat([part.flatten(-2) for part in parts], -1)
    step_by_step = pixels.unflatten(-1, shape[-2:])
    torch.testing.assert_close(step_by_step, decoder(z, x), rtol=1e-9, atol=1e-9)


def test_a_draw_computes_one_pixel_at_a_time() -> None:
    """The last convolution sees each pixel once, and those from above each row once."""
    decoder: Any = network(window=3, layers=3).decoder(LATENT, (1, 1, 6, 5))
    seen = {"head": 0, "above": 0, "left": 0}

    def count(name: str, layer: nn.Module) -> None:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] += output.shape[-2] * output.shape[-1]

        layer.register_forward_hook(add)

    count("head", decoder.head[-1])
    for layer in decoder.layers:
        count("above", layer.of_above)
        count("left", layer.of_left)
    decoded(decoder, Bernoulli(), torch.zeros(4, LATENT), (1, 6, 5)).sample()
    assert seen == {"head": 30, "above": 3 * 30, "left": 3 * 30}


def test_shapes_broadcast_as_of_any_distribution() -> None:
    shape = (1, 3, 4)
    _, p = built(shape, Bernoulli(), network())
    z, x = latents(6, 5), torch.rand(5, *shape, dtype=torch.float64).round()
    of_all = p(z)
    assert (of_all.batch_shape, of_all.event_shape) == ((6, 5), shape)
    assert of_all.log_prob(x).shape == (6, 5)
    one_by_one = [[p(z[i, j]).log_prob(x[j]) for j in range(5)] for i in range(6)]
    torch.testing.assert_close(of_all.log_prob(x), torch.tensor(one_by_one, dtype=torch.float64))
    assert of_all.sample((2,)).shape == (2, 6, 5, *shape)
    assert p(z[:0]).sample().shape == (0, 5, *shape)
    single = p(z[0, 0])
    wide = single.expand([7])
    assert (wide.batch_shape, wide.sample().shape) == ((7,), (7, *shape))
    torch.testing.assert_close(wide.log_prob(x[0]), single.log_prob(x[0]).expand(7))
    assert single.support.check(x).all()
    assert not single.support.check(x + 0.5).any()
    with pytest.raises(ValueError, match="support"):
        single.log_prob(x + 0.5)


# -- hidden pixels ---------------------------------------------------------------------------------------


def test_pixels_are_hidden_in_training_alone() -> None:
    rate, shape = 0.3, (2, 20, 20)
    decoder: Any = network(pixel_dropout=rate).decoder(LATENT, (1, *shape))
    plain = network().decoder(LATENT, (1, *shape))
    plain.load_state_dict(decoder.state_dict())
    seen: list[Tensor] = []
    first = decoder.layers[0]
    first.of_left.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    z, x = torch.randn(50, LATENT), torch.ones(50, *shape)
    decoder.eval()
    plain.eval()
    assert torch.equal(decoder(z, x), plain(z, x))
    assert bool((seen.pop()[..., first.aside :] == 1).all())
    decoder.train()
    features = decoder(z, x)
    *pixels, told = seen.pop()[..., first.aside :].unbind(1)
    for channel in pixels:  # all channels of a pixel
        assert torch.equal(channel, told)
    assert set(told.unique().tolist()) == {0.0, 1.0}, "those that are seen are not scaled"
    count = told.numel()
    assert abs(float(told.mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / count) ** 0.5
    assert float((told[0] != told[1]).float().mean()) > 0.3, "each row's own"
    assert not torch.equal(features, decoder(z, x))
    seen.clear()
    decoded(decoder, Bernoulli(), z, shape).sample()
    assert bool((seen[-1][:, -1] == 1).all()), "draws see all"


def test_with_hidden_pixels_it_is_a_density_too() -> None:
    shape = (2, 3)
    decoder, p = built(shape, Bernoulli(), network(pixel_dropout=0.5))
    decoder.train()
    z, log_p = latents(), []
    for row in all_rows(shape, (0.0, 1.0)):
        torch.manual_seed(4)
        log_p.append(p(z).log_prob(row))
    assert abs(float(torch.stack(log_p).logsumexp(0))) < 1e-9


# -- models ----------------------------------------------------------------------------------------------


def test_pyro_draws_what_is_not_observed() -> None:
    model = VAE((1, 4, 4), LATENT, network()).eval()
    x = torch.rand(6, 1, 4, 4).round()
    trace: Any = poutine.trace(poutine.uncondition(model)).get_trace(x)
    drawn = trace.nodes["x"]["value"]
    assert isinstance(trace.nodes["x"]["fn"], Ancestral)
    assert drawn.shape == x.shape
    z = trace.nodes["z"]["value"]
    given: Any = poutine.trace(poutine.condition(model, {"z": z})).get_trace(drawn)
    given.compute_log_prob()
    log_p = given.nodes["x"]["log_prob"]
    torch.testing.assert_close(log_p, model.decode(z).log_prob(drawn))
    assert pyro.sample("x", model.decode(z)).shape == x.shape


def test_other_models_take_it() -> None:
    shape, x = (1, 4, 4), torch.rand(3, 1, 4, 4).round()
    conditional = ConditionalVAE(shape, LATENT, network(), context=Labels(3)).eval()
    z, y = torch.randn(3, LATENT), torch.arange(3)
    p = conditional.decode(z, y)
    assert p.sample().shape == x.shape
    assert not torch.equal(p.log_prob(x), conditional.decode(z, y.flip(0)).log_prob(x))
    hierarchical = HierarchicalVAE(shape, (3, 2), network(), MLP((4,))).eval()
    assert hierarchical.decode(torch.randn(3, 3)).log_prob(x).shape == (3,)
    with pytest.raises(ValueError, match="AutoregressiveDecoder needs pictures"):
        HierarchicalVAE(shape, (3, 2), MLP((4,)), network())


def test_the_encoder_is_that_of_the_base() -> None:
    base = Convolutional((4,), 6)
    description = AutoregressiveDecoder(base)
    torch.manual_seed(0)
    encoder = description.encoder((1, 8, 8))
    torch.manual_seed(0)
    x = torch.rand(2, 1, 8, 8)
    torch.manual_seed(0)
    expected = base.encoder((1, 8, 8))
    assert torch.equal(encoder(x), expected(x))
    assert description.encoder_of_both((1, 8, 8), 3)(x, torch.eye(3)[:2]).shape == (2, 6)
    guide = MeanField((1, 8, 8), LATENT, AutoregressiveDecoder(SMALL))
    assert guide.encode(x).batch_shape == (2,)


# -- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (lambda: network(window=-1), ValueError, "window must be at least 0, got -1"),
        (lambda: network(layers=0), ValueError, "layers must be at least 1"),
        (lambda: network(window=1.5), TypeError, "window must be a whole number"),  # type: ignore[arg-type]
        (lambda: network(pixel_dropout=1.0), ValueError, "less than 1, got 1.0: .* give window=0"),
        (lambda: network(pixel_dropout="much"), TypeError, "pixel_dropout must be a number"),
        (lambda: network(scale=0.0), ValueError, "scale must be positive"),
        (lambda: AutoregressiveDecoder(MLP), TypeError, r"base must be an object such as Conv"),  # type: ignore[arg-type]
        (lambda: AutoregressiveDecoder(network()), TypeError, "whose decoder reads z alone"),
        (
            lambda: VAE((5,), LATENT, network()),
            ValueError,
            r"AutoregressiveDecoder needs pictures .* shape is \(5,\); use MLP",
        ),
        (
            lambda: network().decoder(2, (1, 4, 4))(torch.zeros(3, 2)),
            TypeError,
            r"reads rows, too: call decoder\(z, x\), or .*likelihoods.decoded",
        ),
        (
            lambda: network().decoder(2, (1, 4, 4))(torch.zeros(3, 2), torch.zeros(3, 5, 4)),
            ValueError,
            r"rows of shape \(4, 4\), but x has shape \(3, 5, 4\)",
        ),
        (
            lambda: VAE((1, 4, 4), 2, network()).decode(torch.zeros(3, 2)).mean,
            NotImplementedError,
            "the mean is a sum over all rows: average draws",
        ),
        (
            lambda: VAE((1, 4, 4), 2, network()).decode(torch.zeros(3, 2)).variance,
            NotImplementedError,
            "the variance is a sum over all rows",
        ),
        (
            lambda: AutoregressiveDecoder(SMALL, 10**7).decoder(2, (1, 4, 4)),
            ValueError,
            "AutoregressiveDecoder would hold .* choose smaller AutoregressiveDecoder.channels",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_mistakes_are_explained(
    make: Callable[[], object], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        make()


# -- what is done with a pair ----------------------------------------------------------------------------

SHAPE = (1, 4, 4)


def a_pair(**options: Any) -> tuple[VAE, MeanField, Tensor]:
    x = torch.rand(40, *SHAPE).round()
    description = network(**options)
    return VAE(SHAPE, LATENT, description), MeanField(SHAPE, LATENT, description), x


@pytest.mark.parametrize("pixel_dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_training_is_captured(
    pixel_dropout: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bits of Pyro, with no step by Pyro but those that it is compared with."""
    monkeypatch.setattr(capture, "RECORD_AFTER", 0)
    caplog.set_level("INFO")
    weights = []
    for captured in (True, False):
        torch.manual_seed(0)
        model, guide, x = a_pair(pixel_dropout=pixel_dropout)
        fit(model, guide, x, max_epochs=4, batch_size=10, seed=1, capture=captured, progress=False)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    assert "capture" not in caplog.text.lower()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_tasks_draw_where_there_is_no_mean() -> None:
    model, guide, x = a_pair()
    assert check(model, guide, x).ok
    tasks: tuple[Callable[..., Any], ...] = (
        lambda **how: reconstruct(model, guide, x, seed=0, **how),
        lambda **how: interpolate(model, guide, x[:3], x[3:6], steps=4, seed=0, **how),
        lambda **how: traverse(model, guide, x[:3], 1, steps=5, seed=0, **how),
        lambda **how: sample(model, 7, seed=0, **({"means": True} | how)),
    )
    for task in tasks:
        with pytest.raises(
            PairError, match=r"'x', Ancestral, states no mean: .* means=False \(each"
        ):
            task()
        drawn = task(means=False)
        assert drawn.shape[-3:] == SHAPE
        assert torch.equal(drawn, task(means=False))
    draws = reconstruct(model, guide, x, num_samples=1, means=False)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    averaged = reconstruct(model, guide, x, num_samples=50, means=False, seed=0)
    assert not torch.equal(averaged, averaged.round())
    with pytest.raises(TypeError, match="means must be True or False"):
        reconstruct(model, guide, x, means="no")  # type: ignore[arg-type]


def test_averaged_draws_estimate_the_posterior_predictive_mean() -> None:
    """Against the mean that a decoder of independent pixels states."""
    torch.manual_seed(2)
    model, guide = VAE(SHAPE, LATENT, SMALL), MeanField(SHAPE, LATENT, SMALL)
    x = torch.rand(5, *SHAPE).round()
    mean = reconstruct(model, guide, x, num_samples=4000, seed=0)
    drawn = reconstruct(model, guide, x, num_samples=4000, seed=1, means=False)
    error = (mean * (1 - mean) / 4000).sqrt()
    assert bool(((drawn - mean).abs() < 5 * error).all())
    paths = interpolate(model, guide, x[:2], x[2:4], steps=3, means=False)
    assert set(paths.unique().tolist()) == {0.0, 1.0}


def test_paths_between_rows_with_other_labels_are_refused() -> None:
    """Without a mean, labels that differ may matter."""
    context, x = Labels(3), torch.rand(6, *SHAPE).round()
    model = ConditionalVAE(SHAPE, LATENT, network(), context=context)
    guide = MeanField(SHAPE, LATENT, SMALL, context=context)
    a, b, y = x[:3], x[3:], torch.arange(3)
    assert interpolate(model, guide, (a, y), (b, y), means=False).shape[:2] == (3, 8)
    other = torch.tensor([0, 2, 2])
    with pytest.raises(PairError, match=r"different values of 'c', such as row 1"):
        interpolate(model, guide, (a, y), (b, other), means=False)
    held = interpolate(model, guide, (a, y), (b, other), means=False, given={"c": y})
    assert held.shape[:2] == (3, 8)
    first, last = partners(model, guide, (x, torch.tensor([0, 1, 0, 2, 1, 2])), 3)
    labels = torch.tensor([0, 1, 0, 2, 1, 2])
    assert torch.equal(labels[first], labels[last])
    assert len(first) == 3


def test_a_transformer_encodes_and_refuses_to_decode() -> None:
    def make_pair(shape: tuple[int, ...]) -> tuple[VAE, MeanField]:
        return VAE(shape, LATENT, network()), MeanField(shape, LATENT, network())

    x = torch.rand(40, 16).round().numpy()
    transformer = PairTransformer(make_pair, row_shape=SHAPE, max_epochs=2, random_state=0)
    z = transformer.fit_transform(x)
    assert z.shape == (40, LATENT)
    assert transformer.score(x) < 0
    with pytest.raises(PairError, match="states no mean: ask for draws"):
        transformer.inverse_transform(z)


def test_log_p_is_that_of_the_pair(tmp_path: Path) -> None:
    """By quadrature over one latent; the saved run has the same density, and draws the same rows."""
    torch.manual_seed(5)
    description = network(window=1)
    model, guide = VAE((3, 3), 1, description), MeanField((3, 3), 1, description)
    strong(model, 2.0).float()
    x = torch.rand(6, 3, 3).round()
    z = torch.linspace(-8, 8, 2001)[:, None, None]
    log_joint = model.decode(z).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z[..., 0])
    expected = log_joint.logsumexp(0) + math.log(16 / 2000)
    found = evaluate(model, guide, x, num_samples=20000, method="guide", seed=0, progress=False)
    torch.testing.assert_close(found.log_likelihood.values.float(), expected, atol=0.05, rtol=0)
    save_run(tmp_path / "run", model, guide)
    run = load_run(tmp_path / "run")
    again: Any = run.model
    assert again.decoder.pixel_dropout == 0.0
    torch.testing.assert_close(
        again.eval().decode(z[:2, 0]).log_prob(x[:2]), model.eval().decode(z[:2, 0]).log_prob(x[:2])
    )
    drawn = sample(model, 4, seed=3)
    assert torch.equal(sample(again, 4, seed=3), drawn)


# A report has each picture twice.
@pytest.mark.slow
@pytest.mark.parametrize("report", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_the_command_line_trains_and_draws_it(
    report: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = {
        "model.network": "AutoregressiveDecoder",
        "model.network.base": "MLP",
        "model.network.base.hidden": "[8]",
        "model.network.base.skip": "true",
        "model.network.channels": "4",
        "model.network.layers": "2",
        "model.network.window": "1",
        "model.network.pixel_dropout": "0.1",
        "model.network.scale": "16",
        "model.latent_dim": "3",
        "max_epochs": "2",
        "posterior": "never",
        "report": report,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert main(["train", "--run_dir", str(folder), *words, *catalogue.SMALL_RUN, "--quiet"]) == 0
    assert "was not drawn" not in capsys.readouterr().err
    assert (folder / "report.html").exists() == (report == "true")
    pictures = {path.stem for path in (folder / "plots").iterdir()}
    assert {"reconstructions", "traversals", "interpolations", "prior_samples"} <= pictures
    model: Any = load_run(folder).model
    assert model.decoder.pixel_dropout == 0.1
    out = str(tmp_path / "draws.npz")
    assert main(["sample", str(folder), "--num", "5", "-o", out]) == 0
    told = capsys.readouterr()
    assert "states no mean" in told.out + told.err
    bad = ["train", "--model.network", "AutoregressiveDecoder", "--model.network.window", "-1"]
    assert main([*bad, "--run_dir", str(tmp_path / "bad")]) != 0
    assert "window must be at least 0, got -1" in capsys.readouterr().err


def test_help_lists_what_networks_in_networks_take(capsys: pytest.CaptureFixture[str]) -> None:
    """A network that holds one of its own kind ends nowhere."""
    assert main(["train", "--help-all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model.network.base.hidden" in shown
    assert "of AutoregressiveDecoder: How many rows and columns a pixel sees back" in shown
    assert "--model.network.base.window" not in shown


@pytest.mark.slow
def test_a_decoder_that_needs_no_z_learns_the_density_and_ignores_z() -> None:
    """Each pixel is that on its left with probability 0.9: log p(x) is known, and a window of 1 is enough."""
    torch.manual_seed(0)
    changes = torch.rand(300, 5, 5) < 0.1
    changes[..., 0] = torch.rand(300, 5) < 0.5
    x = (changes.cumsum(-1) % 2).float()
    flips = (x[..., 1:] != x[..., :-1]).flatten(1).sum(1)
    truth = 5 * math.log(0.5) + flips * math.log(0.1) + (20 - flips) * math.log(0.9)
    for window in (0, 1):
        description = AutoregressiveDecoder(MLP((16,)), channels=8, layers=1, window=window)
        model, guide = VAE((5, 5), 2, description), MeanField((5, 5), 2, description)
        fitted = fit(
            model,
            guide,
            x,
            max_epochs=30,
            batch_size=40,
            learning_rate=1e-2,
            seed=0,
            progress=False,
        )
        few = x[:100]
        measured = evaluate(
            model, guide, few, num_samples=50, method="guide", seed=0, progress=False
        )
        missing = truth[:100] - measured.elbo.values
        if window:
            assert abs(float(missing.mean())) < 0.15
            assert float((truth[:100] - measured.log_likelihood.values).std()) < 0.4
            assert measured.rate.mean < 0.2
        else:
            assert float(missing.mean()) > 1.0
            assert measured.rate.mean > 1.0
    found = diagnose(model, guide, few, fit=fitted, seed=0, progress=False)
    assert {cause.name for cause in found.causes.values()} == {"strong decoder"}
