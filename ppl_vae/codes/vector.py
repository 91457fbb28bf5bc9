"""A codebook that learns: vector quantization."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.functional import embedding, normalize

from ppl_vae.codes.base import Quantizer, are_several, squared_distances
from ppl_vae.codes.learners import EMA, CodebookLearner, random_points
from ppl_vae.codes.starts import CodebookStart, KMeansStart, picked
from ppl_vae.networks import require_at_least_one, require_numbers, require_object, require_room
from ppl_vae.runtime import require_flags

_MEMORY = 0.99
"""Weight of earlier steps in how often a code is used."""

_SHARE = 0.25
"""A code is not restarted that is used so often, in units of the mean over codes."""


class VectorQuantizer(Quantizer):
    """The nearest of K vectors that learn ("Neural Discrete Representation Learning", arXiv:1711.00937).

        z(L) = argmin_k |L - C_k|^2

    Codes die: one that is nearest to nothing gets no gradient and no members, and stays where it is. Three
    things are done about that, each of which can be left out: the codebook begins among the encoder's vectors
    (`start`), a code that is hardly used moves to a vector of the batch (`restarts`), and the vectors are short
    (`dim`): in few dimensions more codes are near (arXiv:2110.04627).

    Args:
        codes: Number K of codes.
        dim: Size of a vector.
        learner: How the vectors learn: `EMA()`, `Gradient()` or `SimVQ()`.
        start: Where they begin: `KMeansStart()` or `RandomStart()`.
        restarts: A code that is used less than so often per batch, on average, is moved to a vector of the
            batch, drawn at random; 0 moves none. Where batches have fewer than 4 vectors for each code and
            restart, the limit is a fourth of the mean use.
        cosine: Whether vectors and codes are brought to length 1, so that the code at the smallest angle is
            the nearest.

    Attributes:
        recent: How often each code is used per batch, a running mean, `(K,)`; infinite before the first step.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range.

    Example:
        >>> from ppl_vae.codes import RandomStart
        >>> quantizer = VectorQuantizer(codes=4, dim=2, start=RandomStart())
        >>> quantizer.nearest(quantizer.embed(torch.tensor([3, 0, 1])))
        tensor([3, 0, 1])
    """

    recent: Tensor
    steps_left: Tensor

    def __init__(
        self,
        codes: int = 512,
        dim: int = 16,
        learner: CodebookLearner = EMA(),  # frozen, as the next one
        start: CodebookStart = KMeansStart(),
        restarts: float = 1.0,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        require_at_least_one(self, codes=codes, dim=dim)
        require_object(self, "learner", learner, "build", "EMA()")
        require_object(self, "start", start, "points", "KMeansStart()")
        require_numbers(self, restarts=restarts)
        require_flags(cosine=cosine)
        if restarts < 0:
            raise ValueError(f"VectorQuantizer.restarts must be at least 0, got {restarts}")
        require_room(self, "choose fewer codes, or a smaller dim", codes, dim)
        self.codes = codes
        self.dim = dim
        self.restarts = restarts
        self.cosine = cosine
        self.start = start
        self.codebook = learner.build(random_points(codes, dim))
        self._learner = learner
        self.register_buffer("recent", torch.full((codes,), math.inf))
        self.register_buffer("steps_left", torch.tensor(start.steps))
        self._starting = start.steps > 0
        self._count_uses()

    @property
    def is_starting(self) -> bool:
        """Whether it has not yet begun: until then, steps are not like those that follow, and not recorded."""
        return self._starting

    def changed_arguments(self) -> dict[str, Any]:
        """The learner with the settings that the codebook has now, for a run that is saved."""
        if not is_dataclass(self._learner) or isinstance(self._learner, type):
            return {}
        now = vars(self.codebook)
        settings = {f.name: now[f.name] for f in fields(self._learner) if f.name in now}
        return {"learner": replace(self._learner, **settings)}

    def project(self, vectors: Tensor) -> Tensor:
        """The vectors, of length 1 if angles are compared."""
        return normalize(vectors, dim=-1) if self.cosine else vectors

    def points(self) -> Tensor:
        """The K vectors, `(K, dim)`."""
        points: Tensor = self.codebook()
        return normalize(points, dim=-1) if self.cosine else points

    def nearest(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return squared_distances(vectors, self.points()).argmin(-1)

    def embed(self, z: Tensor) -> Tensor:
        return embedding(z, self.points())

    def follow(self, vectors: Tensor, z: Tensor, counts: Tensor) -> None:
        if self._starting:
            self._starting = bool(self.steps_left)  # a run that goes on may have begun before
        if self._starting:
            self._begin(vectors)
            return
        sums = vectors.new_zeros(self.codes, self.dim).index_add_(0, z, vectors)
        self.codebook.follow(counts, sums)
        mean = counts.mean()
        first = self.recent.isinf()  # without a start
        self.recent.copy_(torch.where(first, self._expected(mean), self.recent))
        self.recent.mul_(_MEMORY).add_(counts, alpha=1 - _MEMORY)
        if self.restarts:
            rare = self.recent < self._limit(mean)
            self.codebook.place(_of_first_process(picked(vectors, self.codes)), rare)
            self.recent.copy_(torch.where(rare, self._expected(mean), self.recent))

    def _limit(self, mean: Tensor) -> Tensor:
        """How often a code must be used per batch, given the mean over codes."""
        return (_SHARE * mean).clamp_max(self.restarts)

    def _expected(self, mean: Tensor) -> Tensor:
        """How often a new code is taken to be used: it has some seventy steps to find members.

        From the mean, a dead code would take longer to fall to the limit, the more vectors there are.
        """
        return 2 * self._limit(mean) if self.restarts else mean

    def _begin(self, vectors: Tensor) -> None:
        """A step of the start: the codes are vectors of this batch, and in the last one what is asked for."""
        self.steps_left.sub_(1)
        self._starting = bool(self.steps_left)
        points = (
            picked(vectors, self.codes)
            if self._starting
            else self.start.points(vectors, self.codes)
        )
        everywhere = torch.ones_like(self.recent, dtype=torch.bool)
        self.codebook.place(_of_first_process(points), everywhere)
        self.recent.copy_(self._expected(self.recent.new_tensor(len(vectors) / self.codes)))


def _of_first_process(value: Tensor) -> Tensor:
    """The value of the first process, for all of a training: each has random numbers of its own."""
    if are_several():
        value = value.contiguous()
        torch.distributed.broadcast(value, 0)
    return value
