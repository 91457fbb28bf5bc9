"""How fast is a training step? One VAE, trained in every way, in one run that takes turns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from contenders import ROWS
from jsonargparse import auto_cli
from tqdm import tqdm
from workers import ENVIRONMENTS, PEERS, Worker, median_seconds, running, set_products

NAMES = {
    "hand": "torch by hand, default Adam",
    "hand-fused": "torch by hand, fused Adam",
    "hand-compiled": "torch by hand, torch.compile, fused Adam",
    "hand-bf16": "the same with autocast to bfloat16",
    "pyro": "plain Pyro SVI, TraceMeanField_ELBO",
    "pythae": "pythae's trainer",
    "numpyro": "NumPyro, jitted epoch",
    "ours-pyro": "fit(capture=False)",
    "ours-graph": "fit(compile=False)",
    "ours-bf16": "fit, bf16-mixed",
    "ours": "fit, as it is",
    "floor": "products, Adam and rows alone",
}
WHOLE_EPOCHS = ("ours", "ours-bf16")
"""These contenders' turns are epochs, whatever number of steps is asked for."""

MIXED = ("hand-bf16", "ours-bf16")
"""Contenders of a GPU."""

CONVOLUTIONAL = ["hand-fused", "hand-compiled", "pyro", "ours-graph", "ours"]

CONVOLUTIONAL_PROTOCOL = (3, 60)
"""Turns, and steps before the first one but for `fit`: a step takes a tenth of a second."""

LONGEST = 0.5
"""Approximate maximum of the seconds per turn; a turn has at least five steps."""


def race(
    network: str,
    batch_size: int,
    names: list[str],
    threads: int,
    rounds: int,
    steps: int,
    warm_up: int,
    environments: Path,
    device: str,
) -> dict[str, tuple[float, float]]:
    """Milliseconds per step (median over the rounds) and seconds to the first step, by contender."""
    label = f"{network}, batch size {batch_size}"
    until_compiled = warm_up
    if network == "conv":
        rounds, warm_up = min(rounds, CONVOLUTIONAL_PROTOCOL[0]), CONVOLUTIONAL_PROTOCOL[1]
    with running() as workers:
        for name in tqdm(names, desc=f"{label}: start", leave=False):
            arguments = [network, str(batch_size), str(threads), device]
            workers.append(Worker(name, "contenders.py", arguments, threads, environments, device))
        turn = {}
        for worker in tqdm(workers, desc=f"{label}: warm up", leave=False):
            few, whole = min(steps, 5), ROWS // batch_size
            ours = worker.name in WHOLE_EPOCHS
            size = whole if ours else max(1, min(steps, warm_up))
            for _ in range(0, until_compiled if ours else warm_up, size):
                worker.ask(size)
            worker.ask(few)
            turn[worker.name] = min(steps, max(few, int(LONGEST / worker.ask(few))))
            worker.ask(turn[worker.name])
        seconds = median_seconds(workers, turn, rounds, label)
        return {w.name: (1e3 * seconds[w.name], w.first) for w in workers}


def main(
    batch_sizes: list[int] = [32, 128, 512],  # noqa: B006 - not changed
    convolutional: bool = True,
    peers: bool = True,
    contenders: list[str] = list(NAMES),  # noqa: B006
    rounds: int = 15,
    steps: int = 60,
    warm_up: int = 1100,
    threads: int = 2,
    environments: Path = ENVIRONMENTS,
    device: Literal["cpu", "cuda"] = "cpu",
    tf32: bool = False,
) -> None:
    """Prints milliseconds per training step and ratios, for a 784-400-50 VAE and for a convolutional one.

    Args:
        batch_sizes: Rows per step.
        convolutional: Whether to time the convolutional VAE too, at 128 rows per step.
        peers: Whether to time NumPyro and pythae, in environments of their own.
        contenders: The contenders; `ours` must be one of them.
        rounds: Turns of each contender; the median is reported. The convolutional ones have 3, after 60 steps.
        steps: Steps per turn; fewer if they would take more than half a second.
        warm_up: Steps of each contender before the first turn. By then `fit` runs compiled steps (from its
            1,000th on), and Adam's averages of gradients that are 0 are denormal numbers, which slow down
            every contender that does not flush them to 0.
        threads: Threads of each contender.
        environments: Where the peers' environments are, or will be made. A peer that is installed beside
            ppl_vae runs there.
        device: Where to train; a GPU has two more lines, of bfloat16.
        tf32: Whether float32 products on a GPU are TF32's, in all libraries. It is NumPyro's default and not
            torch's, so both are set.
    """
    set_products(tf32)
    unknown = set(contenders) - set(NAMES)
    if unknown or "ours" not in contenders:
        raise ValueError(f"contenders are of {list(NAMES)}, `ours` among them; got {contenders}")
    contenders = [name for name in contenders if device == "cuda" or name not in MIXED]
    mlp = [name for name in NAMES if name in contenders and (peers or name not in PEERS)]
    conv = [name for name in CONVOLUTIONAL if name in contenders]
    races = [("mlp", size, mlp) for size in batch_sizes]
    races += [("conv", 128, conv)] if convolutional else []
    for network, size, names in races:
        found = race(network, size, names, threads, rounds, steps, warm_up, environments, device)
        kind = f"{device}{', TF32' if tf32 else ''}"
        print(f"\n{network}, batch size {size}, {kind}, {threads} threads\n")
        print("| | ms per step | `fit` takes, of it | s to the first step |")
        print("| --- | --- | --- | --- |")
        for name, (milliseconds, first) in found.items():
            ratio = found["ours"][0] / milliseconds
            print(f"| {NAMES[name]} | {milliseconds:.3f} | {ratio:.2f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
