"""What the subcommands print of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ppl_vae.data import Data, Dequantization, rows_alone
from ppl_vae.evaluation import Annealed, Evaluation
from ppl_vae.pairs import Pair, Program, own_attribute
from ppl_vae.runtime import HIDDEN
from ppl_vae.stats import Result, as_lines

Found = TypeVar("Found", Evaluation, Annealed)


def result_table(lines: Sequence[tuple[str, str]], *results: Result) -> str:
    """Numbers, one per line, with its error and unit; then the notes of some results, then their warnings."""
    below = [text for result in results for text in result.footnotes()]
    return "\n".join([as_lines(lines), *sorted(below, key=lambda text: text.startswith("warning"))])


def with_levels(evaluation: Found, data: Data[Any]) -> Found:
    """Adds a note on what the bits per dimension of dequantized data leave out; of other data there is none.

    For D values per row and L levels a density p of the dequantized values bounds the discrete ones'
    probability: -log2 P / D <= -log2 p / D + log2 L ("A note on the evaluation of generative models",
    arXiv:1511.01844).
    """
    if not isinstance(data.transform, Dequantization) or evaluation.bits_per_dim.missing:
        return evaluation
    levels, bits = data.transform.levels, evaluation.bits_per_dim.mean
    text = (
        f"the data are dequantized, log p(x) is a density on [0, 1): the {levels} levels themselves "
        f"take at most {bits:.4f} + log2({levels}) = {bits + math.log2(levels):.4f} bits per dimension"
    )
    return replace(evaluation, notes=(*evaluation.notes, text))


def with_labels_of_training(evaluation: Evaluation, data: Data[Any]) -> Evaluation:
    """Adds a note if fewer of the validation rows have a label than of the training rows: two curves differ."""
    told = [rows[1] for rows in (data.train, data.validation) if isinstance(rows, tuple)]
    if not told or any(labels.dim() > 1 for labels in told):
        return evaluation
    (known, n), (held, m) = ((int((labels != HIDDEN).sum()), len(labels)) for labels in told)
    if held / m >= known / n:
        return evaluation
    text = (
        f"learning curves: the ELBO of the {known} of {n} training rows with a label bounds log p(x, label), "
        "so that the curve of training cannot be compared with that of validation, of whose rows "
        f"{held or 'none'} have a label"
    )
    return replace(evaluation, notes=(*evaluation.notes, text))


def with_accuracy(
    evaluation: Evaluation, model: Program, guide: Program, data: Data[Any]
) -> Evaluation:
    """Adds a note on how many test rows get their label from a guide of ours with `classify(x)`."""
    labels, classify = data.test_labels, own_attribute(guide, "classify")
    if classify is None or labels is None or labels.dim() > 1:
        return evaluation
    known = int((labels != HIDDEN).sum())
    if not known:
        return evaluation
    pair = Pair.of(model, guide)
    device = next((p.device for m in pair.modules().values() for p in m.parameters()), None)
    right = 0
    with torch.no_grad(), pair.scope(), pair.mode(training=False):
        for x, y in zip(rows_alone(data.test).split(1024), labels.split(1024), strict=True):
            right += int((classify(x.to(device)).probs.argmax(-1).cpu() == y).sum())
    with_label = "" if known == len(labels) else " with a label"
    text = (
        f"q(y | x) without any label gives {right} of {known} test rows{with_label} their label "
        f"({right / known:.1%})"
    )
    return replace(evaluation, notes=(*evaluation.notes, text))
