"""The amortized guide of a mixture: a network that classifies the row."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.guides.amortized import Amortized
from ppl_vae.networks import MLP, Context, Network, require_at_least_one


class CategoricalEncoder(Amortized[dist.Categorical]):
    """q(z = k | x) = softmax(logits(x))_k: which component of a mixture a row comes from.

    The family holds every posterior over `components` values, so that only amortization costs
    anything. The site `z` is an integer from 0 to `components - 1`, marked for enumeration. The
    objective chooses how the gradient is taken; the same pair works with each of them:

    | objective | gradient of the ELBO by the logits | evaluations of the model per row |
    | --- | --- | --- |
    | `EnumELBO` (what `ELBO` chooses) | exact: the sum over z | `components` |
    | `TraceELBO` | score function: unbiased, of high variance | one per particle |
    | `GumbelSoftmaxELBO` | straight through a relaxed draw: biased | `components` |

    For a row between two Gaussians with q = (0.73, 0.27), the standard deviation of one draw of the score
    function is 18 times the gradient; that of Gumbel-softmax is 0.9 (2.7) times it, with a bias of -8 %
    (-0.3 %), at temperature 0.5 (0.1): `tests/test_categorical.py`.

    Args:
        data_shape: Shape of one row of the data.
        components: Number of values of z, the model's.
        network: What the encoder is built from.
        context: See `Amortized`.

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
        context: Context | None = None,
    ) -> None:
        require_at_least_one(self, components=components)
        self.components = components  # first: the head is built from it
        super().__init__(
            data_shape, latent_dim=1, network=network, context=context
        )  # z is a single number

    def family(self, outputs: Tensor) -> dist.Categorical:
        """The distribution with these logits, `(*batch, components)`."""
        return dist.Categorical(logits=outputs)

    @property
    def num_outputs(self) -> int:
        """A logit per component."""
        return self.components
