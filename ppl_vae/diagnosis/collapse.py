"""Causes of unused latent dimensions, and their remedies."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppl_vae.checks import Session
from ppl_vae.diagnosis.dimensions import NUM_DRAWS, dimension_names
from ppl_vae.diagnosis.encoder import gradient_tells_rows_apart
from ppl_vae.diagnosis.information import RowDraws
from ppl_vae.diagnosis.refinement import can_refine, refine_rows
from ppl_vae.diagnosis.residuals import Residuals
from ppl_vae.pairs import num_rows, parts_of, posterior_means, sample_rows, take_rows, tensors_of
from ppl_vae.stats import Estimate, standard_error

CAUSES = {
    "none": ("no cause", "nothing to do"),
    "identical rows": (
        "the rows given are all the same, so there is nothing to distinguish",
        "diagnose with rows that differ",
    ),
    "constant posterior": (
        "the guide ignores x: all rows have the same posterior, which is not the prior",
        "train for longer; if that does not help, check that the guide's network is given x and gets "
        "gradients",
    ),
    "dead encoder": (
        "the encoder is dead: all rows have the same posterior, and no gradient can change that",
        "check that the guide uses x; if it does, its units are inactive on all rows: train again from other "
        "weights, with an activation that does not die (GELU in place of ReLU), rescaled data or a smaller "
        "learning_rate",
    ),
    "small means": (
        "their posterior means vary little, yet the posterior depends on x",
        "judge them by the mutual information: the measure of active units is meant for posteriors that "
        "differ in their means",
    ),
    "lagging guide": (
        "the guide lags behind the model, whose own posterior does use them",
        "train the guide for longer (more steps for it than for the model), enlarge its network, or warm beta "
        "up more slowly",
    ),
    "large beta": (
        "beta is {beta:g}, so that their KL costs {beta:g} times what it costs in the ELBO",
        "lower beta to use more of them; if few dimensions are what this beta is for, nothing is wrong",
    ),
    "decoder noise": (
        "the decoder's noise is larger than what they could explain",
        "learn the noise (LearnedGaussian or OptimalGaussian), for longer if it is learned already, or make it "
        "smaller to use them",
    ),
    "surplus dimensions": (
        "the residuals of the data are no larger than the decoder's noise",
        "nothing is lost, and a smaller latent_dim would be enough",
    ),
    "ignored latent": (
        "the decoder does not use them",
        "if a smaller latent_dim reaches the same ELBO, nothing is lost; otherwise warm beta up from 0, set "
        "free_bits, or weaken the decoder",
    ),
}
"""For each cause: what it means, with the beta of the training, and the remedy."""

REVIVED = 0.1
"""Nats of mean KL, above the guide's own, from which on per-row posteriors count as using a dimension."""


def meaning_of(cause: str, beta: float) -> str:
    """What a cause means."""
    return CAUSES[cause][0].format(beta=beta)


def remedy_of(cause: str, information: Estimate) -> str:
    """The remedy for a cause."""
    if cause == "small means" and information.missing:
        return "compare posteriors of different rows, as the mutual information is not known"
    return CAUSES[cause][1]


def is_dead(session: Session, draws: RowDraws, unused: Mapping[str, float], on_prior: bool) -> bool:
    """Whether the encoder is dead, given that all rows have the same posterior.

    A guide without parameters that is the prior itself may be right: the decoder may ignore z. It is dead if
    posteriors fitted to each row would raise the ELBO.

    Args:
        session: The opened pair.
        draws: One draw for each row.
        unused: The KL that the guide pays for each dimension.
        on_prior: Whether the posterior is the prior.
    """
    learns = gradient_tells_rows_apart(session, draws)
    if learns is not None or not on_prior:
        return not learns
    return _can_refine(session) and _revives(session, unused, 1.0)


def find_cause(
    session: Session, residuals: Residuals, unused: Mapping[str, float], beta: float
) -> tuple[str, tuple[str, ...]]:
    """Why dimensions are not used, one of `CAUSES`, and notes on what could not be checked.

    Args:
        session: The opened pair; a posterior is fitted to each row of its first batch.
        residuals: The decoder's residuals of all rows.
        unused: The dimensions that are not active, and the KL that the guide pays for each.
        beta: The weight of the KL that the pair was trained with.
    """
    notes: tuple[str, ...] = ()
    if not _can_refine(session):
        notes = (
            "per-row posteriors cannot be fitted for this pair: a guide that lags behind the model is not "
            "ruled out",
        )
    elif _revives(session, unused, beta):
        return "lagging guide", ()
    verdict = residuals.verdict(beta) or "ignored latent"
    if verdict == "ignored latent" and beta > 1:  # which has trained the decoder to ignore them
        verdict = "large beta"
    return verdict, notes


def _can_refine(session: Session) -> bool:
    """Whether a posterior can be fitted to each row."""
    pair, layout, batch = session.pair, session.layout.of_another_guide, session.first
    few = batch if pair.keeps_rows else take_rows(batch, slice(0, 2))
    varies = len(session.layouts.known) > 1
    return not varies and can_refine(pair, layout, sample_rows(pair, layout, few, 2).model_trace)


def _revives(session: Session, unused: Mapping[str, float], beta: float) -> bool:
    """Whether posteriors fitted to each row under `beta` use dimensions that the guide does not use.

    They use one if its KL exceeds that of the guide by `REVIVED`, beyond the error of the mean over rows.
    """
    pair, layout, batch = session.pair, session.layout.of_another_guide, session.first
    dtype = tensors_of(batch)[0].dtype
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    n = num_rows(batch)
    size = session.rows_at_once(NUM_DRAWS, rows=16, spare=4)
    gains, kls = [], []
    which, own = torch.empty(0, dtype=torch.bool), torch.zeros(0)
    for part in parts_of(n, size):
        chunk = take_rows(batch, part)
        rows = sample_rows(pair, layout, chunk, NUM_DRAWS)
        means = posterior_means(rows, layout)
        names = dimension_names(rows)
        which = torch.tensor([name in unused for name in names], device=means.device)
        own = torch.tensor([unused.get(name, 0.0) for name in names], device=means.device)
        # Start away from the prior's mean, which may be a saddle point.
        start = means + 0.5 * torch.randn_like(means) * which
        bound = rows.log_likelihood + beta * (rows.log_prior - rows.log_guide)
        del rows
        refined = refine_rows(pair, layout, chunk, start.to(dtype), beta=beta)
        gains.append(refined.bound - bound.mean(0))
        kls.append(refined.kl)
    kl = (torch.cat(kls) - own)[:, which].double()
    if kl.shape[1] == 0:
        return False
    noise = standard_error(kl) if len(kl) > 1 else torch.zeros(())
    return float(torch.cat(gains).mean()) > 0 and float((kl.mean(0) - 2 * noise).max()) > REVIVED
