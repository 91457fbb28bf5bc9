"""Contract tests over networks: add a row to NETWORKS and the tests come with it."""

from __future__ import annotations

import math

import jsonargparse
import pytest
import torch
from torch import nn

from ppl_vae.networks import MLP, Convolutional, Network, full_precision, linear_head

NETWORKS = [
    MLP(),
    MLP(hidden=()),
    MLP(hidden=(7, 5), activation=nn.Softplus),
    MLP(hidden=(7,), output=nn.Sigmoid),
    Convolutional(channels=(4,), hidden=6),
    Convolutional(channels=(4, 6, 8), hidden=16),
    MLP(hidden=(7, 5), skip=True),
    MLP(hidden=(), skip=True),
    Convolutional(channels=(4, 6), hidden=6, skip=True),
    Convolutional(channels=(4, 6), hidden=6, batch_norm=False),
]
SIZES = [(1, 1), (1, 9), (2, 3), (5, 5), (8, 8), (28, 28), (17, 30), (32, 48), (33, 4)]
BATCHES = [(), (3,), (2, 3), (0,)]

networks = pytest.mark.parametrize("network", NETWORKS, ids=str)


@networks
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("shape", [(6, 9), (1, 8, 8), (2, 3, 5, 4)], ids=str)
def test_shapes_for_any_batch(network: Network, batch: tuple[int, ...], shape: list[int]) -> None:
    encoder = network.encoder(shape).eval()
    decoder = network.decoder(3, shape).eval()
    assert encoder(torch.rand(*batch, *shape)).shape == (*batch, encoder.out_features)
    assert decoder(torch.randn(*batch, 3)).shape == (*batch, *shape)


@networks
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(), (3,), (2, 3)], ids=str)
def test_any_picture_size(
    network: Network, size: tuple[int, int], channels: tuple[int, ...]
) -> None:
    shape = (*channels, *size)
    encoder, decoder = network.encoder(shape), network.decoder(2, shape)
    assert encoder(torch.rand(4, *shape)).shape == (4, encoder.out_features)
    assert decoder(torch.randn(4, 2)).shape == (4, *shape)


@networks
def test_rows_and_particles_are_independent_in_evaluation_mode(network: Network) -> None:
    encoder, decoder = network.encoder((1, 6, 5)), network.decoder(3, (2, 1, 6, 5))
    x, z = torch.rand(2, 3, 1, 6, 5), torch.randn(2, 3, 3)
    for module, inputs in ((encoder, x), (decoder, z)):
        module(inputs)  # running statistics that are not the initial ones
        module.eval()
        one_by_one = torch.stack([torch.stack([module(row) for row in rows]) for rows in inputs])
        torch.testing.assert_close(module(inputs), one_by_one)


@networks
def test_every_parameter_gets_a_gradient(network: Network) -> None:
    encoder, decoder = network.encoder((1, 9, 7)), network.decoder(3, (1, 9, 7))
    loss = encoder(torch.rand(5, 1, 9, 7)).square().sum()
    loss = loss + decoder(torch.randn(5, 3)).square().sum()
    loss.backward()
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        for name, parameter in module.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"{part}.{name} has no gradient"
            assert gradient.abs().max() > 0, f"the gradient of {part}.{name} is zero"


@networks
def test_no_bias_is_dead(network: Network) -> None:
    """Batch norm would undo a bias before it: its gradient is rounding, not zero."""
    for module, inputs in (
        (network.encoder((1, 9, 7)), torch.rand(5, 1, 9, 7)),
        (network.decoder(3, (1, 9, 7)), torch.randn(5, 3)),
    ):
        before = module(inputs)
        for name, parameter in module.named_parameters():
            if not name.endswith("bias"):
                continue
            with torch.no_grad():
                parameter.add_(0.5)
                change = (module(inputs) - before).abs().max()
                parameter.sub_(0.5)
            assert change > 1e-3, f"{name} does not matter"


