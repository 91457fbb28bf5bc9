"""The training loop of :func:`ppl_vae.fit`: steps, epochs, early stopping, and its state on disk."""

from __future__ import annotations

import csv
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.capture import RECORD_AFTER, CapturedLoss, CaptureError
from ppl_vae.checks import DataCheck, check_batch, rows_not_finite
from ppl_vae.objectives import Loss, Objective
from ppl_vae.pairs import (
    Batch,
    Batches,
    Layout,
    Pair,
    PairError,
    find_layout,
    first_bad_site,
    move,
    num_rows,
    observed_sites,
    posterior_means,
    sample_rows,
)
from ppl_vae.runtime import (
    denormals_flushed,
    preserve_random_state,
    progress_bar,
    random_state,
    set_random_state,
    set_tensor_generators,
    tensor_generators,
)
from ppl_vae.stats import active_units
from ppl_vae.training.checkpoints import load_checkpoint, save_checkpoint
from ppl_vae.training.errors import DivergenceError, read_only_once
from ppl_vae.training.metrics import METRICS, bar_postfix, tensorboard_writer
from ppl_vae.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_logger = logging.getLogger(__name__)


CHECKPOINT_SECONDS = (1.0, 60.0)
"""Least time between checkpoints at the ends of epochs, and time after which one is made amid an epoch."""


VALIDATION_SAMPLES = 4
"""Samples a row for the held-out ELBO after each epoch, the same random numbers every time."""


COMPILED = (1000, 10_000)
"""The step from which on a captured step is compiled by itself, and the least steps of a training for it.

By the number of steps, not by the time they take: a resumed training has to make the same choice. Inductor
takes about as long to compile a small VAE as its code saves in ten thousand steps.
"""


CHECKED_ROWS = 1024
"""Least rows at once when all data are looked at before the training."""


