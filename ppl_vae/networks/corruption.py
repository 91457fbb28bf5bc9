"""Noise on what an encoder reads, for denoising autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.networks.arguments import require_numbers, require_object, require_positive
from ppl_vae.networks.base import Network


class GaussianNoise(nn.Module):
    """x + s e with e ~ N(0, I), in training mode; x itself in evaluation mode.

    Args:
        scale: s, in units of the data.

    Raises:
        ValueError: `scale` is not positive.

    Example:
        >>> noise = GaussianNoise(0.5)
        >>> bool((noise(torch.zeros(5)) == 0).any()), bool((noise.eval()(torch.zeros(5)) == 0).all())
        (False, True)
    """

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        require_positive(self, scale=scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        x = x.to(torch.promote_types(x.dtype, torch.get_default_dtype()))
        return x + self.scale * torch.randn_like(x)

    def __repr__(self) -> str:
        return f"GaussianNoise(scale={self.scale})"


class MaskingNoise(nn.Module):
    """Each number of x becomes `value` with probability `rate`, in training mode; x itself in evaluation mode.

    Unlike `torch.nn.Dropout` it does not enlarge the other numbers.

    Args:
        rate: Share of the numbers that are masked, from 0 to 1.
        value: What they become.

    Raises:
        ValueError: `rate` is not above 0 and below 1.

    Example:
        >>> MaskingNoise(0.25).eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, rate: float = 0.25, value: float = 0.0) -> None:
        super().__init__()
        require_numbers(self, rate=rate, value=value)
        if not 0 < rate < 1:
            raise ValueError(f"MaskingNoise.rate must be above 0 and below 1, got {rate}")
        self.rate = rate
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        masked = torch.rand(x.shape, device=x.device) < self.rate
        return x.masked_fill(masked, self.value)

    def __repr__(self) -> str:
        return f"MaskingNoise(rate={self.rate}, value={self.value})"


@dataclass(frozen=True)
class Denoising(Network):
    """A network whose encoder reads a corrupted row while it is trained, and the row itself otherwise.

    The loss is of the row itself: with a guide that gives points, the pair is a denoising autoencoder
    ("Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008). With any other guide,
    q(z | x') is fitted for corrupted rows x'; each of them gives a bound on log p(x), so that the ELBO of the
    training rows is one, too ("Denoising Criterion for Variational Auto-Encoding Framework", arXiv:1511.06406).

    With Gaussian noise of scale s, the best reconstruction r(x') leads to the score of the density of the
    corrupted rows: (r(x') - x') / s^2 = grad log p_s(x') ("A Connection Between Score Matching and Denoising
    Autoencoders", Neural Computation 23, 2011).

    Args:
        network: What encoder and decoder are built from.
        noise: The scale s of Gaussian noise, in units of the data; 0 for none.
        masking: Share of the numbers that are set to 0; 0 for none. Masks come after the noise.

    Raises:
        TypeError: `network` is not a network.
        ValueError: A number is out of its range, or both are 0.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> Denoising(MLP(hidden=(8,)), masking=0.3).encoder((4,))
        _Corrupted(
          (corruptions): Sequential(
            (0): MaskingNoise(rate=0.3, value=0.0)
          )
          (encoder): Batched(
            (net): Sequential(
              (0): Linear(in_features=4, out_features=8, bias=True)
              (1): ReLU()
            )
          )
        )
    """

    network: Network
    noise: float = 0.0
    masking: float = 0.0

    def __post_init__(self) -> None:
        require_object(self, "network", self.network, "encoder", "MLP()")
        require_numbers(self, noise=self.noise, masking=self.masking)
        if not (0 <= self.noise < float("inf") and 0 <= self.masking < 1):
            raise ValueError(
                "Denoising.noise must be finite and at least 0, and Denoising.masking at least 0 and below 1, "
                f"got {self.noise} and {self.masking}"
            )
        if not (self.noise or self.masking):
            raise ValueError(
                "Denoising needs some noise: give noise, in units of the data, or masking, a share of the "
                "numbers"
            )

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`."""
        return _Corrupted(self._corruptions, self.network.encoder(data_shape))

    def encoder_of_both(self, data_shape: Sequence[int], size: int) -> nn.Module:
        """See `Network.encoder_of_both`: the vector is not corrupted."""
        return _Corrupted(self._corruptions, self.network.encoder_of_both(data_shape, size))

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        return self.network.decoder(latent_dim, out_shape)

    @property
    def _corruptions(self) -> list[nn.Module]:
        noise = [GaussianNoise(self.noise)] if self.noise else []
        return [*noise, *([MaskingNoise(self.masking)] if self.masking else [])]


class _Corrupted(nn.Module):
    """An encoder behind corruptions of the rows that it reads."""

    def __init__(self, corruptions: Sequence[nn.Module], encoder: nn.Module) -> None:
        super().__init__()
        self.corruptions = nn.Sequential(*corruptions)
        self.encoder = encoder
        self.out_features = getattr(encoder, "out_features", None)

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        found: Tensor = self.encoder(self.corruptions(x), *beside)
        return found
