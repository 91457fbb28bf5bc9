"""Sequences in batches of like length, so that little of a batch is filled up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.runtime import (
    described,
    digest,
    holds_sentences,
    lengths_of,
    require_count,
    require_flags,
    require_seed,
    require_sentences,
)

_TOKENS = 2048


class Buckets:
    """Sentences, or other sequences, as batches of like length, each as wide as its longest row.

    An iterable of batches, as `fit` takes it in the place of a `DataLoader`. In each epoch every row comes
    once; which rows of one length come together, and the order of the batches, are drawn again, from torch's
    global generator when the epoch begins. So does a `DataLoader`: a training that is resumed goes on with the
    same batches, and several processes read the same ones. Batches have the same sizes in all epochs.

    Rows weigh alike in a training, though a batch of long sentences has few of them: `fit` multiplies the
    gradient of the mean over n rows by n / `rows_per_batch`, so that the gradients of an epoch add up to those
    of equal rows. In batches that all have one size, that is 1.

    Whatever reads rows without training on them, such as `evaluate`, `diagnose` or `encode`, takes those of x
    in their order, as if x had been given, and so does `fit_em`. Held-out rows of `fit` are read in batches:
    what is found of them are means over all.

    Args:
        x: Sentences, whole numbers `(n, T)`: words, `END`, then `PAD` (`Vocabulary.rows`). With `lengths`, any
            sequences `(n, T, *)`.
        others: More tensors with n rows, for further arguments of the model. Those that are sentences too are
            trimmed as well, and batches are of like length in all of them. With `lengths`, those that have
            T columns too, and nothing but zeros behind each row's length, are trimmed with x: whatever their
            columns mean. `trim=False` cuts nothing.
        lengths: How many of its T steps each row has, `(n,)`, of sequences that do not say so themselves, such
            as frames. If the model takes them too, as `SubstitutionCipher` does, they are among the `others` as
            well: `Buckets(x, lengths, lengths=lengths)`.
        tokens: Most numbers in a batch, its rows times its longest sentence; 2048 unless `batch_size` is given.
            This bounds the memory. Of sequences `(n, T, *)`, a step counts as one number.
        batch_size: Most rows in a batch, instead.
        trim: Whether batches are as wide as their longest sentence. If not, all are as wide as x. That costs
            nothing with models that trim sentences themselves, as ours do, and then all batches
            have one shape, which `fit` looks at once.
        seed: Makes other orders of the same state of the generator.

    Raises:
        TypeError: x is no tensor of whole numbers, one of the others no tensor, or an option no whole number.
        ValueError: A row of x is no sentence and there are no `lengths`, or these are not from 1 to T; a row
            has more than `tokens` numbers; tensors have different numbers of rows, or none; or `tokens` and
            `batch_size` are both given.

    Example:
        >>> x = torch.tensor([[4, 1, 0, 0], [4, 5, 6, 1], [7, 1, 0, 0], [7, 8, 1, 0]])
        >>> batches = Buckets(x, tokens=8)
        >>> len(batches), sorted(tuple(batch.shape) for batch in batches)
        (2, [(2, 2), (2, 4)])
        >>> batches.draw(1).shape[0]
        1

        Frames of two numbers, with a mask that is cut with them:

        >>> frames, lengths = torch.randn(4, 5, 2), torch.tensor([5, 2, 2, 5])
        >>> mask = torch.arange(5) < lengths[:, None]
        >>> batches = Buckets(frames, mask, lengths=lengths, batch_size=2)
        >>> sorted((tuple(x.shape), tuple(there.shape)) for x, there in batches)
        [((2, 2, 2), (2, 2)), ((2, 5, 2), (2, 5))]
    """

    def __init__(
        self,
        x: Tensor,
        *others: Tensor,
        lengths: Tensor | None = None,
        tokens: int | None = None,
        batch_size: int | None = None,
        trim: bool = True,
        seed: int = 0,
    ) -> None:
        _require_rows(x, others)
        if lengths is None:
            _require_sentences(x)
        else:
            lengths = _checked_lengths(x, lengths)
        require_flags(**{"Buckets.trim": trim})
        require_seed(seed)
        if tokens is not None and batch_size is not None:
            raise ValueError(
                "Buckets takes tokens, most numbers in a batch, or batch_size, most rows; both were given"
            )
        if batch_size is None:
            tokens = _TOKENS if tokens is None else tokens
            require_count("tokens", tokens, 1)
        else:
            require_count("batch_size", batch_size, 1)
        self._tensors = (x, *others)
        self._seed, self._trim = seed, trim
        self._given = () if lengths is None else (lengths,)
        self._lengths = _lengths_of_all(self._tensors, lengths)
        known = [of for of in self._lengths if of is not None]
        longest = torch.stack(known).amax(0)
        self._groups = _Groups.of(torch.stack([longest, *known], 1))
        if tokens is not None and longest.max() > tokens:
            row = int(longest.argmax())
            raise ValueError(
                f"row {row}, counted from 0, has {int(longest[row])} "
                f"{'numbers' if lengths is None else 'steps'}, and a whole batch at most tokens={tokens}: give "
                "more tokens, or cut long rows"
            )
        self._longest, self._tokens = longest, tokens
        self._ends = _ends(longest[self._groups.order], tokens, batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._ends)

    @property
    def rows_per_batch(self) -> float:
        """The mean number of rows in a batch, by which `fit` weighs the gradient of each."""
        return len(self._longest) / len(self)

    @property
    def rows_in_order(self) -> Tensor | tuple[Tensor, ...]:
        """The rows as they were given, `(n, T)`; with `others`, all tensors."""
        return self._tensors if len(self._tensors) > 1 else self._tensors[0]

    def __iter__(self) -> Iterator[Any]:
        drawn = int(torch.empty((), dtype=torch.int64).random_())
        generator = torch.Generator().manual_seed((drawn + self._seed) % 2**63)
        order = self._groups.shuffled(generator)
        starts = [0, *self._ends]
        for number in torch.randperm(len(self), generator=generator).tolist():
            yield self._batch(order[starts[number] : self._ends[number]])

    def __repr__(self) -> str:
        told = f"<{len(self)} batches of {len(self._groups.order)} rows of like length"
        return f"{told}, {digest((*self._tensors, *self._given))[:10]}>"

    def draw(self, n: int) -> Any:
        """Rows of like length, drawn from torch's global generator with equal probability.

        With N rows in all and n <= N, each of them comes with probability n / N, and at most once. Proof: the
        rows are sorted by length, and n neighbors are taken, the first of which is any row with equal
        probability; behind the longest come the shortest again. So n of the N choices contain a given place,
        and a group of m rows of one length has m n / N places in a draw on average. If a draw has k of its m
        places, it takes k of its rows, each set of them with equal probability. By this symmetry, each row of
        the group comes with probability (m n / N) / m = n / N.

        If n > N, all rows come n // N times, and the remainder is drawn like this.

        If these n rows would be more than `tokens` numbers, it is fewer of them, any with equal probability.
        Then rows do not come equally often, but the mean of anything over the rows of a draw is still that over
        all rows on average, as each row is in n of the N windows.

        Args:
            n: How many.

        Returns:
            `(n, T)`, as wide as the longest of them, if batches are trimmed; with `others`, all tensors.

        Raises:
            TypeError: `n` is no whole number.
            ValueError: It is below 1.
        """
        require_count("n", n, 1)
        rows = len(self._groups.order)
        start = int(torch.randint(rows, ()))
        chosen = [self._groups.order] * (n // rows)
        if n % rows:
            chosen.append(self._groups.window(start, n % rows))
        drawn = torch.cat(chosen)
        most = self._tokens // int(self._longest[drawn].max()) if self._tokens else n
        if most < n:
            drawn = drawn[torch.randperm(n)[: max(1, most)].sort().values]
        return self._batch(drawn)

    def _batch(self, chosen: Tensor) -> Tensor | tuple[Tensor, ...]:
        batch = tuple(
            rows[chosen.to(rows.device)]
            if lengths is None or not self._trim
            else rows[chosen.to(rows.device), : int(lengths[chosen].max())]
            for rows, lengths in zip(self._tensors, self._lengths, strict=True)
        )
        return batch[0] if len(batch) == 1 else batch


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows sorted by length; those of one length are a group, in which all orders are as good.

    Attributes:
        order: The rows, sorted, `(N,)`.
        group: The group of each row, `(N,)`.
        starts: Where each group begins in `order`, and the end, `(G + 1,)`.
    """

    order: Tensor
    group: Tensor
    starts: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> _Groups:
        """The groups of rows with lengths `(N, k)`, sorted by the first of these, then by the next."""
        _, group = lengths.unique(dim=0, return_inverse=True)
        ends = group.bincount().cumsum(0)
        return cls(group.argsort(stable=True), group, torch.cat([ends.new_zeros(1), ends]))

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """The rows, sorted, with each group in a random order."""
        order = torch.randperm(len(self.order), generator=generator)
        return order[self.group[order].argsort(stable=True)]

    def window(self, start: int, n: int) -> Tensor:
        """The n rows from a place on; of a group of which they are a part, any of its rows."""
        places = (start + torch.arange(n)) % len(self.order)
        group = self.group[self.order[places]]
        taken = group.bincount(minlength=len(self.starts) - 1)
        sizes = self.starts.diff()
        whole = taken == sizes
        rows = [self.order[places[whole[group]]]]
        for g in ((taken > 0) & ~whole).nonzero()[:, 0].tolist():
            own = self.order[self.starts[g] : self.starts[g + 1]]
            rows.append(own[torch.randperm(len(own))[: taken[g]]])
        return torch.cat(rows)


