"""Contenders of a benchmark, which take turns: each a process, in an environment that has what it needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).parent

ENVIRONMENTS = Path.home() / ".cache" / "ppl_vae" / "benchmarks"

PEERS = {"numpyro": ["numpyro==0.22.0"], "pythae": ["pythae==0.1.2", "setuptools<81"]}
"""Requirements of each contender that does not run in the environment of the benchmark itself."""

PAUSE = 0.2
"""Seconds between turns, so that the threads of the contender before go to sleep."""


def set_products(tf32: bool) -> None:
    """How the workers that are started later multiply matrices of float32 on a GPU."""
    if not tf32:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = str(int(tf32))
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "tensorfloat32" if tf32 else "float32"


class Worker:
    """A contender: a script that runs in its own process and answers each number with a number.

    Args:
        name: The contender.
        script: A script of this folder.
        arguments: Its arguments after the name.
        threads: Threads that it may use.
        environments: Where the peers' environments are, or will be made.
        device: `cpu` or `cuda`.

    Attributes:
        first: The first number that it printed.

    Raises:
        RuntimeError: The process has ended; the message holds its standard error.
    """

    def __init__(
        self,
        name: str,
        script: str,
        arguments: list[str],
        threads: int,
        environments: Path,
        device: str = "cpu",
    ) -> None:
        self.name = name
        # NPROC: the only way to set the number of threads of XLA.
        environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))
        root = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        environment |= {"PYTHONPATH": root.strip(os.pathsep), "PYTHONWARNINGS": "ignore"}
        environment |= {"JAX_PLATFORMS": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": ""}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(
            [str(interpreter(name, environments)), str(HERE / script), name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | environment,
        )
        self.first = self._answer()

    def ask(self, number: int) -> float:
        """Sends a number, and waits for the answer."""
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return float(line)
            except ValueError:  # a library's own output
                continue
        self.log.seek(0)
        raise RuntimeError(f"contender {self.name} stopped:\n{self.log.read()[-2000:]}")

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


@contextmanager
def running() -> Iterator[list[Worker]]:
    """A list for contenders; those in it are stopped at the end, whatever happens."""
    workers: list[Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def median_seconds(
    workers: Sequence[Worker], counts: Mapping[str, int], rounds: int, label: str = "turns"
) -> dict[str, float]:
    """Median seconds of the turns of each contender, by its name.

    Args:
        workers: The contenders. In each round another one is the first, so that what slows the machine down for
            a while slows down all.
        counts: What each is asked for in a turn, such as a number of steps.
        rounds: Turns of each.
        label: What the progress bar is called.
    """
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for i in tqdm(range(rounds), desc=label, leave=False):
        first = i % len(workers)
        for worker in [*workers[first:], *workers[:first]]:
            time.sleep(PAUSE)
            seconds[worker.name].append(worker.ask(counts[worker.name]))
    return {name: statistics.median(each) for name, each in seconds.items()}


def interpreter(name: str, folder: Path) -> Path:
    """The Python of a contender's environment, which is created at first use if this one lacks the library."""
    if name not in PEERS or importlib.util.find_spec(name) is not None:
        return Path(sys.executable)
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[name]], check=True)
    return python


def processor() -> str:
    """The name of the processor."""
    record = Path("/proc/cpuinfo")
    lines = record.read_text().splitlines() if record.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
