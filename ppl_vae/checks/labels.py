"""The labels of a training: classes that no row has, and a classifier that they do not train."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vae.checks.report import Problem
from ppl_vae.distributions import HIDDEN, Given, Revealed
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    MeanFieldELBO,
    Objective,
    SemiSupervisedELBO,
    TraceELBO,
)
from ppl_vae.pairs import (
    Batch,
    Batches,
    Pair,
    Trace,
    arguments_by_name,
    as_args,
    innermost,
    name_of_argument,
    num_rows,
    observed_sites,
)
from ppl_vae.runtime import classes_in_words, empty_classes

_PLAIN = (ELBO, TraceELBO, MeanFieldELBO, EnumELBO, ImportanceWeightedELBO)
"""Objectives without a term for a classifier; one of a user may have it."""


def label_problems(
    pair: Pair, model_trace: Trace, batch: Batch, batches: Batches, objective: Objective
) -> Iterator[Problem]:
    """What to warn of, once for a training.

    Args:
        pair: The pair, inside of its scope.
        model_trace: The model's trace on a batch.
        batch: That batch.
        batches: All rows. Of an iterable, only the batch is looked at, and no class is called empty.
        objective: The objective that is asked for.
    """
    rows = batches.rows if batches.in_memory else batch
    of_all = dict(arguments_by_name(pair, rows))
    known, number = 0, 0
    for name, site in observed_sites(model_trace).items():
        fn = innermost(site["fn"])
        if not isinstance(fn, Given | Revealed) or not fn.support.is_discrete:
            continue
        argument = name_of_argument(pair, batch, site["value"])
        labels = of_all.get(argument)
        last = getattr(fn.support, "upper_bound", None)
        if labels is None or labels.dim() != 1 or last is None:
            continue
        told = labels[labels != HIDDEN]
        if isinstance(fn, Revealed):
            known, number = len(told), len(labels)
        if batches.in_memory and len(told):
            yield from _empty(name, argument, told, int(last) + 1)
    if not known:
        known, number = _scored(pair, batch)
    if known and hasattr(pair.guide, "label_log_prob") and type(objective) in _PLAIN:
        yield _untrained(pair, objective, known, number)
    if known and batches.in_memory and isinstance(objective, SemiSupervisedELBO):
        yield from _rare(objective, known, number, num_rows(batch))


def _empty(site: str, argument: str, told: Tensor, classes: int) -> Iterator[Problem]:
    runs = empty_classes(told, classes)
    if not runs:
        return
    first = int(told.min())
    remedy = (
        f"if they count from {first}, subtract {first} and build the pair for {classes - first} classes"
        if runs == [range(first)]
        else "tell a label of each class (load_data(..., labels=), --labels), or number them without gaps, as "
        "numpy.unique(y, return_inverse=True)[1] does, and build the pair for as many"
    )
    yield Problem(
        "warning",
        site,
        f"no training row is known to be of {classes_in_words(runs)} ('{argument}'), and the pair is built for "
        f"{classes} classes, from 0 to {classes - 1}: it learns nothing of these; {remedy}",
    )


def _rare(objective: SemiSupervisedELBO, known: int, number: int, size: int) -> Iterator[Problem]:
    """Most batches have no row with a label, and the others move the classifier in jumps."""
    if known * size >= math.log(2) * number:  # a batch has none with a probability of 1/2
        return
    less = (
        ", and weigh the labels less: SemiSupervisedELBO(classification=10), --objective.classification 10"
        if objective.classification > 10
        else ""
    )
    yield Problem(
        "warning",
        "label_log_prob",
        f"{known} of {number} rows have a label, so that most batches of {size} rows have none, and the others "
        "move the classifier q(y | x) in jumps: repeat rows with a label, by "
        "ppl_vae.data.oversample_labelled(x, labels, share=0.1), on the command line --labelled_share 0.1"
        f"{less}",
    )


def _scored(pair: Pair, batch: Batch) -> tuple[int, int]:
    """How many rows of a batch have a label that the guide's classifier scores, and how many there are."""
    score = getattr(pair.guide, "label_log_prob", None)
    if score is None:
        return 0, 0
    try:
        with torch.no_grad(), pair.mode(training=False):
            scores = torch.as_tensor(score(*as_args(batch)))
    except Exception:  # a method of a user, which the objective may not need
        return 0, 0
    return int((scores != 0).sum()), scores.numel()


def _untrained(pair: Pair, objective: Objective, known: int, number: int) -> Problem:
    name = type(objective).__name__
    return Problem(
        "warning",
        "label_log_prob",
        f"the {known} of {number} rows with a label do not train the classifier q(y | x) of "
        f"{type(pair.guide).__name__}: it does not occur in their ELBO, and {name} has no term for it. Give "
        f"objective=SemiSupervisedELBO(classification=100 * {number} / {known}) of ppl_vae.objectives, or "
        "--objective SemiSupervisedELBO on the command line, which fills in the weight",
    )
