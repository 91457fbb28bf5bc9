"""diagnose(): what is wrong with a pair, why, and what to do."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.diagnosis.causes import main_cause
from ppl_vae.diagnosis.codes import diagnose_codes, marked_codes
from ppl_vae.diagnosis.collapse import Asked, find_causes, is_dead
from ppl_vae.diagnosis.diagnosed import SATURATED, Diagnosis
from ppl_vae.diagnosis.dimensions import (
    NUM_DRAWS,
    Gathered,
    gather,
    note_on_rows,
    notes_on_classes,
    notes_on_moments,
    notes_on_terms,
)
from ppl_vae.diagnosis.elements import diagnose_elements, many_elements
from ppl_vae.diagnosis.encoder import same_for_all_rows
from ppl_vae.diagnosis.faults import (
    EARLIER,
    SIMPLER,
    Evaluated,
    not_trusted,
    of_kept_epoch,
    off_the_prior,
    overfitting,
    overfitting_in_history,
    what_to_type_against,
)
from ppl_vae.diagnosis.history import still_fitting_prior, still_training
from ppl_vae.diagnosis.information import aggregate_information
from ppl_vae.diagnosis.points import diagnose_points, gives_points, overfitting_of_points
from ppl_vae.diagnosis.remedies import LONGER_BEFORE, Facts
from ppl_vae.diagnosis.residuals import MOST_ROWS
from ppl_vae.diagnosis.sentences import diagnose_sentences, sentence_latent
from ppl_vae.objectives import Controller
from ppl_vae.pairs import (
    COLLAPSED,
    DISTORTION,
    DataLike,
    Program,
    Substitute,
    as_args,
    hook_of,
    latent_sites,
    least_rate,
    measure_in,
    require_proper,
)
from ppl_vae.runtime import described
from ppl_vae.stats import Estimate
from ppl_vae.training import Fit

ACTIVE = 0.01
"""Variance of the posterior means, in units of the prior's variance, above which a dimension is active."""


