"""The held-out ELBO and the active units after each epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.pairs import Batches, Layout, Pair, move, num_rows, posterior_means, sample_rows
from ppl_vae.stats import active_units
from ppl_vae.training.errors import read_only_once
from ppl_vae.training.rows import TrainingRows

VALIDATION_SAMPLES = 4
"""Samples per row for the held-out ELBO after each epoch, with the same random numbers every time."""

LEAST_ROWS = 512
"""Rows per run of the pair, if the training's batches are smaller."""


class HeldOut:
    """Measures the pair after each epoch, on rows that it is not trained on.

    Args:
        pair: The pair.
        layout: Its layout.
        batches: The held-out rows; None measures active units on a batch of training rows.
        rows: The training rows.
    """

    def __init__(
        self, pair: Pair, layout: Layout, batches: Batches | None, rows: TrainingRows
    ) -> None:
        self.pair = pair
        self.layout = layout
        self.batches = batches
        self.rows = rows
        self.size = rows.batch_size if pair.keeps_rows else max(rows.batch_size, LEAST_ROWS)

    def measure(self, seed: int, epoch: int) -> dict[str, float]:
        """Active units and, with held-out rows, their beta = 1 ELBO, rate and distortion, nats per row.

        Args:
            seed: Seed of the draws.
            epoch: Epochs trained, for the message of an error.

        Raises:
            ValueError: The rows gave no batches.
        """
        rate = distortion = rows = 0.0
        means: list[Tensor] = []
        source = self.rows.batches if self.batches is None else self.batches
        with torch.no_grad(), self.pair.mode(training=False), torch.random.fork_rng():
            torch.manual_seed(seed)
            for batch in source.ordered(self.size):
                if self.batches is None:
                    batch = self.rows.prepared(batch)
                else:
                    batch = move(batch, self.rows.processes.device)
                drawn = sample_rows(self.pair, self.layout, batch, VALIDATION_SAMPLES)
                rate += float((drawn.log_guide - drawn.log_prior).double().mean(0).sum())
                distortion -= float(drawn.log_likelihood.double().mean(0).sum())
                rows += num_rows(batch)
                means.append(posterior_means(drawn, self.layout).cpu())
                if self.batches is None:
                    break
        if not means:
            raise read_only_once("x" if self.batches is None else "validation", epoch)
        joined = torch.cat(means)
        active = active_units(joined)[1].sum() if len(joined) > 1 else 0
        found: dict[str, float] = {"active_units": int(active)}
        if self.batches is not None:
            found["validation_rate"] = rate / rows
            found["validation_distortion"] = distortion / rows
            found["validation_elbo"] = -(rate + distortion) / rows
        return found
