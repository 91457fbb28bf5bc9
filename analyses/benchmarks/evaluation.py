"""How close is `evaluate` to the speed of the processor? The rate of its products over the best rate."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import nn
from tqdm import tqdm
from workers import ENVIRONMENTS, PAUSE, PEERS, Worker

NAMES = {
    "hand": "torch by hand",
    "hand-compiled": "torch by hand, torch.compile",
    "pyro": "evaluate(capture=False): plain Pyro",
    "pythae": "pythae's get_nll",
    "numpyro": "NumPyro, jitted, vmap over samples",
    "ours": "evaluate, recorded",
}
CHUNK = 1728
"""Rows x samples that `evaluate` runs at once, approximately."""

PRODUCTS = 50 * 400 + 400 * 784
"""Multiply-adds in the products of one sample."""


def write_weights(path: Path, rows: int) -> None:
    """Writes weights of encoder and decoder, as torch initializes them, and rows of data."""
    torch.manual_seed(0)
    sizes = [(784, 400), (400, 100), (50, 400), (400, 784)]
    layers = [nn.Linear(n, m) for n, m in sizes]
    weights = [p.detach().numpy() for layer in layers for p in (layer.weight, layer.bias)]
    np.savez(path, *weights, (torch.rand(rows, 784) < 0.15).float().numpy())


def main(
    num_samples: int = 5000,
    rows: int = 600,
    few_rows: int = 32,
    peers: bool = True,
    contenders: list[str] = list(NAMES),  # noqa: B006 - not changed
    rounds: int = 3,
    large: int = 4096,
    threads: int = 2,
    environments: Path = ENVIRONMENTS,
) -> None:
    """Prints the rate of the products of log p(x) by importance sampling, for a 784-400-50 Bernoulli VAE.

    Args:
        num_samples: K, samples per row.
        rows: Rows of a whole call of `evaluate`, which compiles by itself from about 520 rows (K = 5,000) on.
        few_rows: Rows per turn of all others, whose time is proportional to the rows.
        peers: Whether to time NumPyro and pythae, in environments of their own.
        contenders: The contenders besides the whole calls.
        rounds: Turns per contender; the median is reported.
        large: Rows and columns of the matrices of the large product.
        threads: Threads of each contender.
        environments: Where the peers' environments are, or will be made.
    """
    if set(contenders) - set(NAMES):
        raise ValueError(f"contenders are of {list(NAMES)}, got {contenders}")
    names = [name for name in NAMES if name in contenders and (peers or name not in PEERS)]
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        write_weights(file, max(2 * rows, few_rows))
        arguments = [str(file), str(few_rows), str(num_samples), str(threads)]
        try:
            for name in tqdm(["product", "decoder", *names, "whole"], desc="start", leave=False):
                asked = "ours" if name == "whole" else name
                workers[name] = Worker(asked, "evaluators.py", arguments, threads, environments)
            seconds, rates = race(workers, names, rows, few_rows, rounds, large)
        finally:
            for worker in workers.values():
                worker.stop()
    best = statistics.median(rates["product"])

    def line(label: str, rows: str, seconds: str, rate: float, log_p: str) -> None:
        print(f"| {label} | {rows} | {seconds} | {rate / 1e9:.0f} | {rate / best:.2f} | {log_p} |")

    def timed(label: str, rows: int, seconds: float, log_p: str) -> None:
        operations = 2 * rows * num_samples * PRODUCTS
        line(label, str(rows), f"{seconds:.2f}", operations / seconds, log_p)

    print(f"K = {num_samples}, 784-400-50, {threads} threads\n")
    print("| | rows | s | GFLOP/s of its products | of the best product | log p(x) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        log_p = f"{workers[name].first:.3f}"
        timed(NAMES[name], few_rows, statistics.median(seconds[name]), log_p)
    first, again, twice = seconds["whole"]
    timed("evaluate, first call", rows, first, "")
    timed("evaluate, second call", rows, again, "")
    timed("evaluate, of twice the rows", 2 * rows, twice, "")
    timed("evaluate, difference of the last two", rows, twice - again, "")
    line("the decoder's products alone", "", "", statistics.median(rates["decoder"]), "")
    line(f"the best product, {large} x {large}", "", "", best, "")


def race(
    workers: dict[str, Worker],
    names: list[str],
    rows: int,
    few_rows: int,
    rounds: int,
    large: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of all turns, and rates of the products, which are measured before each turn."""
    turns = [("whole", n) for n in (rows, rows, 2 * rows)]
    for i in range(rounds):  # the whole calls are placed between the rounds of the others
        place = len(names) * i + i
        turns[place:place] = [(name, few_rows) for name in names]
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    rates: dict[str, list[float]] = {"product": [], "decoder": []}
    for name, count in tqdm(turns, desc="turns", leave=False):
        for kind, size in (("product", large), ("decoder", CHUNK)):
            rates[kind].append(workers[kind].ask(size))
        time.sleep(PAUSE)
        seconds[name].append(workers[name].ask(count))
    return seconds, rates


if __name__ == "__main__":
    auto_cli(main)
