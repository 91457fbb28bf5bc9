"""The loop of `ppl_vae.fit`: epochs, the schedule of the learning rate, early stopping.

A training is made of parts, each in a file of its own. In the order in which an epoch meets them:
`TrainingRows` gives a batch, `Step` moves the parameters by it, `Progress` counts; after the last batch,
`HeldOut` measures, `MetricsLog` writes, `Checkpoints` saves everything. `Processes` is what they share if
several processes train together.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.capture import CapturedLoss
from ppl_vae.checks import (
    Findings,
    PairWarning,
    Problem,
    Report,
    check_batch,
    check_traces,
    label_problems,
    objective_problems,
    observed_problems,
)
from ppl_vae.objectives import Controller, ControlState, Objective, Resolved
from ppl_vae.pairs import (
    Batch,
    Batches,
    Layout,
    Layouts,
    Measure,
    Pair,
    PairError,
    Trace,
    is_ours,
    least_rate,
    measure_in,
    measure_of,
    mixture_in,
    num_rows,
    own_attribute,
    trace_pair,
)
from ppl_vae.runs import RunFolder, digest_of_rows, programs_of, settings_of
from ppl_vae.runtime import denormals_flushed, preserve_random_state, progress_bar
from ppl_vae.training.aggressive import Aggression, parameters_of_guide
from ppl_vae.training.agreement import Agreement
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.deaths import Deaths
from ppl_vae.training.errors import read_only_once
from ppl_vae.training.held_out import HeldOut
from ppl_vae.training.memory import require_memory
from ppl_vae.training.metrics import MetricsLog, tensorboard_writer
from ppl_vae.training.noise import Noise, unsettled
from ppl_vae.training.optimizers import (
    make_optimizer,
    make_scheduler,
    own_rates,
    require_watched,
    step_scheduler,
    with_options,
    with_own_rates,
)
from ppl_vae.training.processes import Processes
from ppl_vae.training.progress import Progress
from ppl_vae.training.rows import TrainingRows
from ppl_vae.training.step import STEP_METRICS, CapturedGradients, Step
from ppl_vae.training.strides import Strides
from ppl_vae.training.turns import ROWS, Turns

_NOT_COMPARED = r" at 0x[0-9a-f]+|, (?:stick_the_landing|doubly_reparameterized)=False"
"""Of an objective, when a run is resumed: addresses, and options that older checkpoints do not name."""


class Training:
    """One call of `fit`, inside of the pair's scope.

    Making the object checks the pair and the rows, and finds the pair's parameters; `fit` says what the
    arguments are.

    Attributes:
        progress: How far the training has come.
        seed: Of the order of the rows and of the held-out draws; `restore` makes it that of the run.
        best: The weights of the best epoch so far, if the training stops early.
        agreement: Watches that loss and ELBO agree.
        noise: Finds the noise of the model between epochs, if that is asked for.
        findings: What the checks warn of, in the first batch and in other kinds of batches.
        warnings: Why not to trust the metrics, and what the checks warn of in later kinds of batches.

    Raises:
        PairError: The checks have found something that makes training wrong.
        ValueError: The pair has no parameters, or `optimizer` or `lr_scheduler` fails.
        TypeError: `optimizer` or `lr_scheduler` is not a function that makes what it should.
    """

    def __init__(
        self,
        *,
        pair: Pair,
        processes: Processes,
        batches: Batches,
        held_out: Batches | None,
        requested_objective: Objective,
        optimizer: Callable[..., Optimizer] | PyroOptim | None,
        learning_rate: float | None,
        lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None,
        clip_grad_norm: float | None,
        max_epochs: int,
        batch_size: int,
        patience: int | None,
        transform: Callable[[Tensor], Tensor] | None,
        seed: int,
        folder: RunFolder | None,
        capture: bool,
        compile: bool | None,
        aggressive: bool,
    ) -> None:
        self.pair = pair
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed
        self.folder = folder
        controller = requested_objective.beta
        begun = controller.begin() if isinstance(controller, Controller) else None
        self.progress = Progress(
            control=None if begun is None else [*astuple(begun)],
            aggression=[*astuple(Aggression())] if aggressive else None,
        )
        self.best: dict[str, Tensor] | None = None

        self.processes = processes
        self.rows = TrainingRows(pair, batches, batch_size, transform, self.processes)
        first = self.rows.first()
        layouts = Layouts(pair)
        self.findings = Findings(minibatches=self.rows.in_parts)
        self._check(first, requested_objective, layouts)
        parameters = pair.parameters(first)
        if not parameters:
            raise ValueError(
                "the pair has no parameters to train: neither modules whose parameters have requires_grad, nor "
                "pyro.param. Write what is to be learned as one of these; what is known needs no fit: evaluate "
                "takes the pair as it is"
            )
        self.rows.check(first)
        self.processes.share_weights(pair)
        self.objective = Resolved(requested_objective, pair)
        layout = layouts.expected(first)
        held: Any = pair.model if is_ours(pair.model, "training") else None  # by `refit_guide`
        self.noise: Noise | None = getattr(held, "noise", None)
        if self.noise is not None:
            with preserve_random_state(), torch.no_grad(), pair.mode(training=False):
                self.noise.check(layout, trace_pair(pair, first)[0])
        objective = self.objective.of(layout, first)
        self.resolved = objective
        self._judged_by_elbo = objective.judged_by_elbo
        if layout.improper and isinstance(requested_objective.beta, Controller):
            raise PairError(
                f"{type(requested_objective.beta).__name__} sets beta by rate and distortion, but p(z) of "
                f"'{layout.improper[0]}' is improper, so that there is no rate: give beta a number or a "
                "schedule"
            )
        of_pair = len(parameters)
        parameters = {n: p for n, p in parameters.items() if not objective.keeps(pair, n)}
        if not parameters:
            raise ValueError(
                f"{type(objective).__name__} leaves all trainable parameters of the pair as they are: "
                "those that it trains have requires_grad=False, or are not there: call requires_grad_() of "
                "what it should train, or give another objective, such as ELBO()"
            )
        turns = Turns.of(pair, parameters, objective)
        if aggressive and turns is not None:
            raise ValueError(
                f"aggressive=True moves guide and model in turn by one loss, and {turns.objective} has turns "
                "of its own: leave it out"
            )
        self.of_guide = parameters_of_guide(pair, parameters) if aggressive else frozenset()
        with preserve_random_state(), torch.no_grad(), pair.mode(training=False):
            self.agreement = Agreement(objective)
            traces = trace_pair(pair, first)
            self.agreement.look(layout, *traces)
        self.warnings: list[str] = []
        told = label_problems(pair, traces[0], first, batches, requested_objective)
        self._warn(self.findings.add(told))
        del traces, told
        self._disagrees = False

        leaves = list(parameters.values())
        moments = 2 if optimizer is None else 0  # those of Adam; of others it is not known
        kept = {"keeps_best": patience is not None, "writes": folder is not None}
        require_memory(leaves, moments, **kept)
        self.optimizer = make_optimizer(leaves, optimizer, learning_rate)
        if turns is not None:
            options = [(str(turn), turns.leaves[turn.name], turn.options) for turn in turns.turns]
            with_options(self.optimizer, options)
        parts = (part for root in pair.modules().values() for part in root.modules())
        with_own_rates(self.optimizer, own_rates(parts))
        self.scheduler = make_scheduler(self.optimizer, lr_scheduler)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            require_watched(objective, requested_objective.beta)
        per_epoch = self.rows.per_epoch
        self.total_steps = None if per_epoch is None else per_epoch * max_epochs
        captured = None
        if capture and turns is None:
            loss = CapturedLoss(pair, layouts, self.objective, parameters)
            share = self.rows.share_of(first)
            captured = CapturedGradients(loss, share, compile, self.total_steps, self.processes)
        self.step = Step(
            pair,
            layouts,
            self.objective,
            parameters,
            self.optimizer,
            captured,
            self.processes,
            clip_grad_norm,
            folder,
            turns,
            keeps_some=len(parameters) < of_pair,
            rows_per_batch=batches.rows_per_batch,
        )
        self.strides = Strides.of(self.step, self.rows)
        self.held_out = HeldOut(pair, layouts, held_out, self.rows)
        self.held_out.check(first)
        self.held_out.measures_information = aggressive
        layouts.check = self._check_new_kind
        layouts.found = self._look_at_new_kind
        self.objective.check = self._check_objective
        compared = folder is not None or self.processes.count > 1
        facts = {
            "batch_size": batch_size,
            "objective": re.sub(_NOT_COMPARED, "", repr(requested_objective)),
            "optimizer": type(self.optimizer).__name__,
            type(self.optimizer).__name__: {
                name: str(value) for name, value in self.optimizer.defaults.items()
            },
            "clip_grad_norm": None if clip_grad_norm is None else float(clip_grad_norm),
            "transform": None if transform is None else _name(transform),
            "data": digest_of_rows(batches) if compared else None,
            "validation": digest_of_rows(held_out) if compared and held_out is not None else None,
            "frozen": getattr(held, "digest", None),
            "fit_noise": self.noise is not None,
            **_of_scheduler(self.scheduler),
            "rows": self.rows.number,
            "compile": compile,
            "aggressive": aggressive,
            **({} if turns is None else {"turns": turns.facts()}),
            "processes": self.processes.count,
            "parameters": [[name, list(leaf.shape)] for name, leaf in parameters.items()],
            "programs": programs_of(pair),
            "settings": settings_of(pair),
        }
        self.processes.require_same(
            {**facts, "max_epochs": max_epochs, "patience": patience},
            "Give all of them the same options and the same rows: the training divides each batch among them",
        )
        self.checkpoints = Checkpoints(
            folder, facts, pair, self.optimizer, self.scheduler, self.processes
        )

    def _check(self, first: Batch, objective: Objective, layouts: Layouts) -> None:
        report = check_batch(
            self.pair,
            first,
            objective,
            self.max_epochs,
            smallest_batch=self.rows.smallest_batch,
            minibatches=self.rows.in_parts,
            doubt=self.rows.batches.doubt,
            layouts=layouts,
        )
        report.raise_errors()
        # The check may have found that the pair needs them.
        self.rows.require_all_rows()
        self.findings.add(report.problems)
        if self.processes.is_first:
            report.show_warnings()

    def _check_new_kind(self, batch: Batch, traces: tuple[Trace, Trace]) -> None:
        """Checks the first batch that has other sites, masks or shapes than those before: `Layouts.check`."""
        found = check_traces(self.pair, batch, traces, self.rows.batches.doubt)
        self._warn(self.findings.add([*found, *observed_problems(self.pair.guide, traces[1])]))
        self.rows.new_kind(batch, traces)
        self.held_out.new_kind(batch, traces)

    def _look_at_new_kind(self, batch: Batch, traces: tuple[Trace, Trace], layout: Layout) -> None:
        """Looks at the layout of such a batch, as `Layouts.found`."""
        self._warn(self.findings.look(batch, traces, layout))
        self.agreement.look(layout, *traces)

    def _check_objective(
        self, layout: Layout, batch: Batch, traces: tuple[Trace, Trace], objective: Objective
    ) -> None:
        """Checks that the objective is right for a new kind of batch, as `Resolved.check`."""
        report = Report(tuple(objective_problems(self.pair, layout, batch, traces, objective)))
        report.raise_errors()
        self._warn(report.problems)

    def _warn(self, problems: Iterable[Problem]) -> None:
        """Says what the checks warn of in the midst of a training, and keeps it."""
        for problem in problems:
            self.warnings.append(problem.message)
            if self.processes.is_first:
                warnings.warn(problem.message, PairWarning, stacklevel=2)

    def restore(self, seed: int | None) -> None:
        """Goes back to where the newest good checkpoint in the run folder was taken.

        Args:
            seed: The seed that is asked for; None takes that of the run.

        Raises:
            ValueError: The run was started with another one, with other options or with other rows.
        """
        self.progress, self.seed, self.best = self.checkpoints.restore(seed)

    def run(self, tensorboard: bool, show_progress: bool | None) -> str:
        """Trains until the end, and says why it ended.

        Args:
            tensorboard: Whether to write the metrics for TensorBoard too.
            show_progress: Whether to show a progress bar; None shows one on a terminal.
        """
        progress = self.progress
        started = time.monotonic() - progress.seconds
        writes = self.processes.is_first
        folder = self.folder if writes else None
        if progress.step == 0:
            self._save()
        with (
            progress_bar(
                self.total_steps, "fit", "step", show_progress if writes else False
            ) as bar,
            tensorboard_writer(folder if tensorboard else None) as board,
            self.pair.mode(training=True),
            pyro.validation_enabled(False),
            denormals_flushed(),
        ):
            bar.update(progress.step)
            log = MetricsLog(folder, progress.history, board, bar)
            deaths = Deaths(progress.history, speaks=writes)
            while not self._has_ended():
                self._find_noise()
                self._epoch(bar, started)
                progress.seconds = time.monotonic() - started
                log.add(self._end_of_epoch())
                deaths.look(progress.history, progress.epoch)
                self._show_doubts()
                due = self._has_ended() or self.checkpoints.is_due(amid_epoch=False)
                if self.processes.from_first(due):  # clocks differ, and all processes take part
                    self._save()
        self._look_at_target()
        self._look_at_noise()
        if self.best is not None and self.patience is not None:
            device = self.processes.device
            self.pair.load_state({n: t.to(device) for n, t in self.best.items()})
        self.step.clear_gradients()
        if self._has_stopped_early():
            return f"no better held-out {self._measure_held_out.text} in {self.patience} epochs"
        return f"reached max_epochs = {self.max_epochs}"

    @property
    def _measure(self) -> Measure:
        """What stands where the ELBO would, on all kinds of batches that were trained on."""
        layouts = self.step.layouts
        return measure_of(layouts.used or layouts.known)

    @property
    def _measure_held_out(self) -> Measure:
        """The same on held-out rows; that of the training if there are none."""
        used = () if self.held_out.batches is None else self.held_out.used
        return measure_of(used) if used else self._measure

    def _epoch(self, bar: Any, started: float) -> None:
        """The steps of one epoch that are still to be taken."""
        progress = self.progress
        whole = progress.step_in_epoch == 0
        self.step.has_moved = False
        if self.step.captured is not None:
            self.step.captured.recheck_state()
        source = self._batches()
        while True:
            taken = self._stride()
            if taken:
                source = self._batches()
                bar.update(taken)
                due = self.checkpoints.is_due(amid_epoch=True)
            else:
                batch, rows = next(source, (None, 0))
                if not rows:
                    break
                due = self._single(batch, rows)
                bar.update(1)
            if due:
                progress.seconds = time.monotonic() - started
                self._save()
        if not progress.sums:
            raise read_only_once("x", progress.epoch + 1)
        if whole and not self.step.has_moved:
            raise PairError(
                f"no batch of epoch {progress.epoch + 1} has a loss with a gradient: no trainable parameter "
                "enters it. Use the parameters in model or guide, or give batches whose latents are drawn"
            )

    def _find_noise(self) -> None:
        """Finds the noise of a model that is held otherwise, where it is due before an epoch."""
        now, epoch = self.progress, self.progress.epoch
        if self.noise is None or now.step_in_epoch or not self.noise.is_due(epoch, self.max_epochs):
            return
        now.noise = [*self.noise.find(self.pair, self.rows, self.seed, epoch)]
        # What was best with another noise; it is there if more epochs are asked for than before.
        now.best_elbo, now.best_epoch, self.best = -math.inf, 0, None
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.best, self.scheduler.num_bad_epochs = self.scheduler.mode_worse, 0

    def _elbo_counts(self, epoch: float) -> bool:
        """Whether the ELBO after an epoch is what is to be as high as possible: not in a warm-up of beta."""
        return self._judged_by_elbo and epoch >= self.objective.requested.warmup_epochs

    @property
    def _noise_is_final(self) -> bool:
        """Whether the noise in the last epoch is that of the end: others are not compared with it."""
        return self.noise is None or self.noise.is_final(self.progress.epoch, self.max_epochs)

    def _batches(self) -> Iterator[tuple[Batch | None, int]]:
        """The batches of the epoch that are still to come."""
        return self.rows.shuffled(self.seed, self.progress.epoch, self.progress.step_in_epoch)

    @property
    def _controlled(self) -> ControlState | None:
        """Where the controller of beta stands, if there is one."""
        if self.progress.control is None:
            return None
        beta, integral, rate, distortion, steps, *weight = self.progress.control
        # Checkpoints of earlier versions, in which each step had weight 1, do not have it.
        return ControlState(
            beta, integral, rate, distortion, int(steps), weight[0] if weight else steps
        )

    def _control(self, metrics: Mapping[str, float], rows: int, of_all: int) -> None:
        """Tells the controller of beta of a step, on so many rows of this process, and of all processes."""
        state, controller = self._controlled, self.objective.requested.beta
        if state is None or not isinstance(controller, Controller):
            return
        means = self._mean_over_rows(
            {name: metrics.get(name, 0.0) for name in ("rate", "distortion")}, rows
        )
        rate, distortion = means["rate"], means["distortion"]
        per_batch = self.step.rows_per_batch
        weight = 1.0 if per_batch is None else of_all / per_batch
        state = controller.after(state, rate, distortion, weight)
        self.progress.control = [*astuple(state)]

    def _mean_over_rows(self, means: Mapping[str, float], rows: int) -> dict[str, float]:
        """The means over the rows of all processes, from those over this process's rows."""
        sums = {name: value * rows for name, value in means.items()} | {"rows": float(rows)}
        sums = self.processes.summed(sums, (*means, "rows"), "after a step")
        return {name: sums[name] / sums["rows"] for name in means}

    def _beta(self, step: int) -> float:
        """The weight of the KL in a step of the current epoch."""
        state = self._controlled
        if state is not None:
            return state.beta
        done = step / self.rows.per_epoch if self.rows.per_epoch else 0.0
        return self.objective.requested.beta_at(self.progress.epoch + done)

    def _single(self, batch: Batch | None, rows: int) -> bool:
        """Takes a step; whether a checkpoint is due."""
        progress = self.progress
        beta = self._beta(progress.step_in_epoch)
        due = self.rows.batches.in_memory and self.checkpoints.is_due(amid_epoch=True)
        metrics, due = self.step(batch, rows, beta, progress, due, self._moved())
        self.agreement.add(metrics, beta)
        counted = 0 if batch is None else num_rows(batch)
        progress.count_step(metrics, counted)
        self._control(metrics, counted, rows)
        if self._aggression is not None:
            loss = self._mean_over_rows({"loss": metrics.get("loss", 0.0)}, counted)["loss"]
            progress.aggression = [*astuple(self._aggression.after_step(loss))]
        return due

    @property
    def _aggression(self) -> Aggression | None:
        """Where aggressive updates of the guide stand, if they are asked for."""
        state = self.progress.aggression
        return None if state is None else Aggression(*state)

    def _moved(self) -> frozenset[str] | None:
        """The names of the parameters that the next step moves; None for all."""
        moves = "both" if self._aggression is None else self._aggression.moves
        if moves == "both":
            return None
        if moves == "guide":
            return self.of_guide
        return frozenset(self.step.parameters.keys() - self.of_guide)

    def _stride(self) -> int:
        """Takes several steps at once, if it may; how many."""
        if self.strides is None or self._moved() is not None:
            return 0
        state = self._controlled
        most = None if state is None else Controller.EVERY - state.steps
        found = self.strides.take(self.progress, self.seed, self._beta, most)
        for metrics in found:
            self.agreement.add(metrics, self._beta(self.progress.step_in_epoch))
            self.progress.count_step(metrics, self.rows.batch_size)
            self._control(metrics, self.rows.batch_size, self.rows.batch_size)
        return len(found)

    def _end_of_epoch(self) -> dict[str, float]:
        """The metrics of the epoch, on which the schedule and early stopping act."""
        progress = self.progress
        own = [] if self.step.turns is None else self.step.turns.sums
        sums = self.processes.summed(progress.sums, ("rows", *STEP_METRICS, *own))
        state = self._controlled
        beta = self.objective.requested.beta_at(progress.epoch + 1 - 1e-9)
        beta = beta if state is None else state.beta
        rows = sums.pop("rows")
        progress.epoch += 1
        row: dict[str, float] = {"epoch": progress.epoch, "step": progress.step}
        numbers = {name: sums.pop(ROWS.format(name), rows) for name in list(sums)}
        row |= {name: total / numbers[name] for name, total in sums.items() if numbers[name]}
        self.processes.share_buffers(self.pair)
        row |= self.processes.from_first(self.held_out.measure(self.seed, progress.epoch))
        if self._aggression is not None:
            state_after = self._aggression.after_epoch(row["mutual_information"])
            progress.aggression = [*astuple(state_after)]
        row |= _of_modules(self.pair)
        row["beta"] = beta
        rate = self.optimizer.param_groups[0].get("lr")
        if rate is not None:  # AdagradRMSProp of Pyro has another name for it
            row["learning_rate"] = float(rate)
        row["seconds"] = round(progress.seconds, 3)
        watched = row.get("validation_elbo", row["elbo"])
        # What is watched is not always an ELBO, and not to be taken for one.
        progress.end_epoch(row, self._measure, self._measure_held_out)
        row = progress.history[-1]
        # Means over the steps of an epoch are of each beta in it.
        counts = self._elbo_counts(progress.epoch - ("validation_elbo" not in row))
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            if self.scheduler is not None:
                step_scheduler(self.scheduler)
        elif counts:
            step_scheduler(self.scheduler, watched if self.scheduler.mode == "max" else -watched)
        counts = counts and self._noise_is_final
        if self.patience is not None and counts and watched > progress.best_elbo:
            progress.best_elbo, progress.best_epoch = watched, progress.epoch
            self.best = {n: t.detach().cpu().clone() for n, t in self.pair.state().items()}
        return row

    def _show_doubts(self) -> None:
        """Says, once each, that recorded steps may be wrong, or that loss and logged ELBO are not the same."""
        doubts = [] if self.step.captured is None else [self.step.captured.doubt]
        doubts.append(self.held_out.doubt)
        doubts.append(self._mixture)
        if not self._disagrees:
            doubt = self.agreement.doubt(self._measure.text)
            self._disagrees = doubt is not None
            doubts.append(doubt)
        for doubt in doubts:
            if doubt is not None and doubt not in self.warnings:
                self._tell(doubt)

    def _look_at_target(self) -> None:
        """Warns that the target of a controller of beta is missed."""
        controller, progress = self.objective.requested.beta, self.progress
        if not isinstance(controller, Controller):
            return
        history = progress.history
        start = progress.step - Controller.EVERY  # an epoch may be one step
        last = [row for row in history if row["step"] > start]
        parts = (measure_in(last).rate, "distortion")
        rate, distortion = (sum(row[name] for row in last) / len(last) for name in parts)
        beta, least = history[-1]["beta"], least_rate(self.pair)
        missed = controller.missed(rate, distortion, beta, progress.step, least)
        if missed is not None:
            self._tell(missed)

    def _look_at_noise(self) -> None:
        """Warns that the noise was still changing when it was found for the last time."""
        found = self.progress.noise
        told = None if found is None else unsettled(*found)
        if told is not None:
            self._tell(told)

    @property
    def _mixture(self) -> str | None:
        """That means of the epoch mix points and densities, if they do."""
        if told := mixture_in(self.step.layouts.used):
            return told
        held_out = mixture_in(self.held_out.used)
        return f"validation: {held_out}" if held_out else None

    def _tell(self, doubt: str) -> None:
        """Warns of something, and keeps it."""
        self.warnings.append(doubt)
        if self.processes.is_first:
            warnings.warn(doubt, PairWarning, stacklevel=5)

    def _has_ended(self) -> bool:
        return self.progress.epoch >= self.max_epochs or self._has_stopped_early()

    def _has_stopped_early(self) -> bool:
        progress = self.progress
        if self.patience is None or progress.best_epoch == 0 or not self._noise_is_final:
            return False
        return progress.epoch - progress.best_epoch >= self.patience

    def _save(self) -> None:
        self.checkpoints.save(self.progress, self.seed, self.best)


