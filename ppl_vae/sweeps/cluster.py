"""The processes that a sweep runs on: a local cluster of dask.distributed, or one that runs elsewhere."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ppl_vae._version import __version__

_TIMEOUT = 10
"""Seconds in which a scheduler has to answer."""

_OLDEST = (2024, 12)
"""The oldest version of distributed that is used, as pyproject.toml has it."""


class ClusterError(RuntimeError):
    """A cluster that cannot be used for a sweep."""


class Sizes(NamedTuple):
    """How many workers a local cluster has, and how many threads torch has in each."""

    workers: int
    threads: int


def num_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def sizes_for(
    runs: int, cores: int, workers: int | None = None, threads: int | None = None
) -> Sizes:
    """A size of a local cluster that uses all cores and no core twice.

    What is given is kept, also if it is too much.

    Args:
        runs: How many runs there are to do.
        cores: How many cores there are.
        workers: The number of workers, if it is given.
        threads: Those of torch in each, if they are given.

    Example:
        >>> sizes_for(12, cores=8), sizes_for(2, cores=8), sizes_for(12, cores=8, threads=3)
        (Sizes(workers=8, threads=1), Sizes(workers=2, threads=4), Sizes(workers=2, threads=3))
    """
    if workers is None:
        workers = max(1, min(runs, cores // (threads or 1)))
    if threads is None:
        threads = max(1, cores // workers)
    return Sizes(workers, threads)


def require_distributed() -> Any:
    """The module `distributed`.

    Raises:
        ClusterError: It is not installed, or too old; the message says what to type.
    """
    typed = "pip install 'ppl_vae[sweep]'"
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(
            f"a sweep needs dask.distributed, which cannot be imported ({error}): {typed}"
        ) from error
    version = _version()
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ClusterError(
            f"a sweep needs distributed {oldest} or newer, and there is {version}: {typed}"
        )
    return distributed


def _version() -> str:
    return metadata.version("distributed")


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """The client of a cluster of so many processes on this machine, which end with the block or this process.

    Other users of the machine can reach no worker where `cryptography` is installed.
    """
    distributed = require_distributed()
    with (
        _quiet(),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,  # the runs are processes of their own
            silence_logs=logging.CRITICAL,
            security=_security(),
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _security() -> bool | None:
    """Whether workers and scheduler know each other by certificates, which are made for the sweep."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return None
    return True


@contextmanager
def running_cluster(address: str) -> Iterator[Any]:
    """The client of a scheduler that runs already.

    Args:
        address: Its address, such as `tcp://10.0.0.1:8786`.

    Raises:
        ClusterError: It cannot be reached.
    """
    distributed = require_distributed()
    with _quiet():
        try:
            _require_answer(address)
            client = distributed.Client(address, timeout=_TIMEOUT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(
                f"--scheduler {address}: there is no scheduler that answers within {_TIMEOUT} s ({why:.200}): "
                "`dask scheduler` prints its address, tcp://HOST:PORT"
            ) from error
        try:
            yield client
        finally:
            with suppress(OSError, TimeoutError):
                client.close()


def _require_answer(address: str) -> None:
    """Raises an error if nobody listens at an address: distributed would try again, and leave a thread.

    Raises:
        OSError: Nobody does.
        ValueError: It is no address.
    """
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if not parts.hostname or not parts.port:
        raise ValueError("the port is missing")
    socket.create_connection((parts.hostname, parts.port), timeout=_TIMEOUT).close()


def require_usable(client: Any, worker: str) -> None:
    """Raises an error if a worker cannot do runs.

    Raises:
        ClusterError: It cannot import ppl_vae, or another version of it.
    """
    # By a builtin function: one of this package could not even be sent to such a worker.
    found = client.run(
        eval, "__import__('ppl_vae').__version__", workers=[worker], on_error="return"
    ).get(worker)
    if isinstance(found, str) and found != __version__:
        raise ClusterError(
            f"the worker {worker} has ppl_vae {found}, and the sweep {__version__}: install the same there"
        )
    if isinstance(found, BaseException):
        raise ClusterError(
            f"the worker {worker} cannot import ppl_vae ({found}): start `dask worker` in an environment in "
            "which ppl_vae is installed"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile distributed logs nothing: what a user has to know is said by the sweep."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
