"""What every model with closed forms has to do: the rows of catalogue.CLOSED_FORM_MODELS.

Nothing here uses the closed forms to check themselves: the oracle is the density of the Pyro program's own
sites.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from catalogue import CLOSED_FORM_MODELS, MakeClosedForm
from torch import Tensor
from torch.distributions import MixtureSameFamily

from ppl_vae import check, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.distributions import MarkovChain
from ppl_vae.guides import Exact
from ppl_vae.objectives import EnumELBO
from ppl_vae.pairs import (
    Batch,
    Pair,
    Substitute,
    as_args,
    latent_sites,
    num_rows,
    sample_sites,
    take_rows,
    unscaled,
)


def rows_with(
    *methods: str, where: Callable[[Any, Batch], bool] = lambda model, x: True
) -> pytest.MarkDecorator:
    """The rows whose models have all of the methods, as parameters of a test."""
    chosen = {}
    for name, make in CLOSED_FORM_MODELS.items():
        model, x = make()
        if all(hasattr(model, method) for method in methods) and where(model, x):
            chosen[name] = make
    return pytest.mark.parametrize("make", chosen.values(), ids=chosen.keys())


def log_joint(model: Any, x: Batch, values: dict[str, Tensor]) -> Tensor:
    """log p(x, z) of each row from the densities of the program's sites, `(m, n)` for `m` values of z.

    A finite latent without values is summed over.
    """
    m = max((len(value) for value in values.values()), default=1)
    for name, site in latent_sites(poutine.trace(model).get_trace(*as_args(x))).items():
        if name not in values:
            every = site["fn"].enumerate_support(expand=False).flatten()
            parts = [values | {name: k.expand(m, num_rows(x))} for k in every]
            return torch.stack([log_joint(model, x, part) for part in parts]).logsumexp(0)
    with pyro.plate("values", m, dim=-2):
        trace = poutine.trace(Substitute(values)(model)).get_trace(*as_args(x))
    sites = sample_sites(trace).values()
    return torch.stack([unscaled(s).expand(m, num_rows(x)) for s in sites]).sum(0)


def all_values(model: Any, x: Batch) -> dict[str, Tensor] | None:
    """Every joint value of the model's latents, `(m, n)` each; None if a latent has none to list."""
    sites = latent_sites(poutine.trace(model).get_trace(*as_args(x)))
    if not all(s["fn"].has_enumerate_support for s in sites.values()):
        return None
    supports = [s["fn"].enumerate_support(expand=False).flatten() for s in sites.values()]
    columns = zip(*itertools.product(*(s.tolist() for s in supports)), strict=True)
    return {
        name: torch.tensor(c, dtype=s.dtype).unsqueeze(-1).expand(-1, num_rows(x))
        for name, s, c in zip(sites, supports, columns, strict=True)
    }


def by_site(q: Any, z: Tensor) -> dict[str, Tensor]:
    """Values of the program's sites: those of a chain are its steps, if it is not one site."""
    if isinstance(q, MarkovChain) and not q.whole:
        return {f"z_{t}": z[..., t] for t in range(z.shape[-1])}
    return {"z": z}


def points(q: Any) -> tuple[Tensor, Tensor]:
    """Values of z, `(m, n, *event)`, and weights `(m, n)`, whose sums are expectations under q.

    All values of a discrete latent; for a normal one the sigma points, exact for polynomials up to the third
    degree.
    """
    if isinstance(q, MarkovChain):
        paths = itertools.product(range(q.states), repeat=q.event_shape[0])
        values = torch.tensor(list(paths)).unsqueeze(1).expand(-1, *q.batch_shape, -1)
        return values, q.log_prob(values).exp()
    if q.has_enumerate_support:
        values = q.enumerate_support(expand=True)
        return values, q.log_prob(values).exp()
    size = q.event_shape[0]
    factor = torch.linalg.cholesky(
        q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    )
    steps = math.sqrt(size) * factor.movedim(-1, 0)
    values = q.mean + torch.cat([steps, -steps])
    return values, torch.full(values.shape[:2], 0.5 / size, dtype=values.dtype)


