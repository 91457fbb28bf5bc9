"""Several codes for one vector, each for what those before it have left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppl_vae.codes.base import Quantizer
from ppl_vae.codes.learners import EMA, CodebookLearner
from ppl_vae.codes.starts import CodebookStart, KMeansStart
from ppl_vae.codes.vector import VectorQuantizer
from ppl_vae.networks import require_at_least, require_at_least_one


class ResidualQuantizer(Quantizer):
    """A vector as the sum of `depth` codes: z_d is the code nearest to L - C^1_{z_1} - ... - C^{d-1}_{z_{d-1}}.

    K^depth sums from `depth` codebooks of K vectors ("Autoregressive Image Generation using Residual
    Quantization", arXiv:2203.01941; "SoundStream", arXiv:2107.03312). The choice is greedy: another sum may be
    nearer.

    Args:
        codes: Number K of codes in each codebook.
        dim: Size of a vector.
        depth: Number of codebooks, 2 or more.
        learner: As for `VectorQuantizer`; so are the others.
        start: Where the vectors begin.
        restarts: Uses per batch below which a code is moved.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range.

    Example:
        >>> quantizer = ResidualQuantizer(codes=4, dim=2, depth=3)
        >>> quantizer.embed(quantizer.nearest(torch.zeros(5, 2))).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        codes: int = 256,
        dim: int = 16,
        depth: int = 2,
        learner: CodebookLearner = EMA(),  # frozen, as the next one
        start: CodebookStart = KMeansStart(),
        restarts: float = 1.0,
    ) -> None:
        super().__init__()
        require_at_least_one(self, codes=codes, dim=dim)
        require_at_least(self, 2, depth=depth)
        self.codes = codes
        self.dim = dim
        self.depth = depth
        self.levels = nn.ModuleList(
            VectorQuantizer(codes, dim, learner, start, restarts) for _ in range(depth)
        )
        for i, level in enumerate(self._levels()):
            # Each begins a step after the one before, and so sees what that one leaves.
            level.steps_left += i * (start.steps > 0)

    def nearest(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            found = []
            for level in self._levels():
                found.append(level.nearest(vectors))
                vectors = vectors - level.embed(found[-1])
            return torch.stack(found, -1)

    def embed(self, z: Tensor) -> Tensor:
        parts = [
            level.embed(code) for level, code in zip(self._levels(), z.unbind(-1), strict=True)
        ]
        return torch.stack(parts).sum(0)

    def gather(self, vectors: Tensor, z: Tensor) -> None:
        for level, code in zip(self._levels(), z.unbind(-1), strict=True):
            level.gather(vectors, code)
            with torch.no_grad():
                vectors = vectors - level.embed(code)

    def learn(self) -> None:
        for level in self._levels():
            level.learn()

    def learn_together(self) -> None:
        """Nothing: its codebooks are quantizers themselves."""

    def usage(self) -> Tensor:
        """How often each code of each codebook was used since `reset_usage`, `(depth * K,)`."""
        return torch.cat([level.uses for level in self._levels()])

    def reset_usage(self) -> None:
        for level in self._levels():
            level.reset_usage()

    def _levels(self) -> list[VectorQuantizer]:
        return [level for level in self.levels if isinstance(level, VectorQuantizer)]
