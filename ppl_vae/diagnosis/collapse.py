"""Causes of unused latent dimensions, and their remedies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.causes import CAUSES, Cause, listed
from ppl_vae.diagnosis.decoder import Dependence, loss_of_other_latents, models_dependencies
from ppl_vae.diagnosis.dimensions import NUM_DRAWS, dimension_names
from ppl_vae.diagnosis.encoder import gradient_tells_rows_apart
from ppl_vae.diagnosis.finite_rows import finite_of, rows_vary, told_by_exact_posteriors
from ppl_vae.diagnosis.information import RowDraws
from ppl_vae.diagnosis.refinement import FEW_SAMPLES, Refined, can_refine, refine_rows
from ppl_vae.diagnosis.remedies import Facts, what_to_type, words_beside
from ppl_vae.diagnosis.residuals import Residuals, Verdict
from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    num_rows,
    parts_of,
    posterior_means,
    sample_rows,
    take_rows,
    tensors_of,
)
from ppl_vae.stats import Estimate

_ABOVE = (
    "{sites} may explain other latents, not x: whether a prior of these needs it does not show in what is left "
    "of x"
)

_NOT_SEEN = (
    "it is not known whether the decoder models the data without its latents (a strong decoder: given z, the "
    "numbers of x depend on each other): {unknown}"
)

REVIVED = 0.1
"""Nats that per-row posteriors have to carry in a dimension to count as using it."""

GAIN = 1e-3
"""Nats by which they have to raise the beta-ELBO: beyond rounding, if z is free and ignored."""

DOUBTFUL = (0.03, 0.3)
"""From and to how many nats few rows do not tell whether that is so."""

FEWEST_ROWS = 16
"""Rows that are enough where it is clear."""

FEW_DRAWS = 8
"""Draws of each row at once."""


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
    carried, _ = _carried(session, unused, 1.0)
    return bool(carried)


@dataclass(frozen=True)
class Asked:
    """What is asked about dimensions that are not used.

    Attributes:
        session: The opened pair; a posterior is fitted to each row of its first batch.
        rows: About a thousand rows, in parts of one shape each.
        size: Rows at once, with all draws of each.
        unused: The dimensions that are not active, and the KL that the guide pays for each.
        facts: What remedies depend on.
        ended: Why the training had not ended, if it had not.
    """

    session: Session
    rows: list[Batch]
    size: int
    unused: Mapping[str, float]
    facts: Facts
    ended: str = ""

    @cached_property
    def residuals(self) -> Residuals:
        """The decoder's residuals."""
        return Residuals.of(self.session, self.rows, self.size)

    @cached_property
    def verdict(self) -> Verdict:
        """What they say."""
        return self.residuals.verdict(self.facts.beta, len(self.unused))

    def plain(self, name: str, information: Estimate) -> Cause:
        """A cause that the numbers alone show, with the mutual information."""
        unknown = information.missing
        evidence = {
            "dead encoder": "all rows have the same posterior, and the same gradient of its density",
            "constant posterior": f"z carries {max(0.0, information.mean):.2g} nats about x",
            "small means": "" if unknown else f"z carries {information.mean:.2g} nats about x",
        }
        remedy = None
        if name == "small means" and unknown:
            remedy = "compare posteriors of different rows, as the mutual information is not known"
        return self.cause(name, evidence.get(name, ""), remedy)

    def cause(self, name: str, evidence: str = "", remedy: str | None = None) -> Cause:
        """A cause with its texts."""
        text = CAUSES[name]
        code, options = what_to_type(name, self.facts)
        meaning = text.meaning.format(beta=self.facts.beta)
        remedy = (remedy or text.remedy) + words_beside(name, self.facts)
        return Cause(name, meaning, evidence, remedy, code, options)


def find_causes(asked: Asked) -> tuple[dict[str, Cause], tuple[str, ...]]:
    """Why each dimension is not used, and notes on what could not be checked."""
    if asked.ended:
        name, evidence = "still training", asked.ended
        verdict = asked.verdict
        if verdict.cause == "large beta":  # they die while it goes on, or beta still rises
            name, evidence = "large beta", f"{verdict.evidence}; {asked.ended}"
        return dict.fromkeys(asked.unused, asked.cause(name, evidence)), ()
    notes: tuple[str, ...] = ()
    session, beta = asked.session, asked.facts.beta
    carried, whose = _carried(session, asked.unused, beta)
    if carried is None:
        notes = (
            "per-row posteriors cannot be fitted for this pair: a guide that lags behind the model is not "
            "ruled out",
        )
    elif carried:
        evidence = f"{whose} carry {_nats_of(carried)}, the guide none"
        # What the decoder leaves of the data is what the guide makes of it.
        found = dict.fromkeys(asked.unused, asked.cause("not judged"))
        found |= dict.fromkeys(carried, asked.cause("lagging guide", evidence))
        return found, ()
    cause, more = _of_the_decoder(asked)
    return dict.fromkeys(asked.unused, cause), notes + more


def _nats_of(carried: Mapping[str, float]) -> str:
    """What dimensions carry, in words."""
    if len(carried) <= 4:
        numbers = listed([f"{nats:.2g}" for nats in carried.values()])
        return f"{numbers} nats in {listed(list(carried))}"
    most = sorted(carried, key=lambda name: -carried[name])
    first, *others = (f"{carried[name]:.2g} {{}}in {name}" for name in most[:3])
    each = ", ".join([first.format("nats "), *(other.format("") for other in others)])
    return f"{each}, and less in {len(carried) - 3} more"


