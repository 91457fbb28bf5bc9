"""The objective of `analyses/colorization.py` for latent colors, against the sum over all segmentations."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from scripts import ROOT
from torch.distributions import kl_divergence

from ppl_vae.guides import WithinPicture
from ppl_vae.models import IndependentSegments, LatentColors
from ppl_vae.networks import UNet
from ppl_vae.objectives import MeanFieldELBO
from ppl_vae.pairs import Pair, find_layout


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("colorization_points")


@pytest.mark.parametrize("beta", [1.0, 0.3, 3.0])
def test_the_best_segments_at_each_weight(beta: float, points: object) -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(-3, 4, (2, 2, 3, 2), generator=generator).double()
    x = torch.randint(100, 150, (2, 2, 3), generator=generator).double()
    torch.manual_seed(0)
    model = IndependentSegments(3, LatentColors(), UNet((4,))).double()
    guide = WithinPicture(model).double()
    pair = Pair(model, guide)
    objective = points.SummedSegmentsELBO(beta=beta)  # type: ignore[attr-defined]
    with pair.scope():
        layout = find_layout(pair, (y, x))
        torch.manual_seed(5)
        found = objective(pair, layout, (y, x), beta)
        torch.manual_seed(5)
        plain = MeanFieldELBO()(pair, layout, (y, x), 1.0)
    assert torch.equal(found.elbo, plain.elbo)
    site = found.traces[0][1].nodes["shifts"]
    every = torch.tensor(list(itertools.product(range(3), repeat=6))).reshape(-1, 1, 2, 3)
    every = every.expand(-1, 2, 2, 3)
    shifts = site["value"].expand(len(every), *site["value"].shape)
    log_p = model.decode(every, x, shifts).log_prob(y)
    log_prior = model.prior(x).log_prob(every)
    # max over q(z) of E_q log P(y | z) - beta KL(q || P(z)), for these colors.
    best = beta * (log_prior + log_p / beta).logsumexp(0)
    prior = model.shifts_prior()
    assert prior is not None
    exact = beta * kl_divergence(site["fn"], prior) - best
    assert torch.allclose(found.loss, exact.mean(), atol=1e-9)
    q = (log_prior + log_p / beta).softmax(0)
    at_q = (q * (log_p - beta * (q.log() - log_prior))).sum(0)
    assert torch.allclose(at_q, best, atol=1e-9)
    slopes = torch.autograd.grad(found.loss, list(model.parameters()), allow_unused=True)
    assert all(slope is not None and bool(slope.any()) for slope in slopes)
