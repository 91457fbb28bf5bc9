"""The ELBO with a term that trains the classifier on the rows that have labels."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.elbo import EnumELBO
from ppl_vae.objectives.schedules import require_number
from ppl_vae.pairs import Batch, Layout, Pair, PairError, as_args, num_rows
from ppl_vae.runtime import described


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedELBO(Objective):
    """`EnumELBO` plus `classification` times log q(y = label | x), the mean over all rows of a batch.

    A row with a label has the ELBO of log p(x, y), in which q(y | x) does not occur; so this term is what
    trains the classifier on it. Rows without a label add 0. The weight alpha = 0.1 of the paper
    ("Semi-Supervised Learning with Deep Generative Models", arXiv:1406.5298), which multiplies the mean over
    the rows with labels, is classification = 0.1 n / m for n rows of which m have labels. The ELBO that is
    logged is that of `EnumELBO`.

    Attributes:
        classification: Weight of the term; 0 leaves it out.

    Raises:
        PairError: The guide has no method `label_log_prob(x, labels)`, which returns log q(y = label | x) of
            each row, `(n,)`, and 0 where the label is hidden.
        TypeError: The weight is no number.
        ValueError: It is negative or infinite, or free_bits is not 0.

    Example:
        >>> SemiSupervisedELBO(classification=0.1 * 1294 / 100).classification
        1.294
    """

    classification: float = 1.0

    why_no_free_bits = EnumELBO.why_no_free_bits

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(type(self).__name__, "classification", self.classification)
        if not (self.classification >= 0 and math.isfinite(self.classification)):
            raise ValueError(
                f"{type(self).__name__}: classification must be at least 0 and finite, got "
                f"{self.classification}"
            )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        score = getattr(pair.guide, "label_log_prob", None)
        if score is None:
            raise PairError(
                f"SemiSupervisedELBO needs a guide with a method label_log_prob(x, labels), such as "
                f"SemiSupervised; {described(pair.guide)} has none"
            )
        found = EnumELBO(beta=self.beta, num_particles=self.num_particles)(
            pair, layout, batch, beta
        )
        scores: Tensor = torch.as_tensor(score(*as_args(batch)))
        if scores.shape != (num_rows(batch),):
            raise PairError(
                f"{type(pair.guide).__name__}.label_log_prob returned shape {tuple(scores.shape)}: expected "
                f"one number for each of {num_rows(batch)} rows"
            )
        return dataclasses.replace(found, loss=found.loss - self.classification * scores.mean())
