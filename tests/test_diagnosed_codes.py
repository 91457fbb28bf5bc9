"""What `diagnose` says of the codes of a quantizer: against direct computation, and of planted causes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import ppl_vae
from ppl_vae import diagnose, fit
from ppl_vae.codes import (
    EMA,
    FSQ,
    Gradient,
    Quantizer,
    RandomStart,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.diagnosis import Diagnosis, UseOfCodes
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VQVAE
from ppl_vae.networks import MLP, Slots
from ppl_vae.objectives import QuantizedELBO
from ppl_vae.training import Fit

MARK: Any = {"quantizes": "vector"}


def bits() -> Tensor:
    """Digits in black and white, `(1797, 64)`."""
    return (torch.tensor(load_digits().data, dtype=torch.float32) > 8).float()


def factors(seed: int) -> Tensor:
    """Of four factors: vectors fill their space, and move far in training."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 4, generator=g) @ torch.randn(4, 12, generator=g)
    return x + 0.3 * torch.randn(1000, 12, generator=g)


def clusters(seed: int, count: int = 8) -> Tensor:
    """Of so many clusters, with little noise."""
    g = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(count, 12, generator=g)
    x = centers[torch.randint(count, (1000,), generator=g)]
    return x + 0.3 * torch.randn(1000, 12, generator=g)


def untrained(x: Tensor, quantizer: Quantizer, slots: int = 2, seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    network = Slots(slots, MLP(hidden=(64,)))
    of_bits = bool(((x == 0) | (x == 1)).all())
    likelihood = Bernoulli() if of_bits else Gaussian(0.3)
    model = VQVAE(tuple(x.shape[1:]), quantizer, network, likelihood)
    return model, QuantizingEncoder(model, network)


def trained(
    x: Tensor,
    quantizer: Quantizer,
    slots: int = 2,
    seed: int = 0,
    commitment: float = 0.25,
    epochs: int = 30,
) -> tuple[Any, Any, Fit]:
    model, guide = untrained(x, quantizer, slots, seed)
    some: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 100, "seed": seed}
    objective = QuantizedELBO(commitment=commitment)
    return model, guide, fit(model, guide, x, objective=objective, max_epochs=epochs, **some)


def seen(model: Any, guide: Any, x: Tensor, **options: Any) -> Diagnosis:
    return diagnose(model, guide, x, seed=0, progress=False, **options)