def _ends(lengths: Tensor, tokens: int | None, batch_size: int | None) -> list[int]:
    """Where the batches of sorted rows end. They are filled from the longest rows on, so that few are short.

    No batch has a single row where two could share it: many programs do not run on one row alone.
    """
    ends, end = [], len(lengths)
    while end > 0:
        ends.append(end)
        most = batch_size if tokens is None else tokens // int(lengths[end - 1])
        assert most is not None
        rows = min(most, end)
        end -= rows - 1 if end - rows == 1 and rows > 2 else rows
    return ends[::-1]


def _lengths_of_all(
    tensors: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[Tensor | None, ...]:
    """How many steps the rows of each tensor have, on the CPU; None for those that are not trimmed."""
    if lengths is None:
        return tuple(lengths_of(rows).cpu() if holds_sentences(rows) else None for rows in tensors)
    steps = tensors[0].shape[1]
    lengths = lengths.cpu()
    behind = torch.arange(steps) >= lengths[:, None]

    def is_cut(rows: Tensor) -> bool:
        if rows.dim() < 2 or rows.shape[1] != steps:
            return False
        return not bool(rows[behind.to(rows.device)].any())

    return (lengths, *(lengths if is_cut(rows) else None for rows in tensors[1:]))


def _require_rows(x: Tensor, others: tuple[Tensor, ...]) -> None:
    for name, rows in [("x", x), *((f"tensor {i}", rows) for i, rows in enumerate(others, 1))]:
        if not isinstance(rows, Tensor):
            raise TypeError(f"Buckets: {name} must be a tensor, got {described(rows)}")
        if rows.dim() == 0:
            raise ValueError(f"Buckets: {name} must have rows, got a single number")
        if len(rows) != len(x):
            raise ValueError(
                f"Buckets: {name} must have as many rows as x: it has the shape {tuple(rows.shape)}, and x "
                f"{tuple(x.shape)}"
            )
    if len(x) == 0:
        raise ValueError(f"Buckets: x must have at least one row, got the shape {tuple(x.shape)}")


def _require_sentences(x: Tensor) -> None:
    try:
        require_sentences("Buckets: x", x)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error}. For other sequences, give lengths=, how many steps each row has"
        ) from None


def _checked_lengths(x: Tensor, lengths: Tensor) -> Tensor:
    if not isinstance(lengths, Tensor):
        raise TypeError(f"Buckets.lengths must be a tensor, got {described(lengths)}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"Buckets.lengths must hold whole numbers, got {lengths.dtype}")
    if x.dim() < 2:
        raise ValueError(f"Buckets: x must have the shape (n, T, *), got {tuple(x.shape)}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(
            f"Buckets.lengths must have the shape {tuple(x.shape[:1])}, one for each row of x, got "
            f"{tuple(lengths.shape)}"
        )
    lengths = lengths.long()  # small types do not hold T
    wrong = ((lengths < 1) | (lengths > x.shape[1])).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Buckets.lengths must be from 1 to the {x.shape[1]} steps of x; row {row}, counted from 0, has "
            f"{int(lengths[row])}"
        )
    return lengths
