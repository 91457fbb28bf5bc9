"""The amortised guide of a mixture: a network that classifies the row."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.networks import MLP, Network, full_precision, linear_head


class CategoricalEncoder(nn.Module):
    """q(z = k | x) = softmax(logits(x))_k: what an encoder says of the component of a mixture.

    The family holds every posterior over `components` values, so that nothing is lost but by
    amortisation. The site is `z`, inside `pyro.plate("data", n, dim=-1)`, an integer from 0 to
    `components - 1`; it is marked for enumeration. How the gradient is taken is the objective's
    affair, and the same pair takes each of them:

    | objective | gradient of the ELBO by the logits | evaluations of the model a row |
    | --- | --- | --- |
    | `EnumELBO` (what `ELBO` chooses) | exact: the sum over z | `components` |
    | `TraceELBO` | score function: unbiased, of high variance | one a particle |
    | `GumbelSoftmaxELBO` | straight through a relaxed draw: biased | `components` |

    For a row between two Gaussians with q = (0.73, 0.27), the standard deviation of one draw of the score
    function is 18 times the gradient; that of Gumbel-softmax is 0.9 (2.7) times it, with a bias of -8 %
    (-0.3 %), at temperature 0.5 (0.1): `tests/test_categorical.py`.

    Args:
        data_shape: shape of one row of the data.
        components: number of values of z, the model's.
        network: what the encoder is built from.

    Raises:
        ValueError: `components` is not positive.

    Example:
        >>> import torch
        >>> guide = CategoricalEncoder((1, 8, 8), components=10, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(5, 1, 8, 8)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        components: int = 10,
        network: Network = MLP(),  # frozen
    ) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"CategoricalEncoder.components must be at least 1, came {components}")
        self.components = components
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, components)

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x), infer={"enumerate": "parallel"})

    def amortise(self, x: Tensor) -> Tensor:
        """Return the logits for data `(*batch, *data_shape)`: `(*batch, components)`."""
        return full_precision(self.head(self.encoder(x)))

    def family(self, outputs: Tensor) -> dist.Categorical:
        """Return the distribution with these logits, `(*batch, components)`: batch shape `batch`."""
        return dist.Categorical(logits=outputs)

    def encode(self, x: Tensor) -> dist.Categorical:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))
