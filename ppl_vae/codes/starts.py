"""Where the vectors of a codebook begin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.codes.learners import random_points
from ppl_vae.networks import require_at_least_one


class CodebookStart(ABC):
    """Where a codebook begins; what `VectorQuantizer` is given as `start`.

    Attributes:
        steps: After so many training steps the codebook has begun; with 0 it keeps the normal draws that it is
            built with.
    """

    steps: int = 0

    @abstractmethod
    def points(self, vectors: Tensor, codes: int) -> Tensor:
        """The points, `(codes, dim)`, from the vectors of the last one of these steps, `(n, dim)`."""


@dataclass(frozen=True)
class RandomStart(CodebookStart):
    """Normal draws, whatever the encoder gives: how codebooks die (arXiv:2005.08520). For comparison."""

    def points(self, vectors: Tensor, codes: int) -> Tensor:
        """See `CodebookStart.points`: as a codebook that is new."""
        return random_points(codes, vectors.shape[-1]).to(vectors)


@dataclass(frozen=True)
class KMeansStart(CodebookStart):
    """The centers that k-means finds in the vectors of a training batch.

    The encoder moves fast at first. So for some steps the codes are vectors of the batch before, picked at
    random, and only then k-means is asked ("Robust Training of Vector Quantized Bottleneck Models",
    arXiv:2005.08520). A batch with no more distinct vectors than codes has no clusters: then each vector is a
    code, and the others lie beside them.

    Args:
        steps: k-means sees the vectors of this training step, counted from 1.
        iterations: Most iterations of k-means.

    Raises:
        TypeError: A number is not whole.
        ValueError: A number is not positive.
    """

    steps: int = 20
    iterations: int = 20

    def __post_init__(self) -> None:
        require_at_least_one(self, steps=self.steps, iterations=self.iterations)

    def points(self, vectors: Tensor, codes: int) -> Tensor:
        """See `CodebookStart.points`: by scikit-learn, from k-means++."""
        from sklearn.cluster import KMeans  # takes a second to import; rarely needed

        distinct = torch.unique(vectors.double().cpu(), dim=0)
        if len(distinct) <= codes:  # each is a center; the rest is beside them
            more = picked(distinct, codes - len(distinct))
            noise = torch.randn(more.shape, dtype=more.dtype) * distinct.std(0, correction=0) * 0.01
            return torch.cat([distinct, more + noise]).to(vectors)
        seed = int(torch.randint(2**31, ()))
        means = KMeans(codes, n_init=1, max_iter=self.iterations, random_state=seed)
        means.fit(vectors.double().cpu().numpy())
        return torch.as_tensor(means.cluster_centers_).to(vectors)


def picked(vectors: Tensor, count: int) -> Tensor:
    """So many of the vectors `(n, dim)`, drawn at random with replacement, `(count, dim)`."""
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
