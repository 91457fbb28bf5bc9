"""Which E and M steps `fit_em` takes, and what they cannot do."""

from __future__ import annotations

from functools import partial

import torch

from ppl_vae.checks import row_problems, small_batch_problem
from ppl_vae.em.data import EMData, empty_guide
from ppl_vae.em.steps import (
    ByGuide,
    ClosedForm,
    Draws,
    Enumeration,
    GradientSteps,
    Steps,
    closed_form,
)
from ppl_vae.objectives import ELBO, Resolved
from ppl_vae.pairs import Batch, Pair, PairError, about_obs_mask, hook_of, latent_sites, trace_pair
from ppl_vae.runtime import preserve_random_state


def choose_steps(pair: Pair, data: EMData, m_step: GradientSteps | None, hard: bool) -> Steps:
    """The E and M steps that a pair allows: in closed form, by enumeration, by draws, or by its guide.

    Args:
        pair: The pair.
        data: The rows.
        m_step: Gradient steps to take, even if the model has an M step in closed form.
        hard: Whether the E step takes the mode.

    Raises:
        PairError: There are none, or the programs do not run on the smallest batch.
        ValueError: `hard` is set, but the mode of p(z | x) cannot be computed.
    """
    few = data.few(pair)
    model = None if m_step else closed_form(pair.model)
    m_step = m_step or GradientSteps()
    by_guide = pair.guide is not empty_guide
    if model is not None and not by_guide:
        return ClosedForm(model, hard)
    problem = small_batch_problem(pair, few, data.smallest_batch)
    if problem is not None:
        raise PairError(problem.message)
    if by_guide:
        by_elbo = ByGuide(pair, Resolved(ELBO(), pair), m_step, few)
        by_elbo.layouts.of(few)
        data.batches.require_all_rows(pair, data.batch_size)  # which may just have been found
        by_elbo.layouts.check = partial(data.new_kind, pair)
        return by_elbo
    model_trace, _ = trace_pair(pair, few)
    latents = latent_sites(model_trace)
    marked = [s["infer"].get("enumerate") == "parallel" for s in latents.values()]
    by_draws = all(hook_of(pair.model, m) for m in ("posterior", "log_evidence"))
    # Labelled rows have no latents, but others may come.
    if all(marked) and (latents or not by_draws):
        exact = Enumeration(pair, m_step, few, hard)
        exact.layouts.of(few)
        exact.layouts.check = partial(data.new_kind, pair)
        return exact
    if by_draws:
        if hard:
            raise ValueError("hard=True needs a closed form, or latents that can be enumerated")
        return Draws(pair, m_step, few)
    first = next(n for n, ok in zip(latents, marked, strict=True) if not ok)
    advice = about_obs_mask(model_trace, first) or (
        'mark a discrete latent with infer={"enumerate": "parallel"}, give the model a posterior(x) and a '
        "log_evidence(x), or give fit_em a guide"
    )
    raise PairError(f"site '{first}' has no exact posterior that fit_em can find: {advice}")


def counted_again(pair: Pair, few: Batch, steps: ByGuide) -> list[str]:
    """What all rows share and would count once in each batch."""
    layout = steps.layouts.of(few)
    with preserve_random_state(), torch.no_grad(), pair.mode(training=False):
        model_trace, _ = trace_pair(pair, few)
    found = row_problems(model_trace, layout, minibatches=True, factors=True)
    return [problem.message for problem in found]
