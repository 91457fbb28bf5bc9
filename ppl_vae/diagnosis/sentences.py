"""Diagnosis of a latent that is a sentence: whether it is used, and whether it is one of its language."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.causes import CAUSES, Cause
from ppl_vae.diagnosis.diagnosed import Diagnosis, diagnosis_of_wholes
from ppl_vae.diagnosis.remedies import Facts
from ppl_vae.diagnosis.use_of_sentences import UseOfSentences, margin
from ppl_vae.distributions import Sentences
from ppl_vae.pairs import COLLAPSED, Batch, innermost, num_rows, sample_rows, tensors_of
from ppl_vae.runtime import FIRST_WORD, holds_sentences, lengths_of

FOREIGN = 1.0
"""Nats per word by which z is less likely than what p(z) draws: from there on it is not of its language."""

COPIES = ((0.5, FOREIGN), (0.2, 2 * FOREIGN))
"""Shares of the words of z, beyond chance, from which on they are copied, each if z is so foreign, too: words
that both languages have are no copies. A network that has learned to copy by itself had 29 % of them."""

STOCK = 0.5
"""Nats per word by which z is likelier than what p(z) draws: from there on it is made of stock phrases."""

_MOST_ROWS = 1000


@dataclass(frozen=True)
class _SentenceRows:
    """What some rows say, `(n,)` each; `words` are those of z."""

    rate: Tensor
    worth: Tensor
    told: Tensor
    copied: Tensor
    by_chance: Tensor
    log_prior: Tensor
    log_own: Tensor
    words: Tensor
    own_words: Tensor
    elbo: Tensor


def sentence_latent(session: Session) -> str | None:
    """The site of the only latent, if it is a sentence in both programs."""
    layout = session.layout
    if len(layout.latents) != 1 or layout.shared or layout.enumerated:
        return None
    (name,) = layout.latents
    rows = session.sample(session.first, 1)
    sites = [trace.nodes[name] for trace in (rows.model_trace, rows.guide_trace)]
    return name if all(isinstance(innermost(site["fn"]), Sentences) for site in sites) else None


def diagnose_sentences(
    session: Session, name: str, size: int, facts: Facts, not_ended: str = ""
) -> tuple[Diagnosis, Tensor]:
    """Whether a sentence is used, and if not, why.

    Args:
        session: The opened pair.
        name: The latent's site.
        size: How many rows to look at together.
        facts: What a remedy depends on.
        not_ended: Why the training had not ended; empty if it had, or if that is not known.

    Returns:
        The diagnosis, and the ELBO of the rows that were looked at, `(n,)`, at one draw each.
    """
    found: list[_SentenceRows] = []
    seen, first, same = 0, None, True
    for chunk in session.chunks(max(2, size), "diagnose"):
        x = tensors_of(chunk)[0]
        first = x[:1] if first is None else first
        same = same and _all_are(x, first)
        found.append(_look(session, chunk, name))
        seen += num_rows(chunk)
        if seen >= _MOST_ROWS:
            break

    def every(of: str) -> Tensor:
        return torch.cat([getattr(rows, of) for rows in found]).double()

    rate = torch.cat([rows.rate for rows in found])
    use = UseOfSentences.of(
        words=every("words"),
        worth=every("worth"),
        told=every("told"),
        copied=every("copied"),
        by_chance=every("by_chance"),
        log_prior=every("log_prior"),
        own_words=every("own_words"),
        log_own=every("log_own"),
    )
    copied = _is_copied(use.surplus, use.foreign)
    is_used = use.worth_per_word.mean >= COLLAPSED and not copied
    causes = (
        {}
        if is_used or not use.is_known
        else {name: _cause(use, float(rate.mean()), copied, same, not_ended)}
    )
    notes = session.findings.notes
    if is_used and use.foreign >= FOREIGN:
        notes = (
            f"the sentences of '{name}' are {use.foreign:.1f} nats per word less likely under p(z) than its "
            "own: they may be no sentences of its language",
            *notes,
        )
    if is_used and use.foreign <= -STOCK:
        notes = (
            f"the sentences of '{name}' are {-use.foreign:.1f} nats per word likelier under p(z) than its own, "
            f"and have {use.words.mean:.1f} words where those have {use.words_of_own.mean:.1f}: stock phrases, "
            f"of which x tells {use.told.mean:.1f} nats. A smaller beta, or BackTranslation, keeps more of x "
            "in z",
            *notes,
        )
    diagnosis = diagnosis_of_wholes(
        names=(name,),
        kl=rate.mean().unsqueeze(0),
        used=torch.tensor([is_used]),
        rate=rate,
        unknown="not measured for a sentence",
        causes=causes,
        beta=facts.beta,
        of_sentences=use,
        notes=notes,
        cautions=(*session.findings.doubts, *_doubts(name, use)),
    )
    if not use.is_known:  # neither is known
        diagnosis = replace(diagnosis, collapsed=torch.zeros(1, dtype=torch.bool))
    return diagnosis, torch.cat([rows.elbo for rows in found])


def _is_copied(surplus: float, foreign: float) -> bool:
    return any(surplus >= share and foreign >= least for share, least in COPIES)


def _doubts(name: str, use: UseOfSentences) -> Iterator[str]:
    """What would be judged otherwise if a number were elsewhere in its interval."""
    if not use.is_known:
        return
    more = "more rows would tell"
    foreign = margin(use.log_prior, use.log_prior_of_own)
    copied = margin(use.copied, use.copied_by_chance)
    least, most = (
        _is_copied(use.surplus + sign * copied, use.foreign + sign * foreign) for sign in (-1, 1)
    )
    if use.copied.missing:
        pass  # nothing that could be copied
    elif math.isnan(copied):
        yield f"a single row has words in '{name}': {more} whether they are copied"
    elif least != most:
        likely = "less likely" if use.foreign > 0 else "likelier"
        yield (
            f"{max(0.0, use.surplus):.0%} of the words of '{name}' are copied beyond chance, give or take "
            f"{min(1.0, copied):.0%}, and a word is {abs(use.foreign):.1f} nats {likely} than one that p(z) "
            f"draws, give or take {foreign:.1f}: {more} whether that is a copy"
        )
    worth = use.worth_per_word
    if not abs(worth.mean - COLLAPSED) >= margin(worth):
        yield (
            f"a word of '{name}' is worth {worth.mean:.2g} nats, give or take {margin(worth):.2g}, and counts "
            f"as used from {COLLAPSED} on: {more}"
        )
    told, error = (of / use.words.mean for of in (use.told.mean, margin(use.told)))
    if worth.mean < COLLAPSED and abs(told - COLLAPSED) < error:
        yield (
            f"x tells {told:.2g} nats of a word of '{name}', give or take {error:.2g}: {more} whether the "
            "guide looks at x"
        )


def _look(session: Session, chunk: Batch, name: str) -> _SentenceRows:
    """What a chunk says; the other row is half a chunk away, as neighbors in a file are often alike."""
    rows, n = session.sample(chunk, 1), num_rows(chunk)
    layout = rows.layout
    z, x = rows.latents[name][0], tensors_of(chunk)[0]
    with torch.no_grad():
        if n > 1:
            site = rows.guide_trace.nodes[name]["value"]
            turned = {name: site.roll(n // 2, site.dim() - 1 + layout.dim)}
            others = sample_rows(session.pair, layout, chunk, 1, values=turned)
            worth = (rows.log_likelihood - others.log_likelihood)[0]
            # Each z with another x: of a guide that does not look at x, 0 for every row, not in the mean alone.
            told = rows.log_guide[0] - others.log_guide[0].roll(-(n // 2), 0)
            by_chance = _shared(z, x.roll(n // 2, 0))
        else:
            worth = told = by_chance = rows.log_guide.new_full((n,), math.nan)
        prior = rows.model_trace.nodes[name]["fn"]
        own = prior.sample()
        log_own = prior.log_prob(own).reshape(-1)
    return _SentenceRows(
        rate=(rows.log_guide - rows.log_prior)[0].cpu(),
        worth=worth.cpu(),
        told=told.cpu(),
        copied=_shared(z, x).cpu(),
        by_chance=by_chance.cpu(),
        log_prior=rows.log_prior[0].cpu(),
        log_own=log_own.cpu(),
        words=lengths_of(z).cpu(),
        own_words=lengths_of(own).reshape(-1).cpu(),
        elbo=rows.log_weights[0].cpu(),
    )


def _shared(z: Tensor, x: Tensor) -> Tensor:
    """The share of the words of z that are words of x, too, each as often as there; NaN if there are none."""
    if not holds_sentences(x.long() if x.is_floating_point() else x):
        return z.new_full((len(z),), math.nan, dtype=torch.float64)
    z, x = z.long(), x.long()
    is_word = z >= FIRST_WORD
    same = (z.unsqueeze(-1) == z.unsqueeze(-2)) & is_word.unsqueeze(-2)
    place = same.tril(-1).sum(-1)  # how often the word came before
    there = ((z.unsqueeze(-1) == x.unsqueeze(-2)) & is_word.unsqueeze(-1)).sum(-1)
    found = ((there > place) & is_word).sum(-1)
    return found / is_word.sum(-1)


def _all_are(x: Tensor, first: Tensor) -> bool:
    """Whether all rows are one row; of sentences, other batches may be filled up more."""
    if x.dim() == 2 == first.dim() and x.shape[1] != first.shape[1]:
        width = max(x.shape[1], first.shape[1])
        x, first = (torch.nn.functional.pad(of, (0, width - of.shape[1])) for of in (x, first))
    return x.shape[1:] == first.shape[1:] and bool((x == first).all())


def _cause(use: UseOfSentences, rate: float, copied: bool, same: bool, not_ended: str) -> Cause:
    """Why the sentence is not used, or is none."""
    if same:
        return _of("identical rows")
    if not_ended:
        return _of("still training", not_ended)
    if copied:
        return _of(
            "copied sentence",
            f"{use.copied.mean:.0%} of its words are words of x, {use.copied_by_chance.mean:.0%} by chance, "
            f"and it is {use.foreign:.1f} nats per word less likely under p(z) than what p(z) draws",
        )
    if use.told.mean / use.words.mean < COLLAPSED:
        at_prior = abs(rate) / use.words.mean < COLLAPSED
        cause = "sentence of the prior" if at_prior else "constant posterior"
        return _of(cause, f"x tells {use.told.mean:.2g} nats of z, and the rate is {rate:.2g} nats")
    return _of(
        "ignored sentence",
        f"x tells {use.told.mean:.1f} nats of z, and z is worth {use.worth_per_word.mean:.2g} nats for each of "
        "its words",
    )


def _of(cause: str, evidence: str = "") -> Cause:
    meaning, remedy = CAUSES[cause]
    return Cause(cause, meaning, evidence, remedy)