# Where values of a latent cannot be listed, the next test looks at the evidence.
@rows_with("log_evidence", where=lambda model, x: all_values(model, x) is not None)
def test_evidence_is_the_sum_over_all_latents(make: MakeClosedForm) -> None:
    model, x = make()
    values = all_values(model, x)
    assert values is not None
    expected = log_joint(model, x, values).logsumexp(0)
    torch.testing.assert_close(model.log_evidence(*as_args(x)), expected)


@rows_with("log_evidence", "posterior")
def test_posterior_is_that_of_bayes(make: MakeClosedForm) -> None:
    # p(x, z) / p(z | x) is p(x) for every z: that is true of one normalized density alone.
    model, x = make()
    q = model.posterior(*as_args(x))
    z = q.sample((7,))
    expected = log_joint(model, x, by_site(q, z)) - q.log_prob(z)
    torch.testing.assert_close(model.log_evidence(*as_args(x)).expand(7, -1), expected)


@rows_with("expected_statistics")
@pytest.mark.parametrize("hard", [False, True])
def test_statistics_of_batches_add_up(make: MakeClosedForm, hard: bool) -> None:
    model, x = make()
    whole = model.expected_statistics(*as_args(x), hard=hard)
    parts = [
        model.expected_statistics(*as_args(take_rows(x, s)), hard=hard)
        for s in (slice(0, 5), slice(5, None))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, msg=name)
    assert float(whole["num_rows"]) == num_rows(x)
    if not hard:
        expected = model.log_evidence(*as_args(x)).sum()
        torch.testing.assert_close(whole["log_evidence"], expected)


# Not where EM's latents are a component and z, and the posterior is that of z alone.
@rows_with(
    "expected_statistics",
    "maximize",
    where=lambda model, x: not isinstance(model.posterior(*as_args(x)), MixtureSameFamily),
)
def test_maximize_finds_the_stationary_point(make: MakeClosedForm) -> None:
    model, x = make()
    before = float(model.log_evidence(*as_args(x)).detach().sum())
    with torch.no_grad():
        q = model.posterior(*as_args(x))
        z, weights = points(q)
    model.maximize(model.expected_statistics(*as_args(x)))
    assert float(model.log_evidence(*as_args(x)).detach().sum()) > before + 0.1
    expected_log_joint = (weights * log_joint(model, x, by_site(q, z))).sum()
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(expected_log_joint, list(parameters.values()))
    for name, slope in zip(parameters, slopes, strict=True):
        assert float(slope.abs().max()) < 1e-8 * num_rows(x), name


@rows_with("posterior")
def test_svi_trains_it(make: MakeClosedForm) -> None:
    model, x = make()
    guides: list[Any] = [Exact(model)]
    if all_values(model, x) is not None:
        guides.append(lambda *args: None)  # the model sums its own latents out
    for guide in guides:
        model, _ = make()
        guide = Exact(model) if isinstance(guide, Exact) else guide
        objective = EnumELBO() if len(guides) > 1 else None
        assert not check(model, guide, x, objective=objective).problems
        pair = Pair(model, guide)
        before = {n: p.detach().clone() for n, p in pair.parameters(x).items()}
        fitted = fit(model, guide, x, objective=objective, max_epochs=1, seed=0, capture=False)
        assert math.isfinite(fitted.history[-1]["elbo"])
        stuck = [n for n, p in pair.parameters(x).items() if torch.equal(p, before[n])]
        assert not stuck, f"no gradient reached {stuck}"


@rows_with("posterior")
def test_evaluates_saves_loads_and_exports(make: MakeClosedForm, tmp_path: Path) -> None:
    model, x = make()
    guide = Exact(model)
    evaluation = evaluate(model, guide, x, num_samples=8, seed=1)
    expected = model.log_evidence(*as_args(x)).detach()
    torch.testing.assert_close(
        evaluation.log_likelihood.values.double(), expected, atol=1e-6, rtol=0
    )
    save_run(tmp_path / "run", model, guide)
    other, _ = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    run = load_run(tmp_path / "run", other, Exact(other))
    assert torch.equal(run.model.log_evidence(*as_args(x)), expected)  # type: ignore[attr-defined]
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    for values in exported["posterior"].data_vars.values():
        assert values.shape[:3] == (1, 3, num_rows(x))
    for values in exported["log_likelihood"].data_vars.values():  # of each site, or of all jointly
        assert values.shape[-1] == num_rows(x)
