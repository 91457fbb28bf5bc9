"""How fast are rows and photos written and read, and what of it is the coder's? Beside constriction alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import constriction
import numpy as np
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from workers import processor

from ppl_vae.codes import FSQ
from ppl_vae.coding import Reader, Stack, Writer
from ppl_vae.compression import compress, compress_photo, decompress, decompress_photo
from ppl_vae.guides import MeanField, QuantizingEncoder
from ppl_vae.models import VAE, VQVAE, PixelCNNPrior
from ppl_vae.networks import MLP, ConvolutionalGrid

Coded = tuple[NDArray[np.int32], NDArray[np.float64]]

CODERS = ((Stack, "push"), (Stack, "pop"), (Writer, "categorical"), (Reader, "categorical"))
"""Where numbers are handed to constriction."""


class Clock:
    """Seconds of a call: all, in layers, and in the coder; and the numbers that were coded, with their tables.

    Attributes:
        layers: Seconds in modules without children: the products of the networks.
        coder: Seconds in the coder.
        coded: The numbers `(n,)` and tables `(n, count)` of each call, if they are kept.
    """

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps
        self.layers = self.coder = self.all = 0.0
        self.coded: list[Coded] = []
        self._begun: list[float] = []

    def _before(self, module: nn.Module, given: Any) -> None:
        if not module._modules:
            self._begun.append(time.perf_counter())

    def _after(self, module: nn.Module, given: Any, found: Any) -> None:
        if not module._modules:
            self.layers += time.perf_counter() - self._begun.pop()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(coder: Any, *given: Any) -> Any:
            start = time.perf_counter()
            found = function(coder, *given)
            self.coder += time.perf_counter() - start
            if self.keeps:
                numbers = found if len(given) == 1 else given[0]
                self.coded.append((_array(numbers, np.int32), _array(given[-1], np.float64)))
            return found

        return timed

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures what happens in the block."""
        kept = [getattr(owner, name) for owner, name in CODERS]
        hooks = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after),
        ]
        for (owner, name), function in zip(CODERS, kept, strict=True):
            setattr(owner, name, self._timed(function))
        start = time.perf_counter()
        try:
            yield
        finally:
            self.all = time.perf_counter() - start
            for (owner, name), function in zip(CODERS, kept, strict=True):
                setattr(owner, name, function)
            for hook in hooks:
                hook.remove()


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    """A copy of a tensor or an array."""
    return np.array(values.numpy() if isinstance(values, torch.Tensor) else values, dtype=dtype)


def alone(coded: Sequence[Coded]) -> tuple[float, float]:
    """Seconds of constriction to write these numbers with these tables, and to read them, in as many calls."""
    family = constriction.stream.model.Categorical(perfect=False)
    parts = []
    for numbers, tables in coded:
        unsure = np.count_nonzero(tables, 1) > 1  # the library writes nothing for the others
        if unsure.any():
            parts.append((numbers[unsure], tables[unsure]))
    start = time.perf_counter()
    coder = constriction.stream.stack.AnsCoder()
    for numbers, tables in reversed(parts):
        coder.encode_reverse(numbers, family, tables)
    written = time.perf_counter()
    found = [coder.decode(family, tables) for _, tables in parts]
    read = time.perf_counter()
    if not all(np.array_equal(a, b) for a, (b, _) in zip(found, parts, strict=True)):
        raise RuntimeError("constriction alone does not read what it wrote")
    return written - start, read - written


def compared(
    name: str, pictures: int, write: Callable[[], Any], read: Callable[[Any], Any], rounds: int
) -> None:
    """Prints a row each for writing and reading."""
    noted = Clock(keeps=True)  # also the call that is not counted
    with noted.running():
        file = write()
    calls: dict[str, Callable[[], Any]] = {"write": write, "read": lambda: read(file)}
    found: dict[str, list[tuple[float, ...]]] = {what: [] for what in calls}
    for _ in range(rounds):
        for place, (what, call) in enumerate(calls.items()):
            clock = Clock()
            with clock.running():
                call()
            library = alone(noted.coded)[place]
            found[what].append((clock.all, clock.layers, clock.coder, library))
    for what, times in found.items():
        whole, layers, coder, library = (statistics.median(of) for of in zip(*times, strict=True))
        count = sum(len(numbers) for numbers, _ in noted.coded)
        cells = [f"{pictures / whole:.4g}", f"{count}", f"{whole:.3f}", f"{layers:.3f}"]
        cells += [f"{whole - layers - coder:.3f}", f"{coder:.3f}", f"{library:.3f}"]
        print(f"| {name} | {what} | {' | '.join(cells)} | {library / whole:.3f} |", flush=True)


def main(
    rows: int = 1000,
    latents: int = 50,
    hidden: tuple[int, ...] = (400, 400),
    photos: tuple[tuple[int, int], ...] = ((120, 80), (240, 160), (480, 320), (960, 640)),
    channels: int = 64,
    prior_channels: int = 64,
    rounds: int = 3,
    threads: int = 1,
) -> None:
    """Prints pictures per second of files of rows and of photos, and where the time goes.

    Rows are bits-back coded by a VAE of the size of MNIST; photos by a VQ-VAE with a PixelCNN over blocks of
    16 x 16 codes, one for 4 x 4 pixels. Weights are random, and so are rows and photos: the time hardly depends
    on them. "Constriction alone" writes (or reads) the same numbers with the same tables, in as many calls.
    What is neither in layers nor in the coder makes the tables. Nothing else may run.

    Args:
        rows: Rows of 28 x 28 bits.
        latents: Latents of the VAE.
        hidden: Its hidden layers.
        photos: Widths and heights.
        channels: Channels of the VQ-VAE.
        prior_channels: Channels of its prior.
        rounds: Times of each; medians are reported.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{processor()}, {threads} thread(s), torch {torch.__version__}\n")
    columns = [
        "file of",
        "call",
        "pictures per second",
        "numbers",
        "s",
        "in layers",
        "tables and the rest",
    ]
    columns += ["in the coder", "constriction alone", "constriction, of s"]
    for cells in (columns, ["---"] * len(columns)):
        print("|", " | ".join(cells), "|", flush=True)
    network = MLP(hidden=hidden)
    vae, encoder = VAE((1, 28, 28), latents, network), MeanField((1, 28, 28), latents, network)
    x = (torch.rand(rows, 1, 28, 28) < 0.2).float()
    compared(
        f"{rows} rows, bits-back",
        rows,
        lambda: compress(vae, encoder, x, progress=False),
        lambda file: decompress(vae, encoder, file.data, progress=False),
        rounds,
    )
    grid = ConvolutionalGrid(channels, 2, 1)
    prior = PixelCNNPrior(channels=prior_channels, layers=3)
    model = VQVAE((3, 64, 64), FSQ((8, 8, 8)), grid, prior=prior)
    guide = QuantizingEncoder(model, grid)
    for width, height in photos:
        photo = torch.randint(256, (height, width, 3), dtype=torch.uint8)
        compared(
            f"{width} x {height}",
            1,
            lambda photo=photo: compress_photo(model, guide, photo),  # type: ignore[misc]
            lambda file: decompress_photo(model, file.data),
            rounds,
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
