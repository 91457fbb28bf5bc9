"""The guide without amortization: every row has its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import Rebuildable
from ppl_vae.pairs import hook_of


class _GuideWithOutputs(Protocol):
    """A guide that turns an encoder's numbers into a distribution."""

    def amortize(self, x: Tensor) -> Tensor:
        """The encoder's numbers, `(n, num_outputs)`."""

    def family(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution q that outputs describe."""


class PerRow(Rebuildable, nn.Module):
    """q(z | x_i) = family(outputs_i), with free numbers for each row i that start at a guide's.

    It has the family of the guide that it starts from and, once it stops improving, no amortization
    gap: it is what the best encoder could reach ("Inference Suboptimality in Variational
    Autoencoders", arXiv:1801.03558). It knows only the rows that it was made for, and always runs
    on all of them, in their order: train it by `fit(..., batch_size=n)`. If the family has
    parameters (a flow's), they remain the guide's and are not trained.
    The site is `z`, inside `pyro.plate("data", n, dim=-1)`.

    Args:
        guide: A guide with `amortize(x)` and `family(outputs)`, such as `MeanField`.
        x: All rows, `(n, *data_shape)`; for a guide that was built with a context, `(x, c)`.

    Attributes:
        outputs: The rows' unconstrained numbers, `(n, num_outputs)`.
        keeps_rows: True, which tells the engine to give it all rows at once.

    Raises:
        TypeError: The guide has no `amortize` or no `family`.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import MeanField
        >>> x = torch.rand(5, 3)
        >>> guide = PerRow(MeanField((3,), latent_dim=2), x)
        >>> guide.outputs.shape, guide.encode(x).event_shape
        (torch.Size([5, 4]), torch.Size([2]))
    """

    keeps_rows = True

    def __init__(self, guide: _GuideWithOutputs, x: Tensor | tuple[Tensor, Tensor]) -> None:
        super().__init__()
        for method in ("amortize", "family"):
            if not callable(getattr(guide, method, None)):
                raise TypeError(
                    f"PerRow needs a guide with the methods amortize(x) and family(outputs), but "
                    f"{type(guide).__name__} has no {method}; use MeanField or FullCovariance"
                )
        amortize: Callable[..., Tensor] = guide.amortize
        given = x if isinstance(x, tuple) else (x,)
        self.outputs = nn.Parameter(amortize(*given).detach().clone())
        # The method, not the guide: a module would be registered, and so would its encoder.
        self.family: Callable[[Tensor], dist.TorchDistribution] = guide.family
        if check := hook_of(guide, "why_not_committed"):
            self.why_not_committed = check

    def forward(self, x: Tensor, c: Tensor | None = None) -> None:
        """Runs the guide on `x`, all rows, `(n, *data_shape)`."""
        sample_z(self.encode(x), x.shape[0])

    def encode(self, x: Tensor, c: Tensor | None = None) -> dist.TorchDistribution:
        """q(z | x) of all rows, of batch shape `(n,)`."""
        return self.family(self.amortize(x))

    def amortize(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The `outputs` of all rows; of `x` only the number of rows counts.

        Raises:
            ValueError: `x` has another number of rows.
        """
        if x.shape[0] != len(self.outputs):
            raise ValueError(
                f"PerRow was made for {len(self.outputs)} rows, but x has {x.shape[0]}: it must "
                f"run on all of its rows at once, in their order, and knows no others"
            )
        return self.outputs
