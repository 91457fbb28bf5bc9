"""`check`: finds what is wrong with a pair before time is spent on training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import nn
from torch.nn import UninitializedBuffer, UninitializedParameter

from ppl_vae.checks.labels import label_problems
from ppl_vae.checks.report import Problem, Report, run_pair
from ppl_vae.checks.stages import Subject, problems_of
from ppl_vae.objectives import Objective, as_objective
from ppl_vae.pairs import Batch, Batches, DataLike, Layouts, Pair, Program, num_rows, take_rows
from ppl_vae.runtime import preserve_random_state, require_count

_LAZY = (UninitializedParameter, UninitializedBuffer)


def check(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    objective: Objective | pyro.infer.ELBO | None = None,
    max_epochs: int | None = None,
    ragged: bool = False,
    batch_size: int | None = None,
) -> Report:
    """Looks for errors in a pair by running it on one batch.

    It looks for:

    - latents that only one of the two programs has;
    - latents that the guide computes from other draws without their density (a Delta's `log_density`);
    - shapes and plates that differ;
    - data that are not in a plate over rows, or that are outside the likelihood's support;
    - observed values that are the same for all rows;
    - classes that no row has, and labels that do not train the guide's classifier;
    - latents that the objective does not support, because they have no reparameterized sampler or because of
      their dependencies;
    - a prior or a guide that commits to a rate, in a pair whose rate may be lower;
    - parameters that receive no gradient;
    - a beta warm-up that is longer than the training.

    Nothing is changed: not the weights, the batch-norm statistics, the parameter store or the random
    generators.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data as for `fit`; the first 64 rows (or the first batch) are used.
        objective: The objective to train with; the default ELBO if None.
        max_epochs: The length of the training, to compare with the warm-up of beta.
        ragged: Also try a batch with one row fewer, because the last batch of an epoch may be smaller.
        batch_size: Also try the smallest batch of an epoch of batches of so many rows, as `fit` does: in
            training mode, too.

    Returns:
        A `Report`: true if there are no errors, printable, with the list of `.problems`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("code", dist.Normal(x, 1.0).to_event(1))
        >>> report = check(ProbabilisticPCA((2,), latent_dim=2), guide, torch.zeros(3, 2))
        >>> print(report.problems[0])  # doctest: +ELLIPSIS
        error: the model's latent site 'z' is not sampled by the guide, which samples 'code': ...
    """
    if batch_size is not None:
        require_count("batch_size", batch_size)
    pair = Pair.of(model, guide)
    with pair.scope(), restored(pair), preserve_random_state(), _kept_generators(x):
        batches = Batches(x, pair, in_batches=True)  # as a training reads them
        if pair.keeps_rows and batches.in_memory:
            batch = batches.rows
        else:
            most = min(64, batch_size or 64)  # a part of the rows, where a training sees parts
            batch = take_rows(batches.first(most), slice(0, most))
        sizes = [num_rows(batch) - 1 if ragged else None]
        if batch_size is not None:
            sizes.append(batches.smallest_batch(batch_size))
        smallest = min((size for size in sizes if size), default=None)
        parts = batch_size is not None and batches.num_batches(batch_size) != 1
        requested = as_objective(objective)
        report = check_batch(pair, batch, requested, max_epochs, smallest, parts, batches.doubt)
        with aside(pair):
            traces = run_pair(pair, batch) if report else None
            if traces is None or isinstance(traces, Problem):
                return report
            told = label_problems(pair, traces[0], batch, batches, requested)
            return Report((*report.problems, *told))


@contextmanager
def _kept_generators(x: DataLike) -> Iterator[None]:
    """Puts back the generators that a loader has of its own, from which it draws an order in each epoch."""
    own = [getattr(part, "generator", None) for part in (x, getattr(x, "sampler", None))]
    states = [(one, one.get_state()) for one in own if isinstance(one, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def restored(pair: Pair) -> Iterator[None]:
    """Undoes what a first run changes in modules.

    An autoguide creates its parameters for that batch, a lazy layer becomes another class, and an embedding
    with a largest norm scales its weights.
    """
    modules = [m for root in pair.modules().values() for m in root.modules()]
    kinds = [type(m) for m in modules]
    lazy = [
        tensor
        for m in modules
        for tensor in (*m._parameters.values(), *m._buffers.values())
        if isinstance(tensor, _LAZY)
    ]
    kinds_of_lazy = [type(tensor) for tensor in lazy]
    parts = [dict(vars(m)) for m in modules]
    inner = [(d, dict(d)) for part in parts for d in part.values() if isinstance(d, dict)]
    buffers = [b for m in modules for b in m.buffers(recurse=False) if not isinstance(b, _LAZY)]
    scaled = [
        m.weight
        for m in modules
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None
    ]
    values = [(tensor, tensor.detach().clone()) for tensor in (*buffers, *scaled)]
    try:
        yield
    finally:
        for tensor, kind_of_tensor in zip(lazy, kinds_of_lazy, strict=True):
            tensor.data = tensor.data.new_empty(0)
            tensor.__class__ = kind_of_tensor
        for module, part, kind in zip(modules, parts, kinds, strict=True):
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(part)
        for now, before in inner:
            now.clear()
            now.update(before)
        with torch.no_grad():
            for changed, value in values:
                changed.copy_(value)


def check_batch(
    pair: Pair,
    batch: Batch,
    objective: Objective,
    max_epochs: int | None,
    smallest_batch: int | None,
    minibatches: bool,
    doubt: str = "",
    layouts: Layouts | None = None,
) -> Report:
    """`check` on a given batch, inside `pair.scope()`; `doubt` is that of its `Batches`.

    `layouts` get to know the layout of the batch, unless there are errors.
    """
    problems: list[Problem] = list(_warmup(objective, max_epochs))
    layouts = layouts or Layouts(pair)
    with aside(pair):
        subject = Subject(pair, batch, objective, smallest_batch, minibatches, layouts, doubt)
        problems += problems_of(subject)
    order = {"error": 0, "warning": 1}
    return Report(tuple(sorted(problems, key=lambda p: order[p.severity]))).explained(doubt)


@contextmanager
def aside(pair: Pair) -> Iterator[None]:
    """For a run that leaves no trace in the random state and in the parameter store; in evaluation mode."""
    before: Any = pyro.get_param_store().get_state()
    inside: Any = {key: dict(value) for key, value in before.items()}
    with preserve_random_state(), pair.mode(training=False), pyro.get_param_store().scope(inside):
        yield


def _warmup(objective: Objective, max_epochs: int | None) -> Iterator[Problem]:
    if max_epochs is not None and max_epochs < objective.warmup_epochs < math.inf:
        yield Problem(
            "warning",
            "max_epochs",
            f"beta warms up for {objective.warmup_epochs:g} epochs, but the training ends after "
            f"{max_epochs}: beta never reaches its final value; train longer or shorten the warm-up",
        )
