"""The processes of a training: what they send to each other so that all of them take the same steps."""

from __future__ import annotations

import pickle
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ppl_vae.pairs import Pair, first_line, hook_of

if TYPE_CHECKING:
    from types import FrameType

    from lightning_fabric import Fabric

T = TypeVar("T")


class Processes:
    """The processes of one training, as one of them sees them; often it is alone.

    All processes must call each method that sends something. Before each message they meet: a process that has
    an error of its own says so there, and all of them end with that error. All raise a `ConnectionError` if
    another process is gone.

    Args:
        fabric: A launched Lightning Fabric.

    Attributes:
        device: Where this process computes.
        rank: Its number, from 0.
        count: How many processes there are.
        is_first: Whether it is the one that writes files and shows messages.

    Example:
        >>> from ppl_vae.runtime import make_fabric
        >>> processes = Processes(make_fabric("cpu"))
        >>> with processes.ending_together():
        ...     processes.from_first("alone"), processes.count
        ('alone', 1)
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.count: int = fabric.world_size
        self.is_first: bool = fabric.is_global_zero
        self._ended = False

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """An error that ends the block in one process ends it in all of them.

        All processes must enter it. They wait for each other at its end, so that an error after the last
        message also reaches all.

        Raises:
            Exception: That of another process; a note says which one it was.
            ConnectionError: Another process is gone.
        """
        if self.count == 1:
            yield
            return
        self._ended = False
        try:
            yield
            with _interrupts_later():
                self._meet("at the end")
                self._ended = True
        except BaseException as error:
            if not self._ended:
                with suppress(ConnectionError), _interrupts_later():
                    self._meet("", error)
            raise

    def _meet(self, where: str, error: BaseException | None = None) -> None:
        """Waits for the other processes; goes on if all of them are at the same message.

        Args:
            where: The message that comes next, in words.
            error: Why this process ends.

        Raises:
            Exception: That of another process, unless this one ends by itself.
            RuntimeError: The processes are at different messages.
            ConnectionError: Another process is gone.
        """
        mine = torch.tensor([error is not None, zlib.crc32(where.encode())], device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        with self._connected():
            torch.distributed.all_gather(everyone, mine)
        failed, places = torch.stack(everyone).T.tolist()
        if not any(failed) and len(set(places)) == 1:
            return
        found: list[Any] = [None] * self.count
        with self._connected():
            torch.distributed.all_gather_object(found, (where, _packed(error)))
        self._ended = True
        if error is not None:
            return
        for rank, (_, packed) in enumerate(found):
            if packed is not None:
                theirs: BaseException = pickle.loads(packed)
                theirs.add_note(f"in process {rank} of {self.count} (counted from 0)")
                raise theirs
        shown = ", ".join(f"process {rank} is {place}" for rank, (place, _) in enumerate(found))
        raise RuntimeError(
            f"the processes of a training do not take the same steps: {shown}. Give each of them the same "
            "batches and the same options; the training divides each batch among them"
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Says what it means if a message to or from the other processes fails.

        Raises:
            ConnectionError: Another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            self._ended = True
            why = first_line(error).split(". ")[0]
            raise ConnectionError(
                f"process {self.rank} of {self.count} (counted from 0) has lost the others, so this training "
                "cannot go on: one was killed, or has stopped with an error of its own. Start all of them "
                f"again; a run with checkpoints can be resumed. What happened: {why}"
            ) from error

    @contextmanager
    def _message(self, where: str) -> Iterator[None]:
        """What is sent in the block is sent by all processes, or by none."""
        with _interrupts_later():
            self._meet(where)
            with self._connected():
                yield

    def from_first(self, value: T) -> T:
        """The first process's value, for all of them."""
        if self.count == 1:
            return value
        with self._message("to be told by process 0"):
            return self.fabric.broadcast(value)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        everyone: list[Any] = [None] * self.count
        with self._message("to tell the others"):
            torch.distributed.all_gather_object(everyone, value)
        return everyone

    def require_same(self, facts: Mapping[str, Any], hint: str) -> None:
        """Raises an error unless all processes have the same facts.

        Args:
            facts: Values by name; equal ones look the same.
            hint: What to do if some differ.

        Raises:
            ValueError: A process has others than the first one; the message says which.
        """
        everyone = self.gathered({name: str(value) for name, value in facts.items()})
        for rank, others in enumerate(everyone):
            differ = [name for name, value in others.items() if value != everyone[0].get(name)]
            if differ:
                self._ended = True  # all of them raise it
                raise ValueError(
                    f"process {rank} of {self.count} (counted from 0) was given something else than process 0: "
                    f"{', '.join(differ)}. {hint}"
                )

    def share_weights(self, pair: Pair) -> None:
        """Every process starts from the first one's weights."""
        if self.count > 1:
            first = self.from_first({n: t.detach().cpu() for n, t in pair.state().items()})
            pair.load_state({n: t.to(self.device) for n, t in first.items()})

    def share_buffers(self, pair: Pair) -> None:
        """Batch statistics, which each process collects from its own rows, become the first one's."""
        if self.count > 1:
            with self._message("at the end of an epoch"):
                for module in pair.modules().values():
                    for buffer in module.buffers():
                        torch.distributed.broadcast(buffer, 0)

    @contextmanager
    def learning_together(self, pair: Pair) -> Iterator[None]:
        """Modules that learn from what they are shown, as codebooks do, wait for `learn` in the block."""
        parts = list(_learners(pair)) if self.count > 1 else []
        for part in parts:
            part.waits = True
        try:
            yield
        finally:
            for part in parts:
                part.waits = False

    def learn(self, pair: Pair) -> None:
        """Codebooks learn from what all processes have shown them in a step, as from one batch."""
        parts = list(_learners(pair)) if self.count > 1 else []
        if parts:
            with self._message("to learn from a step"):
                for part in parts:
                    part.learn_together()

    def sum_gradients(self, leaves: Sequence[Tensor], checkpoint_due: bool, rows: int) -> bool:
        """Sums the gradients of all processes; each has weighted its own by its share of the rows.

        Whether the first process's checkpoint is due, in which all take part, is sent along.

        Args:
            leaves: The parameters.
            checkpoint_due: Whether this process would like to write a checkpoint.
            rows: Rows of the global batch, on which all processes must agree.

        Returns:
            Whether the checkpoint is due.
        """
        if self.count == 1:
            return checkpoint_due
        parts = [
            torch.zeros_like(leaf).flatten() if leaf.grad is None else leaf.grad.flatten()
            for leaf in leaves
        ]
        due = parts[0].new_tensor([checkpoint_due and self.is_first])
        flat = self._sum(torch.cat([*parts, due]), f"at a step with {rows} rows")
        start = 0
        for leaf in leaves:
            leaf.grad = flat[start : start + leaf.numel()].view_as(leaf).to(leaf.dtype)
            start += leaf.numel()
        return bool(flat[-1] > 0)

    def summed(
        self,
        numbers: Mapping[str, float],
        names: Sequence[str],
        where: str = "at the end of an epoch",
    ) -> dict[str, float]:
        """The sums of these numbers over all processes; a number that one does not have counts as 0."""
        if self.count == 1:
            return dict(numbers)
        mine = torch.tensor([numbers.get(name, 0.0) for name in names], dtype=torch.float64)
        total = self._sum(mine.to(self.device), where)
        return dict(zip(names, total.tolist(), strict=True))

    def _sum(self, mine: Tensor, where: str) -> Tensor:
        with self._message(where):
            found = self.fabric.all_reduce(mine, reduce_op="sum")
        assert isinstance(found, Tensor)
        return found


def _learners(pair: Pair) -> Iterator[Any]:
    """The modules that learn by a method `learn_together`, in one order."""
    parts = (part for root in pair.modules().values() for part in root.modules())
    return (part for part in parts if hook_of(part, "learn_together"))


def _packed(error: BaseException | None) -> bytes | None:
    """An error as it is sent to another process; one that cannot be sent is named by another."""
    if error is None:
        return None
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # of the error's class, any
        packed = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return packed


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Lets Ctrl-C wait until the block has ended, so that no process leaves the others amid a message."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        signal.raise_signal(signal.SIGINT)
