"""z for every layer of a decoder."""

from __future__ import annotations

from torch import Tensor, nn


class Skip(nn.Module):
    """A decoder's layers, each of which reads z beside what the layer before it gives.

    With weights W_l and activation f_l, layer l gives h_l = f_l(W_l h_{l-1} + b_l + G_l z) in place of
    h_l = f_l(W_l h_{l-1} + b_l). The first one reads z as it is, so it has no G. After a transposed
    convolution, G z is one number for each channel ("Avoiding Latent Variable Collapse With Generative Skip
    Models", arXiv:1807.04863).

    Args:
        layers: The layers without z, one after the other.
        latent_dim: Number of latent dimensions.

    Example:
        >>> skip = Skip(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)), latent_dim=2)
        >>> [(name, *weights.shape) for name, weights in skip.latent.named_parameters()]
        [('2.weight', 4, 2)]
    """

    def __init__(self, layers: nn.Sequential, latent_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.latent = nn.ModuleDict()
        with_weights = [
            (i, layer)
            for i, layer in enumerate(layers)
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d)
        ]
        for i, layer in with_weights[1:]:
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            self.latent[str(i)] = nn.Linear(latent_dim, width, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """What the last layer gives, for latents `(n, latent_dim)`."""
        h = z
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if str(i) in self.latent:
                shift = self.latent[str(i)](z)
                h = h + shift.reshape(*shift.shape, *(1,) * (h.dim() - shift.dim()))
        return h