def test_decoder_meets_every_stage_of_the_encoder() -> None:
    """The sizes in between, not just the last one: 33 -> 17 -> 9 and 4 -> 2 -> 1, and back."""
    network = Convolutional(channels=(4, 6))
    seen: list[tuple[int, ...]] = []

    def record(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        seen.append(tuple(output.shape[1:]))

    encoder, decoder = network.encoder((1, 33, 4)), network.decoder(2, (1, 33, 4))
    for layer in (*encoder.modules(), *decoder.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(record)
    encoder(torch.rand(2, 1, 33, 4))
    decoder(torch.rand(2, 2))
    assert seen == [(4, 17, 2), (6, 9, 1), (4, 17, 2), (1, 33, 4)]


def test_no_hidden_layers_is_the_linear_map() -> None:
    network = MLP(hidden=())
    x, z = torch.rand(5, 2, 3), torch.randn(5, 4)
    torch.testing.assert_close(network.encoder((2, 3))(x), x.reshape(5, 6))
    decoder = network.decoder(4, (2, 3))
    (weight, bias) = decoder.parameters()
    torch.testing.assert_close(decoder(z), (z @ weight.T + bias).reshape(5, 2, 3))


def test_decoder_goes_backwards() -> None:
    decoder = MLP(hidden=(7, 5)).decoder(2, (3,))
    widths = [layer.out_features for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    assert widths == [5, 7, 3]


def test_rows_are_independent_in_training_without_batch_norm() -> None:
    x = torch.rand(4, 2, 7, 6)
    for batch_norm in (False, True):
        network = Convolutional((3, 5), 6, refine=True, batch_norm=batch_norm)
        for net, rows in (
            (network.encoder(x.shape[1:]), x),
            (network.decoder(3, x.shape[1:]), torch.randn(4, 3)),
        ):
            alone = torch.cat([net(rows[:2]), net(rows[2:])])
            assert torch.allclose(alone, net(rows), atol=1e-6) != batch_norm
            if not batch_norm:
                for part in net.modules():
                    if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                        assert part.bias is not None  # as no batch norm shifts


def test_a_training_batch_of_one_value_per_channel() -> None:
    network = Convolutional(channels=(4, 4), hidden=5)
    encoder = network.encoder((1, 2, 2))
    assert encoder.training
    one = encoder(torch.rand(1, 1, 2, 2))
    assert one.isfinite().all()
    statistics = {k: v for k, v in encoder.state_dict().items() if "running" in k}
    # The first stage has 1 x 1 pixels too: nothing may have moved.
    for name, value in statistics.items():
        expected = torch.zeros_like(value) if "mean" in name else torch.ones_like(value)
        torch.testing.assert_close(value, expected, msg=name)


@networks
def test_wrong_shape_is_named(network: Network) -> None:
    encoder = network.encoder((1, 6, 5))
    for shape in ((4, 1, 5, 6), (5,), (4, 30)):
        with pytest.raises(ValueError, match=r"rows of shape \(1, 6, 5\).*has shape"):
            encoder(torch.rand(*shape))


def test_bad_descriptions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MLP\.hidden must hold positive widths, got \(3, 0\)"):
        MLP(hidden=(3, 0))
    with pytest.raises(ValueError, match=r"Convolutional\.channels is empty"):
        Convolutional(channels=())
    with pytest.raises(ValueError, match=r"Convolutional\.hidden must be at least 0"):
        Convolutional(hidden=-1)
    with pytest.raises(ValueError, match=r"needs pictures .* shape is \(5,\); use MLP"):
        Convolutional().encoder((5,))


def test_lists_become_tuples() -> None:
    assert MLP(hidden=[3, 4]) == MLP(hidden=(3, 4))
    assert hash(Convolutional(channels=[3])) == hash(Convolutional(channels=(3,)))


def test_the_command_line_can_build_one() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--network", type=Network)
    values = parser.parse_args(
        [
            "--network=ppl_vae.networks.MLP",
            "--network.hidden=[3, 4]",
            "--network.activation=torch.nn.Softplus",
        ]
    )
    network = parser.instantiate(values).network
    assert network == MLP(hidden=(3, 4), activation=nn.Softplus)


def test_full_precision() -> None:
    for given, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert full_precision(torch.zeros(2, dtype=given)).dtype == expected


def test_linear_head_needs_out_features() -> None:
    encoder = MLP(hidden=(7,)).encoder((2, 3))
    assert linear_head(encoder, 4).weight.shape == (4, 7)
    with pytest.raises(TypeError, match="encoder ReLU must have the integer attribute"):
        linear_head(nn.ReLU(), 4)


def test_weights_have_the_expected_number() -> None:
    """Nothing is built twice: 784-256-256 and back, counted by hand."""
    sizes = [784 * 256 + 256, 256 * 256 + 256]
    encoder = MLP().encoder((1, 28, 28))
    assert sum(math.prod(p.shape) for p in encoder.parameters()) == sum(sizes)


@pytest.mark.parametrize("skip", [False, True])
def test_the_output_of_a_decoder_goes_through_its_last_activation(skip: bool) -> None:
    z = torch.randn(5, 2)
    parts = [
        kind(**options, skip=skip, output=output).decoder(2, (1, 8, 8)).eval()
        for kind, options in (
            (MLP, {"hidden": (6,)}),
            (Convolutional, {"channels": (4,), "hidden": 6}),
        )
        for output in (None, nn.Sigmoid)
    ]
    for plain, ended in (parts[:2], parts[2:]):
        ended.load_state_dict(plain.state_dict())
        torch.testing.assert_close(ended(z), plain(z).sigmoid())
    with pytest.raises(TypeError, match=r"MLP\.output"):
        MLP(output=torch.sigmoid)  # type: ignore[arg-type]