@dataclass
class _Progress:
    """What changes from step to step, beside weights and optimiser."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_elbo: float = -math.inf
    seconds: float = 0.0


@dataclass
class Training:
    """One call of :func:`fit`, inside of the pair's scope."""

    pair: Pair
    fabric: Fabric
    batches: Batches
    held_out: Batches | None
    wanted: Objective
    max_epochs: int
    batch_size: int
    clip_grad_norm: float | None
    patience: int | None
    transform: Callable[[Tensor], Tensor] | None
    seed: int
    folder: Path | None
    progress: bool | None
    capture: bool
    compile: bool | None

    def prepare(
        self,
        optimizer: Callable[..., Optimizer] | None,
        learning_rate: float | None,
        lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None,
    ) -> None:
        """Checks the pair, finds its parameters and makes the optimiser."""
        # What is trained on: intensities are binarised, say, before the likelihood sees them.
        batch = self._transformed(self._on_device(self.batches.first(self.batch_size)))
        share = num_rows(batch) - self.fabric.global_rank
        self.full_batch = math.ceil(share / self.fabric.world_size)
        if self.pair.keeps_rows and self.batches.num_batches(self.batch_size) != 1:
            raise PairError(
                "the guide keeps parameters for each row (it is not amortised), so that it can not be given "
                f"batches of {self.batch_size} rows: train with batch_size = the number of rows, or use a "
                "guide that computes q(z | x) from x"
            )
        report = check_batch(
            self.pair, batch, self.wanted, self.max_epochs, self._has_ragged_batch()
        )
        report.raise_errors()
        if self.fabric.is_global_zero:
            report.show_warnings()
        self.parameters = self.pair.parameters(batch)
        self.leaves = list(self.parameters.values())
        if not self.leaves:
            raise ValueError("the pair has no parameters to train: neither modules nor pyro.param")
        self._check_rows(batch)
        if self.fabric.world_size > 1:
            self._synchronise()
        self.layout: Layout = find_layout(self.pair, batch)
        with self.pair.mode(training=False):  # batch statistics are those of training alone
            self.objective = self.wanted.resolve(self.pair, batch)
        self.captured = (
            CapturedLoss(self.pair, self.layout, self.objective, self.parameters)
            if self.capture
            else None
        )
        self.optimizer = make_optimizer(self.leaves, optimizer, learning_rate)
        self.scheduler = None if lr_scheduler is None else lr_scheduler(self.optimizer)
        if not isinstance(self.scheduler, LRScheduler | ReduceLROnPlateau | None):
            raise TypeError(
                f"lr_scheduler made a {type(self.scheduler).__name__}; expected a function that makes a "
                "schedule of torch.optim.lr_scheduler from the optimizer"
            )
        self.state = _Progress()
        self.saved_at = -math.inf
        self.overdue = False
        self.best: dict[str, Tensor] | None = None

    def _check_rows(self, first: Batch) -> None:
        """Looks at the data of all rows; those of an iterable are looked at as they come."""
        self.data_check: DataCheck | None = None
        if self.pair.keeps_rows or self.batches.num_batches(self.batch_size) == 1:
            return  # the check has seen them all
        self.data_check = DataCheck(self.pair, first)
        if not self.batches.in_memory:
            return
        start = 0
        with preserve_random_state():
            for batch in self.batches.ordered(max(self.batch_size, CHECKED_ROWS)):
                batch = self._transformed(self._on_device(batch))
                found = self.data_check.first_problem(batch)
                if found is not None:
                    row = start if found[1] is None else start + found[1]
                    raise PairError(f"row {row} of x (counted from 0): {found[0]}")
                start += num_rows(batch)

    def _check_batch_as_it_comes(self, batch: Batch) -> None:
        if self.data_check is None or self.batches.in_memory or self.state.epoch > 0:
            return
        found = self.data_check.first_problem(batch)
        if found is not None:
            row = "" if found[1] is None else f", row {found[1]} in it"
            raise PairError(
                f"batch {self.state.step_in_epoch} of x{row} (counted from 0): {found[0]}"
            )

    def run(self, tensorboard: bool) -> dict[str, Any]:
        """Trains until the end; what :class:`Fit` says of it."""
        started = time.monotonic() - self.state.seconds
        per_epoch = self.batches.num_batches(self.batch_size)
        total = None if per_epoch is None else per_epoch * self.max_epochs
        stopped = f"reached max_epochs = {self.max_epochs}"
        if self.state.step == 0:
            self._checkpoint()
        shown = self.progress if self.fabric.is_global_zero else False
        with (
            progress_bar(total, "fit", "step", shown) as bar,
            tensorboard_writer(
                self.folder if tensorboard and self.fabric.is_global_zero else None
            ) as board,
            self.pair.mode(training=True),
            pyro.validation_enabled(False),
            denormals_flushed(),
        ):
            bar.update(self.state.step)
            self._write_metrics(self.state.history)
            if self.state.history:
                bar.set_postfix(bar_postfix(self.state.history[-1]))
            self.compiles_from = self._compiles_from(total)
            while self.state.epoch < self.max_epochs and not self._exhausted():
                self._epoch(per_epoch, bar, started)
                self.state.seconds = time.monotonic() - started
                row = self._end_of_epoch()
                bar.set_postfix(bar_postfix(row))
                if board is not None:
                    for name, value in row.items():
                        board.add_scalar(name, value, self.state.epoch)
                self._write_metrics([row])
                last = self.state.epoch >= self.max_epochs or self._exhausted()
                due = last or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS[0]
                if self.fabric.broadcast(due):  # clocks differ, and all processes take part
                    self._checkpoint()
        if self._exhausted():
            stopped = f"no better held-out ELBO in {self.patience} epochs"
        if self.patience is not None:
            self._keep_best()
        for leaf in self.leaves:
            leaf.grad = None
        return {
            "history": self.state.history,
            "epochs": self.state.epoch,
            "steps": self.state.step,
            "best_epoch": self.state.best_epoch or self.state.epoch,
            "stopped": stopped,
            "seconds": self.state.seconds,
        }

    def _compiles_from(self, total: int | None) -> int | None:
        """The step from which on the captured step is compiled; None for never."""
        if self.compile is None:
            first, least = COMPILED
            return first if total is not None and total >= least else None
        return RECORD_AFTER if self.compile else None

    # -- one epoch, one step -----------------------------------------------------------------------------

    def _epoch(self, per_epoch: int | None, bar: Any, started: float) -> None:
        state = self.state
        if self.captured is not None:
            self.captured.recheck_state()
        source = self.batches.shuffled(
            self.batch_size,
            self.seed,
            state.epoch,
            self.fabric.global_rank,
            self.fabric.world_size,
            start=state.step_in_epoch,
        )
        for batch, rows in source:
            done = 0.0 if per_epoch is None else state.step_in_epoch / per_epoch
            self._step(batch, rows, self.objective.beta_at(state.epoch + done))
            state.step += 1
            state.step_in_epoch += 1
            bar.update(1)
            if self.overdue:
                state.seconds = time.monotonic() - started
                self._checkpoint()
        if not state.sums:
            raise read_only_once("x", state.epoch + 1)

    def _step(self, batch: Batch | None, rows: int, beta: float) -> None:
        for leaf in self.leaves:
            leaf.grad = None
        share = 0.0
        metrics: list[float] = []
        loss: Loss | None = None
        diverged: DivergenceError | None = None
        if batch is not None:
            batch = self._transformed(self._on_device(batch))
            self._check_batch_as_it_comes(batch)
            share = num_rows(batch) / rows
            with self.fabric.autocast():
                metrics = self._captured_step(batch, beta)
                if not metrics:
                    loss = self._pyro_step(batch, beta)
            if loss is not None and not math.isfinite(float(loss.loss.detach())):
                diverged = self._diverged("the loss", loss)
            elif loss is not None:
                loss.loss.backward()
                parts = (loss.loss, loss.elbo, loss.rate, loss.distortion)
                metrics = [float(part.detach()) for part in parts]
            if share != 1.0:
                for leaf in self.leaves:
                    if leaf.grad is not None:
                        leaf.grad = leaf.grad * share
        waited = time.monotonic() - self.saved_at
        self.overdue = self.batches.in_memory and waited > CHECKPOINT_SECONDS[1]
        if self.fabric.world_size > 1:
            diverged = self._reduce_gradients(diverged)
        if diverged is not None:
            raise diverged
        if loss is not None or self.fabric.world_size > 1 or self.clip_grad_norm is not None:
            self._check_and_clip(loss)
        self.optimizer.step()
        weight = share * rows
        sums = self.state.sums
        sums["rows"] = sums.get("rows", 0.0) + weight
        for name, value in zip(("loss", "elbo", "rate", "distortion"), metrics, strict=False):
            sums[name] = sums.get(name, 0.0) + value * weight

    def _captured_step(self, batch: Batch, beta: float) -> list[float]:
        """The step by a recording: its metrics, or nothing if it has to be done by Pyro."""
        if self.captured is None:
            return []
        compiled = self._is_compiled(batch)
        if not compiled and not self.captured.worth_recording(batch):
            return []
        generators = tensor_generators(self.fabric.device)
        try:
            metrics = self.captured(batch, beta, compiled).tolist()
        except CaptureError as error:
            self.captured = None
            set_tensor_generators(generators, self.fabric.device)
            if self.fabric.is_global_zero:
                _logger.warning("capture is off, the training goes on in Pyro: %s", error)
            return []
        if not all(map(math.isfinite, metrics)):
            # Pyro does the step again, from the same random numbers, and says what went bad.
            set_tensor_generators(generators, self.fabric.device)
            for leaf in self.leaves:
                leaf.grad = None
            return []
        return metrics

    def _is_compiled(self, batch: Batch) -> bool:
        """Whether a step is to be run compiled: a matter of its number, and not of what ran before it.

        Recordings agree with Pyro bit by bit, so that it makes no difference when they are made; compiled
        ones do not, and a training that was killed and resumed has to go the same way.
        """
        assert self.captured is not None
        if self.compiles_from is None or self.state.step < self.compiles_from:
            return False
        return num_rows(batch) == self.full_batch and self.captured.has_room(batch)

    def _pyro_step(self, batch: Batch, beta: float) -> Loss:
        try:
            return self.objective(self.pair, self.layout, batch, beta)
        except Exception as error:
            error.add_note(f"while training, at step {self.state.step + 1}")
            raise

    def _check_and_clip(self, loss: Loss | None) -> None:
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            names = [
                name
                for name, leaf in self.parameters.items()
                if leaf.grad is not None and not bool(torch.isfinite(leaf.grad).all())
            ]
            what = f"the gradient of parameter '{names[0]}'" if names else "the gradient's norm"
            raise self._diverged(what, loss)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.leaves, self.clip_grad_norm, norm)

    def _diverged(self, what: str, loss: Loss | None) -> DivergenceError:
        site = None if loss is None else first_bad_site(loss.traces)
        where = (
            f"the first site that is not finite is {site[1]}" if site else "all sites are finite"
        )
        advice = "A smaller learning rate, clip_grad_norm, or a bounded scale may help"
        for model_trace, _ in loss.traces if loss is not None else []:
            data = observed_sites(model_trace).get(site[0]) if site else None
            if data is not None and not bool(torch.isfinite(data["value"]).all()):
                rows = rows_not_finite(data, self.layout.dim)
                shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
                where_in = f"rows {shown} of the batch, counted from 0" if rows else "the batch"
                advice = f"They are in {where_in}: remove or mend them, or the transform"
                break
        kept = f"; the last good checkpoint is in {self.folder}/checkpoints" if self.folder else ""
        return DivergenceError(
            f"{what} became NaN or infinite at step {self.state.step + 1} (epoch {self.state.epoch + 1}); "
            f"{where}{kept}. {advice}",
            self.state.step,
            site[0] if site else None,
        )

    def _transformed(self, batch: Batch) -> Batch:
        if self.transform is None:
            return batch
        if isinstance(batch, Tensor):
            return self.transform(batch)
        return (self.transform(batch[0]), *batch[1:])

    def _on_device(self, batch: Batch) -> Batch:
        return move(batch, self.fabric.device)

    def _has_ragged_batch(self) -> bool:
        if not self.batches.in_memory:
            return False
        n = num_rows(self.batches.rows)
        return n > self.batch_size and n % self.batch_size != 0

    # -- several processes -------------------------------------------------------------------------------

    def _synchronise(self) -> None:
        """Every process starts from the first one's weights."""
        first: dict[str, Tensor] = self.fabric.broadcast(
            {name: tensor.detach().cpu() for name, tensor in self.pair.state().items()}
        )
        self.pair.load_state({n: t.to(self.fabric.device) for n, t in first.items()})

    def _reduce_gradients(self, diverged: DivergenceError | None) -> DivergenceError | None:
        """Sums the gradients of all processes; each had weighted its own by its share of the rows.

        With them go two flags, so that all processes stop if one diverges, and make a checkpoint when
        the first one is due: a process alone in a collective operation would wait for ever.
        """
        parts = [
            torch.zeros_like(leaf).flatten() if leaf.grad is None else leaf.grad.flatten()
            for leaf in self.leaves
        ]
        due = self.overdue and self.fabric.is_global_zero
        flags = parts[0].new_tensor([diverged is not None, due])
        flat = self.fabric.all_reduce(torch.cat([*parts, flags]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        start = 0
        for leaf in self.leaves:
            leaf.grad = flat[start : start + leaf.numel()].view_as(leaf).to(leaf.dtype)
            start += leaf.numel()
        self.overdue = bool(flat[-1] > 0)
        if not flat[-2] > 0:
            return None
        everyone: list[Any] = [None] * self.fabric.world_size
        mine = None if diverged is None else (str(diverged), diverged.step, diverged.site)
        torch.distributed.all_gather_object(everyone, mine)
        return next(DivergenceError(*found) for found in everyone if found is not None)

    def _share_buffers(self) -> None:
        """Batch statistics, which each process gathers from its own rows, become the first one's."""
        if self.fabric.world_size > 1:
            for module in self.pair.modules().values():
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)

    # -- after an epoch ----------------------------------------------------------------------------------

    def _end_of_epoch(self) -> dict[str, float]:
        state = self.state
        sums = state.sums
        if self.fabric.world_size > 1:
            keys = ("rows", "loss", "elbo", "rate", "distortion")
            mine = torch.tensor([sums.get(k, 0.0) for k in keys], dtype=torch.float64)
            mine = mine.to(self.fabric.device)
            total = self.fabric.all_reduce(mine, reduce_op="sum")
            sums = dict(zip(keys, total.tolist(), strict=True))  # type: ignore[union-attr]
        beta = self.objective.beta_at(state.epoch + 1 - 1e-9)
        state.epoch += 1
        rows = sums.pop("rows")
        row: dict[str, float] = {"epoch": state.epoch, "step": state.step}
        row |= {name: total / rows for name, total in sums.items()}
        self._share_buffers()
        row |= self.fabric.broadcast(self._held_out())
        row["beta"] = beta
        row["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        row["seconds"] = round(state.seconds, 3)
        state.history.append(row)
        state.sums, state.step_in_epoch = {}, 0
        if isinstance(self.scheduler, ReduceLROnPlateau):
            watched = row.get("validation_elbo", row["elbo"])
            self.scheduler.step(watched if self.scheduler.mode == "max" else -watched)
        elif self.scheduler is not None:
            self.scheduler.step()
        warm = state.epoch >= self.objective.warmup_epochs
        if self.patience is not None and warm and row["validation_elbo"] > state.best_elbo:
            state.best_elbo, state.best_epoch = row["validation_elbo"], state.epoch
            self.best = {n: t.detach().cpu().clone() for n, t in self.pair.state().items()}
        return row

    def _held_out(self) -> dict[str, float]:
        """beta = 1 ELBO, rate and distortion of held-out rows, and active units (of training rows if none)."""
        rate = distortion = rows = 0.0
        means: list[Tensor] = []
        source = self.held_out if self.held_out is not None else self.batches
        with torch.no_grad(), self.pair.mode(training=False), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            size = self.batch_size if self.pair.keeps_rows else max(self.batch_size, 512)
            for batch in source.ordered(size):
                batch = self._on_device(batch)
                if self.held_out is None:
                    batch = self._transformed(batch)
                drawn = sample_rows(self.pair, self.layout, batch, VALIDATION_SAMPLES)
                rate += float((drawn.log_guide - drawn.log_prior).double().mean(0).sum())
                distortion -= float(drawn.log_likelihood.double().mean(0).sum())
                rows += num_rows(batch)
                means.append(posterior_means(drawn, self.layout).cpu())
                if self.held_out is None:
                    break
        if not means:
            name = "x" if self.held_out is None else "validation"
            raise read_only_once(name, self.state.epoch)
        joined = torch.cat(means)
        active = active_units(joined)[1].sum() if len(joined) > 1 else 0
        found: dict[str, float] = {"active_units": int(active)}
        if self.held_out is not None:
            found["validation_rate"] = rate / rows
            found["validation_distortion"] = distortion / rows
            found["validation_elbo"] = -(rate + distortion) / rows
        return found

    def _exhausted(self) -> bool:
        state = self.state
        if self.patience is None or state.best_epoch == 0:
            return False
        return state.epoch - state.best_epoch >= self.patience

    def _keep_best(self) -> None:
        if self.best is not None:
            self.pair.load_state({n: t.to(self.fabric.device) for n, t in self.best.items()})

    # -- on disk -----------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What must not have changed when a run is continued."""
        rows = num_rows(self.batches.rows) if self.batches.in_memory else None
        return {
            "batch_size": self.batch_size,
            "objective": re.sub(r" at 0x[0-9a-f]+", "", repr(self.wanted)),
            "optimizer": type(self.optimizer).__name__,
            "lr_scheduler": type(self.scheduler).__name__,
            "rows": rows,
            "compile": self.compile,
            "processes": self.fabric.world_size,
            "parameters": [[name, list(leaf.shape)] for name, leaf in self.parameters.items()],
        }

    def _checkpoint(self) -> None:
        self.saved_at = time.monotonic()
        if self.folder is None:
            return
        generators = random_state(self.fabric.device)
        if self.fabric.world_size > 1:
            everyone: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everyone, generators)
        else:
            everyone = [generators]
        if not self.fabric.is_global_zero:
            return
        state = {
            "pair": self.pair.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generators": everyone,
            "seed": self.seed,
            "best": self.best,
        }
        facts = self._facts() | {"progress": vars(self.state)}
        save_checkpoint(self.folder / "checkpoints", self.state.step, state, facts)

    def restore(self) -> None:
        """Puts everything back to where the newest good checkpoint was taken."""
        assert self.folder is not None
        saved, facts = load_checkpoint(self.folder / "checkpoints")
        for name, now in self._facts().items():
            if facts[name] != now:
                raise ValueError(
                    f"{self.folder}: the run was started with {name} = {facts[name]}, now it is {now}; "
                    "a resumed run must be the same in all but max_epochs and patience"
                )
        device = self.fabric.device
        self.pair.load_state({n: t.to(device) for n, t in saved["pair"].items()})
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None and saved["scheduler"] is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        set_random_state(saved["generators"][self.fabric.global_rank], device)
        self.state = _Progress(**facts["progress"])
        self.seed = saved["seed"]
        self.best = saved["best"]

    def _write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Adds rows to metrics.csv; a call with the whole history starts the file anew."""
        if self.folder is None or not self.fabric.is_global_zero:
            return
        anew = rows is self.state.history
        with open(self.folder / "metrics.csv", "w" if anew else "a", newline="") as file:
            writer = csv.DictWriter(file, METRICS, restval="", lineterminator="\n")
            if anew:
                writer.writeheader()
            writer.writerows(rows)
