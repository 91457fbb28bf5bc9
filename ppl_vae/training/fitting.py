"""`fit`: trains any pair on any data, and survives being killed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyro
import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.checks import device_for
from ppl_vae.objectives import Objective, as_objective
from ppl_vae.pairs import HELD_OUT, Batches, DataLike, Pair, Program, measure_in
from ppl_vae.runs import RunFolder
from ppl_vae.runtime import (
    described,
    html_table,
    html_texts,
    make_fabric,
    preserve_random_state,
    require_flags,
    require_progress,
    require_seed,
    seed_everything,
)
from ppl_vae.training.deaths import dead_dimensions
from ppl_vae.training.loop import Training
from ppl_vae.training.options import require_fit_options
from ppl_vae.training.processes import Processes

if TYPE_CHECKING:
    from lightning_fabric import Fabric


APART = 2**31 - 1
"""Between the seeds of two processes: with 1, runs with neighboring seeds would share their random numbers."""


_MOST_NAMED = 8
"""Dead dimensions that are named where a fit is printed."""


@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    Attributes:
        model: The trained model. A program with `pyro.param` statements carries their trained values.
        guide: The trained guide, likewise.
        history: A dict of metrics for each epoch, in nats per row; the columns of `metrics.csv`. Where p(z) is
            improper, there is neither `elbo` nor `rate`; where the guide gives points for all latents, there
            are `log_joint`, log p(x, z) at the point, and `neg_log_prior` in their place. So it is with
            `validation_elbo` and `validation_rate`, by what the held-out rows are.
        objective: The objective that was given, or the default.
        epochs: Epochs trained.
        steps: Optimizer steps taken.
        best_epoch: The epoch whose weights were kept (with early stopping; otherwise the last).
        stopped: Why the training ended.
        seconds: Time it took.
        run_dir: The folder with metrics and checkpoints, if one was given.
        warnings: Why not to trust the results: minus the loss and the ELBO differ by more than noise; what the
            checks warn of in batches of another kind than the first; the guide gives points in some batches
            only, so that the means mix two kinds of rows; no row has some class, or the labels do
            not train the classifier, as `SemiSupervisedELBO` would; the noise that `refit_guide` finds was
            still changing; or steps were taken with a recording that was then found to differ from Pyro. Each
            was also shown as a `PairWarning`.
        batch_size: The `batch_size` that was given, or its default; None if that is not known.
        learning_rate: The step size of the default optimizer; None if another one was given.
        prior_epochs: How many of the last epochs fitted a new prior to the codes of the trained pair, as
            `ppl-vae refit-prior` does.
        resolved: What the objective was for this pair: `ELBO` chooses an estimator, or takes what the model
            asks for. If there are several kinds of batches, that of the first. None if that is not known.
    """

    model: Program
    guide: Program
    history: list[dict[str, float]]
    objective: Objective
    epochs: int
    steps: int
    best_epoch: int
    stopped: str
    seconds: float
    run_dir: Path | None = None
    warnings: tuple[str, ...] = ()
    batch_size: int | None = None
    learning_rate: float | None = None
    prior_epochs: int = 0
    resolved: Objective | None = None

    @property
    def beta(self) -> float:
        """The weight of the KL in the end, also where a controller has set it."""
        return self.objective.beta_after(self.history[: self.best_epoch])

    @property
    def dead_dimensions(self) -> tuple[str, ...]:
        """The latent dimensions that carried less than 0.01 nats for 5 epochs up to the weights kept, by name.

        `diagnose` says why. `history` holds the KL of each dimension after each epoch, as `kl_z[0]`, ..., on
        the held-out rows, or on a batch of training rows.
        """
        return dead_dimensions(self.history[: self.best_epoch])

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        both = (prefix + measure_in(self.history, prefix).name for prefix in ("", HELD_OUT))
        numbers = ", ".join(f"{name}={last[name]:.3f}" for name in both if name in last)
        beta = f", beta={self.beta:g}" if self.beta != 1.0 else ""
        chosen = f", objective={type(self.resolved).__name__}" if self._was_chosen else ""
        dead = f", dead dimensions: {self._dead}" if self.dead_dimensions else ""
        return (
            f"Fit({numbers}, epochs={self.epochs}, steps={self.steps}{beta}, stopped={self.stopped!r}{chosen}"
            f"{dead})"
        )

    @property
    def _was_chosen(self) -> bool:
        """Whether another objective was optimized than the one that was given."""
        return self.resolved is not None and self.resolved != self.objective

    @property
    def _dead(self) -> str:
        """The dead dimensions in words: how many, and the first of them."""
        names = self.dead_dimensions
        more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"{', '.join(names[:_MOST_NAMED])}{more}"

    def _repr_html_(self) -> str:
        kept = self.history[self.best_epoch - 1 : self.best_epoch]
        last = kept[0] if kept else {}
        names = {
            prefix + measure.name: f"{measure.text}, {of} rows"
            for prefix, of in (("", "training"), (HELD_OUT, "held-out"))
            for measure in (measure_in(self.history, prefix),)
        }
        numbers = [
            (text, f"{last[name]:.3f} nats per row") for name, text in names.items() if name in last
        ]
        rows = [
            *numbers,
            ("epochs", f"{self.epochs}, of which {self.best_epoch} is kept"),
            ("steps", str(self.steps)),
            ("stopped", self.stopped),
            ("time", f"{self.seconds:.1f} s"),
            ("objective", repr(self.objective)),
            *([("objective, for this pair", repr(self.resolved))] if self._was_chosen else []),
            ("beta, in the end", f"{self.beta:g}"),
        ]
        if self.dead_dimensions:
            rows.append(("dead dimensions", self._dead))
        if self.run_dir is not None:
            rows.append(("run folder", str(self.run_dir)))
        return html_table(rows) + html_texts(f"warning: {text}" for text in self.warnings)