def typed(found: Diagnosis, model: Any, guide: Any, x: Tensor) -> Diagnosis:
    """Types the line of the cause as it is printed, and diagnoses again."""
    (cause,) = dict.fromkeys(found.causes.values())
    assert f"\n  {cause.code}" in found.summary()
    exec(cause.code, {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": x})
    return seen(model, guide, x)


def one(found: Diagnosis) -> UseOfCodes:
    (use,) = found.of_codes
    return use


# -- numbers ---------------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_direct_computation() -> None:
    x = bits()[:500]
    model, guide, fitted = trained(x, VectorQuantizer(16, 4), slots=3, epochs=5)
    found = seen(model, guide, x, fit=fitted)
    use = one(found)
    with torch.no_grad():
        vectors = guide.vectors(x).reshape(-1, 4).double()
        z = guide.codes(x)
        points = model.quantizer.points().double()
        log_p = model.decode(z).log_prob(x)
        other = model.decode(z.roll(1, 0)).log_prob(x)
    flat = z.flatten()
    counts = flat.bincount(minlength=16).double()
    shares = counts / counts.sum()
    entropy = -float(torch.xlogy(shares, shares).sum())
    assert (use.count, use.values, use.uses) == (3, 16, 1500)
    assert use.used == int((counts > 0).sum())
    assert use.entropy == pytest.approx(entropy)
    assert use.perplexity == pytest.approx(math.exp(entropy))
    assert use.rate == pytest.approx(math.log(16))
    assert found.rate.mean == pytest.approx(3 * math.log(16))
    assert use.gain == pytest.approx(float((log_p - other).mean()) / 3, rel=1e-4)
    spread = float(vectors.var(0).sum())
    lag, error = 0.0, float((vectors - points[flat]).square().sum(1).mean())
    for k in range(16):  # without bias: the squared distance less its noise
        members = vectors[flat == k]
        if len(members) > 1:
            apart = float((members.mean(0) - points[k]).square().sum())
            lag += len(members) * (apart - float(members.var(0).sum()) / len(members)) / 1500
    assert use.spread == pytest.approx(spread)
    assert use.lag == pytest.approx(lag, rel=1e-3)
    assert use.within + use.lag == pytest.approx(error)
    assert use.error == pytest.approx(error / spread)
    same = (z[:, None] == z[None]).all(-1).double().mean(1)
    assert found.mutual_information.mean == pytest.approx(float(-same.log().mean()))
    low, high = found.information_bounds
    assert 0 < low < high <= found.rate.mean


@pytest.mark.parametrize("size", [7, 64])
def test_rows_in_parts_are_the_rows(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_vae.diagnosis import latents  # the number of rows at once

    x = bits()[:200]
    model, guide = untrained(x, VectorQuantizer(8, 3, EMA(), RandomStart(), 0))
    whole = one(seen(model, guide, x))
    monkeypatch.setattr(latents, "NUM_DRAWS", 1)
    monkeypatch.setattr("ppl_vae.checks.Session.rows_at_once", lambda self, *a, **k: size)
    parts = one(seen(model, guide, x))
    assert (parts.used, parts.dead, parts.uses) == (whole.used, whole.dead, whole.uses)
    for name in ("entropy", "spread", "within", "lag", "away", "rate"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-6, nan_ok=True)


def test_few_members_make_no_code_lag() -> None:
    """Codes at the true means of their members lag by nothing on average, however few rows there are."""
    generator = torch.Generator().manual_seed(0)
    lags = []
    for _ in range(40):
        centers = 5 * torch.randn(10, 3, generator=generator)
        z = torch.arange(10).repeat(6)
        x = centers[z] + torch.randn(60, 3, generator=generator)
        from ppl_vae.diagnosis.codebooks import Members

        members = Members(10, centers.double(), 1, learn=True)
        members.update(z[:, None], x[:, None])
        use = members.use("z", 0.0, 0.0)
        lags.append(use.lag - 0)
    # Without the correction it would be 3 / 6.
    assert sum(lags) / len(lags) < 0.08


def test_dead_codes_are_those_that_chance_does_not_explain() -> None:
    from ppl_vae.diagnosis.codebooks import Members

    generator = torch.Generator().manual_seed(0)
    rare = torch.cat([torch.full((60,), 1.0), torch.full((40,), 0.02)])  # 40 that are rarely used
    drawn = rare.multinomial(2000, replacement=True, generator=generator)
    members = Members(100, None, 1, learn=True)
    members.update(drawn[:, None], None)
    use = members.use("z", 0.0, 0.0)
    unused = 100 - len(drawn.unique())
    assert unused > 10
    assert use.dead < unused / 2
    members = Members(100, None, 1, learn=True)
    members.update((drawn % 60)[:, None], None)
    assert members.use("z", 0.0, 0.0).dead == 40


# -- healthy pairs ---------------------------------------------------------------------------------------

HEALTHY: dict[str, Any] = {
    "EMA": lambda: (bits()[:800], VectorQuantizer(16, 4), 4),
    "many": lambda: (bits(), VectorQuantizer(64, 4), 4),
    "Gradient": lambda: (bits()[:800], VectorQuantizer(16, 4, Gradient()), 4),
    "SimVQ": lambda: (bits()[:800], VectorQuantizer(16, 4, SimVQ(10.0)), 4),
    "cosine": lambda: (bits()[:800], VectorQuantizer(16, 4, Gradient(), cosine=True), 4),
    "factors": lambda: (factors(0), VectorQuantizer(32, 4), 2),
    "residual": lambda: (bits()[:800], ResidualQuantizer(8, 4, 2), 4),
    "FSQ": lambda: (factors(0), FSQ((4, 4)), 2),
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_pairs_are_not_accused(name: str, seed: int) -> None:
    x, quantizer, slots = HEALTHY[name]()
    model, guide, fitted = trained(x, quantizer, slots, seed, epochs=20)
    found = seen(model, guide, x, fit=fitted)
    assert found.cause == "none", found.summary()
    assert found.summary().startswith("No collapse: z")
    assert bool(found.active.all())
    assert "Pareto" not in found.summary()
