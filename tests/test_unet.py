"""The U-Net sees as far as it says, and no further; pictures of any size."""

from __future__ import annotations

import pytest
import torch

from ppl_vae.networks import UNet


@pytest.mark.parametrize("widths", [(3,), (3, 4), (3, 4, 5)])
def test_a_pixel_depends_on_those_within_the_radius(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    described = UNet(widths)
    net = described.build(1, 1).double()
    middle, seen = 64, 0
    for shift in range(described.stride):
        x = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
        at = middle + shift
        (slope,) = torch.autograd.grad(net(x)[0, 0, at, at], x)
        there = slope[0, 0].abs().sum(0).nonzero().flatten()
        seen = max(seen, at - int(there.min()), int(there.max()) - at)
    assert seen == described.radius


def test_a_tile_with_its_surroundings_gives_what_the_whole_picture_gives() -> None:
    torch.manual_seed(0)
    described = UNet((3, 4, 5))
    net = described.build(2, 3).double()
    x = torch.randn(1, 2, 96, 120, dtype=torch.float64)
    whole = net(x)
    margin = described.stride * -(-described.radius // described.stride)
    tile = net(x[..., 32 - margin :, 40 - margin : 72 + margin])
    assert torch.allclose(tile[..., margin:, margin:-margin], whole[..., 32:, 40:72], atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (17, 5), (8, 8)])
def test_pictures_of_any_size_and_any_batch(size: tuple[int, int]) -> None:
    net = UNet((3, 4, 5)).build(1, 2)
    x = torch.rand(2, 3, 1, *size)
    assert net(x).shape == (2, 3, 2, *size)
    assert torch.allclose(net(x)[1, 2], net(x[1, 2]), atol=1e-5)
