"""Priors over codes: what a prior of codes is, and the two simple ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.networks import require_positive, require_room


class CodePrior(ABC):
    """What a model of codes needs to build its p(z).

    To write one of your own, derive from this class and give it `build_codes`.
    """

    @abstractmethod
    def build_codes(self, positions: Sequence[int], codes: int) -> nn.Module:
        """Builds p(z).

        Args:
            positions: Shape of z of a row.
            codes: Number K of values of each code.

        Returns:
            A module whose `forward()` returns a distribution of batch shape `()` and event shape `positions`
            over whole numbers from 0 to K - 1.
        """


@dataclass(frozen=True)
class UniformCodes(CodePrior):
    """p(z) = K^-m for m codes: each costs log K nats, whatever it is. Nothing is learned.

    Example:
        >>> prior = UniformCodes().build_codes((2, 3), codes=4)
        >>> prior().log_prob(torch.zeros(2, 3, dtype=torch.long))  # 6 log(1/4)
        tensor(-8.3178)
    """

    def build_codes(self, positions: Sequence[int], codes: int) -> nn.Module:
        """See `CodePrior.build_codes`."""
        return _Uniform(tuple(positions), codes)


class _Uniform(nn.Module):
    logits: Tensor

    def __init__(self, positions: tuple[int, ...], codes: int) -> None:
        super().__init__()
        self.positions = positions
        self.register_buffer("logits", torch.zeros(codes), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        each = dist.Categorical(logits=self.logits).expand(self.positions)
        return dist.Independent(each, len(self.positions))


@dataclass(frozen=True)
class IndependentCodes(CodePrior):
    """p(z) = prod_i p_i(z_i): for each position how often each code is used there.

    `refit_prior` sets it in closed form, by counts; trained with the model, it follows the gradient.

    Args:
        pseudocount: What `refit_prior` adds to each count, so that no code costs infinitely much.

    Raises:
        TypeError: `pseudocount` is no number.
        ValueError: It is not positive.

    Example:
        >>> prior = IndependentCodes(pseudocount=1.0).build_codes((2,), codes=2)
        >>> prior.fit_to_codes(torch.tensor([[0, 1], [0, 0]]))
        >>> prior().base_dist.probs.detach()
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """

    pseudocount: float = 0.5

    def __post_init__(self) -> None:
        require_positive(self, pseudocount=self.pseudocount)

    def build_codes(self, positions: Sequence[int], codes: int) -> nn.Module:
        """See `CodePrior.build_codes`."""
        require_room(self, "choose fewer codes", *positions, codes)
        return _CodesByPosition(tuple(positions), codes, self.pseudocount)


class _CodesByPosition(nn.Module):
    def __init__(self, positions: tuple[int, ...], codes: int, pseudocount: float) -> None:
        super().__init__()
        self.pseudocount = pseudocount
        self.logits = nn.Parameter(torch.zeros(*positions, codes))

    def forward(self) -> dist.TorchDistribution:
        return dist.Independent(dist.Categorical(logits=self.logits), self.logits.dim() - 1)

    @torch.no_grad()
    def fit_to_codes(self, z: Tensor) -> None:
        """Sets the probabilities to the shares among codes `(n, *positions)`."""
        counts = torch.full_like(self.logits, self.pseudocount)
        for position, of_position in zip(
            z.flatten(1).T, counts.view(-1, counts.shape[-1]), strict=True
        ):
            of_position += position.bincount(minlength=len(of_position))
        self.logits.copy_((counts / counts.sum(-1, keepdim=True)).log())
