"""Gives each worker one run at a time, and the next when that has ended."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ppl_vae._version import __version__
from ppl_vae.sweeps.cluster import ClusterError, require_distributed, require_usable
from ppl_vae.sweeps.work import Outcome, Task, ignore_interrupts, stop, work

_LOST = 3
"""So many workers may be lost with a run before it counts as failed."""

_STOPPING = 70.0
"""Seconds that runs have to end when the sweep is stopped."""


class Dispatch:
    """The runs of a sweep on a cluster: iterate over it for what becomes of each.

    At the end of its block, the runs that are left are stopped, and keep their checkpoints.

    Workers may come and go: a run whose worker is gone continues on another from its last checkpoint.

    Args:
        client: A client of dask.distributed.
        tasks: The runs.
        threads: Threads of torch in each run; None: as many as the worker has.
        local: Whether the workers are of this sweep alone, and in its terminal.
    """

    def __init__(
        self, client: Any, tasks: Sequence[Task], threads: int | None = None, *, local: bool = False
    ) -> None:
        self._distributed = require_distributed()
        self._client = client
        self._threads = threads
        self._local = local
        self._sweep = secrets.token_hex(8)
        self._waiting = deque(replace(task, sweep=self._sweep) for task in tasks)
        self._folders = [str(Path(task.place) / task.folder) for task in tasks]
        self._running: dict[str, tuple[Any, Task]] = {}
        self._usable: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._given_up: list[Outcome] = []

    def __iter__(self) -> Iterator[Outcome]:
        """What becomes of each run, as soon as it has ended.

        Raises:
            ClusterError: A worker cannot do runs, or the scheduler is gone.
        """
        try:
            while self._waiting or self._running:
                self._look_for_workers()
                self._give_out()
                yield from self._ended()
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"the connection to the scheduler is lost ({error}): start the sweep again to go on"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def num_workers(self) -> int:
        """How many workers there are now."""
        return len(self._client.nthreads())

    def seconds_left(self, seconds_each: float) -> float:
        """About how long the rest takes, if each run takes so long."""
        left = len(self._waiting) + len(self._running)
        return left * seconds_each / max(1, min(len(self._usable), left))

    def _look_for_workers(self) -> None:
        threads = self._client.nthreads()
        for worker in threads.keys() - self._usable.keys():
            require_usable(self._client, worker)
            if self._local:
                self._client.run(ignore_interrupts, workers=[worker], on_error="ignore")
            # What an earlier start of this sweep has left, which was killed.
            self._client.run(stop, self._folders, workers=[worker], on_error="ignore")
        self._usable = threads
        for worker in [w for w in self._running if w not in threads]:
            self._requeue(worker)

    def _requeue(self, worker: str) -> None:
        """Lets another worker do the run of one that is gone."""
        future, task = self._running.pop(worker)
        if future.status == "finished":
            self._running[worker] = future, task  # it had ended before
            return
        future.cancel()
        self._lost[task.name] = self._lost.get(task.name, 0) + 1
        if self._lost[task.name] < _LOST:
            self._waiting.appendleft(task)
        else:
            self._given_up.append(
                Outcome(task.name, "failed", error=f"its worker was lost {_LOST} times")
            )

    def _give_out(self) -> None:
        for worker, threads in self._usable.items():
            if worker in self._running or not self._waiting:
                continue
            task = self._waiting.popleft()
            future = self._client.submit(
                *(work, task, self._threads or threads),
                key=f"{task.name}-{secrets.token_hex(4)}",
                workers=[worker],
                pure=False,
            )
            self._running[worker] = future, task

    def _ended(self) -> Iterator[Outcome]:
        while self._given_up:
            yield self._given_up.pop()
        futures = [future for future, _ in self._running.values()]
        if not futures:
            time.sleep(0.5 if self._waiting else 0)
            return
        self._wait(futures, 1, "FIRST_COMPLETED")
        for worker, (future, task) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[worker]
            yield self._outcome(worker, future, task)

    def _outcome(self, worker: str, future: Any, task: Task) -> Outcome:
        if future.status == "finished":
            found: Outcome = future.result()
            return found
        error = future.exception() if future.status == "error" else None
        if isinstance(error, ImportError) or "during deserialization" in str(error):
            raise ClusterError(
                f"the scheduler or the worker {worker} cannot import what a run needs ({error!s:.80}): both "
                f"need ppl_vae {__version__}, as is installed here"
            )
        why = (
            f"the worker {worker}: {type(error).__name__}: {error}" if error else "it was cancelled"
        )
        return Outcome(task.name, "failed", error=" ".join(why.split()))

    def _wait(self, futures: Sequence[Any], seconds: float, until: str) -> None:
        with (
            suppress(TimeoutError, self._distributed.TimeoutError),
            self._client.as_current(),
        ):
            self._distributed.wait(futures, timeout=seconds, return_when=until)

    def _stop(self) -> None:
        """Stops the runs that are left, so that they keep their checkpoints, and waits for their end."""
        if not self._running:
            return
        futures = [future for future, _ in self._running.values()]
        end = time.monotonic() + _STOPPING
        with suppress(OSError, TimeoutError):
            self._client.run(stop, self._folders, self._sweep, on_error="ignore")
            while time.monotonic() < end:
                there = self._client.nthreads()  # the runs of others have ended with them
                left = [f for w, (f, _) in self._running.items() if w in there and not f.done()]
                if not left:
                    break
                self._wait(left, 1, "ALL_COMPLETED")
        with suppress(OSError, TimeoutError):
            self._client.cancel(futures)
