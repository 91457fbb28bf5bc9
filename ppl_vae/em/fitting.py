"""`fit_em`: expectation maximization, of the same models and with the same numbers as `fit`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_vae.checks import arguments_explained, device_for
from ppl_vae.em.data import EMData, check_start, empty_guide
from ppl_vae.em.loop import EMLoop
from ppl_vae.em.online import StepSize
from ppl_vae.em.progress import EMProgress
from ppl_vae.em.steps import GradientSteps, closed_form
from ppl_vae.pairs import Batches, DataLike, Pair, Program, hook_of
from ppl_vae.runs import RunFolder
from ppl_vae.runtime import (
    described,
    preserve_random_state,
    progress_bar,
    require_count,
    require_flags,
    require_number,
    require_progress,
    require_seed,
    resolve_device,
)
from ppl_vae.stats import Result


@dataclass(frozen=True)
class EMFit(Result):
    """Result of `fit_em`.

    Attributes:
        model: The fitted model. A program with `pyro.param` statements carries their fitted values.
        history: A dict for each iteration, the start being iteration 0: `iteration`; `log_likelihood`,
            log p(x), and `bound`, what this kind of EM maximizes (for exact EM the same; hard EM: max_z
            log p(x, z); with a guide: its ELBO), both in nats per row at the end of the iteration;
            `passes`, how often the density of each row has been evaluated so far; `gradient_evaluations`,
            how often its gradient has; `seconds`. Online, `log_likelihood` and `bound` are averages over
            the pass, each minibatch at the parameters before its M step.
        converged: Whether the bound gained less than the tolerance.
        seconds: Time for all restarts together.
        notes: What happened on the way: components that were empty or collapsing, restarts.
    """

    model: Program
    history: list[dict[str, float]]
    converged: bool
    seconds: float

    @property
    def iterations(self) -> int:
        """M steps taken; online: passes over the data."""
        return int(self.history[-1]["iteration"])

    @property
    def log_likelihood(self) -> float:
        """log p(x) at the end, nats per row; NaN if it is not known."""
        return self.history[-1]["log_likelihood"]

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        known = not math.isnan(self.log_likelihood)
        log_p = f"{self.log_likelihood:.4f} nats per row" if known else "not known"
        return [
            ("log p(x), training rows", log_p),
            ("bound", f"{self.history[-1]['bound']:.4f} nats per row"),
            ("iterations", f"{self.iterations}{', converged' if self.converged else ''}"),
            ("time", f"{self.seconds:.1f} s"),
        ]

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        if not self.converged:
            yield f"not converged after {self.iterations} iterations: raise max_iterations"

    def summary_numbers(self) -> dict[str, Any]:
        """log p(x), if known, and the bound at the end, nats per row; iterations, convergence, seconds."""
        known = not math.isnan(self.log_likelihood)
        return {
            "unit": "nats",
            "log_likelihood": self.log_likelihood if known else None,
            "bound": self.history[-1]["bound"],
            "iterations": self.iterations,
            "converged": self.converged,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        last = self.history[-1]
        return (
            f"EMFit(log_likelihood={last['log_likelihood']:.4f}, bound={last['bound']:.4f}, "
            f"iterations={self.iterations}, converged={self.converged})"
        )


def fit_em(
    model: Program,
    x: DataLike,
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    hard: bool = False,
    batch_size: int | None = None,
    online: StepSize | None = None,
    m_step: GradientSteps | None = None,
    guide: Program | None = None,
    initialize: bool = True,
    restarts: int = 1,
    seed: int | None = None,
    device: str = "auto",
    run_dir: str | Path | RunFolder | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> EMFit:
    """Maximizes log p(x) by EM: q(z) = p(z | x) exactly, then the parameters for that q.

    log p(x) = E_q[log p(x, z) - log q(z)] + KL(q || p(z | x)). The E step closes the gap: q = p(z | x). The
    M step maximizes E_q[log p(x, z)] with q held fixed, so that log p(x) never falls (Dempster, Laird &
    Rubin 1977; Neal & Hinton 1998, "A View of the EM Algorithm that Justifies Incremental, Sparse, and Other
    Variants"). A VAE maximizes the same bound, with an amortized q in place of the exact one.

    The model decides how the steps are taken, unless `m_step` or `guide` says otherwise:

    - in closed form, by its `expected_statistics` and `maximize`;
    - latents marked `infer={"enumerate": "parallel"}`: E step by enumeration (any dependencies that
      Pyro can eliminate), M step by `GradientSteps` (generalized EM);
    - `posterior(x)`: Monte Carlo EM, with draws that are held fixed during the M step;
    - with a `guide`: the E step moves its parameters to raise the ELBO, the M step the model's.

    With one gradient step per M step, generalized EM is gradient ascent on log p(x) (Fisher's identity), and
    so is SVI with the exact posterior as its guide: the three take the same steps.

    Args:
        model: Pyro program of p(x, z). A module is fitted in place.
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        max_iterations: Most M steps; online: passes over the data.
        tolerance: Stop when an iteration gains less, nats per row.
        hard: E step by the mode, z = argmax p(z | x) (classification EM; k-means is its limit for shared
            spherical covariances that shrink to 0). The bound is then the mean of max_z log p(x, z).
        batch_size: Rows at once, to bound memory: the result is the same. All rows if None. Online: the
            minibatch, 256 rows if None.
        online: Weights of minibatches: after each one, statistics s = (1 - gamma) s + gamma s_batch and an
            M step. For data so large that a pass is worth many M steps. Closed forms only.
        m_step: Take these gradient steps, even if the model has an M step in closed form.
        guide: Pyro program of q(z | x).
        initialize: Whether to start from the model's `initialize` where it has one (k-means++ for
            mixtures), rather than from its parameters as they are.
        restarts: Starts with different seeds, of which the one with the best bound is kept.
        seed: Makes the result reproducible and leaves the global generators alone. None: use those.
        device: `auto` (a CUDA GPU if there is one and the pair runs there), `cpu`, `cuda`, `cuda:1`, `mps`.
        run_dir: Folder for `metrics.csv` and `checkpoints/`; None keeps everything in memory. With a
            `RunFolder`, a run takes the place of another once its first M step is saved.
        resume: Go on from the newest good checkpoint in `run_dir`, with the seed of the call that was begun
            there (another `seed` is refused). The result has the same bits as without the interruption, also
            with another `max_iterations` or `tolerance`; all other options must be the same. A call that has
            ended repeats its last E step, and goes on if it may now take more iterations.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        An `EMFit`.

    Raises:
        EMError: Exact or hard EM in closed form has lowered the bound beyond rounding.
        PairError: Data are NaN or outside of the support; latents that are neither marked for enumeration
            nor have a `posterior(x)` or a guide; programs that do not run on the smallest batch, such as batch
            norm on a single row.
        ValueError: An option is out of its range, or does not go with the model. A resumed call has other
            options, rows or parameters than the call that it continues, or more `max_iterations`, although
            one of several starts has ended for lack of them.
        FileExistsError: `run_dir` holds checkpoints or metrics and `resume` is False.
        FileNotFoundError: There is no checkpoint to resume from.
        LockedError: Another process writes into `run_dir`.
        DiskFullError: There is no room in `run_dir`; the last checkpoint remains.
        CorruptFileError: All checkpoints to resume from are damaged.

    Example:
        >>> from ppl_vae.models import GaussianMixture
        >>> x = torch.cat([torch.randn(200, 2), 6 + torch.randn(100, 2)])
        >>> fitted = fit_em(GaussianMixture((2,), components=2), x, seed=0)
        >>> fitted.converged, fitted.model.prior().probs.sort().values.mul(3).round().long()
        (True, tensor([1, 2]))
    """
    for name, count in (("max_iterations", max_iterations), ("restarts", restarts)):
        require_count(name, count)
    if batch_size is not None:
        require_count("batch_size", batch_size)
    if seed is not None:
        require_seed(seed)
    require_number("tolerance", tolerance)
    require_progress(progress)
    require_flags(hard=hard, initialize=initialize, resume=resume)
    for name, given, kind in (("online", online, StepSize), ("m_step", m_step, GradientSteps)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} must be {kind.__name__}(...), got {described(given)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is in nats per row and must be >= 0, got {tolerance}")
    if restarts > 1 and not (initialize and hook_of(model, "initialize")):
        raise ValueError(
            f"restarts={restarts} needs a model with a method initialize(x, seed), and initialize=True"
        )
    if hard and guide is not None:
        raise ValueError("hard=True takes the mode of p(z | x), and has no use for a guide")
    if online is not None and (closed_form(model) is None or m_step is not None or guide):
        raise ValueError(
            "online EM averages sufficient statistics: it needs a model with expected_statistics and "
            "maximize, and neither m_step nor guide"
        )
    pair = Pair(model, empty_guide if guide is None else guide)
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.of_fit(run_dir, resume=resume))
        own_seed = seed if seed is not None else int(torch.randint(2**31, ()))
        if seed is not None or resume:
            stack.enter_context(preserve_random_state())
        if seed is not None:
            torch.manual_seed(seed)
        batches = Batches(x, pair)
        if initialize and not resume and batches.in_memory:
            check_start(pair.model, batches.rows)
        chosen = resolve_device(device_for(pair, batches, device))
        pair.to(chosen)
        stack.enter_context(pair.scope())
        stack.enter_context(pair.mode(training=True))
        run = EMLoop(
            pair=pair,
            data=EMData(batches, batch_size, chosen, online is not None),
            max_iterations=max_iterations,
            tolerance=tolerance,
            hard=hard,
            online=online,
            m_step=m_step,
            initialize=initialize,
            restarts=restarts,
            folder=folder,
            progress=EMProgress(own_seed),
        )
        stack.enter_context(arguments_explained(pair, lambda: run.data.few(pair)))
        run.data.check(pair)
        with progress_bar(max_iterations * restarts, "fit_em", "iteration", progress) as bar:
            run.run(resume, bar, seed)
    pair.remember()
    done = run.progress
    best = done.ended[done.best]
    return EMFit(
        model=pair.bound()[0],
        history=best.history,
        converged=best.converged,
        seconds=done.seconds,
        notes=done.written_notes(),
    )
