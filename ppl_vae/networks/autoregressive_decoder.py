"""Decoders that read the pixels before the one that they describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.networks.arguments import (
    require_at_least,
    require_at_least_one,
    require_numbers,
    require_object,
    require_positive,
    require_room,
)
from ppl_vae.networks.base import Network, ReadingDecoder
from ppl_vae.networks.convolutional import Convolutional, as_picture
from ppl_vae.networks.gated_layers import GatedLayers


@dataclass(frozen=True)
class AutoregressiveDecoder(Network):
    """A gated PixelCNN for p(x | z) = prod_i p(x_i | x_<i, z), which may explain x without z.

    Pixels are in raster order: rows from above, each from the left. All channels of a pixel are independent
    given z and the pixels before it. A pixel sees those before it that are at most `window` rows and columns
    away: the upper half of a square with sides of 2 `window` + 1. With `window=0` it sees none, so that
    p(x | z) = prod_i p(x_i | z), as with other decoders; from the size of the picture on it sees all. A small
    window leaves to z what spans more than it ("Variational Lossy Autoencoder", arXiv:1611.02731).

    Two stacks of gated convolutions carry what is above and what is left of a pixel, without a blind spot
    ("Conditional Image Generation with PixelCNN Decoders", arXiv:1606.05328). Layer l has

        v_l = tanh(a_l) sigmoid(b_l),           (a_l, b_l) = V_l * v_{l-1} + P_l m(z) + G_l z,
        h_l = h_{l-1} + O_l tanh(c_l) sigmoid(d_l),  (c_l, d_l) = H_l * h_{l-1} + L_l (a_l, b_l),

    where m(z) is a picture of `channels` channels that the decoder of `base` makes, so z reaches every layer
    (as skip connections, arXiv:1807.04863). The convolutions V_l and H_l reach up and to the left alone; v_0
    and h_0 are the pixels, which are not added to h_1, and of which V_1 and H_1 leave out the one that is
    described. Each layer reaches about `window` / `layers` pixels far. The encoder is that of `base`.

    Models call the decoder by `ppl_vae.likelihoods.decoded`, and p(x | z) is an `Ancestral`: it has a density
    and draws, but states no mean. A draw takes one step for each pixel, which computes what this pixel
    adds alone, and gives the numbers of a full pass.

    Args:
        base: The network that gives the encoder, and the decoder of m(z).
        channels: Channels of each layer.
        layers: Number of layers.
        window: How many rows and columns a pixel sees back, 0 or more.
        pixel_dropout: Share of the pixels that are hidden from the decoder in training mode, each row's own
            ("word dropout", arXiv:1511.06349). The layers are told which ones are hidden; log p(x | z) is
            that of all pixels. In evaluation mode, and in draws, all are seen.
        scale: By what pixels are divided before they are read: the `total_count` of a `Binomial`, for example.
        categories: None for numbers. Otherwise the values are categories 0, 1, ..., `categories` - 1, such as
            tokens, and the likelihood is `Categorical(categories)`: decoder and encoder read them as one-hot
            vectors. Rows may have the shape `(T,)` then, sequences of tokens: a token sees the `window` tokens
            before it, and `pixel_dropout` is word dropout, with an unknown token in place of a hidden one.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range, the data is not a picture, or the likelihood has other
            categories.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> network = AutoregressiveDecoder(channels=8, layers=2, window=2)
        >>> decoder = network.decoder(latent_dim=2, out_shape=(1, 3, 8, 8))
        >>> decoder(torch.zeros(5, 2), torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 1, 3, 8, 8])

        Sequences of 10 tokens, of which a quarter is unknown to the decoder while it is trained:

        >>> network = AutoregressiveDecoder(MLP(), channels=8, layers=2, pixel_dropout=0.25, categories=5)
        >>> network.decoder(2, (5, 10))(torch.zeros(7, 2), torch.zeros(7, 10)).shape
        torch.Size([7, 5, 10])
    """

    base: Network = Convolutional()  # noqa: RUF009 (frozen)
    channels: int = 32
    layers: int = 5
    window: int = 7
    pixel_dropout: float = 0.0
    scale: float = 1.0
    categories: int | None = None

    def __post_init__(self) -> None:
        require_object(self, "base", self.base, "decoder", "Convolutional()")
        if isinstance(self.base, AutoregressiveDecoder):
            raise TypeError(
                "AutoregressiveDecoder.base must be a network whose decoder reads z alone, such as "
                "Convolutional() or MLP(), got another AutoregressiveDecoder"
            )
        require_at_least_one(self, channels=self.channels, layers=self.layers)
        require_at_least(self, 0, window=self.window)
        require_positive(self, scale=self.scale)
        require_numbers(self, pixel_dropout=self.pixel_dropout)
        if not 0 <= self.pixel_dropout < 1:
            raise ValueError(
                f"AutoregressiveDecoder.pixel_dropout must be at least 0 and less than 1, got "
                f"{self.pixel_dropout}: to hide all pixels, also from draws, give window=0"
            )
        if self.categories is None:
            return
        require_at_least(self, 2, categories=self.categories)
        if self.scale != 1:
            raise ValueError(
                f"AutoregressiveDecoder.scale = {self.scale} divides numbers, but with categories = "
                f"{self.categories} the values are categories: leave it at 1"
            )

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`: that of `base`."""
        if self.categories is None:
            return self.base.encoder(data_shape)
        picture = self.picture(data_shape)
        encoder = self.base.encoder(_with_categories(picture, self.categories))
        return _OfCategories(self.categories, data_shape, picture, encoder)

    def encoder_of_both(self, data_shape: Sequence[int], size: int) -> nn.Module:
        """See `Network.encoder_of_both`: that of `base`."""
        if self.categories is None:
            return self.base.encoder_of_both(data_shape, size)
        picture = self.picture(data_shape)
        encoder = self.base.encoder_of_both(_with_categories(picture, self.categories), size)
        return _OfCategories(self.categories, data_shape, picture, encoder)

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        if self.categories not in (None, out_shape[0]):
            raise ValueError(
                f"AutoregressiveDecoder reads {self.categories} categories, and the likelihood takes "
                f"{out_shape[0]} numbers for each value: give the likelihood Categorical({self.categories}) "
                f"(--model.likelihood Categorical --model.likelihood.categories {self.categories})"
            )
        return PixelDecoder(self, latent_dim, out_shape)

    def picture(self, data_shape: Sequence[int]) -> tuple[int, int, int]:
        """Channels, height and width of a row. A sequence of categories is a picture with one row of pixels.

        Raises:
            ValueError: The row is neither.
        """
        sequence = self.categories is not None and len(data_shape) == 1
        return as_picture((1, *data_shape) if sequence else data_shape, "AutoregressiveDecoder")


