"""Diagnosis of codes that are points: which of their numbers the decoder uses, and why not the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.causes import CAUSES, Cause
from ppl_vae.diagnosis.diagnosed import Diagnosis
from ppl_vae.diagnosis.dimensions import all_equal
from ppl_vae.diagnosis.faults import (
    EARLIER,
    Evaluated,
    of_kept_epoch,
    overfits,
    overfitting_in_history,
)
from ppl_vae.diagnosis.remedies import Facts, what_to_type
from ppl_vae.diagnosis.use_of_points import UseOfPoint
from ppl_vae.pairs import COLLAPSED, Batch, Layout, PairError, num_rows, tensors_of
from ppl_vae.stats import Estimate
from ppl_vae.training import Fit

_ROWS = 256
"""Rows for which each number of the code is replaced by its mean."""

_ROUNDING = 1e-6
"""A spread that is rounding, as a share of the size of a number, or of the largest spread of all."""

_NO_DENSITY = "not defined, because the guide gives points"


def gives_points(session: Session) -> bool:
    """Whether all latents of a row are points that the guide gives."""
    return session.layout.only_points


def require_points(layout: Layout) -> None:
    """Raises an error for rows of which not all latents are points.

    Raises:
        PairError: They are not.
    """
    if {*layout.points} != {*layout.latents}:
        others = ", ".join(f"'{name}'" for name in layout.latents if name not in layout.points)
        raise PairError(
            f"the guide gives a point for {others} in some batches, and draws it in others: diagnose needs "
            "rows of one kind"
        )


def diagnose_points(
    session: Session, size: int, facts: Facts, not_ended: str = ""
) -> tuple[Diagnosis, Tensor]:
    """Which numbers of the code are used, and if some are not, why.

    Args:
        session: The opened pair.
        size: How many rows to look at together.
        facts: What a remedy depends on.
        not_ended: Why the training had not ended; empty if it had, or if that is not known.

    Returns:
        The diagnosis, and the distortion of each row, `(n,)`.
    """
    codes, distortion, rates, identical = _codes(session, size)
    n = len(codes)
    variance = codes.var(0, unbiased=False)
    size_of = codes.abs().amax(0)
    dead = variance.sqrt() <= _ROUNDING * torch.maximum(size_of, variance.sqrt().max())
    worth = _worth(session, codes.mean(0), dead)
    names = _names(session)
    uses = tuple(
        UseOfPoint(name, float(v), float(share), float(w), bool(same))
        for name, v, share, w, same in zip(
            names, variance, (codes != 0).double().mean(0), worth, dead, strict=True
        )
    )
    active = ~dead & (worth >= COLLAPSED)
    causes: dict[str, Cause] = {}
    if n > 1:
        penalty = not session.layout.improper and facts.penalized is not False and facts.beta > 0
        for use, on in zip(uses, active.tolist(), strict=True):
            if not on:
                causes[use.name] = _cause(uses, use, identical, penalty, not_ended, facts)
    improper = bool(session.layout.improper)
    unknown = Estimate(torch.full((n,), math.nan), missing=_NO_DENSITY)
    diagnosis = Diagnosis(
        names=names,
        kl=torch.full((len(names),), math.nan),
        mean_variance=variance,
        active=active,
        collapsed=torch.zeros(len(names), dtype=torch.bool),
        mutual_information=unknown,
        marginal_kl=unknown,
        leave_one_out=unknown,
        rate=unknown if improper else Estimate(rates),
        causes=causes,
        num_rows=n,
        information_limit=math.inf,
        beta=facts.beta,
        of_points=uses,
        notes=session.findings.notes,
        cautions=session.findings.doubts,
    )
    return diagnosis, distortion


def overfitting_of_points(
    distortion: Tensor, train: Evaluated | None, fit: Fit | None
) -> dict[str, str]:
    """Whether an autoencoder makes less of these rows than of those that it was trained on.

    Args:
        distortion: Of each row, `(n,)`.
        train: What `evaluate` found for training rows.
        fit: What `fit` returned; without `train`, the distortion in the epoch whose weights are kept counts.
    """
    held = Estimate(-distortion)
    known: Estimate | None = getattr(train, "distortion", None)
    if known is not None:
        found = overfits(Estimate(-known.values.double()), held)
        of_training = known.numbers(".1f")
    else:
        last, when = (None, "") if fit is None else of_kept_epoch(fit, "distortion")
        if last is None or len(distortion) == 1:
            return {}
        found = bool(overfitting_in_history(-last, held, when))
        of_training = f"{last:.1f} in {when}"
    if not found:
        return {}
    both = f"{Estimate(distortion).numbers('.1f')}, training {of_training}"
    return {
        "overfit": (
            f"The pair overfits: its distortion is higher on these rows than on training rows ({both}); train "
            f"on more rows, make the networks smaller, add noise to what the encoder reads (Denoising), or "
            f"{EARLIER}."
        )
    }


def _codes(session: Session, size: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The code of each row, `(n, d)`; the distortion and -log p(z), `(n,)`; whether all rows are the same."""
    codes, distortions, rates = [], [], []
    row: tuple[Tensor, ...] | None = None
    identical = True
    for batch in session.chunks(max(2, size), "diagnose"):
        rows = session.sample(batch, 1)
        require_points(rows.layout)
        flat = [rows.latents[name][0].reshape(num_rows(batch), -1) for name in rows.layout.latents]
        codes.append(torch.cat(flat, 1).double().cpu())
        distortions.append(-rows.log_likelihood[0].double().cpu())
        rates.append(-rows.log_prior[0].double().cpu())
        args = tensors_of(batch)
        row = row or tuple(value[:1].clone() for value in args)
        identical = identical and all_equal(args, row)
    return torch.cat(codes), torch.cat(distortions), torch.cat(rates), identical


