"""What a model and a guide of codes ask of a quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ppl_vae.networks import Rebuildable


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

    def learn(self) -> None:
        """Learns from what was gathered since the last call, if it is in training mode."""


def squared_distances(vectors: Tensor, points: Tensor) -> Tensor:
    """|L - C_k|^2 of vectors `(*batch, dim)` and points `(K, dim)`: `(*batch, K)`.

    By |L|^2 - 2 L C_k + |C_k|^2: a matrix product. Rounding may make it slightly less than 0.
    """
    return (
        vectors.square().sum(-1, keepdim=True) - 2 * vectors @ points.mT + points.square().sum(-1)
    )
