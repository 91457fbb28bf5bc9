"""A prior of codes that is a gated PixelCNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.priors.ordered_codes import OrderedCodes, depth_of, require_share
from ppl_vae.networks import (
    Context,
    GatedLayers,
    require_at_least,
    require_at_least_one,
    require_room,
)


@dataclass(frozen=True)
class PixelCNNPrior(CodePrior):
    """p(z) = prod_i p(z_i | z_1, ..., z_{i-1}) of codes on a grid, by gated convolutions.

    The second phase of a VQ-VAE ("Neural Discrete Representation Learning", arXiv:1711.00937): once encoder,
    codebook and decoder are trained, `refit_prior(model, guide, x, PixelCNNPrior())` fits this to the codes of
    the rows. Then the codes cost -log p(z) nats, less than log K each, and draws from p(z) decode to rows.

    Codes are in raster order. The layers are those of `AutoregressiveDecoder` ("Conditional Image Generation
    with PixelCNN Decoders", arXiv:1606.05328), which carry what is above and what is left without a blind spot;
    what they read of a code is a learned vector, and each layer gets a learned number for each position. The
    several codes of a residual quantizer at one position, the last of three dimensions of z, follow each
    other: the head of the d-th one reads the sum of vectors of those before it, too (as in
    arXiv:2203.01941). With a context, c reaches each layer: p(z | c). Codes of coarser grids (`CodesAbove`, in
    a `VQVAE2`) tell each position something else.

    A density takes one pass. A draw goes over the codes once, and computes for each what it adds alone.

    Args:
        channels: Channels of each layer.
        layers: Number of layers.
        window: How many rows and columns back a code sees; None: all of them. For grids of 32 x 32 codes and
            more, a window of 10 or so takes less time and memory.
        dropout: Share of the numbers between the layers that are set to 0 in training mode: a prior of few rows
            overfits. In evaluation mode, and in draws, there is none.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range; or, of `build_codes`, z has more than three dimensions.

    Example:
        >>> prior = PixelCNNPrior(channels=8, layers=2).build_codes((4, 4), codes=16)
        >>> z = prior().sample((5,))
        >>> z.shape, prior().log_prob(z).shape
        (torch.Size([5, 4, 4]), torch.Size([5]))
    """

    channels: int = 64
    layers: int = 5
    window: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_at_least_one(self, channels=self.channels, layers=self.layers)
        if self.window is not None:
            require_at_least(self, 0, window=self.window)
        require_share(self, self.dropout)

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Context | None = None
    ) -> nn.Module:
        """See `CodePrior.build_codes`."""
        depth = depth_of("PixelCNNPrior", positions)
        require_room(self, "choose fewer PixelCNNPrior.channels", depth * codes, self.channels)
        return _PixelCNN(self, positions, codes, context)


class _PixelCNN(OrderedCodes):
    offsets: Tensor

    def __init__(
        self, of: PixelCNNPrior, positions: Sequence[int], codes: int, context: Context | None
    ) -> None:
        super().__init__("PixelCNNPrior", positions, codes, context, of.channels)
        depth, size = self.depth, self.size
        self.dropout = of.dropout
        channels, window = of.channels, max(size) if of.window is None else of.window
        # The codes of one position are of different codebooks: each has a table of its own.
        self.register_buffer("offsets", codes * torch.arange(depth), persistent=False)
        self.embedding = nn.Embedding(depth * codes, channels)
        self.within = nn.Embedding((depth - 1) * codes, channels) if depth > 1 else None
        self.place = nn.Parameter(0.1 * torch.randn(1, channels, *size))
        self.layers = GatedLayers(
            channels, channels, size, of.layers, window, self.length_given, self.name
        )
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(),
                nn.Linear(channels, channels),
                nn.LeakyReLU(),
                nn.Linear(channels, codes),
            )
            for _ in range(depth)
        )

    def logits(self, z: Tensor, given: Tensor | None) -> Tensor:
        z = z.reshape(-1, *self.size, self.depth)
        hide = self.dropout if self.training else 0.0
        place, given = self._told(given)
        features = self.layers(self._read(z).movedim(-1, 1), place, given, hide).movedim(1, -1)
        before = [features]
        if self.within is not None:
            told = self.within(z[..., :-1] + self.offsets[:-1])
            before = [*(features.unsqueeze(-2) + pad(told.cumsum(-2), (0, 0, 1, 0))).unbind(-2)]
        logits = [head(of) for head, of in zip(self.heads, before, strict=True)]
        return torch.stack(logits, -2).reshape(-1, *self.positions, self.codes)

    @torch.no_grad()
    def draw(self, n: int, given: Tensor | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
        z = torch.zeros(n, *self.size, self.depth, dtype=torch.long, device=self.place.device)

        def pixel(r: int, c: int, features: Tensor) -> Tensor:
            for d, head in enumerate(self.heads):
                z[:, r, c, d] = chosen = choose(head(features))
                if self.within is not None and d + 1 < self.depth:
                    features = features + self.within(chosen + self.offsets[d])
            return self._read(z[:, r, c])

        place, given = self._told(given)
        self.layers.draw(n, place, given, pixel)
        return z.reshape(n, *self.positions)

    def _told(self, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The numbers of each position, with those of a context; and what all positions are given."""
        above, given = self.told(given)
        return (self.place if above is None else self.place + above), given

    def _read(self, z: Tensor) -> Tensor:
        """What the layers read of codes `(*batch, depth)`: `(*batch, channels)`."""
        read: Tensor = self.embedding(z + self.offsets)
        return read.sum(-2)