def _names(session: Session) -> tuple[str, ...]:
    rows = session.sample(session.first, 1)
    names: list[str] = []
    for name in rows.layout.latents:
        count = rows.latents[name][0, 0].numel()
        names += [f"{name}[{i}]" for i in range(count)] if count > 1 else [name]
    return tuple(names)


def _worth(session: Session, mean: Tensor, dead: Tensor) -> Tensor:
    """By how much the distortion rises if a number is its mean, nats per row, `(d,)`; 0 of dead ones."""
    worth = torch.zeros(len(mean), dtype=torch.float64)
    counted = 0
    for batch in session.spread(_ROWS):
        n = num_rows(batch)
        counted += n
        rows = session.sample(batch, 1)
        before = rows.log_likelihood[0].double().cpu()
        start = 0
        for name in rows.layout.latents:
            value: Tensor = rows.guide_trace.nodes[name]["value"]
            flat = value.reshape(n, -1)
            for i in range(flat.shape[1]):
                if bool(dead[start + i]):
                    continue
                other = flat.clone()
                other[:, i] = mean[start + i].to(other)
                after = _log_likelihood(session, batch, name, other.reshape(value.shape))
                worth[start + i] += (before - after).sum()
            start += flat.shape[1]
    return worth / counted


def _log_likelihood(session: Session, batch: Batch, name: str, value: Tensor) -> Tensor:
    """log p(x | z) of each row with other values of a latent, `(n,)`."""
    return session.sample(batch, 1, {name: value}).log_likelihood[0].double().cpu()


def _cause(
    uses: tuple[UseOfPoint, ...],
    use: UseOfPoint,
    identical: bool,
    penalty: bool,
    not_ended: str,
    facts: Facts,
) -> Cause:
    """Why a number of the code is not used.

    Args:
        uses: All numbers.
        use: This one.
        identical: Whether all rows are the same.
        penalty: Whether the training had a density p(z), which pulls numbers to where it is high.
        not_ended: See `diagnose_points`.
        facts: What a remedy depends on.
    """
    dead = sum(each.dead for each in uses)
    if identical:
        name, evidence = "identical rows", ""
    elif dead == len(uses) and not penalty:
        name, evidence = "dead encoder", "the code of all rows is the same"
    elif use.dead and penalty:
        name, evidence = "dead units under a penalty", f"{dead} of {len(uses)} never change"
    elif use.dead:
        name, evidence = "dead units", f"{dead} of {len(uses)} never change"
    elif not_ended:
        name, evidence = "still training", not_ended
    else:
        most = max(each.worth for each in uses if not each.dead and each.worth < COLLAPSED)
        name = "units without worth"
        rises = f"at most {most:.2g} nats" if most > 0 else "nothing"
        evidence = f"without one of them, the distortion rises by {rises}"
    text = CAUSES[name]
    code, options = what_to_type(name, facts)
    return Cause(name, text.meaning, evidence, text.remedy, code, options)
