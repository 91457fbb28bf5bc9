"""What a model and a guide of codes ask of a quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed
from torch import Tensor, nn

from ppl_vae.networks import Rebuildable

_COUNTED = 2**20
"""Most codes whose uses are counted."""


class Quantizer(Rebuildable, nn.Module, ABC):
    """Finitely many vectors in R^dim, and which of them stands for a vector of an encoder.

    The model of codes owns it: z is the number of a code, and the decoder reads `embed(z)`. The guide asks it
    for `nearest(project(vectors))`. In training the guide shows it what it has encoded (`gather`), and the
    model lets it learn from that once it has run (`learn`): so guide and model see the same vectors in a step.

    To write one of your own, derive from this class.

    Attributes:
        codes: Number K of values of a code.
        dim: Size of a vector.
        depth: Codes per vector. With more than 1, z has one more dimension, of this size.
    """

    codes: int
    dim: int
    depth: int = 1
    uses: Tensor
    _gathered: tuple[Tensor, Tensor] | None

    def project(self, vectors: Tensor) -> Tensor:
        """The vectors of an encoder, brought to where the codes are: `(*batch, dim)` to `(*batch, dim)`."""
        return vectors

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor:
        """The code of each projected vector, `(*batch)`, or `(*batch, depth)`: int64, no gradient."""

    @abstractmethod
    def embed(self, z: Tensor) -> Tensor:
        """The vectors of codes `(*batch)`, or `(*batch, depth)`: `(*batch, dim)`."""

    def log_weights(self, vectors: Tensor, temperature: float) -> Tensor:
        """-|L - C_k|^2 / temperature of each projected vector and code, `(*batch, K)`.

        Raises:
            NotImplementedError: It has several codes per vector.
        """
        if self.depth > 1:
            raise NotImplementedError(
                f"{type(self).__name__} has {self.depth} codes per vector, each given those before it: "
                "choose temperature=0"
            )
        return -squared_distances(vectors, self.points()) / temperature

    def points(self) -> Tensor:
        """All K vectors, `(K, dim)`, for a depth of 1."""
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        return self.embed(torch.arange(self.codes, device=device))

    def regularizer(self, vectors: Tensor) -> Tensor | None:
        """What training adds to the loss for the projected vectors `(n, *positions, dim)`, nats per row.

        A number for each row, `(n,)`, whose gradient alone counts, 0 where no gradient is asked for; None if
        there is never anything to add.
        """
        return None

    def gather(self, vectors: Tensor, z: Tensor) -> None:
        """Shows it projected vectors of a training batch and their codes. Nothing changes before `learn`."""
        if self.training and torch.is_grad_enabled():
            at = z.shape[: z.dim() - (self.depth > 1)]
            each = vectors.detach().expand(*at, self.dim)  # of several draws
            self._gathered = each.reshape(-1, self.dim), z.reshape(-1, *z.shape[len(at) :])

    @torch.no_grad()
    def learn(self) -> None:
        """Counts what was gathered since the last call, and learns from it, if it is in training mode."""
        gathered, self._gathered = self._gathered, None
        if gathered is None or not self.training:
            return
        vectors, z = gathered
        counts = vectors.new_zeros(self.uses.shape)
        if len(self.uses):
            counts.index_add_(0, z, vectors.new_ones(len(z)))
            sum_over_processes(counts)
            self.uses.add_(counts)
        self.follow(vectors, z, counts)

    def follow(self, vectors: Tensor, z: Tensor, counts: Tensor) -> None:
        """Learns from vectors `(n, dim)`, their codes `(n,)` and how often each code is among them, `(K,)`."""

    def usage(self) -> Tensor:
        """How often each code was used in training since `reset_usage`, `(K,)`; empty if not counted."""
        return self.uses

    def reset_usage(self) -> None:
        """Begins to count anew."""
        self.uses.zero_()

    def epoch_metrics(self) -> dict[str, float]:
        """What `fit` logs after each epoch: how many codes were used in it, and their perplexity exp(entropy).

        Then it begins to count anew.
        """
        uses = self.usage().double()
        self.reset_usage()
        if not len(uses) or not bool(uses.any()):
            return {}
        return {"codes_used": float((uses > 0).sum()), "perplexity": perplexity(uses)}

    def _count_uses(self) -> None:
        """Makes room for the counts, once K is known."""
        self.register_buffer("uses", torch.zeros(self.codes if self.codes <= _COUNTED else 0))
        self._gathered = None


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of the shares of counts, `(K,)`: K if all are the same, 1 if there is one alone.

    Example:
        >>> round(perplexity(torch.tensor([5.0, 5.0, 0.0])), 3)
        2.0
    """
    p = counts.double() / counts.sum()
    return float((-torch.special.xlogy(p, p).sum()).exp())


def sum_over_processes(value: Tensor) -> None:
    """The sum over all processes of a training, in place."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)


def squared_distances(vectors: Tensor, points: Tensor) -> Tensor:
    """|L - C_k|^2 of vectors `(*batch, dim)` and points `(K, dim)`: `(*batch, K)`.

    By |L|^2 - 2 L C_k + |C_k|^2: a matrix product. Rounding may make it slightly less than 0.
    """
    return (
        vectors.square().sum(-1, keepdim=True) - 2 * vectors @ points.mT + points.square().sum(-1)
    )
