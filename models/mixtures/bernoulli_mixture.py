"""The mixture of independent Bernoullis, for binarized pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppl_vae.models.mixtures.components import (
    k_means_plus_plus,
    positive_counts,
    responsibilities,
    split_empty,
    split_logits,
)
from ppl_vae.models.mixtures.mixture import Mixture
from ppl_vae.models.rows import row_chunks
from ppl_vae.networks import require_numbers


class BernoulliMixture(Mixture):
    """z ~ Categorical(pi) and x_d | z ~ Bernoulli(mu_zd), independently for every value d.

    log p(x) = log sum_k pi_k prod_d mu_kd^x_d (1 - mu_kd)^(1 - x_d), and p(z = k | x) is the share of
    term k in the sum. With N_k = sum_n p(z_n = k | x_n), the EM step is pi_k = N_k / n and
    mu_k = sum_n p(k | x_n) x_n / N_k (Bishop 2006, section 9.3.3), kept between `min_probability` and
    1 - `min_probability`: the maximizer under that constraint, so that no value of a row is impossible. A
    component without rows is replaced by one split off from the largest one, with a warning.

    The sites are `z`, marked for enumeration, and `x`, inside `pyro.plate("data", n, dim=-1)`; plates
    over samples go outside, at `dim=-2`. Rows of any shape are flattened to D values.

    Args:
        data_shape: Shape of one row of the data.
        components: Number k of components.
        min_probability: The least probability of 0 and of 1 that `maximize` sets for a value.

    Attributes:
        logits: log pi up to a constant, `(k,)`.
        value_logits: log mu / (1 - mu), `(k, D)`.

    Raises:
        ValueError: `components` is not positive, or `min_probability` is not between 0 and 0.5.

    Example:
        >>> x = (torch.rand(400, 3) < torch.tensor([0.9, 0.9, 0.1])).float()
        >>> x[200:] = 1 - x[200:]
        >>> model = BernoulliMixture((3,), components=2)
        >>> model.initialize(x, seed=0)
        >>> for _ in range(20):
        ...     model.maximize(model.expected_statistics(x))
        >>> model.value_logits.sigmoid().sort(0).values.round().long()
        tensor([[0, 0, 0],
                [1, 1, 1]])
    """

    def __init__(
        self, data_shape: Sequence[int], components: int = 10, min_probability: float = 1e-6
    ) -> None:
        super().__init__(data_shape, components)
        require_numbers(self, min_probability=min_probability)
        if not 0 < min_probability < 0.5:
            raise ValueError(
                f"BernoulliMixture.min_probability must be between 0 and 0.5, got {min_probability}"
            )
        self.min_probability = min_probability
        # Equal components would stay equal: start apart.
        self.value_logits = nn.Parameter(torch.randn(components, math.prod(self.data_shape)))

    def _start(self, rows: Tensor, seed: int) -> None:
        """Gives each component the rows nearest to its seed, and one average row."""
        weights = k_means_plus_plus(rows, self.components, seed)
        # Without the average row, a value that is constant among the nearest rows could never change.
        counts = weights.sum(1) + 1
        ones = weights @ rows + rows.mean(0)
        self.maximize({"counts": counts, "ones": ones, "num_rows": counts.sum()})

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """The E step's sufficient statistics of `x` under p(z | x), summed over the rows, in float64.

        Args:
            x: Data, `(n, *data_shape)`.
            hard: Put all of a row's weight on the likeliest component.

        Returns:
            "counts", N_k, `(k,)`; "ones", weighted sums of x, `(k, D)`; "log_evidence", the sum of
            log p(x), or if `hard` of max_z log p(x, z); "num_rows".

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows = self._rows(x)
        counts = torch.zeros(self.components, dtype=torch.float64, device=rows.device)
        ones = torch.zeros(self.value_logits.shape, dtype=torch.float64, device=rows.device)
        log_evidence = counts.new_zeros(())
        for chunk in row_chunks(rows, self.components + rows.shape[-1]):
            weights, log_p = responsibilities(self._log_joint(chunk), hard)
            counts += weights.sum(1)
            ones += weights @ chunk
            log_evidence += log_p
        num_rows = counts.new_tensor(float(len(rows)))
        return {"counts": counts, "ones": ones, "log_evidence": log_evidence, "num_rows": num_rows}

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M step: sets the parameters to the maximizer of the expected log p(x, z).

        Warns of components without rows.

        Args:
            statistics: Those of an E step.
        """
        counts, num_rows = statistics["counts"], statistics["num_rows"]
        counts, empty = positive_counts(counts, num_rows)
        self.logits.copy_((counts / num_rows).log())
        mean = statistics["ones"] / counts.unsqueeze(-1)
        self.value_logits.copy_(mean.clamp(self.min_probability, 1 - self.min_probability).logit())
        split_empty(self.logits, empty, self._split)

    def _split(self, source: int, target: int) -> None:
        split_logits(self.value_logits, source, target)

    def _component(self, z: Tensor, dtype: torch.dtype) -> dist.Independent:
        logits = self.value_logits.to(dtype)[z].reshape(*z.shape, *self.data_shape)
        return dist.Independent(dist.Bernoulli(logits=logits), len(self.data_shape))

    def _log_joint(self, rows: Tensor) -> Tensor:
        """One product of matrices for all components."""
        logits = self.value_logits.to(rows.dtype)
        constant = logsigmoid(-logits).sum(-1) + self.logits.log_softmax(-1)
        return torch.addmm(constant.unsqueeze(-1), logits, rows.T)
