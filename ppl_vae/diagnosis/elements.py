"""Diagnosis of a discrete latent with many elements, such as a segment per pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.causes import CAUSES, Cause
from ppl_vae.diagnosis.diagnosed import Diagnosis, UseOfElements, diagnosis_of_wholes
from ppl_vae.diagnosis.remedies import BATCH_SIZE, Facts, begin_again, what_to_type
from ppl_vae.distributions import MarkovChain
from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    Elements,
    ElementTables,
    Layout,
    Pair,
    as_args,
    element_tables,
    evidence_of_elements,
    expected_value,
    innermost,
    is_ours,
    kl_between,
    num_rows,
    sharing_work,
    stated_by,
    stated_elements,
    sum_to_rows,
)

MOST_ELEMENTS = 64
"""Most elements of a latent that are dimensions of their own."""

_EPOCHS = 10
"""Fewest epochs of a remedy: rows with many elements are large."""

_STEPS = 200
"""Fewest steps that a guide which lags is trained for, if nothing is known of its training."""

_LEAST = 1e-6  # of beta


@dataclass(frozen=True)
class _Rows:
    """What some rows say, nats per row, `(n,)` each.

    Attributes:
        rate: KL(q(z | x) || p(z)).
        gain: E log p(x | z) less that with the z of another row; NaN of a single row. Where p(z) depends on
            what the rows come with, the z of another row is wrong for that reason, too: it says whether the
            decoder needs z, not whether z tells anything of x.
        possible: The rate of the best guide of the beta-ELBO, which is the exact posterior at beta = 1; NaN if
            it is not known.
        lost: By how much log p(x) would rise, if all elements had the same probabilities of their values, those
            that suit these rows best; NaN if it is not known.
        weighed: By how much the objective with the weight beta would rise then.
        usage: q(z_i = k), the mean over elements, `(n, K)`.
        elements: Number of elements.
    """

    rate: Tensor
    gain: Tensor
    possible: Tensor
    lost: Tensor
    weighed: Tensor
    usage: Tensor
    elements: int


def diagnose_elements(session: Session, elements: Elements, size: int, facts: Facts) -> Diagnosis:
    """Whether the only latent of a pair is used, and if not, why.

    Args:
        session: The opened pair.
        elements: The elements of its latent.
        size: How many rows with one draw each to look at together.
        facts: What a remedy depends on.
    """
    rows = [
        session.layouts.run(chunk, partial(_look, session.pair, chunk, elements, facts.beta))
        for chunk in session.chunks(max(2, size // len(elements.values)), "diagnose")
    ]
    rate, gain, possible, lost, weighed, usage = (
        torch.cat([getattr(each, name) for each in rows])
        for name in ("rate", "gain", "possible", "lost", "weighed", "usage")
    )
    count = sum(each.elements * len(each.rate) for each in rows) / len(rate)
    each_rate, each_gain = float(rate.mean()) / count, float(gain.nanmean()) / count
    each_possible = float(possible.mean()) / count
    each_lost = float(lost.mean()) / count
    each_weighed = float(weighed.mean()) / count
    # A guide may be far from p(z) because it is far from the posterior, too: the decoder gains nothing of that.
    tells_nothing = each_possible < COLLAPSED  # False where it is not known
    tells = each_rate >= COLLAPSED and not tells_nothing
    # What it needs of z may be what p(z) says already, of rows that come with something to see.
    lags = each_rate < COLLAPSED and each_possible >= max(COLLAPSED, 2 * each_rate)
    is_used = tells or (each_gain >= COLLAPSED and not lags and not each_lost >= COLLAPSED)
    shares = usage.mean(0)
    used = UseOfElements(
        count=round(count),
        values=len(elements.values),
        used_values=math.exp(-float(torch.xlogy(shares, shares).sum())),
        rate=each_rate,
        gain=each_gain,
    )
    facts = replace(facts, rate=float(rate.mean()), unused=1, least_epochs=_EPOCHS)
    cause = _cause(used, lags, each_possible, each_lost, each_weighed, facts, len(rate))
    notes = session.findings.notes
    if is_used and each_rate < COLLAPSED:
        notes = (
            f"'{elements.site}' is used, but x says next to nothing of it that p(z) does not know already: the "
            f"rate is {each_rate:.2g} nats per element",
            *notes,
        )
    return diagnosis_of_wholes(
        names=(elements.site,),
        kl=rate.mean().unsqueeze(0),
        used=torch.tensor([is_used]),
        rate=rate,
        unknown="not measured for a latent with many elements",
        causes={} if is_used else {elements.site: cause},
        beta=facts.beta,
        of_elements=used,
        notes=notes,
        cautions=session.findings.doubts,
    )


def many_elements(session: Session) -> Elements | None:
    """The elements of a pair's only latent, if there are so many that a line for each would say nothing.

    A path that is one latent is judged as a whole, however long it is: the numbers of its states are names.
    """
    elements = stated_elements(session.pair, session.layout, session.first)
    if elements is None:
        return None
    tables = element_tables(session.pair, session.layout, session.first, elements)
    if isinstance(innermost(tables.traces[1].nodes[elements.site]["fn"]), MarkovChain):
        return elements
    return elements if tables.q[0].numel() > MOST_ELEMENTS * num_rows(session.first) else None


def _look(pair: Pair, batch: Batch, elements: Elements, beta: float, layout: Layout) -> _Rows:
    n = num_rows(batch)
    with sharing_work():
        tables = element_tables(pair, layout, batch, elements)
        log_evidence = evidence_of_elements(pair, layout, batch, tables)
        best = _best_rate(pair, batch, tables, elements, beta)
    q, log_p = torch.broadcast_tensors(tables.q, tables.log_likelihood)
    dim = 1 + layout.nesting + layout.dim  # that of the rows
    event = q.dim() - 1 - layout.nesting

    def rows(terms: Tensor) -> Tensor:
        flat = terms.flatten(-event).sum(-1) if event else terms
        return sum_to_rows(flat, layout, 1, n)[0].double().cpu()

    own = rows(expected_value(q, log_p, 0))
    other = rows(expected_value(q.roll(1, dim), log_p, 0))
    gain = own - other if n > 1 else torch.full_like(own, math.nan)
    possible = torch.full_like(own, math.nan)
    if tables.log_prior is not None:
        best_q = (tables.log_prior + tables.log_likelihood / max(beta, _LEAST)).log_softmax(0)
        possible = rows(expected_value(best_q.exp(), best_q - tables.log_prior, 0))
    elif best is not None:
        possible = sum_to_rows(best, layout, 1, n)[0].double().cpu()
    kl = sum_to_rows(tables.kl, layout, 1, n)[0].double().cpu()
    lost, weighed = torch.full_like(own, math.nan), torch.full_like(own, math.nan)
    if log_evidence is not None:
        lost = rows(_alike(log_p)) - log_evidence[0].double().cpu()
        if beta > 1:
            weighed = rows(beta * _alike(log_p / beta)) - (own - beta * kl)
    others = [d for d in range(1, q.dim()) if d != dim]
    usage = q.mean(others).T.double().cpu() if others else q.T.double().cpu()
    return _Rows(
        kl,
        gain,
        possible,
        lost,
        weighed,
        usage.expand(n, -1),
        q[0].numel() // n,
    )


def _best_rate(
    pair: Pair, batch: Batch, tables: ElementTables, elements: Elements, beta: float
) -> Tensor | None:
    """KL(q || p(z)) of the best guide that a model of this library knows of elements that depend on each other.

    That is its posterior, or the mean field of one that is not known. None if neither can be had.
    """
    if tables.log_prior is not None:
        return None
    prior = tables.traces[0].nodes[elements.site]["fn"]
    for name in ("posterior", "mean_field"):
        stated = stated_by(pair.model, name)
        try:
            if stated is not None:
                return kl_between(stated(*as_args(batch), weight=1 / max(beta, _LEAST)), prior)
        except (ValueError, TypeError, NotImplementedError):  # too wide, or at beta = 1 alone
            continue
    return None


def _alike(log_p: Tensor) -> Tensor:
    """log p(x_i) of each element, if all had the same probabilities, those that suit them best."""
    return (log_p.movedim(0, -1) + log_shares(log_p.detach())).logsumexp(-1)


def log_shares(log_p: Tensor, steps: int = 50) -> Tensor:
    """Logarithms of the K probabilities of a mixture that suit its elements best, by EM, `(K,)`.

    Args:
        log_p: log p(x_i | z_i = k), `(K, *elements)`.
        steps: Steps of EM.

    Example:
        >>> log_shares(torch.tensor([[0.0, 0.0, 0.0, -99.0], [-99.0, -99.0, -99.0, 0.0]])).exp()
        tensor([0.7500, 0.2500])
    """
    flat = log_p.flatten(1).double()
    shares = flat.new_full((len(flat), 1), -math.log(len(flat)))
    for _ in range(steps):
        shares = (flat + shares).log_softmax(0).logsumexp(1, keepdim=True) - math.log(flat.shape[1])
    return shares[:, 0].to(log_p.dtype)


def _cause(
    used: UseOfElements,
    lags: bool,
    possible: float,
    lost: float,
    weighed: float,
    facts: Facts,
    num: int,
) -> Cause:
    """Why the latent is not used, by what `num` rows say."""
    if lags:
        text = CAUSES["lagging guide"]
        evidence = (
            f"its exact posterior has {possible:.2g} nats per element, the guide {used.rate:.2g}"
        )
        # Of few rows, few epochs are few steps.
        batches = math.ceil(num / (facts.batch_size or BATCH_SIZE))
        enough = replace(facts, least_epochs=max(_EPOCHS, math.ceil(_STEPS / batches)))
        code, options = what_to_type("lagging guide", enough)
        # Unasked, a command would take the model's own posterior, which has nothing to train.
        ours = bool(options) and is_ours(facts.guide, "guides")
        segments = getattr(facts.guide, "segments", None)
        size = () if segments is None else ("--guide.segments", str(segments))
        named = ("--guide", f"ppl_vae.guides.{type(facts.guide).__name__}", *size)
        options = (options[0], *named, *options[1:]) if ours else ()
        return Cause("lagging guide", text.meaning, evidence, text.remedy, code, options)
    rate = f"the rate is {used.rate:.2g} nats per element"
    if lost >= COLLAPSED and weighed < lost / 2:  # NaN at beta = 1
        text = CAUSES["large beta"]
        code, options = what_to_type("large beta", facts)
        if getattr(facts.guide, "beta", 1.0) != 1.0 and is_ours(facts.guide, "guides"):
            code = f"guide.beta = 1.0; {code}"  # it was the best one for the other weight
            options = (*options, "--guide.beta", "1")
        return Cause(
            "large beta",
            text.meaning.format(beta=facts.beta),
            f"{rate}; with the same probabilities of its values for all elements, log p(x) would rise by "
            f"{lost:.2g} nats per element, and the objective with this beta by {weighed:.2g}",
            text.remedy,
            code,
            _typed(options, facts),
        )
    if lost >= COLLAPSED:
        code, options = begin_again(facts)
        return Cause(
            "local optimum",
            "p(z) gives its probability to other values than the decoder needs, and values without probability "
            "get no gradients. A step that was too large may lead there",
            f"{rate}, and with the same probabilities of its values for all elements, log p(x) would rise by "
            f"{lost:.2g} nats per element",
            "train again with new weights and a smaller learning rate, or with clip_grad_norm",
            code,
            _typed(options, facts),
        )
    if used.rate >= COLLAPSED:
        rate = f"that of the exact posterior is {possible:.2g}, though {rate} under this guide"
    return Cause(
        "strong decoder",
        "the decoder explains the data without it, by what else it sees",
        f"{rate}, and with the z of another row log p(x) given z falls by {used.gain:.2g} nats per element "
        "only",
        "let the decoder see less of what the rows come with (of models of colors, Palette or LumaColors in "
        "place of PictureColors), start with values of z that differ, or hold the rate (TargetRate)",
    )


def _typed(options: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    """Options of a training, for the command that trains such a model."""
    colors = is_ours(facts.model, "models.colorization")
    return ("colors", *options[1:]) if colors and options else options
