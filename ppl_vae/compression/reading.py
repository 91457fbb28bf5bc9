"""The rows while they are coded: sites that observe them are filled in one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.pairs import PairError


class Observed(NamedTuple):
    """What a site observes.

    Attributes:
        known: Its value, where the rows are known; else None.
        fill: Puts a value into the rows, and gives it as the site is to have it.
    """

    known: Tensor | None
    fill: Callable[[Tensor], Tensor]


class Reading:
    """Rows that programs are called with while they are coded: zeros at first, in place of what is not coded
    yet.

    A site observes a part of an argument (`x`, `x[:, t]`, `x.flatten(1)`), or a copy of all of one in another
    dtype. Its value is put where it belongs before the program goes on, so that what the program computes of
    the rows is the same for who writes and who reads.

    Args:
        arguments: What the programs are called with, `(n, ...)` each, contiguous: of the rows zeros, of what
            the receiver knows the values.
        dtypes: The rows' own dtypes: values are rounded to them.
        truth: The rows, in the same form; None where they are read.
        context: Which arguments the receiver knows.
        orders: For sites whose values depend on those before them, the order, once it has been found.
    """

    def __init__(
        self,
        arguments: Sequence[Tensor],
        dtypes: Sequence[torch.dtype],
        truth: Sequence[Tensor] | None,
        context: Sequence[bool],
        orders: dict[str, tuple[Tensor, list[int]]],
    ) -> None:
        self.arguments, self._dtypes, self._truth = arguments, dtypes, truth
        self.orders = orders
        self._context = context
        self._copied: set[int] = set()

    @property
    def dtype(self) -> torch.dtype:
        """That of the first argument that is coded."""
        return self.arguments[list(self._context).index(False)].dtype

    def target(self, name: str, value: Tensor) -> Observed:
        """Where a site's value comes from and goes to.

        Args:
            name: The site.
            value: What the program has observed there.

        Raises:
            PairError: It is no part of the rows, nor a copy.
        """
        place = source_of(value, self.arguments, self._context, self._copied)
        if place is None:
            raise PairError(
                f"site '{name}' observes what is computed from the rows, and they could not be found from it "
                "again: let it observe the rows themselves, or a part of them"
            )
        is_view, i = place
        if not is_view:
            self._copied.add(i)
        argument = self.arguments[i]
        known = None
        if self._truth is not None:
            truth = self._truth[i]
            known = _same_part(truth, value) if is_view else truth.reshape(value.shape)

        def fill(found: Tensor) -> Tensor:
            rounded = found.to(self._dtypes[i])
            if is_view:
                value.copy_(rounded.reshape(value.shape))
                return value
            argument.copy_(rounded.reshape(argument.shape))
            return rounded.to(value.dtype).reshape(value.shape)

        return Observed(known, fill)


def source_of(
    value: Tensor, arguments: Sequence[Tensor], context: Sequence[bool], used: set[int]
) -> tuple[bool, int] | None:
    """Whether a value is a part of an argument, or as large as one, and of which; None if it is neither."""
    for i, argument in enumerate(arguments):
        same = argument.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        if same and argument.dtype == value.dtype:
            return None if context[i] else (True, i)
    for i, argument in enumerate(arguments):
        if not context[i] and i not in used and argument.numel() == value.numel():
            return False, i
    return None


def covered(arguments: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Which numbers of some arguments sites observe: for each argument, a mask of its shape."""
    masks = [torch.zeros(each.shape, dtype=torch.bool) for each in arguments]
    used: set[int] = set()
    for value in values:
        place = source_of(value, arguments, [False] * len(arguments), used)
        if place is None:
            continue
        is_view, i = place
        if is_view:
            _same_part(masks[i], value).fill_(True)
        else:
            used.add(i)
            masks[i].fill_(True)
    return masks


def _same_part(tensor: Tensor, part: Tensor) -> Tensor:
    """The part of a contiguous tensor that lies where another part lies in its own."""
    return tensor.as_strided(part.size(), part.stride(), part.storage_offset())
