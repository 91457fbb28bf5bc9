"""Exact posteriors of rows whose latents take few values: what a guide could tell of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.dimensions import NUM_DRAWS, dimension_names
from ppl_vae.pairs import (
    FiniteLatents,
    finite_latents,
    log_repeats,
    num_rows,
    parts_of,
    sample_rows,
    take_rows,
)

_LEAST = 1e-6  # of beta


def rows_vary(session: Session) -> bool:
    """Whether batches have other sites, roles or masks than the first rows: a row alone is of the same kind."""
    known = session.layouts.known
    return len({(layout, layout.signature) for layout in known}) > 1


def finite_of(session: Session) -> FiniteLatents | None:
    """The joint values of the latents of the first rows, if the guide draws nothing else and they are few."""
    if rows_vary(session) or not session.layout.discrete:
        return None
    finite = finite_latents(session.pair, session.layout, session.first)
    return finite if finite is not None and finite.alone else None


def told_by_exact_posteriors(
    session: Session, finite: FiniteLatents, beta: float
) -> Mapping[str, float]:
    """What the best q(z | x) tells of the first rows in each dimension, nats.

    The best guide of the beta-ELBO is p(z) p(x | z)^(1 / beta), up to a constant. Of its values for n rows, a
    dimension tells the mutual information: the entropy of their mean less the mean of their entropies.

    Args:
        session: The opened pair.
        finite: The joint values.
        beta: Weight of the KL.
    """
    layout, batch = session.layout, session.first
    n = num_rows(batch)
    size = n if session.pair.keeps_rows else session.rows_at_once(NUM_DRAWS, rows=16, spare=4)
    step = NUM_DRAWS if layout.vectorizes else 1
    posteriors: list[Tensor] = []
    codes, names = torch.zeros(0, 0), list[str]()
    for part in parts_of(n, size):
        chunk = batch if session.pair.keeps_rows else take_rows(batch, part)
        rows = num_rows(chunk)
        values = finite.of_rows(rows, layout)
        terms: list[Tensor] = []
        seen: list[Tensor] = []
        for start in range(0, finite.count, step):
            here = {name: value[start : start + step] for name, value in values.items()}
            count = min(step, finite.count - start)
            here = here if count > 1 else {name: value[0] for name, value in here.items()}
            run = sample_rows(session.pair, layout, chunk, count, values=here)
            repeats = log_repeats(run, layout, finite)
            terms.append(run.log_prior + run.log_likelihood / max(beta, _LEAST) - repeats)
            names = dimension_names(run)
            numbers = [
                run.latents[name][:, :1].reshape(count, -1).double() for name in layout.latents
            ]
            seen.append(torch.cat(numbers, -1))
        posteriors.append(torch.cat(terms).double().softmax(0).cpu())
        codes = torch.cat(seen).cpu()
    posterior = torch.cat(posteriors, 1)
    return dict(zip(names, (_told(code, posterior) for code in codes.T), strict=True))


def _told(code: Tensor, posterior: Tensor) -> float:
    """The mutual information of rows and one number, from its joint values `(C,)` and their `(C, n)`."""
    _, which = code.unique(return_inverse=True)
    shares = torch.zeros(int(which.max()) + 1, posterior.shape[1], dtype=posterior.dtype)
    shares = shares.index_add(0, which, posterior)
    entropies = torch.special.entr(shares).sum(0)
    return float(torch.special.entr(shares.mean(1)).sum() - entropies.mean())
