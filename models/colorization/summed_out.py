"""The colors of pictures whose segmentation is summed out, given the latent colors of its segments."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.distributions import ChromaLogistic


class ColorsOfPictures(dist.TorchDistribution):
    """P(y | x, shifts), with z summed out.

    Args:
        model: A `SegmentedColors`.
        x: Luma, `(n, h, w)`.
        shifts: `(*samples, n, K, 2)`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, model: Any, x: Tensor, shifts: Tensor) -> None:
        self.model, self.x, self.shifts = model, x, shifts
        super().__init__(shifts.shape[:-2], torch.Size([*x.shape[1:], 2]), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> Any:
        """The chroma that the luma leaves room for."""
        whatever = torch.ones(2, device=self.x.device)
        return constraints.independent(ChromaLogistic(self.x, whatever, whatever).support, 2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColorsOfPictures:
        """The same distribution for a larger batch shape."""
        shifts = self.shifts.expand(*batch_shape, *self.shifts.shape[-2:])
        return ColorsOfPictures(self.model, self.x, shifts)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(y | x, shifts), in nats."""
        found: Tensor = self.model.log_evidence(value, self.x, self.shifts)
        return found.expand(self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws chroma, `(*sample_shape, *batch, h, w, 2)`."""
        shape = (*torch.Size(sample_shape), *self.batch_shape)
        z = self.model.prior(self.x).sample(torch.Size(shape[:-1]))
        shifts = self.shifts.expand(*shape, *self.shifts.shape[-2:])
        found: Tensor = self.model.decode(z, self.x, shifts).sample()
        return found
