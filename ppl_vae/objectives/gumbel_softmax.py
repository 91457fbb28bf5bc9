"""The Gumbel-softmax gradient for a discrete latent in a model that accepts only integers."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.elementwise import (
    expected_likelihood,
    independent_elements,
    known_elements,
    mean_of_elements,
    mean_over_rows,
)
from ppl_vae.objectives.schedules import require_positive
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Site,
    as_args,
    element_tables,
    num_rows,
    sample_rows,
)


@dataclass(frozen=True, kw_only=True)
class GumbelSoftmaxELBO(Objective):
    """The ELBO of one discrete latent, with pathwise gradients through a relaxed draw of the latent.

    With f_k = log p(x | z = k) + beta (log p(z = k) - log q(z = k | x)), the ELBO is sum_k q_k f_k. Its
    integrand is defined only at the corners of the simplex, the one-hot vectors. A program for integers
    cannot run between the corners, so the multilinear extension y -> sum_k y_k f_k is relaxed instead. y is
    drawn from the Gumbel-softmax (Concrete) distribution, softmax((log q + g) / temperature) with Gumbel
    noise g (Jang et al., arXiv:1611.01144; Maddison et al., arXiv:1611.00712).

    The value of y is the one-hot vector of its largest entry, which is exactly a draw from q. Its derivative
    is that of the relaxed y (straight-through). The loss and the gradient of the model are unbiased; the
    gradient of the guide is biased. As the temperature goes to 0, the bias vanishes but the variance grows. The
    derivative of - log q_k within f_k is left out: its expectation is 0, so it would only add noise.

    A latent with many elements, such as a category per pixel, of which the likelihood takes one at a time (see
    `ElementwiseELBO`), has a relaxed draw for each element; its KL is exact.

    Every f_k is computed. From these, `EnumELBO` gets its exact gradient at the same cost; this objective is
    meant for comparison with it. The metrics (ELBO, rate, distortion) are exact sums.

    Attributes:
        temperature: Temperature of the softmax; positive.

    Raises:
        PairError: The guide does not draw exactly one latent, with finite support, inside the plate over
            rows, or the model enumerates another latent, or the elements of a latent with many are not
            independent under the guide.
        ValueError: The temperature is not positive, or free_bits is not 0.

    Example:
        >>> GumbelSoftmaxELBO(temperature=0.1)
        GumbelSoftmaxELBO(beta=1.0, free_bits=0.0, num_particles=1, temperature=0.1)
    """

    temperature: float = 0.5

    loss_is_elbo = True
    why_no_free_bits = " for a discrete latent; set free_bits=0"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(type(self).__name__, "temperature", self.temperature)

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        if known_elements(pair, layout, batch) is not None:
            return self._of_elements(pair, layout, batch, beta)
        support = _support(pair, layout, batch)
        (name,) = layout.draws
        rows = sample_rows(pair, layout, batch, len(support), values={name: support})
        log_q = rows.log_guide
        ratio = rows.log_prior - log_q.detach()
        corners = rows.log_likelihood + beta * ratio
        y = gumbel_softmax(
            log_q.expand(self.num_particles, *log_q.shape),
            tau=self.temperature,
            hard=True,
            dim=1,
        )
        with torch.no_grad():
            q = log_q.exp()
            distortion = -(q * rows.log_likelihood).sum(0).mean()
            rate = -(q * ratio).sum(0).mean()
        return Loss(
            loss=-(y * corners).sum(1).mean(),
            elbo=-(distortion + rate),
            rate=rate,
            distortion=distortion,
            traces=[(rows.model_trace, rows.guide_trace)],
        )

    def _of_elements(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        """For a latent of many elements: each has a relaxed draw of its own. The KL is exact."""
        elements = known_elements(pair, layout, batch)
        assert elements is not None
        tables, n = element_tables(pair, layout, batch, elements), num_rows(batch)
        log_q = independent_elements(tables.log_q, type(self).__name__)
        many = log_q.expand(self.num_particles, *log_q.shape)
        y = gumbel_softmax(many, tau=self.temperature, hard=True, dim=1)
        terms = (y * tables.log_likelihood).sum(1).mean(0)
        rate = mean_over_rows(tables.kl, layout, n)
        loss = beta * rate - mean_of_elements(terms, layout, n)
        likelihood, rate = expected_likelihood(tables, layout, n).detach(), rate.detach()
        return Loss(loss, likelihood - rate, rate, -likelihood, [tables.traces])


def _support(pair: Pair, layout: Layout, batch: Batch) -> Tensor:
    """All values of the guide's only latent for every row, `(values, *plates, *event)`."""
    others = (*layout.enumerated, *layout.shared)
    if len(layout.draws) != 1 or others:
        drawn = ", ".join(f"'{name}'" for name in (*layout.draws, *others)) or "none"
        raise PairError(
            f"GumbelSoftmaxELBO relaxes one discrete latent of each row, but the latents are {drawn}: "
            f"use EnumELBO, which sums over several, or TraceELBO"
        )
    with torch.no_grad():
        site: Site = poutine.trace(pair.guide).get_trace(*as_args(batch)).nodes[layout.draws[0]]
    fn = site["fn"]
    if not fn.has_enumerate_support or fn.batch_shape.numel() != num_rows(batch):
        raise PairError(
            f"GumbelSoftmaxELBO needs one value from a finite set for each row at site "
            f"'{site['name']}', but the guide draws it from {type(fn).__name__} with batch shape "
            f"{tuple(fn.batch_shape)}: use TraceELBO"
        )
    support: Tensor = fn.enumerate_support(expand=True)
    while support.dim() < layout.nesting + 1 + len(fn.event_shape):
        support = support.unsqueeze(1)
    return support