def _of_modules(pair: Pair) -> dict[str, float]:
    """What modules log after each epoch, by a method `epoch_metrics`; of several ones with their names."""
    found: dict[str, dict[str, float]] = {}
    for root, module in pair.modules().items():
        for path, part in module.named_modules():
            name = ".".join(filter(None, (root, path)))
            inside = any(name.startswith(f"{other}.") for other in found)
            if callable(stated := own_attribute(part, "epoch_metrics")) and not inside:
                found[name] = stated()
    one = len(found) == 1
    return {
        metric if one else f"{metric}_{name.removeprefix('model.')}": value
        for name, metrics in found.items()
        for metric, value in metrics.items()
    }


def _of_scheduler(scheduler: LRScheduler | ReduceLROnPlateau | None) -> dict[str, Any]:
    """What a schedule is before its first step, for a resumed training to be compared with."""
    kind = type(scheduler).__name__
    facts: dict[str, Any] = {"lr_scheduler": kind}
    if scheduler is not None:
        state = scheduler.state_dict()
        facts[kind] = {n: re.sub(_NOT_COMPARED, "", str(value)) for n, value in state.items()}
    return facts


def _name(transform: Callable[[Tensor], Tensor]) -> str:
    return getattr(transform, "__qualname__", type(transform).__qualname__)
