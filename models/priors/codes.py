"""Priors over codes: what a prior of codes is, and the two simple ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.networks import (
    CodesAbove,
    Context,
    Labels,
    require_one_each,
    require_positive,
    require_room,
)


class CodePrior(ABC):
    """What a model of codes needs to build its p(z), or p(z | c) of rows that come with c.

    To write one of your own, derive from this class and give it `build_codes`.
    """

    @abstractmethod
    def build_codes(
        self, positions: Sequence[int], codes: int, context: Context | None = None
    ) -> nn.Module:
        """Builds p(z), or p(z | c).

        Args:
            positions: Shape of z of a row.
            codes: Number K of values of each code.
            context: What rows come with, such as `Labels(10)`; `CodesAbove(...)` if z is one of several levels,
                and those above are given, beside what rows come with, its own `context`; None if they come
                alone. If `context.on_grid(channels, size)` is a module, it gives numbers for each position.

        Returns:
            A module whose `forward()` returns a distribution of batch shape `()` and event shape `positions`
            over whole numbers from 0 to K - 1. With a context, `forward(c)` takes what rows come with, and the
            batch shape is that of c. `ppl_vae.refit_prior` fits it: by its method `fit_to_codes(z)`, or
            `fit_to_codes(z, c)` with a context, which maximizes the mean of log p(z) over rows
            `(n, *positions)`, if it has one; otherwise its parameters by gradient steps on -log p(z).
        """


def require_context(prior: str, context: Context | None, c: Tensor | None) -> None:
    """Raises an error if a prior is given what it was not built for, or is not given what it was built for.

    Raises:
        TypeError: It is.
    """
    if context is None and c is not None:
        raise TypeError(
            f"{prior} is p(z), built without a context, but is given labels or attributes: build it for a "
            "ConditionalVQVAE or ConditionalVQVAE2, or leave c out"
        )
    if context is not None and c is None:
        raise TypeError(
            f"{prior} is p(z | c), built with {context}: pass c, what the rows come with"
        )


@dataclass(frozen=True)
class UniformCodes(CodePrior):
    """p(z) = K^-m for m codes: each costs log K nats, whatever it is. Nothing is learned.

    Example:
        >>> prior = UniformCodes().build_codes((2, 3), codes=4)
        >>> prior().log_prob(torch.zeros(2, 3, dtype=torch.long))  # 6 log(1/4)
        tensor(-8.3178)
    """

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Context | None = None
    ) -> nn.Module:
        """See `CodePrior.build_codes`."""
        return _Uniform(tuple(positions), codes, context)


class _Uniform(nn.Module):
    logits: Tensor

    def __init__(self, positions: tuple[int, ...], codes: int, context: Context | None) -> None:
        super().__init__()
        self.positions = positions
        self.context = context
        self.register_buffer("logits", torch.zeros(codes), persistent=False)

    def forward(self, c: Tensor | None = None) -> dist.TorchDistribution:
        require_context("UniformCodes", self.context, c)
        batch = () if c is None or self.context is None else self.context(c).shape[:-1]
        each = dist.Categorical(logits=self.logits).expand((*batch, *self.positions))
        p: dist.TorchDistribution = each.to_event(len(self.positions))
        return p


@dataclass(frozen=True)
class IndependentCodes(CodePrior):
    """p(z) = prod_i p_i(z_i): for each position how often each code is used there.

    `refit_prior` sets it in closed form, by counts; trained with the model, it follows the gradient. With
    `Labels` as the context, p(z | c) has such a table for each label. Codes of coarser grids, as in a `VQVAE2`,
    it ignores: the levels are independent then, in a `ConditionalVQVAE2` given the label.

    Args:
        pseudocount: What `refit_prior` adds to each count, so that no code costs infinitely much.

    Raises:
        TypeError: `pseudocount` is no number; or, of `build_codes`, the context is neither labels nor codes.
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

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Context | None = None
    ) -> nn.Module:
        """See `CodePrior.build_codes`."""
        of_row = context.context if isinstance(context, CodesAbove) else context
        if not (of_row is None or isinstance(of_row, Labels)):
            raise TypeError(
                f"IndependentCodes counts the codes of each label, but rows come with {of_row}: choose "
                "PixelCNNPrior() or TransformerPrior(), which read numbers"
            )
        classes = 1 if of_row is None else of_row.classes
        require_room(self, "choose fewer codes", classes, *positions, codes)
        return _CodesByPosition(tuple(positions), codes, self.pseudocount, context)


class _CodesByPosition(nn.Module):
    def __init__(
        self,
        positions: tuple[int, ...],
        codes: int,
        pseudocount: float,
        context: Context | None,
    ) -> None:
        super().__init__()
        self.pseudocount = pseudocount
        self.context = context
        self.event_dim = len(positions)
        of_labels = () if self.labels is None else (self.labels.classes,)
        self.logits = nn.Parameter(torch.zeros(*of_labels, *positions, codes))

    @property
    def labels(self) -> Labels | None:
        """The labels of rows, if any: in the context alone, as files name a model by all its attributes."""
        labels = self.context.context if isinstance(self.context, CodesAbove) else self.context
        return labels if isinstance(labels, Labels) else None

    def forward(self, c: Tensor | None = None) -> dist.TorchDistribution:
        require_context("IndependentCodes", self.context, c)
        logits: Tensor = self.logits
        label = None if c is None else self._label(c)
        if label is not None:
            logits = logits[label.long()]
        elif c is not None and self.context is not None:
            logits = logits.expand(*self.context(c).shape[:-1], *logits.shape)
        p: dist.TorchDistribution = dist.Categorical(logits=logits).to_event(self.event_dim)
        return p

    @torch.no_grad()
    def fit_to_codes(self, z: Tensor, c: Tensor | None = None) -> None:
        """Sets the probabilities to the shares among codes `(n, *positions)`, of each label `(n,)` if any."""
        require_context("IndependentCodes", self.context, c)
        counts = torch.full_like(self.logits, self.pseudocount)
        label = None if c is None else self._label(c)
        if label is None or self.labels is None:
            self._count(z, counts)
        else:
            require_one_each(self, self.labels, label, len(z))
            for value, of_label in enumerate(counts):
                self._count(z[label == value], of_label)
        self.logits.copy_((counts / counts.sum(-1, keepdim=True)).log())

    def _label(self, c: Tensor) -> Tensor | None:
        """The label of each row, if there are labels: codes above are ignored."""
        if self.labels is None or not isinstance(self.context, CodesAbove):
            return None if self.labels is None else c
        return self.context.apart(c)[1]

    def _count(self, z: Tensor, counts: Tensor) -> None:
        """Adds how often each code is at each position to counts `(*positions, K)`."""
        for position, of_position in zip(
            z.flatten(1).T, counts.view(-1, counts.shape[-1]), strict=True
        ):
            of_position += position.bincount(minlength=len(of_position))