class PixelDecoder(ReadingDecoder):
    """The decoder of an `AutoregressiveDecoder`: maps `(*batch, latent_dim)` and rows to features.

    Args:
        network: Its description.
        latent_dim: Number of latent dimensions.
        out_shape: `(num_params, *data_shape)`.

    Raises:
        ValueError: The rows are no pictures, or there is no room for the weights.
    """

    def __init__(
        self, network: AutoregressiveDecoder, latent_dim: int, out_shape: Sequence[int]
    ) -> None:
        num_params, *data_shape = out_shape
        super().__init__(data_shape)
        picture = network.picture(data_shape)
        # Beside what a pixel is, whether it is seen.
        inputs = _with_categories(picture, network.categories or 1)[0] + 1
        name = type(network).__name__
        advice = f"choose smaller {name}.channels or {name}.window"
        require_room(network, advice, 2 * network.channels, 2 * network.channels)
        self.num_params = num_params
        self.latent_dim = latent_dim
        self.picture = picture
        self.categories = network.categories
        self.pixel_dropout = network.pixel_dropout
        self.scale = network.scale
        self.base = network.base.decoder(latent_dim, (network.channels, *picture[1:]))
        self.layers = GatedLayers(
            inputs, network.channels, picture[1:], network.layers, network.window, latent_dim, name
        )
        self.head = nn.Sequential(
            nn.LeakyReLU(),
            nn.Conv2d(network.channels, network.channels, 1),
            nn.LeakyReLU(),
            nn.Conv2d(network.channels, num_params * picture[0], 1),
        )

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """See `ReadingDecoder.forward`.

        Raises:
            TypeError: There are no rows.
            ValueError: They have the wrong shape.
        """
        if x is None:
            raise TypeError(
                "an autoregressive decoder reads rows, too: call decoder(z, x), or make p(x | z) "
                "by ppl_vae.likelihoods.decoded(decoder, likelihood, z, data_shape), which also draws"
            )
        within = x.dim() - len(self.data_shape)
        if within < 0 or x.shape[within:] != self.data_shape:
            raise ValueError(
                f"the decoder was built for rows of shape {self.data_shape}, but x has shape {tuple(x.shape)}: "
                "pass the shape of one row as data_shape"
            )
        batch = torch.broadcast_shapes(z.shape[:-1], x.shape[:within])
        place = _flat(self.base(z), batch, 3)
        latents = _flat(z, batch, 1)
        seen = self._seen(_flat(x.reshape(*x.shape[:within], *self.picture), batch, 3).to(z.dtype))
        features: Tensor = self.head(self.layers(seen, place, latents))
        return features.reshape(*batch, self.num_params, *self.data_shape)

    def ancestral(self, z: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """See `ReadingDecoder.ancestral`; `draw` gets the features of one pixel, all of its channels."""
        batch = z.shape[:-1]
        latents, n = _flat(z, batch, 1), batch.numel()
        channels, height, width = self.picture
        of_pixel = (*self.data_shape[:-2], 1, 1)[-len(self.data_shape) :]
        x = z.new_zeros(n, channels, height, width)

        def pixel(r: int, c: int, given: Tensor) -> Tensor:
            features = self.head(given[..., None, None]).reshape(*batch, self.num_params, *of_pixel)
            values = draw(features).reshape(n, channels)
            x[:, :, r, c] = values
            read = self._read(values[..., None, None])[..., 0, 0]
            return torch.cat([read, torch.ones_like(read[:, :1])], 1)

        with torch.no_grad():
            self.layers.draw(n, _flat(self.base(z), batch, 3), latents, pixel)
        return x.reshape(*batch, *self.data_shape)

    def _seen(self, x: Tensor) -> Tensor:
        """What the layers read of pictures: pixels, 0 where hidden, and a channel that is 1 where not."""
        seen = torch.ones_like(x[:, :1])
        if self.training and self.pixel_dropout:
            seen = torch.bernoulli(seen * (1 - self.pixel_dropout))
        return torch.cat([self._read(x) * seen, seen], 1)

    def _read(self, x: Tensor) -> Tensor:
        """Pixels as numbers, or as one-hot vectors: `(n, channels, height, width)`."""
        return x / self.scale if self.categories is None else _one_hot(x, self.categories)


class _OfCategories(nn.Module):
    """An encoder of pictures of one-hot vectors, for rows of categories and what else it reads."""

    def __init__(
        self,
        categories: int,
        data_shape: Sequence[int],
        picture: tuple[int, int, int],
        encoder: nn.Module,
    ) -> None:
        super().__init__()
        self.categories = categories
        self.event_dim = len(data_shape)
        self.picture = picture
        self.encoder = encoder
        self.out_features = encoder.out_features

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        batch = x.shape[: x.dim() - self.event_dim]
        features: Tensor = self.encoder(
            _one_hot(x.reshape(*batch, *self.picture), self.categories), *others
        )
        return features


def _with_categories(picture: tuple[int, int, int], categories: int) -> tuple[int, int, int]:
    """The shape of a picture whose pixels are one-hot vectors."""
    return (picture[0] * categories, *picture[1:])


def _one_hot(x: Tensor, categories: int) -> Tensor:
    """Pictures `(*batch, channels, height, width)` of categories, with a channel for each of them."""
    each = torch.arange(categories, device=x.device)[:, None, None]
    return (x.unsqueeze(-3) == each).to(x.dtype).flatten(-4, -3)


def _flat(value: Tensor, batch: torch.Size, event_dim: int) -> Tensor:
    """Values `(*some_batch, *event)` of a batch that is broadcast, as `(n, *event)`."""
    event = value.shape[value.dim() - event_dim :]
    return value.expand(*batch, *event).reshape(batch.numel(), *event)
