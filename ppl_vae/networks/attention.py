"""Layers of self-attention, which may also read something else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention


@dataclass(frozen=True)
class Packed:
    """Rows of unlike lengths, of which only the steps that are there are computed.

    Attributes:
        there: Which steps are there, `(n, length)`.
        places: Where these m steps are among all n * length, `(m,)`.

    Example:
        >>> packed = Packed.of(torch.tensor([[True, True], [True, False]]))
        >>> steps = packed.steps(torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]]))
        >>> steps.tolist(), packed.rows(steps).tolist()
        ([[1.0], [2.0], [3.0]], [[[1.0], [2.0]], [[3.0], [0.0]]])
    """

    there: Tensor
    places: Tensor

    @classmethod
    def of(cls, there: Tensor) -> Packed:
        """By the steps that are there, `(n, length)`."""
        return cls(there, there.flatten().nonzero().squeeze(-1))

    @property
    def _is_full(self) -> bool:
        return len(self.places) == self.there.numel()

    def steps(self, rows: Tensor) -> Tensor:
        """Rows `(n, length, *)` as steps `(m, *)`."""
        flat = rows.flatten(0, 1)
        return flat if self._is_full else flat.index_select(0, self.places)

    def rows(self, steps: Tensor) -> Tensor:
        """Steps as rows, with zeros where nothing is there."""
        if not self._is_full:
            flat = steps.new_zeros(self.there.numel(), *steps.shape[1:])
            steps = flat.index_copy(0, self.places, steps)
        rows: Tensor = steps.unflatten(0, self.there.shape)
        return rows


class AttentionBlock(nn.Module):
    """Self-attention, what it reads of a memory, and an MLP of each step by itself; each adds to what it reads.

    The parts normalize what they read (pre-norm):

        x <- x + attention(norm(x)),    x <- x + reading(norm(x), memory),    x <- x + MLP(norm(x))

    ("Attention Is All You Need", arXiv:1706.03762; "On Layer Normalization in the Transformer Architecture",
    arXiv:2002.04745). `width` is the size of the vectors, a multiple of the number of `heads`.

    Args:
        width: Size of the vectors.
        heads: Heads of the attention.
        dropout: Share of the numbers that are set to 0 in training mode, in what is added.
        attention_dropout: The same of the weights of the attention; it makes it slow.
        reads: Whether there is a memory.

    Example:
        >>> block = AttentionBlock(8, heads=2, dropout=0.0, reads=True)
        >>> memory = block.remembered(torch.randn(3, 5, 8))
        >>> block(torch.randn(3, 4, 8), memory=memory).shape
        torch.Size([3, 4, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        attention_dropout: float = 0.0,
        reads: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        if reads:
            self.before_reading = nn.LayerNorm(width)
            self.queries = nn.Linear(width, width)
            self.keys_values = nn.Linear(width, 2 * width)
            self.read = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x: Tensor,
        *,
        causal: bool = True,
        seen: Tensor | None = None,
        memory: Tensor | None = None,
        there: Tensor | None = None,
        hides: bool | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        """All steps at once.

        Args:
            x: `(n, length, width)`; if they are packed, `(m, width)`.
            causal: Whether each step sees itself and those before it alone.
            seen: Which steps are seen, `(n, 1, 1, length)`, if not causal; None for all.
            memory: What is read: `remembered` of it.
            there: Which of its steps are there, `(n, 1, 1, steps)`; None for all.
            hides: Whether there is dropout; None in training mode.
            packed: Which steps x holds; None for all of all rows.

        Returns:
            As x.
        """
        hides = self.training if hides is None else hides
        query, key, value = self._of_heads(x, packed)
        hide = self.attention_dropout if hides else 0.0
        found = scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=hide, is_causal=causal
        )
        return self._added(x, found, memory, there, hides, packed)

    def past(self, n: int, length: int) -> Tensor:
        """Room for the keys and values of all steps, `(2, n, heads, length, width / heads)`."""
        weight = self.attended.weight
        return weight.new_zeros(2, n, self.heads, length, len(weight) // self.heads)

    def step(
        self,
        x: Tensor,
        past: Tensor,
        i: int,
        memory: Tensor | None = None,
        there: Tensor | None = None,
    ) -> Tensor:
        """Step i alone, `(n, width)`, from the keys and values of those before, to which it adds its own."""
        x = x.unsqueeze(1)
        query, key, value = self._of_heads(x)
        past[0, :, :, i], past[1, :, :, i] = key[:, :, 0], value[:, :, 0]
        keys, values = past[..., : i + 1, :]
        found = scaled_dot_product_attention(query, keys, values)
        return self._added(x, found, memory, there, False).squeeze(1)

    def remembered(self, states: Tensor, packed: Packed | None = None) -> Tensor:
        """Keys and values of what is read, `(n, steps, width)`: `(2, n, heads, steps, width / heads)`."""
        pair = self.keys_values(states).chunk(2, -1)
        return torch.stack([self._by_head(of, packed) for of in pair])

    def _by_head(self, of: Tensor, packed: Packed | None) -> Tensor:
        of = of if packed is None else packed.rows(of)
        found: Tensor = of.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return found

    def _of_heads(self, x: Tensor, packed: Packed | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `(n, heads, length, width / heads)`."""
        query, key, value = self.queries_keys_values(self.before_attention(x)).chunk(3, -1)
        return (
            self._by_head(query, packed),
            self._by_head(key, packed),
            self._by_head(value, packed),
        )

    def _added(
        self,
        x: Tensor,
        found: Tensor,
        memory: Tensor | None,
        there: Tensor | None,
        hides: bool,
        packed: Packed | None = None,
    ) -> Tensor:
        def of_steps(found: Tensor) -> Tensor:
            rows = found.transpose(1, 2).flatten(2)
            return rows if packed is None else packed.steps(rows)

        x = x + dropout(self.attended(of_steps(found)), self.dropout, hides)
        if memory is not None:
            query = self._by_head(self.queries(self.before_reading(x)), packed)
            hide = self.attention_dropout if hides else 0.0
            keys, values = memory
            found = scaled_dot_product_attention(
                query, keys, values, attn_mask=there, dropout_p=hide
            )
            x = x + dropout(self.read(of_steps(found)), self.dropout, hides)
        added: Tensor = x + dropout(self.mlp(self.before_mlp(x)), self.dropout, hides)
        return added
