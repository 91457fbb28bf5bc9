"""What the subcommands print of results."""

from __future__ import annotations

import math

import torch

from ppl_vae.data import Data, Dequantization
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.evaluation import Annealed, Evaluation
from ppl_vae.stats import table


def result_table(evaluation: Evaluation, diagnosis: Diagnosis) -> str:
    """The numbers of a trained pair: one a line, with its error and unit."""
    lines = str(evaluation).splitlines()
    numbers = [line for line in lines if not line.startswith("warning: ")]
    width = len(numbers[0]) - len(numbers[0].split("  ", 1)[1].lstrip())
    active = f"{diagnosis.active_units} of {len(diagnosis.kl)}"
    numbers.append(f"{'active units':<{width}}{active}")
    numbers.append(f"{'mutual information':<{width}}{information(diagnosis)}")
    return "\n".join([*numbers, *lines[len(numbers) - 2 :]])


def dequantization_note(evaluation: Evaluation | Annealed, data: Data) -> str:
    """What the bits per dimension of dequantised data leave out; empty for other data.

    For D values a row and L levels a density p of the dequantised values bounds the discrete ones'
    probability: -log2 P / D <= -log2 p / D + log2 L ("A note on the evaluation of generative models",
    arXiv:1511.01844).
    """
    if not isinstance(data.transform, Dequantization):
        return ""
    levels, bits = data.transform.levels, evaluation.bits_per_dim.mean
    return (
        f"\nnote: the data are dequantised, log p(x) is a density on [0, 1): the {levels} levels themselves "
        f"take at most {bits:.4f} + log2({levels}) = {bits + math.log2(levels):.4f} bits per dimension"
    )


def information(diagnosis: Diagnosis) -> str:
    """The mutual information; only a bound, and no error, where the rows are too few to show it."""
    estimate = diagnosis.mutual_information
    if diagnosis.saturated:
        return f"≥ {estimate.mean:.2f} {estimate.unit}"
    return str(estimate)


def dimensions_table(diagnosis: Diagnosis) -> str:
    """The latent dimensions, that of the largest KL first."""
    lines = [["latent", "KL (nats)", "variance of means", ""]]
    for i in torch.argsort(diagnosis.kl, descending=True).tolist():
        state = "collapsed" if diagnosis.collapsed[i] else "active" if diagnosis.active[i] else ""
        kl, variance = float(diagnosis.kl[i]), float(diagnosis.mean_variance[i])
        lines.append([diagnosis.names[i], f"{kl:.3f}", f"{variance:.4f}", state])
    return table(lines)
