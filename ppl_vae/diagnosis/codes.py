"""Diagnosis of the codes of a quantizer: which are used, and why others are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.code_causes import cause_of_codes
from ppl_vae.diagnosis.codebooks import (
    Codebooks,
    Members,
    depth_of,
    find_codebooks,
    log_q_of,
    stride_for,
    vectors_of,
)
from ppl_vae.diagnosis.diagnosed import Diagnosis, diagnosis_of_wholes
from ppl_vae.diagnosis.dimensions import all_equal
from ppl_vae.diagnosis.faults import OFF_THE_PRIOR
from ppl_vae.diagnosis.remedies import Facts
from ppl_vae.diagnosis.use_of_codes import UseOfCodes
from ppl_vae.objectives import marked_sites
from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    Layout,
    Site,
    as_args,
    is_categorical,
    is_certain,
    num_rows,
    row_log_prob,
    sample_rows,
    sum_to_rows,
    tensors_of,
    trace_guide,
)
from ppl_vae.stats import Estimate


@dataclass
class _Gathered:
    """What some rows say; a list has a tensor for each chunk, nats per row, `(n,)`.

    Attributes:
        members: The codebooks of each site.
        costs: -log p of the codes of each site.
        noises: -log q of them: 0 of codes that are certain.
        gains: By how much log p(x | z) falls with the codes of another row.
        bounds: The ELBO.
        rates: The rate.
        rows: A number for the codes of each row, which rows with the same codes share.
        identical: Whether all rows are the same.
        lacking: What is not known, in words.
    """

    members: dict[str, list[Members]] = field(default_factory=dict)
    costs: dict[str, list[Tensor]] = field(default_factory=dict)
    noises: dict[str, list[Tensor]] = field(default_factory=dict)
    gains: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)
    rates: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    identical: bool = True
    lacking: dict[str, None] = field(default_factory=dict)


def marked_codes(session: Session) -> dict[str, str]:
    """The latents of a pair, if all are codes of a quantizer; with the sites of their vectors.

    They are certain, or drawn near their vectors. It is empty if they are something else.
    """
    layout = session.layout
    if layout.shared or set(layout.draws) != set(layout.latents):
        return {}
    with torch.random.fork_rng():  # the draws that follow are those of the seed
        trace = trace_guide(session.pair.guide, *as_args(session.first))
    marked = marked_sites(trace)
    are_codes = (
        name in marked and (is_certain(trace.nodes[name]) or is_categorical(trace.nodes[name]))
        for name in layout.latents
    )
    return {name: marked[name] for name in layout.latents} if all(are_codes) else {}


def diagnose_codes(
    session: Session, marked: Mapping[str, str], size: int, facts: Facts, not_ended: str = ""
) -> tuple[Diagnosis, Tensor]:
    """Which codes are used, and if many are not, why.

    Args:
        session: The opened pair.
        marked: Its latents, and the sites of their vectors.
        size: How many rows to look at together.
        facts: What a remedy depends on.
        not_ended: Why the training had not ended; empty if it had, or if that is not known.

    Returns:
        The diagnosis, and the ELBO of each row.
    """
    found = _gather(session, marked, size)
    rate, gain = torch.cat(found.rates), torch.cat(found.gains)
    codes = sum(member.uses for of in found.members.values() for member in of) / len(rate)
    uses = [
        member.use(name, cost - noise, float(gain.nanmean()) / codes)
        for name, member, cost, noise in _named(found, len(rate))
    ]
    facts = replace(facts, rate=float(rate.mean()), unused=len(uses))
    causes, notes = {}, [*found.lacking]
    for use, (_, member, *_) in zip(uses, _named(found, len(rate)), strict=True):
        cause = cause_of_codes(
            use,
            facts,
            identical=found.identical,
            dead_encoder=member.same_vectors,
            learn=member.learn,
            not_ended=not_ended,
        )
        if cause is not None and len(rate) > 1:
            causes[use.name] = cause
        if use.used < use.values and not use.are_enough:
            notes.append(
                f"{use.name} uses {use.used:,} of {use.values:,} codes on these rows, which use a code "
                f"{use.uses / use.values:.2g} times on average: too few to tell which of the others are dead"
            )
    used = torch.tensor([use.varies and not use.gain < COLLAPSED for use in uses])
    noise = sum(torch.cat(of_site) for of_site in found.noises.values())
    information = _information(torch.cat(found.rows)) - noise
    diagnosis = diagnosis_of_wholes(
        names=[use.name for use in uses],
        kl=torch.tensor([use.rate * use.count for use in uses]),
        used=used,
        rate=rate,
        unknown="not measured for codes",
        mutual_information=Estimate(information),
        causes=causes,
        beta=facts.beta,
        of_codes=tuple(uses),
        faults=_off_the_prior(uses) if bool(used.all()) else {},
        notes=(*notes, *session.findings.notes),
        cautions=session.findings.doubts,
    )
    return diagnosis, torch.cat(found.bounds)


def _named(found: _Gathered, n: int) -> list[tuple[str, Members, float, float]]:
    """Each codebook with its name, and with -log p and -log q of one of its codes."""
    named = []
    for site, levels in found.members.items():
        total = sum(member.uses for member in levels) / n
        cost, noise = (
            float(torch.cat(of[site]).mean()) / total for of in (found.costs, found.noises)
        )
        for i, member in enumerate(levels):
            name = site if len(levels) == 1 else f"{site}, level {i + 1}"
            named.append((name, member, cost, noise))
    return named


def _gather(session: Session, marked: Mapping[str, str], size: int) -> _Gathered:
    books = find_codebooks(session, marked, session.layout)
    found = _Gathered()
    for each in books:
        if each.why_not:
            found.lacking[
                f"how far codes and vectors are apart is not measured: {each.why_not}"
            ] = None
    row: tuple[Tensor, ...] | None = None
    for batch in session.chunks(max(2, size), "diagnose"):
        session.layouts.run(batch, partial(_look, session, marked, books, batch, found))
        args = tensors_of(batch)
        row = row or tuple(value[:1].clone() for value in args)
        found.identical = found.identical and all_equal(args, row)
    return found


def _look(
    session: Session,
    marked: Mapping[str, str],
    books: list[Codebooks],
    batch: Batch,
    found: _Gathered,
    layout: Layout,
) -> None:
    """Adds some rows."""
    n = num_rows(batch)
    rows = sample_rows(session.pair, layout, batch, 1)
    gain = torch.full((n,), math.nan, dtype=torch.float64)
    if n > 1:
        others = {name: _of_another(rows.guide_trace.nodes[name], layout) for name in layout.draws}
        other = sample_rows(session.pair, layout, batch, 1, others)
        gain = (rows.log_likelihood - other.log_likelihood)[0].double().cpu()
    found.gains.append(gain)
    found.bounds.append(rows.log_weights[0].double().cpu())
    found.rates.append((rows.log_guide - rows.log_prior)[0].double().cpu())
    key = torch.zeros(n, dtype=torch.int64)
    for each in books:
        z = rows.latents[each.site][0]
        key = key * 31 + _number(z)
        for of, trace in ((found.costs, rows.model_trace), (found.noises, rows.guide_trace)):
            terms = row_log_prob(trace.nodes[each.site], layout)
            of.setdefault(each.site, []).append(-sum_to_rows(terms, layout, 1, n)[0].double().cpu())
        vectors = vectors_of(rows.guide_trace.nodes.get(marked[each.site]), layout, n)
        depth = max(1, depth_of(z, vectors))
        codes = z.reshape(n, -1, depth).unbind(-1)
        node = rows.guide_trace.nodes[each.site]
        log_q: tuple[Tensor | None, ...] = (None,) * depth
        if is_categorical(node):
            of_rows = log_q_of(node, layout, n)
            log_q = of_rows.reshape(n, -1, depth, of_rows.shape[-1]).unbind(2)
        if each.site not in found.members:
            num, per_row = session.num_rows, codes[0].shape[1]
            stride = stride_for(None if num is None else num * per_row)
            points = each.points or (None,) * depth
            found.members[each.site] = [
                Members(each.values, of, stride, each.learn) for of in points
            ]
        left = (
            None
            if vectors is None
            else vectors.detach().double().cpu().reshape(n, -1, vectors.shape[-1])
        )
        for member, code, q in zip(found.members[each.site], codes, log_q, strict=True):
            member.update(code, left, q)
            if left is not None and member.points is not None:
                left = left - member.points[code.long().cpu()]
    found.rows.append(key)


def _of_another(site: Site, layout: Layout) -> Tensor:
    """The values of a site, each row with those of the row before it."""
    value: Tensor = site["value"]
    event_dim = len(site["fn"].event_shape)
    rolled: Tensor = value.roll(1, value.dim() - event_dim + layout.dim)
    return rolled


def _number(z: Tensor) -> Tensor:
    """A number for the codes of each row, the same for the same codes, `(n,)`: an overflowing product."""
    flat = z.long().cpu().reshape(len(z), -1)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (flat.shape[1],), generator=generator)
    return ((flat + 1) * factors).sum(1)


def _information(rows: Tensor) -> Tensor:
    """-log q(z) of the codes of each row, with their shares among these rows for q: `(n,)`, nats."""
    _, which, counts = rows.unique(return_inverse=True, return_counts=True)
    found: Tensor = -(counts.double() / len(rows))[which].log()
    return found


def _off_the_prior(uses: list[UseOfCodes]) -> dict[str, str]:
    """Whether p(z) gives other probabilities than the codes have.

    The codes of a row cost at least sum_i (E[-log p(z_i | ...)] - H(z_i)) more than they would under the best
    prior (both are less by the entropy of q(z_i | x)), and the entropy of a position is at most that of all
    positions together, if these share codes.
    """
    nats = 0.0
    for use in uses:
        nats += use.count * (use.rate - use.most)
    if not nats > OFF_THE_PRIOR:
        return {}
    return {
        "prior mismatch": (
            f"The codes of a row cost at least {nats:.1f} nats more than they would with a prior that knows "
            "how often each is used; fit one to them (refit_prior, or `ppl-vae refit-prior`)."
        )
    }
