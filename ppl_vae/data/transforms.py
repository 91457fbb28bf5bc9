"""Transforms of batches while training: dynamic binarization and dequantization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Binarization:
    """Replaces intensities in [0, 1] by Bernoulli draws with those probabilities.

    A fresh draw for each batch is the dynamic binarization of Burda et al. (arXiv:1509.00519).
    Without a generator, the draws come from torch's global generator of the tensor's device, so
    that a run whose generator state is restored repeats them.
    """

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Zeros and ones, shaped as `x`."""
        return torch.bernoulli(x, generator=generator)


@dataclass(frozen=True)
class Dequantization:
    r"""Spreads discrete values uniformly: `(x (levels - 1) + u) / levels`, `u ~ U[0, 1)`.

    Theis, van den Oord & Bethge, "A note on the evaluation of generative models"
    (arXiv:1511.01844). A density p of the result bounds the probability P of the discrete values:
    `log P(x) >= E_u[log p] - D log(levels)` for D dimensions. In bits per dimension that is
    `-E[log p] / (D log 2) + log2(levels)`.

    Args:
        levels: Number of equally spaced values in [0, 1]; 256 for 8-bit pictures.
    """

    levels: int

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Values in [0, 1), shaped as `x`, whose entries are multiples of 1 / (levels - 1)."""
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        noisy = ((x * (self.levels - 1)).round() + noise) / self.levels
        # In float32 the largest level plus noise close to 1 is rounded up to the next level.
        return noisy.clamp(max=1 - torch.finfo(x.dtype).eps / 2)
