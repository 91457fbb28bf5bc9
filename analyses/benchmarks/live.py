"""What does it cost to see each latent dimension after each epoch? Its share of the time of a training."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

import ppl_vae
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.training.latents import LatentUse


def rows_like(name: str) -> tuple[Tensor, Tensor]:
    """Training and held-out rows: the digits, or random bits of the size of MNIST."""
    if name == "digits":
        data = ppl_vae.load_data("digits", binarize="threshold")
        return data.train, data.test
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.rand(n, 784, generator=generator) < 0.15).float() for n in (60000, 10000))  # type: ignore[return-value]


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same function, which adds the seconds of each call to a list."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    return wrapped


def main(
    digits_epochs: int = 200, mnist_epochs: int = 2, rounds: int = 5, threads: int = 1
) -> None:
    """Prints the share of the time of `fit` that goes into active units and the KL of each dimension.

    The pair is the default one of `ppl-vae train`, with 16 latent dimensions, measured on all held-out rows.
    The held-out ELBO itself, which `fit` measures in any case, counts as training. Nothing else may run.

    Args:
        digits_epochs: Epochs on 1,294 digits: 11 steps each.
        mnist_epochs: Epochs on as many rows as MNIST has, 469 steps each.
        rounds: Trainings of each kind; medians are reported.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    print(
        f"{platform.processor() or platform.machine()}, {threads} thread(s), torch {torch.__version__}\n"
    )
    print("| rows | epochs | s in all | ms per epoch for the dimensions | of the time |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    update, metrics = LatentUse.update, LatentUse.metrics
    assert isinstance(metrics, property)
    assert metrics.fget is not None
    for name, epochs in (("digits", digits_epochs), ("like MNIST", mnist_epochs)):
        x, held_out = rows_like(name)
        whole, parts = [], []
        for seed in range(rounds):
            spent: list[float] = []
            LatentUse.update = timed(update, spent)
            LatentUse.metrics = property(timed(metrics.fget, spent))
            torch.manual_seed(seed)
            model, guide = VAE(x.shape[1:], latent_dim=16), MeanField(x.shape[1:], latent_dim=16)
            start = time.perf_counter()
            ppl_vae.fit(
                model, guide, x, validation=held_out, max_epochs=epochs, seed=seed, progress=False
            )
            whole.append(time.perf_counter() - start)
            parts.append(sum(spent))
        share = statistics.median(part / of for part, of in zip(parts, whole, strict=True))
        each = 1000 * statistics.median(parts) / epochs
        seconds = statistics.median(whole)
        print(f"| {name} | {epochs} | {seconds:.1f} | {each:.2f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
