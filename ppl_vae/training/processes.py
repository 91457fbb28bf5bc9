"""The processes of a training: what they send to each other so that all of them take the same steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ppl_vae.pairs import Pair, first_line
from ppl_vae.training.errors import DivergenceError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


class Processes:
    """The processes of one training, as one of them sees them; often it is alone.

    All processes must call each method that sends something: one that is left out would make the others
    wait forever. All raise a `ConnectionError` if another process has ended.

    Args:
        fabric: A launched Lightning Fabric.

    Attributes:
        device: Where this process computes.
        rank: Its number, from 0.
        count: How many processes there are.
        is_first: Whether it is the one that writes files and shows messages.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.count: int = fabric.world_size
        self.is_first: bool = fabric.is_global_zero

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Says what it means if a message to or from the other processes fails.

        Raises:
            ConnectionError: Another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            why = first_line(error).split(". ")[0]
            raise ConnectionError(
                f"process {self.rank} of {self.count} (counted from 0) has lost the others, so this training "
                "cannot go on: one was killed, or has stopped with an error of its own. Start all of them "
                f"again; a run with checkpoints can be resumed. What happened: {why}"
            ) from error

    def from_first(self, value: T) -> T:
        """The first process's value, for all of them."""
        with self._together():
            return self.fabric.broadcast(value)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        everyone: list[Any] = [None] * self.count
        with self._together():
            torch.distributed.all_gather_object(everyone, value)
        return everyone

    def share_weights(self, pair: Pair) -> None:
        """Every process starts from the first one's weights."""
        if self.count > 1:
            first = self.from_first({n: t.detach().cpu() for n, t in pair.state().items()})
            pair.load_state({n: t.to(self.device) for n, t in first.items()})

    def share_buffers(self, pair: Pair) -> None:
        """Batch statistics, which each process collects from its own rows, become the first one's."""
        if self.count > 1:
            with self._together():
                for module in pair.modules().values():
                    for buffer in module.buffers():
                        torch.distributed.broadcast(buffer, 0)

    def sum_gradients(
        self, leaves: Sequence[Tensor], diverged: DivergenceError | None, checkpoint_due: bool
    ) -> tuple[DivergenceError | None, bool]:
        """Sums the gradients of all processes; each has weighted its own by its share of the rows.

        Two flags are sent along, which saves separate messages: whether a process has diverged, so
        that all of them stop, and whether the first one's checkpoint is due, in which all take part.

        Returns:
            The error of a process that has diverged, and whether the checkpoint is due.
        """
        if self.count == 1:
            return diverged, checkpoint_due
        parts = [
            torch.zeros_like(leaf).flatten() if leaf.grad is None else leaf.grad.flatten()
            for leaf in leaves
        ]
        flags = parts[0].new_tensor([diverged is not None, checkpoint_due and self.is_first])
        flat = self._sum(torch.cat([*parts, flags]))
        start = 0
        for leaf in leaves:
            leaf.grad = flat[start : start + leaf.numel()].view_as(leaf).to(leaf.dtype)
            start += leaf.numel()
        if flat[-2] > 0:
            mine = None if diverged is None else (str(diverged), diverged.step, diverged.site)
            found = next(error for error in self.gathered(mine) if error is not None)
            diverged = DivergenceError(*found)
        return diverged, bool(flat[-1] > 0)

    def summed(self, numbers: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """The sums of these numbers over all processes; a number that one does not have counts as 0."""
        if self.count == 1:
            return dict(numbers)
        mine = torch.tensor([numbers.get(name, 0.0) for name in names], dtype=torch.float64)
        total = self._sum(mine.to(self.device))
        return dict(zip(names, total.tolist(), strict=True))

    def _sum(self, mine: Tensor) -> Tensor:
        with self._together():
            found = self.fabric.all_reduce(mine, reduce_op="sum")
        assert isinstance(found, Tensor)
        return found