def _of_the_decoder(asked: Asked) -> tuple[Cause, tuple[str, ...]]:
    """Why a decoder does not use some dimensions, and notes."""
    unused = set(asked.unused)
    session, residuals, beta = asked.session, asked.residuals, asked.facts.beta
    verdict = asked.verdict
    decided = verdict.cause in ("large beta", "decoder noise")
    depends = Dependence(None) if decided else models_dependencies(session)
    not_seen = (_NOT_SEEN.format(unknown=depends.unknown),) if depends.unknown else ()
    if depends.found:
        lost = loss_of_other_latents(session, unused)
        evidence = (
            f"log p(x | z) falls by {max(0.0, lost):.2g} nats if rows exchange these dimensions, and the "
            "numbers of x are not independent given z"
        )
        return asked.cause("strong decoder", evidence), ()
    if verdict.cause is not None:
        remedy = None
        if verdict.cause == "decoder noise" and verdict.sigma is not None:
            remedy = f"{CAUSES[verdict.cause].remedy} (about {verdict.sigma:.3g})"
        asked = replace(asked, facts=replace(asked.facts, suiting_beta=verdict.suiting_beta))
        found = asked.cause(verdict.cause, verdict.evidence, remedy)
        sites = {name.split("[")[0] for name in unused}
        if verdict.cause == "surplus dimensions" and len(session.layout.latents) > 1:
            not_seen = (_ABOVE.format(sites=listed(sorted(sites))), *not_seen)
        return found, not_seen
    lost = loss_of_other_latents(session, unused)
    evidence = f"log p(x | z) falls by {max(0.0, lost):.2g} nats if rows exchange these dimensions"
    note = f"whether the data would pay for more dimensions is not known: {residuals.unknown}"
    if beta > 1:  # which has trained the decoder to ignore them
        return asked.cause("large beta", evidence), ()
    notes = (note, *not_seen) if residuals.unknown else not_seen
    return asked.cause("ignored latent", evidence), notes


def _can_refine(session: Session) -> bool:
    """Whether a posterior can be fitted to each row."""
    pair, layout, batch = session.pair, session.layout.of_another_guide, session.first
    few = batch if pair.keeps_rows else take_rows(batch, slice(0, 2))
    return not rows_vary(session) and can_refine(
        pair, layout, sample_rows(pair, layout, few, 2).model_trace
    )


def _carried(
    session: Session, unused: Mapping[str, float], beta: float
) -> tuple[dict[str, float] | None, str]:
    """What the model's own posteriors tell in dimensions that the guide does not use, and whose these are.

    Returns:
        By name, nats, of dimensions that count; None if such posteriors cannot be found. Then words for them.
    """
    if _can_refine(session):
        found, rows = _revived(session, unused, beta)
        return found, f"posteriors fitted to {rows} rows"
    finite = finite_of(session)
    if finite is None:
        return None, ""
    told = told_by_exact_posteriors(session, finite, beta)
    return _that_count(
        {name: told[name] for name in unused if name in told}
    ), f"exact posteriors of {num_rows(session.first)} rows"


def _that_count(nats: Mapping[str, float]) -> dict[str, float]:
    """More than `REVIVED` nats of one dimension at least, then more than 0.01 of others."""
    used = {name: carried for name, carried in nats.items() if carried > COLLAPSED}
    return used if any(carried > REVIVED for carried in used.values()) else {}


def _revived(
    session: Session, unused: Mapping[str, float], beta: float
) -> tuple[dict[str, float], int]:
    """The dimensions that the guide does not use, and posteriors fitted to each row under `beta` do.

    Returns:
        By name, what these posteriors tell of their rows, nats, of those that count; and the number of rows:
        all of the first ones, or fewer if what they tell is clear.
    """
    pair, layout, batch = session.pair, session.layout.of_another_guide, session.first
    dtype = tensors_of(batch)[0].dtype
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    size = session.rows_at_once(NUM_DRAWS, rows=16, spare=4)
    # A gradient takes as much memory again, and fewer draws are made of each row.
    size = max(FEWEST_ROWS // 2, size * NUM_DRAWS // (2 * FEW_SAMPLES))
    gains: list[Tensor] = []
    moments: list[tuple[Tensor, ...]] = []
    nats: dict[str, float] = {}
    seen = 0
    for part in parts_of(num_rows(batch), size):
        chunk = take_rows(batch, part)
        starts = [
            sample_rows(pair, layout, chunk, FEW_DRAWS) for _ in range(NUM_DRAWS // FEW_DRAWS)
        ]
        means = torch.stack([posterior_means(rows, layout) for rows in starts]).mean(0)
        names = dimension_names(starts[0])
        which = torch.tensor([name in unused for name in names], device=means.device)
        # Start away from the prior's mean, which may be a saddle point.
        start = means + 0.5 * torch.randn_like(means) * which
        bounds = [r.log_likelihood + beta * (r.log_prior - r.log_guide) for r in starts]
        del starts
        refined = refine_rows(*(pair, layout, chunk, start.to(dtype)), beta=beta, unused=which)
        gains.append(refined.bound - torch.cat(bounds).mean(0))
        moments.append((refined.mean, refined.variance, refined.of_prior))
        mean, variance, of_prior = (torch.cat(parts) for parts in zip(*moments, strict=True))
        told = Refined(mean, variance, of_prior, torch.cat(gains)).information.tolist()
        nats = {name: told[i] for i, name in enumerate(names) if name in unused}
        seen += num_rows(chunk)
        least, most = DOUBTFUL
        if seen >= FEWEST_ROWS and not least < max(nats.values()) < most:
            break
    if not float(torch.cat(gains).mean()) > GAIN:
        return {}, seen
    return _that_count(nats), seen