def diagnose(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    train: Evaluated | None = None,
    evaluation: Evaluated | None = None,
    fit: Fit | None = None,
    beta: float | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Which latent dimensions carry information about x, why the others do not, and what else is wrong.

    *Active units* count the dimensions whose posterior mean has a variance over the rows above 0.01 times
    the prior's variance (Burda et al., arXiv:1509.00519, for a prior of variance 1). A dimension that masks
    or the structure of a batch leave out of some rows is judged by the others. The *mutual information*
    I(x; z) = E log q(z | x) - log q(z) and the *marginal KL* E log q(z) - log p(z) (Hoffman and Johnson,
    *ELBO surgery*, 2016) use the aggregate posterior
    q(z) = 1/n sum_j q(z | x_j) of the n rows given, at one draw for each of at most 1,000 rows. For those
    rows they are unbiased. For the population, the mutual information is biased low, as it cannot exceed
    log n; a warning says when that limit is near. `information_bounds` says between which values it is.

    The KL of a dimension is analytic where guide and prior factorize, and sampled where dependencies within
    the guide rule that out. Where the guide correlates its dimensions, or the prior is a mixture, it is the
    KL of Gaussians with each dimension's own mean and variance. Each row has 32 draws; after the first 1,000
    rows it has 8, if the guide states means.

    If dimensions are inactive, `diagnose` looks for the cause: collapse onto the prior, or nearly the same
    posterior elsewhere for all rows, which costs KL and carries no information. It checks, in this order:

    - `identical rows`: there is nothing to distinguish.
    - `dead encoder`: all rows have the same posterior up to rounding, and the gradient of its density is
      the same for all rows, too: units that are inactive on all rows, or a guide that does not use x. A guide
      without parameters that is the prior is dead only if posteriors fitted to each row are better.
    - `still training`, if `fit` is given: beta was still to rise, or the ELBO still rose.
    - `constant posterior`: no dimension is active and the mutual information is below 0.01
      nats per dimension, although the KL of some dimension is not.
    - `lagging guide`: posteriors fitted to each of up to 64 rows, with the model frozen, do use
      the dimensions (He et al., arXiv:1901.05534). Latents of few values have exact posteriors.
    - What the decoder leaves of the data, in units of its noise, tells whether a further dimension would pay:
      one does where the variance of these residuals exceeds beta in some direction, for normal decoders
      (Lucas et al., arXiv:1911.02469) and for all others by the score of their location. If none would pay,
      there are `surplus dimensions`, or the `decoder noise` is too large, or it is a `large beta`.
    - `strong decoder`: given z, the numbers of x depend on each other, as in an autoregressive decoder, so that
      it does not need z.
    - `local optimum`: the data would pay for further dimensions as the pair is, and the decoder does not use
      them; if beta is above 1, it is a `large beta` that has trained it so.
    - `ignored latent`: the decoder does not use them, and the likelihood does not tell why.

    If the only latent of a model of this library is a discrete one with more than 64 elements (a segment per
    pixel), it is judged as a whole, without draws: by its rate per element, and by what the
    decoder gains by it over the z of another row. If both are below 0.01 nats, the guide lags if the exact
    posterior has a rate; it is a `local optimum` if log p(x) would rise by 0.01 nats per element with the same
    probabilities of its values for all elements, where p(z) gives its own to the wrong ones; otherwise it is a
    `strong decoder`.

    If all latents are codes of a quantizer, which a guide marks by `infer={"quantizes": ...}` and gives all
    mass (`PointMass`), or draws near their vectors (`Categorical`), each codebook is judged as a whole: by how
    many of its codes are used, and by how far they are from the vectors that they stand for (`UseOfCodes`). If
    a tenth of the codes is dead, or codes lag behind the vectors, or all rows have the same codes, the cause is

    - `identical rows` or `dead encoder`, as above;
    - `temperature too high`, of codes that are drawn: q(z | x) tells less than 0.01 nats of x, or a tenth of
      what the nearest codes would tell while the decoder gains nothing by it;
    - `still training`, if codes lag alone and `fit` says so;
    - `encoder drift`: the means of the vectors of a code are away from it by 0.08 of the variance of the
      vectors or more; where codes are dead, by more than the vectors of a code vary. If the commitment is below
      0.1, it is `weak commitment`, as it is where vectors with so little commitment have spread around their
      codes;
    - `codebook too large`: the codes in use leave less than 0.02 of the variance of the vectors;
    - `codes out of reach`: they leave more, or the dead codes are farther from all vectors than these are from
      their mean: the codes never were near the data, or have been left behind (arXiv:2005.08520);
    - `values without use`: the codes are fixed, as those of `FSQ`;
    - `constant codes`: no code is dead, and all rows have the same;
    - `strong decoder`: nothing of this is so, but the decoder does as well with the codes of another row.

    If the guide gives a point for every latent of a row, as that of an autoencoder does, there is no KL, and
    each number of the code is judged by what it is worth to the decoder: by how much the distortion rises, over
    up to 256 rows, if the number is its mean in all of them (`UseOfPoint`). Below 0.01 nats, the cause is

    - `identical rows` or `dead encoder`, as above;
    - `dead units under a penalty`, or `dead units` if p(z) is improper, or was so in training, or beta is 0:
      they are the same in all rows. What has killed them does not show in the pair as it is;
    - `still training`, if `fit` says so;
    - `units without worth`: they vary, and the decoder does not use them.

    If the only latent is a sentence in both programs (`ppl_vae.distributions.Sentences`), it is judged as a
    whole, by up to 1,000 rows: by what it is worth to the decoder beside the sentence of another row, by what x
    tells of it, by the words that it shares with x, and by log p(z) beside that of sentences that p(z) draws
    (`UseOfSentences`). The cause is

    - `identical rows`, as above, or `still training`, if `fit` says so;
    - `copied sentence`: half of its words are words of x, beyond chance, and it is a nat per word less likely
      than what p(z) draws: it repeats x;
    - `sentence of the prior`: x tells less than 0.01 nats of each word of z, and the rate is as small;
      `constant posterior`: it is not;
    - `ignored sentence`: x does tell of z, and z is worth less than 0.01 nats to the decoder for each of its
      words.

    If p(z) depends on what rows come with, p(z | y), all of it is counted beyond y: active units by the
    posterior means less those of the prior, and the mutual information among rows of one y, as far as y takes
    few values.

    Each cause has its evidence, a remedy in words, and what to type, where something can be typed: `causes` of
    the result, and the lines below its summary.

    What else is wrong is said in a sentence each, if it is:

    - The pair overfits, if the ELBO of training rows exceeds that of x by more than 3 standard errors, 0.5 nats
      and a hundredth of the ELBO. The decoder does where log p(x) differs, and the encoder where the gap
      log p(x) - ELBO does.
    - The aggregate posterior is off the prior, if the marginal KL is above a nat. If x has too few rows to show
      that, a lower bound from means and variances counts, for normal priors.
    - log p(x) is not to be trusted on more than a tenth of the rows, or the guide does not reach them.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Rows, as for `evaluate`: held-out ones show the most.
        train: What `evaluate` found for rows that the pair was trained on; some hundred do.
        evaluation: What `evaluate` found for x, or for some of these rows.
        fit: What `fit` returned: its last beta and, without `train`, the ELBO of its last epoch are used.
        beta: The beta that the pair was trained with, used to judge the cause of a collapse. None: that of
            `fit`, or 1.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A `Diagnosis`.

    Raises:
        PairError: The rows are not in a plate, the guide ties the latents of different rows together, or it
            gives points for some latents or rows, and not for others.
        TypeError: `beta` is no number; `train`, `evaluation` or `fit` is not what these functions return.
        ValueError: The guide samples no latent of a row, or `beta` is negative.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: z[1] carries no information
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
        >>> _ = torch.manual_seed(0)
        >>> diagnosis = diagnose(model, guide, 2**0.5 * torch.randn(500))
        >>> diagnosis.active_units, diagnosis.collapsed
        (1, tensor([False,  True]))
    """
    _require_results(train, evaluation, fit)
    if beta is None:
        beta = 1.0 if fit is None else fit.beta
    if isinstance(beta, bool) or not isinstance(beta, Real):
        raise TypeError(f"beta must be a number, got {described(beta)}")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is a weight of the KL and must be >= 0, not {beta}")
    beta = float(beta)
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        size = session.rows_at_once(NUM_DRAWS, rows=16, spare=4)
        elements = many_elements(session)
        if elements is not None:
            facts = _facts(session, model, guide, beta, fit)
            return diagnose_elements(session, elements, size * NUM_DRAWS, facts)
        ended = _why_not_ended(fit)
        if codes := marked_codes(session):
            facts = _facts(session, model, guide, beta, fit)
            diagnosed, elbo = diagnose_codes(session, codes, size * NUM_DRAWS, facts, ended)
            faults = _overfitting(elbo, model, train, evaluation, fit)
            if diagnosed.cause != "still training":
                faults |= _not_ended(ended, fit)
            if fit is not None and fit.prior_epochs:
                faults |= _prior_not_fitted(fit)
            return replace(diagnosed, faults={**faults, **diagnosed.faults})
        if gives_points(session):
            facts = _facts(session, model, guide, beta, fit)
            diagnosed, distortion = diagnose_points(session, size * NUM_DRAWS, facts, ended)
            told = {} if diagnosed.cause == "still training" else _not_ended(ended, fit)
            return replace(diagnosed, faults=overfitting_of_points(distortion, train, fit) | told)
        require_proper(session.layout, "diagnose", session.pair.model)
        if (sentence := sentence_latent(session)) is not None:
            facts = _facts(session, model, guide, beta, fit)
            diagnosed, elbo = diagnose_sentences(session, sentence, size, facts, ended)
            told = {} if diagnosed.cause == "still training" else _not_ended(ended, fit)
            return replace(
                diagnosed, faults=_overfitting(elbo, model, train, evaluation, fit) | told
            )
        held = _hold_shared(session)
        gathered = gather(session, size)
        if not gathered.dimensions.names:
            raise ValueError("the guide samples no latent of a row: there is nothing to diagnose")
        found = aggregate_information(session, gathered.draws, size, gathered.conditions)
        dimensions = gathered.dimensions
        notes = (*found.notes, *held, *session.findings.notes)
        notes += (gathered.conditions.note,) if gathered.conditions else ()
        notes += notes_on_moments(gathered.moments_alone, gathered.without_moments)
        alone = gathered.moments_alone  # whose numbers are others
        terms = {name: of for name, of in gathered.without_kl.items() if name not in alone}
        notes += notes_on_terms(terms)
        notes += notes_on_classes(gathered.classes)
        notes += note_on_rows(dimensions, gathered.num_rows)
        active = dimensions.mean_variance > ACTIVE * _scale(dimensions.prior_variance)
        collapsed = _on_the_prior(gathered) & ~active
        unused = dict(zip(dimensions.names, dimensions.kl.tolist(), strict=True))
        unused = {name: unused[name] for name, on in zip(unused, active, strict=True) if not on}
        rate = float(gathered.rate.mean())
        facts = _facts(session, model, guide, beta, fit)
        facts = replace(facts, rate=rate, unused=len(unused), active=int(active.sum()))
        rows = session.spread(MOST_ROWS) if unused else []
        spread = session.with_first(rows) if unused else session
        asked = Asked(spread, rows, size, unused, facts, ended)
        cause = _plain_cause(gathered, active, collapsed, found.mutual)
        if cause in (None, "constant posterior") and not bool(active.any()):
            same = same_for_all_rows(found.mutual, gathered.draws)
            # One of them may be alive on a few rows alone.
            looked = (session, spread)
            at_prior = bool(collapsed.all())
            if same and all(is_dead(at, gathered.draws, unused, at_prior) for at in looked):
                cause = "dead encoder"
        if cause in ("constant posterior", "small means"):
            # A guide that cannot be the prior says nothing of x elsewhere, when beta or the noise forbids it,
            # or after a training that has ended there.
            others = ("large beta", "decoder noise", *(("local optimum",) if fit else ()))
            if ended or asked.verdict.cause in others:
                cause = None
        if cause is None:
            causes, unknown = find_causes(asked)
            notes += unknown
        else:
            causes = dict.fromkeys(unused, asked.plain(cause, found.mutual))
    faults = _overfitting(gathered.elbo, model, train, evaluation, fit)
    if not unused:
        faults |= _not_ended(ended, fit)
    if main_cause(causes).name not in (
        "identical rows",
        "constant posterior",
        "dead encoder",
    ):  # one posterior for all
        saturated = found.mutual.mean > found.limit - SATURATED
        least = gathered.moment_gap.nats
        faults |= off_the_prior(found.marginal_kl, saturated, least, beta, model)
    if evaluation is not None:
        faults |= not_trusted(evaluation, beta, model)
    # With a committed rate the prior, or the guide, takes independent latents alone.
    typed = {} if least_rate(session.pair) else what_to_type_against(faults, guide, beta)
    return Diagnosis(
        names=dimensions.names,
        kl=dimensions.kl,
        mean_variance=dimensions.mean_variance,
        active=active,
        collapsed=collapsed,
        mutual_information=found.mutual,
        marginal_kl=found.marginal_kl,
        leave_one_out=found.leave_one_out,
        rate=Estimate(gathered.rate),
        causes=causes,
        num_rows=gathered.num_rows,
        information_limit=found.limit,
        beta=beta,
        faults=faults,
        fault_options=typed,
        notes=notes,
        cautions=session.findings.doubts,
    )


def _facts(session: Session, model: Program, guide: Program, beta: float, fit: Fit | None) -> Facts:
    """What a remedy depends on, but for what the latents say."""
    named = session.pair.parameters(session.first)
    return Facts(
        *(model, guide, beta, fit.epochs - fit.prior_epochs if fit else None, 0.0, 0),
        objective=fit.objective if fit else None,
        guide_learns=not all(map(session.pair.is_of_model, named)),
        summed=bool(session.layout.enumerated),
        batch_size=fit.batch_size if fit else None,
        learning_rate=fit.learning_rate if fit else None,
        steps=_steps_of_pair(fit) if fit else 0,
        prior_epochs=fit.prior_epochs if fit else 0,
        # A density may have been fitted to the codes after a training with a flat one.
        penalized=measure_in(fit.history[:1]) is not DISTORTION if fit and fit.history else None,
    )


def _steps_of_pair(fit: Fit) -> int:
    """Steps of the training of the pair, without those of a prior that was fitted after it."""
    return int(fit.history[-1].get("step", 0)) if fit.prior_epochs else fit.steps


def _why_not_ended(fit: Fit | None) -> str:
    """Why the training of the pair had not ended; empty if it had, or if that is not known."""
    if fit is None:
        return ""
    objective = getattr(fit, "resolved", None) or fit.objective
    if fit.prior_epochs:  # which came after, and left the pair as it was
        return still_training(fit.history[: -fit.prior_epochs], objective)
    stopped = fit.best_epoch < fit.epochs  # early: it had ended
    return "" if stopped else still_training(fit.history, objective)


def _not_ended(why: str, fit: Fit | None) -> dict[str, str]:
    """That a training had not ended, if there is a reason."""
    if not why:
        return {}
    if fit is not None and fit.prior_epochs:
        told = f"The training of the pair had not ended: {why}; {LONGER_BEFORE}."
    else:
        told = f"The training had not ended: {why}; train for longer."
    return {"still training": told}


def _prior_not_fitted(fit: Fit) -> dict[str, str]:
    """That the fit of a prior to codes had not ended, or has found nothing, if that is so."""
    of_prior = fit.history[-fit.prior_epochs :]
    if fit.best_epoch == fit.epochs - fit.prior_epochs:
        return {
            "prior not fitted": (
                f"The prior was not fitted: in none of {len(of_prior)} epochs was its held-out rate below that "
                "of its start; give `ppl-vae refit-prior` a smaller --learning_rate."
            )
        }
    why = still_fitting_prior(of_prior) if fit.best_epoch == fit.epochs else ""
    told = f"The fit of the prior had not ended: {why}; give `ppl-vae refit-prior` a larger --max_epochs."
    return {"prior still fitting": told} if why else {}


def _overfitting(
    elbo: Tensor,
    model: Program,
    train: Evaluated | None,
    evaluation: Evaluated | None,
    fit: Fit | None,
) -> dict[str, str]:
    """Whether the pair overfits, as far as what is given tells."""
    bound = Estimate(elbo)
    controlled = fit is not None and isinstance(fit.objective.beta, Controller)
    earlier = "stop earlier (fewer max_epochs)" if controlled else EARLIER
    if train is not None:
        # Not trained by `fit`, and with the M step of EM: no network, and nothing to stop.
        closed = fit is None and hook_of(model, "maximize") is not None
        simpler = SIMPLER if closed else ""
        held = bound if evaluation is None else evaluation
        return overfitting(train, held, earlier=earlier, simpler=simpler)
    last, when = (None, "") if fit is None else of_kept_epoch(fit, "elbo")
    if last is None or len(elbo) == 1:
        return {}
    return overfitting_in_history(
        last, bound if evaluation is None else evaluation.elbo, when, earlier=earlier
    )


def _require_results(train: object, evaluation: object, fit: object) -> None:
    """Raises an error if something is not what `evaluate` or `fit` has returned."""
    for name, given in (("train", train), ("evaluation", evaluation)):
        if given is not None and not (hasattr(given, "elbo") and hasattr(given, "method")):
            raise TypeError(f"{name} must be what evaluate has returned, got {described(given)}")
    if fit is not None and not (hasattr(fit, "objective") and hasattr(fit, "history")):
        raise TypeError(f"fit must be what fit has returned, got {described(fit)}")


def _scale(prior_variance: Tensor) -> Tensor:
    """The prior's variance; 1 where it has none."""
    return torch.where(prior_variance.isfinite() & (prior_variance > 0), prior_variance, 1.0)


def _on_the_prior(gathered: Gathered) -> Tensor:
    """Which dimensions have the posterior of the prior.

    One that has no KL does if all latents together do, whose KL is the rate; then all dimensions do, also if
    single terms of the rate are not 0.
    """
    dimensions, without = gathered.dimensions, gathered.without_kl
    found = dimensions.kl < COLLAPSED
    if not without:
        return found
    together = float(gathered.rate.mean()) < COLLAPSED * len(found)
    known = [all(n != s and not n.startswith(f"{s}[") for s in without) for n in dimensions.names]
    return (found & torch.tensor(known)) | together


def _plain_cause(
    gathered: Gathered, active: Tensor, collapsed: Tensor, information: Estimate
) -> str | None:
    """The cause if the numbers alone show it; None if further checks are needed."""
    if bool(active.all()):
        return "none"
    if gathered.identical:
        return "identical rows"
    if bool(active.any()) or bool(collapsed.all()):
        return None
    if information.mean < COLLAPSED * len(active):
        return "constant posterior"
    return None if bool(collapsed.any()) else "small means"


def _hold_shared(session: Session) -> tuple[str, ...]:
    """Fixes latents shared by all rows at one draw from the guide; otherwise each batch would have its own."""
    pair, layout = session.pair, session.layout
    if not layout.shared:
        return ()
    trace = poutine.trace(pair.guide).get_trace(*as_args(session.first))
    outside = {n: s["value"] for n, s in latent_sites(trace).items() if n not in layout.guide_sites}
    pair.guide = Substitute(outside)(pair.guide)
    names = ", ".join(f"'{name}'" for name in layout.shared)
    return (f"sites {names} belong to all rows: they are held at one draw from the guide",)
