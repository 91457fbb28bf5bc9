"""How fast does a pair of translators learn by back-translation, beside loops that are written by hand?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from tqdm import tqdm
from workers import ENVIRONMENTS, Worker, median_seconds, processor, running, set_products

NAMES = {
    "hand": "torch by hand, its transformer",
    "distributions": "the library's distributions, a loop by hand",
    "fit": "fit",
}


def race(rounds: int, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Median seconds per step and the first loss, by contender; each takes an epoch before that counts."""
    arguments = [json.dumps(settings)]
    threads, device = settings["threads"], settings["device"]
    steps = math.ceil(settings["size"] / settings["batch_size"])
    with running() as workers:
        for name in tqdm(NAMES, desc="start", leave=False):
            workers.append(Worker(name, "translators.py", arguments, threads, ENVIRONMENTS, device))
            workers[-1].ask(steps)
        seconds = median_seconds(workers, dict.fromkeys(NAMES, steps), rounds)
        return {w.name: [seconds[w.name], w.first] for w in workers}


def main(
    data: Path | None = None,
    size: int = 1500,
    vocabulary: int = 4000,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.2,
    batch_size: int = 64,
    rounds: int = 3,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    tf32: bool = False,
) -> None:
    """Prints sentences per second of back-translation with denoising, by `fit` and by hand.

    The pair is `LatentTranslation` with `Translator`. Torch's own transformer has the same weights and the same
    places for dropout; it keeps no keys of the words before, so that writing a sentence reads all of them again
    for each word. All contenders must begin with the same loss, to 1e-4 of it.

    Args:
        data: A folder with train.en and train.de, such as Multi30k; None for sentences of a small grammar.
        size: Sentences of each language: an epoch, which is a turn.
        vocabulary: Size of the vocabulary.
        width: Of the transformer's vectors.
        layers: Of encoder and decoder.
        heads: Of the attention.
        dropout: Share of the numbers that are set to 0.
        batch_size: Sentences of a batch.
        rounds: Turns of each contender; medians are reported.
        threads: Threads of each contender.
        device: Where to train.
        tf32: Whether float32 products on a GPU are TF32's.
    """
    set_products(tf32)
    settings = {
        **{"data": "" if data is None else str(data.absolute()), "size": size, "width": width},
        **{"vocabulary": vocabulary, "layers": layers, "heads": heads, "dropout": dropout},
        **{"batch_size": batch_size, "threads": threads, "device": device},
    }
    found = race(rounds, settings)
    first = found["fit"][1]
    if any(not math.isclose(loss, first, rel_tol=1e-4) for _, loss in found.values()):
        raise RuntimeError(
            f"the first loss should be the same for all, got {[loss for _, loss in found.values()]}"
        )
    print("| | sentences per second | `fit` takes, of its time | first loss, nats per row |")
    print("| --- | --- | --- | --- |")
    for name, (seconds, loss) in found.items():
        ratio = found["fit"][0] / seconds
        rate = size / math.ceil(size / batch_size) / seconds
        print(f"| {NAMES[name]} | {rate:.1f} | {ratio:.2f} | {loss:.4f} |", flush=True)
    print(f"\n{processor()}, {threads} thread(s), {device}; medians of {rounds} epochs")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
