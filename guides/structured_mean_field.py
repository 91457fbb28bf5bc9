"""The guide of segments on a grid that nobody can sum over: lines of pixels, independent of each other."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import Rebuildable, require_at_least_one, require_positive
from ppl_vae.pairs import is_ours


class StructuredMeanField(Rebuildable, nn.Module):
    """q(z | x, y), the mean field of lines of the posterior: each line of pixels is a Markov chain.

    For `PottsSegments`, whose posterior is known in narrow pictures alone. Among all distributions whose lines
    are independent, q is one with a least KL(q || P(z | x, y)), found within each picture by coordinate ascent
    (`PottsGrid.mean_field`): there is no encoder, and there are no parameters. q is a function of the model's,
    but no gradient flows through the ascent: at the optimum, where it ends, there would be none.

    The site is `z`, `(n, h, w)`, inside `pyro.plate("data", n, dim=-1)`.

    Args:
        model: A `PottsSegments`.
        sweeps: Passes over the lines.
        beta: The weight of the KL in the objective: q is then the best one for that.

    Raises:
        TypeError: The posterior of the model has no mean field, or `sweeps` is no whole number.
        ValueError: `sweeps` or `beta` is not positive.

    Example:
        >>> import torch
        >>> from ppl_vae.models import PottsSegments
        >>> from ppl_vae.networks import UNet
        >>> guide = StructuredMeanField(PottsSegments(3, network=UNet((4,))))
        >>> guide.encode(torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)).event_shape
        torch.Size([8, 8])
    """

    def __init__(self, model: nn.Module, sweeps: int = 5, beta: float = 1.0) -> None:
        super().__init__()
        require_at_least_one(self, sweeps=sweeps)
        require_positive(self, beta=beta)
        mean_field = getattr(model, "mean_field", None)
        if not callable(mean_field):
            raise TypeError(
                f"StructuredMeanField needs a model with mean_field, such as PottsSegments, but "
                f"{type(model).__name__} has none: use Exact, or SegmentationEncoder"
            )
        # The method, not the model: a module would be registered, and so would its parameters.
        self._mean_field: Callable[..., dist.TorchDistribution] = mean_field
        self.sweeps, self.beta = sweeps, float(beta)

    def forward(self, y: Tensor, x: Tensor) -> None:
        """Runs the guide on chroma, `(n, h, w, 2)`, and luma, `(n, h, w)`."""
        sample_z(self.encode(y, x), x.shape[0])

    def covers_posterior_of(self, model: object) -> bool:
        """Whether every segmentation that a model of the library has a posterior of can be drawn from this.

        Each line has all of its segmentations, with odds that follow the model's: then what `evaluate` says of
        importance weights holds for this discrete latent as it does for continuous ones. The draws may still
        miss modes of several lines together, such as all of them in another segment.

        Args:
            model: Any program.
        """
        same = getattr(self._mean_field, "__self__", None) is model
        return is_ours(model, "models") and same and self.beta >= 1.0

    def encode(self, y: Tensor, x: Tensor) -> dist.TorchDistribution:
        """q(z | x, y), of batch shape `(n,)` and event shape `(h, w)`."""
        return self._mean_field(y, x, sweeps=self.sweeps, weight=1 / self.beta)
