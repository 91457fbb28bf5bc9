"""The amortized guide of a latent segmentation: it sees gray picture and colors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import Rebuildable, UNet, full_precision, require_at_least_one, require_object


class SegmentationEncoder(Rebuildable, nn.Module):
    """q(z | x, y) = prod_i q(z_i | x, y), by a network that sees luma x and chroma y of a picture.

    For `SegmentedColors`, of any rung but `TreeSegments`, whose superpixels are of one segment. For
    `IndependentSegments` the family holds the posterior, so that only amortization costs anything; for segments
    with neighbors it is the mean field. The site is `z`, `(n, h, w)`, inside `pyro.plate("data", n, dim=-1)`.
    `ELBO` takes the exact expectation over q.

    Args:
        segments: Number K of segments, the model's.
        network: What the encoder is built from.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `segments` is not positive.

    Example:
        >>> guide = SegmentationEncoder(segments=3, network=UNet((4, 8)))
        >>> guide.encode(torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)).event_shape
        torch.Size([8, 8])
    """

    def __init__(self, segments: int = 8, network: UNet = UNet()) -> None:
        super().__init__()
        require_at_least_one(self, segments=segments)
        require_object(self, "network", network, "build", "UNet((16, 32, 64))")
        self.segments = segments
        self.net = network.build(3, segments)

    def forward(self, y: Tensor, x: Tensor) -> None:
        """Runs the guide on chroma, `(n, h, w, 2)`, and luma, `(n, h, w)`."""
        sample_z(self.encode(y, x), x.shape[0])

    def encode(self, y: Tensor, x: Tensor) -> dist.Independent:
        """q(z | x, y), of batch shape `(n,)` and event shape `(h, w)`."""
        colors = torch.cat([(x.unsqueeze(-1) - 128.0) / 64.0, y / 32.0], -1)
        logits = full_precision(self.net(colors.movedim(-1, -3))).movedim(-3, -1)
        return dist.Independent(dist.Categorical(logits=logits, validate_args=False), 2)
