"""Decoders whose weights cannot grow, for sparse codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ppl_vae.networks.arguments import require_object
from ppl_vae.networks.base import Network

_LAYERS = {
    nn.Linear: 1,
    nn.Conv1d: 1,
    nn.Conv2d: 1,
    nn.Conv3d: 1,
    nn.ConvTranspose1d: 0,
    nn.ConvTranspose2d: 0,
    nn.ConvTranspose3d: 0,
}
"""The dimension of the inputs in a layer's weight."""

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch norm and instance norm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)
"""Layers whose outputs hardly depend on the size of their inputs, also without weights of their own."""


@dataclass(frozen=True)
class UnitNorm(Network):
    """A network whose decoder has columns of norm 1: what each input of each layer adds has a fixed size.

    A penalty on the size of codes, such as that of a `LaplacePrior`, is cheated by small codes and large
    weights. A linear decoder then has a dictionary of unit vectors, as in sparse coding. In a deeper one, all
    layers are held, because each could grow for those before it. Layers of torch that normalize (batch, layer,
    group, instance and RMS norm, local response norm) make of small codes what they make of large ones, with or
    without weights of their own, so that they are refused. What a network of yours does without such a layer,
    as by a function, is not seen.

    Args:
        network: What encoder and decoder are built from; of the encoder nothing changes.

    Raises:
        TypeError: `network` is not a network.
        ValueError: The decoder has a layer that normalizes, or another one with weights that are not held;
            raised when it is built.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> decoder = UnitNorm(MLP(hidden=())).decoder(latent_dim=2, out_shape=(3,))
        >>> decoder.net[0].weight.norm(dim=0)
        tensor([1., 1.], grad_fn=<LinalgVectorNormBackward0>)
    """

    network: Network

    def __post_init__(self) -> None:
        require_object(self, "network", self.network, "decoder", "MLP()")

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`."""
        return self.network.encoder(data_shape)

    def encoder_of_both(self, data_shape: Sequence[int], size: int) -> nn.Module:
        """See `Network.encoder_of_both`."""
        return self.network.encoder_of_both(data_shape, size)

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        decoder = self.network.decoder(latent_dim, out_shape)
        for part in [*decoder.modules()]:
            inputs = next((dim for kind, dim in _LAYERS.items() if isinstance(part, kind)), None)
            if inputs is not None:
                parametrize.register_parametrization(part, "weight", _UnitColumns(inputs))
                continue
            norm = isinstance(part, _NORMS)
            if norm or any(True for _ in part.parameters(recurse=False)):
                kind = next(
                    k.__name__ for k in type(part).__mro__ if not k.__name__.startswith("_")
                )
                does = "which makes up" if norm else "whose weights would make up"
                raise ValueError(
                    f"UnitNorm holds linear layers and convolutions, but the decoder of "
                    f"{type(self.network).__name__} has {kind}, {does} for small codes: choose a network "
                    "without it, such as MLP() or Convolutional(batch_norm=False)"
                )
        return decoder


class _UnitColumns(nn.Module):
    """w / |w|, for the weights of each input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, weight: Tensor) -> Tensor:
        others = [d for d in range(weight.dim()) if d != self.inputs]
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        unit: Tensor = weight / norms.clamp_min(1e-12)
        return unit
