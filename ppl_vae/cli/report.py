"""What the subcommands print of results."""

from __future__ import annotations

import math

from ppl_vae.data import Data, Dequantization
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.evaluation import Annealed, Evaluation
from ppl_vae.stats import as_lines


def result_table(evaluation: Evaluation, diagnosis: Diagnosis) -> str:
    """The numbers of a trained pair, one per line, with its error and unit; then notes and warnings."""
    lines = [*evaluation.lines(), *diagnosis.lines()]
    return "\n".join([as_lines(lines), *evaluation.footnotes(), *diagnosis.footnotes()])


def dequantization_note(evaluation: Evaluation | Annealed, data: Data) -> str:
    """What the bits per dimension of dequantized data leave out; empty for other data.

    For D values per row and L levels a density p of the dequantized values bounds the discrete ones'
    probability: -log2 P / D <= -log2 p / D + log2 L ("A note on the evaluation of generative models",
    arXiv:1511.01844).
    """
    if not isinstance(data.transform, Dequantization):
        return ""
    levels, bits = data.transform.levels, evaluation.bits_per_dim.mean
    return (
        f"\nnote: the data are dequantized, log p(x) is a density on [0, 1): the {levels} levels themselves "
        f"take at most {bits:.4f} + log2({levels}) = {bits + math.log2(levels):.4f} bits per dimension"
    )
