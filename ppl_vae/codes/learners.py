"""How a codebook learns: by gradients, by running means, or through a linear map."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.networks import require_numbers, require_positive


class CodebookLearner(ABC):
    """How the vectors of a codebook change in training; what `VectorQuantizer` is given as `learner`."""

    @abstractmethod
    def build(self, points: Tensor) -> Codebook:
        """A codebook that begins with these points, `(K, dim)`."""


class Codebook(nn.Module, ABC):
    """K vectors that learn."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The vectors, `(K, dim)`: a copy, as they may change in place before a gradient is taken."""

    @abstractmethod
    def place(self, points: Tensor, which: Tensor) -> None:
        """Puts the vectors where `which`, `(K,)`, is True to these points, `(K, dim)`: without gradient."""

    def follow(self, counts: Tensor, sums: Tensor) -> None:
        """Moves after a step in which each code had so many members, `(K,)`, of this sum, `(K, dim)`."""


@dataclass(frozen=True)
class EMA(CodebookLearner):
    """Each vector is the mean of the vectors that were assigned to it, the older ones with less weight.

    With n_k members of sum s_k in a batch,

        N_k <- decay N_k + (1 - decay) n_k,    S_k <- decay S_k + (1 - decay) s_k,    C_k = S_k / N_k

    ("Neural Discrete Representation Learning", arXiv:1711.00937, appendix A.1): online k-means, and one step
    of Lloyd's algorithm where the decay is 0 and the batch is all data. S and N begin with S_k = C_k, N_k = 1,
    so that a code without members stays where it is. No loss and no step size enters: the decay is what says
    how fast the codebook moves.

    Args:
        decay: Weight of what was, from 0 to below 1.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of its range.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require_numbers(self, decay=self.decay)
        if not 0 <= self.decay < 1:
            raise ValueError(f"EMA.decay must be at least 0 and less than 1, got {self.decay}")

    def build(self, points: Tensor) -> Codebook:
        """See `CodebookLearner.build`."""
        return _RunningMeans(points, self.decay)


class _RunningMeans(Codebook):
    points: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, points: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("points", points.clone())
        self.register_buffer("counts", points.new_ones(len(points)))
        self.register_buffer("sums", points.clone())

    def forward(self) -> Tensor:
        return self.points.clone()

    def place(self, points: Tensor, which: Tensor) -> None:
        column = which.unsqueeze(1)
        self.points.copy_(torch.where(column, points, self.points))
        self.counts.copy_(torch.where(which, torch.ones_like(self.counts), self.counts))
        self.sums.copy_(torch.where(column, points, self.sums))

    def follow(self, counts: Tensor, sums: Tensor) -> None:
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # A code that nobody has used for thousands of steps would be 0 / 0.
        there = self.counts.unsqueeze(1) > torch.finfo(self.counts.dtype).tiny ** 0.5
        means = self.sums / self.counts.unsqueeze(1)
        self.points.copy_(torch.where(there, means, self.points))


@dataclass(frozen=True)
class Gradient(CodebookLearner):
    """Each vector is a parameter, with the gradient of the codebook's term of the loss, sum |sg(L) - C_k|^2.

    That gradient is 2 sum (C_k - L) over the members of a code, and vanishes where C_k is their mean. A weight
    of the term would do nothing: Adam's steps are the same for any multiple of a gradient. What does something
    is the codebook's own step size: `fit` makes it a group of parameters of its own, in any optimizer.

    Args:
        rate: The codebook's learning rate, in units of that of `fit`.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, rate=self.rate)

    def build(self, points: Tensor) -> Codebook:
        """See `CodebookLearner.build`."""
        return _Parameters(points, self.rate)


class _Parameters(Codebook):
    def __init__(self, points: Tensor, rate: float) -> None:
        super().__init__()
        self.points = nn.Parameter(points.clone())
        self.rate = rate

    def learning_rates(self) -> list[tuple[Tensor, float]]:
        """Parameters with a learning rate of their own, in units of that of the others."""
        return [(self.points, self.rate)]

    def forward(self) -> Tensor:
        return self.points.clone()

    def place(self, points: Tensor, which: Tensor) -> None:
        self.points.copy_(torch.where(which.unsqueeze(1), points, self.points))


@dataclass(frozen=True)
class SimVQ(CodebookLearner):
    """Fixed vectors, seen through a linear map that learns: C = B W, so that all codes move at once.

    A gradient for one code moves the whole space of codes, also those that nobody uses ("Addressing
    Representation Collapse in Vector Quantized Models with One Linear Layer", arXiv:2411.02038). The gradient
    is that of `Gradient`, taken by W.

    Args:
        rate: The learning rate of W, in units of that of `fit`.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, rate=self.rate)

    def build(self, points: Tensor) -> Codebook:
        """See `CodebookLearner.build`."""
        return _Mapped(points, self.rate)


class _Mapped(Codebook):
    basis: Tensor

    def __init__(self, points: Tensor, rate: float) -> None:
        super().__init__()
        dim = points.shape[1]
        self.rate = rate
        self.register_buffer("basis", points.clone())
        self.map = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(dim))

    def learning_rates(self) -> list[tuple[Tensor, float]]:
        """Parameters with a learning rate of their own, in units of that of the others."""
        return [(self.map.weight, self.rate)]

    def forward(self) -> Tensor:
        mapped: Tensor = self.map(self.basis.clone())
        return mapped

    def place(self, points: Tensor, which: Tensor) -> None:
        # C = B W^T: the basis vectors whose images are the points.
        basis = points.double() @ torch.linalg.pinv(self.map.weight.double()).mT
        self.basis.copy_(torch.where(which.unsqueeze(1), basis.to(self.basis), self.basis))


def random_points(codes: int, dim: int) -> Tensor:
    """Normal draws with the standard deviation 1 / sqrt(dim): of length 1, about."""
    return torch.randn(codes, dim) / math.sqrt(dim)