def fit(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    objective: Objective | pyro.infer.ELBO | None = None,
    validation: DataLike | None = None,
    max_epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float | None = None,
    optimizer: Callable[..., Optimizer] | PyroOptim | None = None,
    lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
    clip_grad_norm: float | None = None,
    patience: int | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    seed: int | None = None,
    device: str = "auto",
    fabric: Fabric | None = None,
    run_dir: str | Path | RunFolder | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool | None = None,
    capture: bool = True,
    compile: bool | None = None,
    aggressive: bool = False,
) -> Fit:
    """Trains model and guide to maximize a bound on log p(x).

    The pair is checked first (`ppl_vae.check`). Modules are trained in place. The values of `pyro.param`
    statements live in a scope of Pyro's parameter store that belongs to this pair: the global store is left
    as it was, and every call starts from their initial values. The returned programs carry the learned
    values, and `evaluate` and `diagnose` of the same pair find them.

    Args:
        model: Pyro program of p(x, z), called with a batch.
        guide: Pyro program of q(z | x), with the same arguments.
        x: A tensor or array (numpy, pandas) `(n, *event)`, a tuple of them, or an iterable of batches (a
            `DataLoader`); all that `ppl_vae.pairs.Batches` takes.
        objective: What to maximize: one of `ppl_vae.objectives` or of Pyro's ELBOs. The default, `ELBO()`, has
            the analytic KL wherever the pair allows it; a model may ask for another one in its place.
        validation: Held-out rows, as the likelihood takes them; their beta = 1 ELBO is measured after every
            epoch; of a guide that gives points log p(x, z) there, of an improper p(z) the distortion.
        max_epochs: Passes over the data.
        batch_size: Rows in a (global) batch; an iterable brings its own. A plate over rows with a
            `subsample_size` of its own takes all rows of the batch.
        learning_rate: Step size; 1e-3 for the default optimizer. Given to `optimizer` as `lr` if set.
        optimizer: Makes an optimizer of a list of tensors, as `torch.optim.AdamW` does. Default: Adam.
            `pyro.optim.ClippedAdam({"lr": 1e-3})` and the like are taken too. The loss is in nats per row,
            and not the sum over rows as in Pyro's SVI: this changes what a step size of SGD and a bound on
            gradients mean.
        lr_scheduler: Makes a schedule of torch from the optimizer; stepped after every epoch, so that `T_max`
            or `total_steps` is a number of epochs. `ReduceLROnPlateau` watches the held-out beta = 1 ELBO, or
            that of the training without held-out rows; epochs in which beta still warms up do not count. It is
            refused with a controller of beta and with an adversary, which are not after a higher ELBO.
        clip_grad_norm: Largest norm of the whole gradient; longer ones are shortened to it.
        patience: Stop after so many epochs without a better held-out beta = 1 ELBO, and keep the best
            weights. Epochs in which beta still warms up do not count.
        transform: Applied to every training batch, such as dynamic binarization; not to `validation`. It is
            given the first tensor of a batch and returns a tensor of as many rows.
        seed: Makes the result reproducible and leaves the global generators alone. None: use those.
        device: `auto` (a CUDA GPU if there is one and the pair runs there, otherwise the CPU), `cpu`, `cuda`,
            `cuda:1` (that GPU), `mps`.
        fabric: In place of `device`, a launched Lightning Fabric, for several processes or mixed precision:
            `make_fabric("cuda", "bf16-mixed", num_processes=4)` of `ppl_vae.runtime`.
        run_dir: Folder for `metrics.csv` and `checkpoints/`; None keeps everything in memory. With a
            `RunFolder`, a run takes the place of another once its first steps are saved.
        resume: Continue from the newest good checkpoint in `run_dir`, with the seed of the run; another `seed`
            is refused.
        tensorboard: Write the metrics for TensorBoard too, to `run_dir`/tensorboard.
        progress: Whether to show a progress bar; None shows one on a terminal.
        capture: Record the step once and run it as a plain graph where that is sound, with the same
            results; False runs every step in Pyro. See `docs/capture.md`.
        compile: Let Inductor compile what was captured (about 6 s, needs a C++ compiler): the results are
            then equal to float precision, not bit by bit. None: from step 1,000 on in trainings of at least
            10,000 steps, where it pays.
        aggressive: Against a guide that lags behind: until the mutual information of x and z stops growing from
            epoch to epoch, move the guide alone until its loss no longer falls (at most 100 steps), then the
            model alone for one step, and so on ("Lagging Inference Networks and Posterior Collapse in
            Variational Autoencoders", arXiv:1901.05534). `history` has the `mutual_information` of up to 512
            rows. Give more epochs: most steps are the guide's.

    Returns:
        A `Fit`.

    Raises:
        TypeError: A number of epochs or rows is not whole, or an option is not what it must be, or `transform`
            returns no tensor: the message says what to write.
        ValueError: An option is out of its range, or `transform` returns another number of rows.
        PairError: `check` found something that makes training wrong.
        DivergenceError: Loss or gradient became NaN or infinite. The last good checkpoint remains.
        FileExistsError: `run_dir` holds checkpoints or metrics and `resume` is False.
        LockedError: Another process writes into `run_dir`.
        DiskFullError: There is no room in `run_dir`; the last checkpoint remains.
        CorruptFileError: All checkpoints to resume from are damaged.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     shift = pyro.param("shift", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))
        >>> x = torch.tensor([2.0, 4.0])
        >>> fitted = fit(model, guide, x, max_epochs=300, learning_rate=0.05, seed=0)
        >>> fitted.steps
        300
    """
    if fabric is not None and not hasattr(fabric, "broadcast"):
        raise TypeError(
            "fabric must be a launched Lightning Fabric, as make_fabric('cuda') of ppl_vae.runtime makes it, "
            f"got {described(fabric)}"
        )
    with ExitStack() as stack:
        processes = None if fabric is None else Processes(fabric)
        if processes is not None:
            stack.enter_context(processes.ending_together())
        require_fit_options(
            max_epochs=max_epochs,
            batch_size=batch_size,
            patience=patience,
            learning_rate=learning_rate,
            clip_grad_norm=clip_grad_norm,
            optimizer=optimizer,
            held_out=validation is not None,
        )
        require_flags(
            resume=resume, tensorboard=tensorboard, capture=capture, aggressive=aggressive
        )
        require_progress(progress)
        if compile is not None:
            require_flags(compile=compile)
        if seed is not None:
            require_seed(seed)
        if tensorboard and run_dir is None:
            raise ValueError("tensorboard=True needs a run_dir to write to")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of a tensor, got {described(transform)}")
        pair = Pair(model, guide)
        batches = Batches(x, pair, transform=transform, in_batches=True)
        held_out = (
            None if validation is None else Batches(validation, pair, "validation", in_batches=True)
        )
        requested_objective = as_objective(objective)
        if processes is None:
            processes = Processes(make_fabric(device_for(pair, batches, device)))
        processes.require_same(
            {"run_dir": run_dir is not None, "resume": resume}, "Give all of them the same options"
        )
        folder = stack.enter_context(
            RunFolder.of_fit(run_dir, resume=resume, writes=processes.is_first)
        )
        own_seed = seed if seed is not None else int(torch.randint(2**31, ()))
        own_seed = int(processes.from_first(own_seed))
        if seed is not None or resume:
            stack.enter_context(preserve_random_state())
        if seed is not None or processes.count > 1:
            seed_everything(own_seed + APART * processes.rank)
        pair.to(processes.device)
        stack.enter_context(pair.scope())
        stack.enter_context(processes.learning_together(pair))
        training = Training(
            pair=pair,
            processes=processes,
            batches=batches,
            held_out=held_out,
            requested_objective=requested_objective,
            optimizer=optimizer,
            learning_rate=_as_float(learning_rate),
            lr_scheduler=lr_scheduler,
            clip_grad_norm=_as_float(clip_grad_norm),
            max_epochs=max_epochs,
            batch_size=batch_size,
            patience=patience,
            transform=transform,
            seed=own_seed,
            folder=folder,
            capture=capture,
            compile=compile,
            aggressive=aggressive,
        )
        if resume:
            training.restore(seed)
        stopped = training.run(tensorboard, progress)
    pair.remember()
    bound_model, bound_guide = pair.bound()
    done = training.progress
    return Fit(
        model=bound_model,
        guide=bound_guide,
        history=done.history,
        objective=requested_objective,
        resolved=training.resolved,
        epochs=done.epoch,
        steps=done.step,
        best_epoch=done.best_epoch or done.epoch,
        stopped=stopped,
        seconds=done.seconds,
        run_dir=None if folder is None else folder.folder,
        warnings=tuple(training.warnings),
        batch_size=batch_size,
        learning_rate=None
        if optimizer
        else 1e-3
        if learning_rate is None
        else float(learning_rate),
    )


def _as_float(number: float | None) -> float | None:
    """A number that torch computes with: its fused kernels take no fractions."""
    return number if number is None or isinstance(number, float | int | Tensor) else float(number)
