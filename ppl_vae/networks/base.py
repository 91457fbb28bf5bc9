"""The description of a network, from which models and guides build theirs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppl_vae.networks.arguments import require_room
from ppl_vae.networks.context import JoinedEncoder


class Network(ABC):
    """What a model needs to build its decoder, and a guide its encoder.

    To write your own, derive from this class and implement the two methods. Both modules must accept
    any number of leading batch dimensions (also none), because samples are drawn together:
    `(num_samples, n, latent_dim)`.
    """

    @abstractmethod
    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """Builds the trunk of a guide.

        Args:
            data_shape: Shape of one row of the data, without batch dimensions.

        Returns:
            A module that maps `(*batch, *data_shape)` to `(*batch, out_features)` and has the
            integer attribute `out_features`. The guide adds its own linear head.
        """

    def encoder_of_both(self, data_shape: Sequence[int], size: int) -> nn.Module:
        """Builds the trunk of a guide that is given a vector beside each row: labels, say.

        Args:
            data_shape: Shape of one row of the data, without batch dimensions.
            size: Length of the vector.

        Returns:
            A module that maps `(*batch, *data_shape)` and `(*batch, size)` to `(*batch, out_features)`. This
            one gives the encoder of a picture one more channel, a learned linear map of the vector.
        """
        return JoinedEncoder(self, data_shape, size)

    @abstractmethod
    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """Builds the whole map from latents to the parameters of a likelihood.

        Args:
            latent_dim: Number of latent dimensions.
            out_shape: Shape of the output for one row, `(num_params, *data_shape)`.

        Returns:
            A module that maps `(*batch, latent_dim)` to `(*batch, *out_shape)`; or a `ReadingDecoder`, which
            reads the row, too.
        """


class ReadingDecoder(nn.Module, ABC):
    """A decoder of p(x | z) = prod_i p(x_i | x_1, ..., x_{i-1}, z): it reads the row that it describes.

    A model calls it by `ppl_vae.likelihoods.decoded`. To write your own, derive from this class and implement
    the two methods.

    Args:
        data_shape: Shape of one row of the data.
    """

    def __init__(self, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)

    @abstractmethod
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The features of all values, each given z and the values before it.

        Args:
            z: Latents, `(*batch, latent_dim)`.
            x: Rows, `(*batch, *data_shape)`; the batch dimensions of the two are broadcast.

        Returns:
            `(*batch, num_params, *data_shape)`; those of x_i do not depend on x_i, nor on later values.
        """

    @abstractmethod
    def ancestral(self, z: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Draws rows from p(x | z), one value or several at a time, without gradients.

        Args:
            z: Latents, `(*batch, latent_dim)`.
            draw: Maps features `(*batch, num_params, *part)` to values `(*batch, *part)`, where `part` has as
                many dimensions as `data_shape`.

        Returns:
            The rows, `(*batch, *data_shape)`.
        """


def linear_head(encoder: nn.Module, num_outputs: int) -> nn.Linear:
    """Builds the layer from an encoder's features to a guide's outputs.

    Raises:
        TypeError: The encoder does not have the integer attribute `out_features`.
    """
    out_features = getattr(encoder, "out_features", None)
    if not isinstance(out_features, int):
        raise TypeError(
            f"the encoder {type(encoder).__name__} must have the integer attribute out_features "
            f"(its number of outputs per row), got {out_features!r}"
        )
    require_room("the guide", "choose a smaller latent_dim or network", out_features, num_outputs)
    return nn.Linear(out_features, num_outputs)


def full_precision(x: Tensor) -> Tensor:
    """Brings half-precision outputs of a network to float32; leaves float32 and float64 alone.

    Under mixed precision networks may return bfloat16 or float16, in which a sum of log densities
    over a picture would lose its leading digits.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
