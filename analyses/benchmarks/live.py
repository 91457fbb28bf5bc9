"""What does it cost to see each latent dimension after each epoch? Its share of the time of a training."""

from __future__ import annotations

import logging
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import ppl_vae
from ppl_vae.guides import FullCovariance, InverseAutoregressive, MeanField
from ppl_vae.models import VAE, MixturePrior
from ppl_vae.training.deaths import Deaths
from ppl_vae.training.latents import LatentUse

Pair = tuple[Any, Any]


class LinearModel(nn.Module):
    """As a user may write one: 16 latents and a linear decoder of bits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.decoder = nn.Linear(16, size)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 16), 1.0).to_event(1))
            logits = self.decoder(z).unflatten(-1, x.shape[1:])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(x.dim() - 1), obs=x)


class LinearGuide(nn.Module):
    """A linear encoder."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(size, 2 * 16)

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def default(latent_dim: int) -> Callable[[torch.Size], Pair]:
    """The pair of `ppl-vae train`, with so many latents."""
    return lambda shape: (VAE(shape, latent_dim), MeanField(shape, latent_dim))


CASES: dict[str, Callable[[torch.Size], Pair]] = {
    "16 latents": default(16),
    "100 latents": default(100),
    "200 latents": default(200),
    "500 latents": default(500),
    "a linear pair of a user's": lambda shape: (
        LinearModel(shape.numel()),
        LinearGuide(shape.numel()),
    ),
    "correlated latents": lambda shape: (VAE(shape, 16), FullCovariance(shape, 16)),
    "a flow, which states no mean": lambda shape: (
        VAE(shape, 16),
        InverseAutoregressive(shape, 16),
    ),
    "a mixture as prior": lambda shape: (
        VAE(shape, 16, prior=MixturePrior(10)),
        MeanField(shape, 16),
    ),
}
"""The pairs, for rows of a shape."""


def rows_like(name: str) -> tuple[Tensor, Tensor]:
    """Training and held-out rows: the digits, or random bits of the size of MNIST."""
    if name == "digits":
        data = ppl_vae.load_data("digits", binarize="threshold")
        return data.train, data.test
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.rand(n, 784, generator=generator) < 0.15).float() for n in (60000, 10000))  # type: ignore[return-value]


class Timed:
    """Adds up the seconds that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return wrapped


def main(
    digits_epochs: int = 100, mnist_epochs: int = 2, rounds: int = 5, threads: int = 1
) -> None:
    """Prints the share of the time of `fit` that goes into active units and the KL of each dimension.

    They are measured on all held-out rows, and the dimensions that have died are looked for. The held-out ELBO
    itself, which `fit` measures in any case, counts as training. The pairs take turns. Nothing else may run.

    Args:
        digits_epochs: Epochs on 1,294 digits: 11 steps each.
        mnist_epochs: Epochs on as many rows as MNIST has, 469 steps each, of the default pair alone; 0: none.
        rounds: Trainings of each kind; medians are reported.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)  # of dimensions that die
    print(
        f"{platform.processor() or platform.machine()}, {threads} thread(s), torch {torch.__version__}\n"
    )
    print("| rows | pair | ms per epoch | ms for the dimensions | of the time |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    timed, metrics = Timed(), LatentUse.metrics
    assert isinstance(metrics, property)
    assert metrics.fget is not None
    LatentUse.update = timed(LatentUse.update)
    LatentUse.metrics = property(timed(metrics.fget))
    Deaths.look = timed(Deaths.look)
    for rows, epochs in (("digits", digits_epochs), ("like MNIST", mnist_epochs)):
        if not epochs:
            continue
        x, held_out = rows_like(rows)
        cases = CASES if rows == "digits" else dict([*CASES.items()][:1])
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for seed in range(rounds):
            for name, make in cases.items():
                torch.manual_seed(seed)
                model, guide = make(x.shape[1:])
                timed.seconds, start = 0.0, time.perf_counter()
                ppl_vae.fit(
                    *(model, guide, x),
                    validation=held_out,
                    max_epochs=epochs,
                    seed=seed,
                    progress=False,
                )
                found[name].append((time.perf_counter() - start, timed.seconds))
        for name, times in found.items():
            share = statistics.median(part / whole for whole, part in times)
            each, of_them = (
                1000 * statistics.median(of) / epochs for of in zip(*times, strict=True)
            )
            print(f"| {rows} | {name} | {each:.1f} | {of_them:.2f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
