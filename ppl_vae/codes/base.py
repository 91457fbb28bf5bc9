"""What a model and a guide of codes ask of a quantizer."""

from __future__ import annotations

import math
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
    Several processes learn from the vectors of all, as one process would from the whole batch.

    To write one of your own, derive from this class.

    Attributes:
        codes: Number K of values of a code.
        dim: Size of a vector.
        depth: Codes per vector. With more than 1, z has one more dimension, of this size.
        waits: Whether `learn` leaves it all to `learn_together`. `fit` in several processes calls that once all
            of them have taken the step: so an error in one of them leaves no other waiting.
    """

    codes: int
    dim: int
    depth: int = 1
    waits: bool = False
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
            rows, at = len(vectors), z.shape[: z.dim() - (self.depth > 1)]
            positions = math.prod(vectors.shape[1:-1])
            each = vectors.detach().expand(*at, self.dim)  # of several draws
            parts = (each, (self.dim,)), (z, z.shape[len(at) :])
            # By rows, `(rows, draws * positions, ...)`: that is how several processes divide a batch.
            self._gathered = tuple(  # type: ignore[assignment]
                part.reshape(-1, rows, positions, *last).transpose(0, 1).flatten(1, 2)
                for part, last in parts
            )

    def learn(self) -> None:
        """Counts what was gathered since the last call, and learns from it, if it is in training mode.

        If `torch.distributed` has several processes, all of them must call it.
        """
        if self._gathered is not None and not self.waits:
            self.learn_together()

    @torch.no_grad()
    def learn_together(self) -> None:
        """Learns as `learn` does, also where this process has gathered nothing, and others have."""
        gathered, self._gathered = self._gathered, None
        if not self.training:
            return
        if are_several():
            gathered = self._of_all(gathered)
        if gathered is None:
            return
        vectors, z = (part.flatten(0, 1) for part in gathered)
        counts = vectors.new_zeros(self.uses.shape)
        if len(self.uses):
            counts.index_add_(0, z, vectors.new_ones(len(z)))
            self.uses.add_(counts)
        self.follow(vectors, z, counts)

    def _of_all(self, gathered: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """What all processes have gathered, in the order of the whole batch; None if that is nothing."""
        if gathered is None:
            empty = self.uses.new_zeros(0, 0, self.dim)
            gathered = empty, empty.new_zeros(0, 0, *[self.depth][self.depth == 1 :]).long()
        vectors, z = gathered
        sizes = torch.stack(from_all(torch.tensor(vectors.shape[:2], device=vectors.device)))
        if not int(sizes.prod(1).sum()):
            return None
        rows = [int(number) for number in sizes[:, 0]]
        most, inner = (int(number) for number in sizes.amax(0))
        return (
            _interleaved(vectors.to(self.uses.dtype), rows, most, inner),
            _interleaved(z, rows, most, inner),
        )

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

        Then it starts again from 0.
        """
        uses = self.usage().double().clone()  # in double precision it is the buffer itself
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


def are_several() -> bool:
    """Whether there are several processes of a training.

    Example:
        >>> are_several()
        False
    """
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


def from_all(value: Tensor) -> list[Tensor]:
    """The values of all processes of a training, by rank; all of them must call it.

    Args:
        value: This process's, of the same shape in all of them.
    """
    everyone = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, value.contiguous())
    return everyone


def _interleaved(part: Tensor, rows: list[int], most: int, inner: int) -> Tensor:
    """The rows of all processes: row r of the whole batch is with process r modulo their number.

    Args:
        part: This process's, `(n, inner, ...)`.
        rows: How many each process has.
        most: The largest of them.
        inner: Size of the second dimension where there are rows.
    """
    padded = part.new_zeros(most, inner, *part.shape[2:])
    if len(part):
        padded[: len(part)] = part
    whole = torch.stack(from_all(padded), 1).flatten(0, 1)
    there = torch.arange(most).unsqueeze(1) < torch.tensor(rows)
    return whole[there.flatten().to(whole.device)]


def squared_distances(vectors: Tensor, points: Tensor) -> Tensor:
    """|L - C_k|^2 of vectors `(*batch, dim)` and points `(K, dim)`: `(*batch, K)`.

    By |L|^2 - 2 L C_k + |C_k|^2: a matrix product. Rounding may make it slightly less than 0.
    """
    return (
        vectors.square().sum(-1, keepdim=True) - 2 * vectors @ points.mT + points.square().sum(-1)
    )
