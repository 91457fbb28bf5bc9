"""A prior of codes that is a small transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.priors.ordered_codes import OrderedCodes, depth_of, require_share
from ppl_vae.networks import AttentionBlock, Context, require_at_least_one, require_room


@dataclass(frozen=True)
class TransformerPrior(CodePrior):
    """p(z) = prod_i p(z_i | z_1, ..., z_{i-1}) of codes in a row or on a grid, by causal self-attention.

    The second phase of a VQ-VAE, as with `PixelCNNPrior`: `refit_prior(model, guide, x, TransformerPrior())`.
    Codes are in the order of the flattened z: on a grid row by row, and the several codes of a residual
    quantizer at one position right after each other. Step i reads a learned vector of z_{i-1}, of its position,
    and of c if there is a context; of codes of coarser grids (`CodesAbove`, in a `VQVAE2`) it reads what they
    tell its position. The layers normalize what they read (pre-norm), and add it up:

        x <- x + attention(norm(x)),    x <- x + MLP(norm(x))

    ("Attention Is All You Need", arXiv:1706.03762; "On Layer Normalization in the Transformer Architecture",
    arXiv:2002.04745). Each code sees all codes before it, however far away, where a `PixelCNNPrior` knows what
    is near: that one needs fewer rows.

    A density takes one pass. A draw keeps the keys and values of the codes before, so that each code takes one
    step, whose attention grows with their number alone.

    Args:
        width: Size of the vectors; a multiple of `heads`.
        layers: Number of layers.
        heads: Heads of the attention.
        dropout: Share of the numbers that are set to 0 in training mode, in the attention and in what layers
            add. In evaluation mode, and in draws, there is none.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range; or, of `build_codes`, z has more than three dimensions.

    Example:
        >>> prior = TransformerPrior(width=16, layers=2, heads=2).build_codes((4, 4), codes=16)
        >>> z = prior().sample((5,))
        >>> z.shape, prior().log_prob(z).shape
        (torch.Size([5, 4, 4]), torch.Size([5]))
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_at_least_one(self, width=self.width, layers=self.layers, heads=self.heads)
        require_share(self, self.dropout)
        if self.width % self.heads:
            raise ValueError(
                f"TransformerPrior.width must be a multiple of heads = {self.heads}, got {self.width}"
            )

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Context | None = None
    ) -> nn.Module:
        """See `CodePrior.build_codes`."""
        depth = depth_of("TransformerPrior", positions)
        advice = "choose a smaller TransformerPrior.width"
        require_room(self, advice, max(depth * codes, 4 * self.width), self.width)
        return _Transformer(self, positions, codes, context)


class _Transformer(OrderedCodes):
    offsets: Tensor

    def __init__(
        self, of: TransformerPrior, positions: Sequence[int], codes: int, context: Context | None
    ) -> None:
        super().__init__("TransformerPrior", positions, codes, context, of.width)
        depth = self.depth
        self.length = math.prod(positions)
        self.dropout = of.dropout
        width, scale = of.width, of.width**-0.5
        # The codes of one position are of different codebooks: each has a table and a head of its own.
        offsets = codes * (torch.arange(self.length) % depth)
        self.register_buffer("offsets", offsets, persistent=False)
        self.embedding = nn.Embedding(depth * codes, width)
        nn.init.normal_(self.embedding.weight, std=scale)
        self.start = nn.Parameter(scale * torch.randn(width))
        self.place = nn.Parameter(scale * torch.randn(self.length, width))
        given = self.length_given
        self.given = nn.Linear(given, width, bias=False) if given else None
        self.blocks = nn.ModuleList(
            AttentionBlock(width, of.heads, of.dropout, of.dropout) for _ in range(of.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Parameter(0.1 * scale * torch.randn(depth, width, codes))
        self.bias = nn.Parameter(torch.zeros(depth, codes))

    def logits(self, z: Tensor, given: Tensor | None) -> Tensor:
        n = len(z)
        read = self.embedding(z.reshape(n, -1)[:, :-1] + self.offsets[:-1])
        x = torch.cat([self.start.expand(n, 1, -1), read], 1) + self.place
        if (told := self._told(given)) is not None:
            x = x + told
        x = dropout(x, self.dropout, self.training)
        for block in self._blocks():
            x = block(x)
        of_depth = self.norm(x).unflatten(1, (-1, self.depth))
        logits: Tensor = torch.einsum("nsdw,dwk->nsdk", of_depth, self.head) + self.bias
        return logits.reshape(n, *self.positions, self.codes)

    @torch.no_grad()
    def draw(self, n: int, given: Tensor | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
        blocks = self._blocks()
        told = self._told(given)
        past = [block.past(n, self.length) for block in blocks]
        z = torch.zeros(n, self.length, dtype=torch.long, device=self.start.device)
        for i in range(self.length):
            read = (
                self.embedding(z[:, i - 1] + self.offsets[i - 1]) if i else self.start.expand(n, -1)
            )
            x = read + self.place[i]
            if told is not None:
                x = x + told[:, i]
            for block, of_block in zip(blocks, past, strict=True):
                x = block.step(x, of_block, i)
            d = i % self.depth
            z[:, i] = choose(self.norm(x) @ self.head[d] + self.bias[d])
        return z.reshape(n, *self.positions)

    def _told(self, given: Tensor | None) -> Tensor | None:
        """What a context tells each step, `(n, length, width)`; None without one."""
        above, given = self.told(given)
        if above is not None:
            return above.flatten(2).transpose(1, 2).repeat_interleave(self.depth, 1)
        if self.given is None:
            return None
        vectors: Tensor = self.given(given)
        return vectors.unsqueeze(1).expand(-1, self.length, -1)

    def _blocks(self) -> list[AttentionBlock]:
        return [block for block in self.blocks if isinstance(block, AttentionBlock)]
