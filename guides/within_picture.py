"""The guide of colors that are latent in each picture: EM within the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.networks import Rebuildable, require_at_least_one


class WithinPicture(Rebuildable, nn.Module):
    """q(c | x, y) = N(m, diag(s^2)) of the shifts c of `LatentColors`, by EM within each picture.

    m is where some EM steps arrive, which the model itself knows how to take (`model.fit_shifts`), and s what
    the information of the pixels gives there, times a learned factor for each segment. There is no encoder. q
    is a function of the model's parameters, but no gradient flows through the steps: at the maximum, where they
    end, there would be none by the mean.

    The site is `shifts`, `(n, K, 2)`, inside `pyro.plate("data", n, dim=-1)`.

    Args:
        model: A model with `colors=LatentColors()`.
        steps: Number of EM steps.

    Raises:
        TypeError: The model has no `fit_shifts`, or `steps` is no whole number.
        ValueError: `steps` is not positive.

    Example:
        >>> from ppl_vae.models import IndependentSegments, LatentColors
        >>> from ppl_vae.networks import UNet
        >>> model = IndependentSegments(3, LatentColors(), UNet((4,)))
        >>> guide = WithinPicture(model)
        >>> guide.encode(torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)).event_shape
        torch.Size([3, 2])
    """

    def __init__(self, model: nn.Module, steps: int = 5) -> None:
        super().__init__()
        require_at_least_one(self, steps=steps)
        fit = getattr(model, "fit_shifts", None)
        if not callable(fit):
            raise TypeError(
                f"WithinPicture needs a model with fit_shifts, such as "
                f"IndependentSegments(colors=LatentColors()), but {type(model).__name__} has none"
            )
        # The method, not the model: a module would be registered, and so would its parameters.
        self._fit: Callable[..., tuple[Tensor, Tensor]] = fit
        self.steps = steps
        self.log_factor = nn.Parameter(torch.zeros(cast(int, model.segments), 2))

    def forward(self, y: Tensor, x: Tensor) -> None:
        """Runs the guide on chroma, `(n, h, w, 2)`, and luma, `(n, h, w)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("shifts", self.encode(y, x))

    def encode(self, y: Tensor, x: Tensor) -> dist.Independent:
        """q(c | x, y), of batch shape `(n,)` and event shape `(K, 2)`."""
        mean, scale = self._fit(y, x, self.steps)
        return dist.Independent(dist.Normal(mean, scale * self.log_factor.exp()), 2)
