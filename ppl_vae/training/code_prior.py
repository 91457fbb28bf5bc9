"""A prior of codes, fitted to the codes of a trained pair: in closed form, or by gradient steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.runtime import progress_bar
from ppl_vae.stats import Estimate, Result
from ppl_vae.training.errors import DivergenceError
from ppl_vae.training.prior_checkpoints import Learned, PriorCheckpoints

HELD_OUT = 10
"""One row of so many is held out, if no validation rows are given."""

AT_ONCE = 4
"""Rows whose rate is measured together, in batches of the training."""


@dataclass(frozen=True)
class PriorFit(Result):
    """What codes cost under a prior that was fitted to them, -log p(z) in nats per row.

    `refit_prior` leaves it at the new prior: `refitted.prior.fitted`.

    Attributes:
        prior: The name of the prior.
        rate: Of the rows that it was fitted to, one value for each draw of their codes.
        validation_rate: Of the held-out rows; None if it was counted from all rows, in closed form.
        history: A dict for each epoch: `epoch`, the `rate` of the training rows while they were trained on,
            with dropout, and the `validation_rate`. Empty if there were none.
        best_epoch: The epoch whose weights are kept; 0 are those at the start.
        seconds: What the epochs took, with those before a call was resumed.
    """

    prior: str
    rate: Estimate
    validation_rate: Estimate | None
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float = 0.0

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        found = [("prior", self.prior), ("rate, training rows", f"{self.rate} per row")]
        if self.validation_rate is not None:
            found.append(("rate, held-out rows", f"{self.validation_rate} per row"))
        if self.history:
            found.append(("epochs", f"{len(self.history)}, of which {self.best_epoch} is kept"))
        return found

    def doubts(self) -> Iterator[str]:
        """See `Result.doubts`."""
        if self.history and not self.best_epoch:
            yield (
                "the held-out rate was in no epoch below that of the start, whose weights are kept, so that "
                "the prior is not fitted: give a smaller learning_rate"
            )
        elif self.history and self.best_epoch == len(self.history):
            yield (
                "the held-out rate was still falling in the last epoch: give a larger max_epochs, or a larger "
                "learning_rate"
            )

    def summary_numbers(self) -> dict[str, Any]:
        """See `Result.summary_numbers`."""
        held_out = self.validation_rate
        return {
            "prior": self.prior,
            "unit": "nats",
            "num_rows": len(self.rate.values),
            "rate": self.rate.to_dict(),
            "validation_rate": None if held_out is None else held_out.to_dict(),
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
        }


@dataclass(frozen=True)
class LevelsFit(Result):
    """What codes of several levels cost under priors that were fitted to them, each given the levels above.

    `refit_prior` of a `VQVAE2` leaves it at the new prior: `refitted.prior.fitted`.

    Attributes:
        levels: What was found of each level, by the name of its site, from the lowest.
    """

    levels: dict[str, PriorFit]

    @property
    def rate(self) -> Estimate:
        """The sum of the rates of the rows that the priors were fitted to, one value for each draw."""
        return Estimate(sum_of([found.rate.values for found in self.levels.values()]))

    @property
    def validation_rate(self) -> Estimate | None:
        """The same of the held-out rows; None if a level was counted from all rows."""
        held_out = [found.validation_rate for found in self.levels.values()]
        each = [rate.values for rate in held_out if rate is not None]
        return Estimate(sum_of(each)) if len(each) == len(held_out) else None

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        names = dict.fromkeys(found.prior for found in self.levels.values())
        found = [("prior", ", ".join(names)), ("rate, training rows", f"{self.rate} per row")]
        if self.validation_rate is not None:
            found.append(("rate, held-out rows", f"{self.validation_rate} per row"))
        sites = [*self.levels]
        for i, (site, of_level) in enumerate(self.levels.items()):
            given = f" given {', '.join(sites[i + 1 :])}" if sites[i + 1 :] else ""
            held_out = of_level.validation_rate
            rate, which = (
                (of_level.rate, "training") if held_out is None else (held_out, "held-out")
            )
            epochs = f"; epoch {of_level.best_epoch} of {len(of_level.history)}"
            found.append(
                (f"{site}{given}", f"{rate}, {which} rows{epochs if of_level.history else ''}")
            )
        return found

    def doubts(self) -> Iterator[str]:
        """See `Result.doubts`."""
        for site, found in self.levels.items():
            for text in found.doubts():
                yield f"{site}: {text}"

    def summary_numbers(self) -> dict[str, Any]:
        """See `Result.summary_numbers`."""
        held_out = self.validation_rate
        return {
            "unit": "nats",
            "num_rows": len(self.rate.values),
            "rate": self.rate.to_dict(),
            "validation_rate": None if held_out is None else held_out.to_dict(),
            "levels": {site: found.summary_numbers() for site, found in self.levels.items()},
        }


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """The sum of some tensors of one shape."""
    return torch.stack([*values]).sum(0)


@dataclass(frozen=True)
class Codes:
    """The codes of rows, and what the rows come with.

    Attributes:
        z: `(n, num_draws, *positions)`, whole numbers.
        c: What each draw is given, `(n, num_draws, *event)`: labels or attributes of the row, or codes above;
            None if the rows come alone.
    """

    z: Tensor
    c: Tensor | None

    def __len__(self) -> int:
        return len(self.z)

    def take(self, which: Tensor) -> Codes:
        """The codes of some rows."""
        return Codes(self.z[which], None if self.c is None else self.c[which])

    def drawn(self) -> Codes:
        """Each draw as a row of its own, with one draw."""
        z, c = (
            each if each is None else each.flatten(0, 1).unsqueeze(1) for each in (self.z, self.c)
        )
        assert z is not None
        return Codes(z, c)

    def batches(
        self, size: int, order: Tensor | None, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """The rows in order, on the device: z `(size, *positions)`, and c if there is one."""
        order = torch.arange(len(self)) if order is None else order
        for which in order.split(size):
            part = self.take(which)
            parts = [part.z[:, 0].long()] + ([] if part.c is None else [part.c[:, 0]])
            yield [each.to(device) for each in parts]


@dataclass(frozen=True)
class CodeSteps:
    """How a prior learns by gradient steps.

    Attributes:
        max_epochs: Most passes over the rows.
        patience: Epochs without a lower held-out rate after which it stops.
        batch_size: Rows per step.
        learning_rate: Of Adam.
    """

    max_epochs: int
    patience: int
    batch_size: int
    learning_rate: float


class CodeLevel(NamedTuple):
    """A prior, and the codes that it is fitted to.

    Attributes:
        name: The name of the prior.
        site: The site of the codes.
        prior: The module whose `forward()` is p(z), or `forward(c)` p(z | c).
        codes: The codes of the rows.
        held_out: Those of held-out rows; None if none were given.
    """

    name: str
    site: str
    prior: nn.Module
    codes: Codes
    held_out: Codes | None

    @property
    def counts(self) -> bool:
        """Whether the prior is fitted in closed form."""
        return hasattr(self.prior, "fit_to_codes")


def fit_codes(
    levels: Sequence[CodeLevel],
    steps: CodeSteps,
    device: torch.device,
    progress: bool | None,
    checkpoints: PriorCheckpoints,
) -> list[PriorFit]:
    """Fits priors to codes, in place.

    Args:
        levels: The priors and their codes, of the same rows. If one learns by steps and no held-out rows are
            given, some rows are held out, the same of all levels.
        steps: How those learn that have no closed form.
        device: Where they are.
        progress: Whether to show a progress bar; None shows one on a terminal.
        checkpoints: What writes and restores the state after an epoch.

    Raises:
        ValueError: There is nothing to hold out, or an earlier level had not ended.
        DivergenceError: The rate became NaN or infinite.
    """
    if levels[0].held_out is None and not all(level.counts for level in levels):
        kept, apart = _split(len(levels[0].codes))
        levels = [
            level._replace(codes=level.codes.take(kept), held_out=level.codes.take(apart))
            for level in levels
        ]
    with pyro.validation_enabled(False):  # NaN is told below, in fewer words
        named = len(levels) > 1
        return [_fit(level, named, steps, device, progress, checkpoints) for level in levels]


def _fit(
    level: CodeLevel,
    named: bool,
    steps: CodeSteps,
    device: torch.device,
    progress: bool | None,
    checkpoints: PriorCheckpoints,
) -> PriorFit:
    at_once = AT_ONCE * steps.batch_size
    prior: Any = level.prior
    codes = level.codes.drawn()
    held_out = None if level.held_out is None else level.held_out.drawn()
    learned: Learned | None = None
    if level.counts:
        (given,) = codes.batches(len(codes), None, device)
        prior.fit_to_codes(*given)
    else:
        assert held_out is not None
        title = f"refit_prior, {level.site}" if named else "refit_prior"
        learned = _train(prior, codes, held_out, steps, device, title, progress, checkpoints)
    rate = Estimate(_rates(prior, codes, at_once, device))
    of_held_out = None
    if held_out is not None:
        of_held_out = Estimate(_rates(prior, held_out, at_once, device))
    if learned is None:
        return PriorFit(level.name, rate, of_held_out, [], 0)
    of_epochs = (learned.history, learned.best, learned.seconds)
    return PriorFit(level.name, rate, of_held_out, *of_epochs)


def _split(n: int) -> tuple[Tensor, Tensor]:
    """The rows without some that are held out, and these; drawn from torch's global generator.

    Raises:
        ValueError: There is one row only.
    """
    if n < 2:
        raise ValueError(
            "refit_prior holds out a tenth of the rows, to stop before the prior overfits, but there is only "
            "1 row: give more, or held-out rows as validation"
        )
    order = torch.randperm(n)
    held_out = max(1, n // HELD_OUT)
    return order[held_out:], order[:held_out]


def _train(
    prior: nn.Module,
    codes: Codes,
    held_out: Codes,
    steps: CodeSteps,
    device: torch.device,
    title: str,
    progress: bool | None,
    checkpoints: PriorCheckpoints,
) -> Learned:
    """Minimizes -log p(z) by Adam, and keeps the weights with the least held-out rate."""
    at_once = AT_ONCE * steps.batch_size
    optimizer = torch.optim.Adam(prior.parameters(), lr=steps.learning_rate)
    limits = (steps.max_epochs, steps.patience)
    learned = checkpoints.restore(prior, optimizer, *limits)
    if learned is None:
        least = float(_rates(prior, held_out, at_once, device).mean())
        learned = Learned([], 0, least, copy.deepcopy(prior.state_dict()))
    with progress_bar(steps.max_epochs, title, "epoch", progress) as bar:
        bar.update(len(learned.history))
        while not learned.has_stopped(*limits):
            begun = time.monotonic()
            epoch = len(learned.history) + 1
            rate = _epoch(prior, codes, optimizer, steps, device, epoch)
            found = float(_rates(prior, held_out, at_once, device).mean())
            learned.history.append({"epoch": epoch, "rate": rate, "validation_rate": found})
            bar.set_postfix(rate=f"{rate:.3f}", validation_rate=f"{found:.3f}")
            bar.update(1)
            if found < learned.least:
                learned.least, learned.best = found, epoch
                learned.kept = copy.deepcopy(prior.state_dict())
            learned.seconds += time.monotonic() - begun
            ended = learned.has_stopped(*limits)
            checkpoints.save(prior, optimizer, learned, at_once=ended)
    checkpoints.end(learned)
    prior.load_state_dict(learned.kept)
    return learned


def _epoch(
    prior: nn.Module,
    codes: Codes,
    optimizer: torch.optim.Optimizer,
    steps: CodeSteps,
    device: torch.device,
    epoch: int,
) -> float:
    """One pass over the rows; the mean rate on the way, nats per row.

    Raises:
        DivergenceError: It became NaN or infinite.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    prior.train()
    number = 0
    with torch.enable_grad():
        for z, *c in codes.batches(steps.batch_size, torch.randperm(len(codes)), device):
            optimizer.zero_grad()
            loss: Any = -prior(*c).log_prob(z).mean()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(z)
            number += 1
    rate = float(total) / len(codes)
    if not math.isfinite(rate):
        raise DivergenceError(
            f"the rate of the codes became NaN or infinite in epoch {epoch} of refit_prior: give a smaller "
            f"learning_rate than {steps.learning_rate:g}",
            (epoch - 1) * number,
            None,
        )
    return rate


@torch.no_grad()
def _rates(prior: nn.Module, codes: Codes, at_once: int, device: torch.device) -> Tensor:
    """-log p(z) of each row in evaluation mode, `(n,)`, float64, nats."""
    was, found = prior.training, []
    prior.eval()
    for z, *c in codes.batches(at_once, None, device):
        found.append(-prior(*c).log_prob(z).double().cpu())
    prior.train(was)
    return torch.cat(found)
