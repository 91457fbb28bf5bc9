"""What `diagnose` says of the codes of a quantizer: against direct computation, and of planted causes."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.patches import StepPatch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ppl_vae
from ppl_vae import diagnose, evaluate, fit, plots
from ppl_vae.cli import main
from ppl_vae.codes import (
    EMA,
    FSQ,
    Gradient,
    KMeansStart,
    Quantizer,
    RandomStart,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.diagnosis import Diagnosis, UseOfCodes, latents
from ppl_vae.diagnosis.code_causes import cause_of_codes
from ppl_vae.diagnosis.codebooks import Members
from ppl_vae.diagnosis.remedies import Facts
from ppl_vae.distributions import PointMass
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VQVAE
from ppl_vae.networks import MLP, Slots
from ppl_vae.objectives import ELBO, QuantizedELBO
from ppl_vae.reporting.remedy import may_be_run, may_be_typed
from ppl_vae.runs import load_run, read_history
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


def untrained(
    x: Tensor, quantizer: Quantizer, slots: int = 2, seed: int = 0, temperature: float = 0.0
) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    network = Slots(slots, MLP(hidden=(64,)))
    of_bits = bool(((x == 0) | (x == 1)).all())
    likelihood = Bernoulli() if of_bits else Gaussian(0.3)
    model = VQVAE(tuple(x.shape[1:]), quantizer, network, likelihood)
    return model, QuantizingEncoder(model, network, temperature)


def trained(
    x: Tensor,
    quantizer: Quantizer,
    slots: int = 2,
    seed: int = 0,
    commitment: float = 0.25,
    epochs: int = 30,
    temperature: float = 0.0,
) -> tuple[Any, Any, Fit]:
    model, guide = untrained(x, quantizer, slots, seed, temperature)
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

        members = Members(10, centers.double(), 1, learn=True)
        members.update(z[:, None], x[:, None])
        use = members.use("z", 0.0, 0.0)
        lags.append(use.lag - 0)
    # Without the correction it would be 3 / 6.
    assert sum(lags) / len(lags) < 0.08


def test_dead_codes_are_those_that_chance_does_not_explain() -> None:

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


@pytest.mark.slow
def test_codes_that_are_drawn_are_codes() -> None:
    """Their cost, noise and use are those of q(z | x); of one draw, so up to its error."""
    x = factors(0)
    model, guide, fitted = trained(x, VectorQuantizer(16, 4), temperature=20.0)
    found = seen(model, guide, x, fit=fitted)
    use = one(found)
    with torch.no_grad():
        q = guide.encode(x).base_dist.probs.double()
        log_q = torch.special.xlogy(q, q)
        errors = log_q.sum(-1).sum(-1)
    noise = -float(log_q.sum(-1).mean())
    assert noise > 0.2
    assert (use.count, use.values, use.uses) == (2, 16, 2000)
    tolerance = 5 * float(errors.std()) / math.sqrt(len(x)) + 5 * 0.8 / math.sqrt(2000)
    assert use.noise == pytest.approx(noise, abs=tolerance)
    assert use.rate == pytest.approx(math.log(16) - noise, abs=tolerance)
    assert found.rate.mean == pytest.approx(2 * use.rate)
    p = q.mean((0, 1))
    entropy = -float(torch.special.xlogy(p, p).sum())
    assert use.entropy == pytest.approx(entropy, abs=0.05)
    # I(x; z) is at most the sum over positions, and what was estimated from few rows is less than it.
    shares = q.mean(0)  # of each position
    most = -float(torch.special.xlogy(shares, shares).sum()) - 2 * noise
    low, high = found.information_bounds
    assert low < most + 0.1
    assert 0 < low < high <= use.count * use.most + 1e-9
    assert found.cause == "none"
    assert "of it given x" in found.summary()


@pytest.mark.slow
def test_dead_codes_that_are_drawn_are_named() -> None:
    model, guide, fitted = trained(SMALL, random(64, 32), 4, temperature=0.02)
    found = seen(model, guide, SMALL, fit=fitted)
    assert found.cause == "codes out of reach", found.summary()
    assert one(found).dead > 30
    assert one(found).noise > 0


def test_what_drawn_codes_tell_is_that_of_their_probabilities() -> None:
    """By position: positions that differ tell nothing of x."""
    x = bits()[:120]
    model, guide = untrained(x, VectorQuantizer(8, 3, start=RandomStart()), 3, temperature=0.5)
    use = one(seen(model, guide, x))
    with torch.no_grad():
        q = guide.encode(x).base_dist.probs.double()
    each = -torch.special.xlogy(q, q).sum(-1)
    mean = q.mean(0)
    noise = float(each.mean())
    assert use.noise == pytest.approx(noise, rel=1e-5)
    information = float(-torch.special.xlogy(mean, mean).sum(-1).mean()) - noise
    assert use.information == pytest.approx(information, rel=1e-4)
    shares = nn.functional.one_hot(q.argmax(-1), 8).double().mean(0)
    rounded = float(-torch.special.xlogy(shares, shares).sum(-1).mean())
    assert use.rounded == pytest.approx(rounded)
    assert 0 < information < rounded
    certain = one(seen(*untrained(x, VectorQuantizer(8, 3, start=RandomStart()), 3), x))
    assert math.isnan(certain.information)


@pytest.mark.slow
def test_a_temperature_that_is_too_high_is_named_and_mended() -> None:
    x = bits()[:256]
    model, guide = untrained(x, VectorQuantizer(16, 4), 4, temperature=50.0)
    found = seen(model, guide, x)
    (cause,) = found.causes.values()
    assert cause.name == "temperature too high", found.summary()
    use = one(found)
    assert use.noise > 0.99 * math.log(16)
    assert use.information < 0.01 < 0.3 < use.rounded
    assert use.varies
    assert found.summary().startswith("Collapse: z uses")
    assert "leave" not in found.summary().partition("Cause")[0]
    assert f"are off by {use.error:.0%} of the vectors' variance" in found.summary()
    assert cause.options[:3] == ("train", "--guide.temperature", "0")
    assert may_be_typed(cause.options)
    assert may_be_run(cause.code)
    after = typed(found, model, guide, x)
    assert after.cause == "none", after.summary()
    assert bool(after.active.all())
    assert "they leave" in after.summary()


def test_drawn_codes_of_rows_and_encoders_without_differences() -> None:
    """Draws differ by chance, and say nothing of that."""
    x = bits()[:300]
    model, guide = untrained(x, VectorQuantizer(8, 3, start=RandomStart()), temperature=2.0)
    same = seen(model, guide, x[:1].expand(100, 64))
    assert same.cause == "identical rows", same.summary()
    assert not one(same).varies
    with torch.no_grad():
        guide.encoder[1].weight.zero_()
    dead = seen(model, guide, x)
    assert dead.cause == "dead encoder", dead.summary()
    assert one(dead).used > 1
    assert not one(dead).varies
    assert dead.summary().startswith("Collapse")


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


QUICK = ("SimVQ",)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=() if name in QUICK and seed == 0 else pytest.mark.slow)
        for name in HEALTHY
        for seed in (0, 1)
    ],
)
def test_healthy_pairs_are_not_accused(name: str, seed: int) -> None:
    x, quantizer, slots = HEALTHY[name]()
    model, guide, fitted = trained(x, quantizer, slots, seed, epochs=40)
    found = seen(model, guide, x, fit=fitted)
    assert found.cause == "none", found.summary()
    assert found.summary().startswith("No collapse: z")
    assert bool(found.active.all())
    assert "Pareto" not in found.summary()


# -- planted causes --------------------------------------------------------------------------------------


def random(codes: int, dim: int, learner: Any = EMA()) -> VectorQuantizer:
    return VectorQuantizer(codes, dim, learner, RandomStart(), restarts=0)


def still(codes: int, learner: Any) -> VectorQuantizer:
    return VectorQuantizer(codes, 4, learner, KMeansStart(), restarts=0)


SMALL = bits()[:600]

PLANTED: dict[str, Any] = {
    "codes out of reach": lambda s: (SMALL, *trained(SMALL, random(64, 32), 4, s)),
    "encoder drift": lambda s: (factors(s), *trained(factors(s), still(16, Gradient(0.01)), 2, s)),
    "weak commitment": lambda s: (
        SMALL,
        *trained(SMALL, still(16, Gradient()), 4, s, commitment=0.0, epochs=100),
    ),
    "codebook too large": lambda s: (
        clusters(s),
        *trained(clusters(s), still(32, Gradient(10.0)), 1, s),
    ),
}


@pytest.mark.slow(but=("codes out of reach", "encoder drift"))
@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_cause_is_named(cause: str) -> None:
    x, model, guide, fitted = PLANTED[cause](0)
    found = seen(model, guide, x, fit=fitted)
    assert found.cause == cause, found.summary()
    assert bool(found.active.all())
    if cause == "codebook too large":
        of = found.causes["z"]
        assert not of.code  # a pair that is there has as many as it has
        used = one(found).used
        assert of.options == ("train", "--model.quantizer.codes", str(used))
        assert used < 16


@pytest.mark.parametrize("of_prior", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_a_pair_that_lags_and_had_not_ended_may_catch_up(of_prior: int) -> None:
    """Also if a prior was fitted after that, whose epochs say nothing of the pair."""
    x = factors(0)
    model, guide, fitted = trained(x, still(16, Gradient(0.01)), 2, epochs=6)
    rates = [{"validation_rate": 5.0, "step": 60}] * of_prior
    fitted = replace(
        fitted,
        history=[*fitted.history, *rates],
        epochs=6 + of_prior,
        best_epoch=6 + max(0, of_prior - 2),
        prior_epochs=of_prior,
    )
    found = seen(model, guide, x, fit=fitted)
    (cause,) = found.causes.values()
    assert cause.name == "still training", found.summary()
    assert "after 6 epochs the ELBO still rises" in cause.evidence
    if of_prior:  # the run is one of `refit-prior`, which has nothing to resume
        assert "and fit the prior again after that" in cause.remedy
        assert not cause.options
    else:
        assert cause.options[0] == "resume"
    assert found.faults.keys() <= {"prior mismatch"}


def mended(cause: str, seed: int) -> tuple[str, UseOfCodes, Diagnosis]:
    x, model, guide, fitted = PLANTED[cause](seed)
    found = seen(model, guide, x, fit=fitted)
    return found.cause, one(found), typed(found, model, guide, x)


@pytest.mark.slow
def test_a_planted_cause_is_mended_by_the_line_that_is_printed() -> None:
    named, before, after = mended("codes out of reach", 0)
    assert named == "codes out of reach"
    assert before.dead > 30
    assert after.cause == "none"
    assert one(after).used == 64
    assert one(after).perplexity > 2 * before.perplexity


@pytest.mark.slow
@pytest.mark.parametrize("cause", PLANTED)
def test_planted_causes_of_five_seeds_are_named_and_mended(cause: str) -> None:
    if cause == "codebook too large":
        for seed in range(5):
            x, model, guide, fitted = PLANTED[cause](seed)
            assert seen(model, guide, x, fit=fitted).cause == cause
        return
    for seed in range(5):
        named, before, after = mended(cause, seed)
        assert named == cause
        assert after.cause == "none", after.summary()
        assert one(after).dead == 0
        assert one(after).perplexity > before.perplexity


class Given(nn.Module):
    """Rows are vectors of two numbers, which the guide takes as they are; plain Pyro, nothing is learned."""

    def __init__(self, codebook: Tensor, noise: float = 0.3, reads: bool = True) -> None:
        super().__init__()
        self.codebook, self.noise, self.reads = codebook, noise, reads

    def model(self, x: Tensor) -> None:
        k = len(self.codebook)
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.Categorical(torch.ones(k) / k))
            vector = pyro.deterministic("vector", self.codebook[code], event_dim=1)
            mean = vector if self.reads else torch.zeros_like(vector)
            pyro.sample("x", dist.Normal(mean, self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            vector = pyro.deterministic("vector", x, event_dim=1)
            nearest = torch.cdist(vector, self.codebook).argmin(-1)
            pyro.sample("code", PointMass(nearest, len(self.codebook)), infer=MARK)


class Soft(Given):
    """Codes are drawn near the rows."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            vector = pyro.deterministic("vector", x, event_dim=1)
            logits = -torch.cdist(vector, self.codebook).square() / 2
            pyro.sample("code", dist.Categorical(logits=logits), infer=MARK)


def cloud(seed: int, n: int = 2000) -> Tensor:
    return 3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def around(seed: int, count: int) -> Tensor:
    """Codes among the rows: what k-means would give, about."""

    means = KMeans(count, n_init=1, random_state=seed).fit(cloud(seed).numpy())
    return torch.as_tensor(means.cluster_centers_)


@pytest.mark.parametrize("seed", range(5))
def test_causes_of_a_pair_in_plain_pyro(seed: int) -> None:
    x, codes = cloud(seed), around(seed, 16)

    def of(codebook: Tensor, rows: Tensor = x, **options: Any) -> Diagnosis:
        given = Given(codebook, **options)
        return seen(given.model, given.guide, rows)

    healthy = of(codes)
    assert healthy.cause == "none"
    use = one(healthy)
    assert (use.name, use.values, use.used, use.dead) == ("code", 16, 16, 0)
    assert use.lag < 0.01 * use.spread
    assert use.error < 0.15
    far = of(torch.cat([codes[:4], codes + 40]))
    assert far.cause == "codes out of reach"
    assert one(far).used == 4
    assert one(far).dead == 16
    to_all = torch.cdist(codes.double() + 40, x.double()).min(1).values
    assert one(far).away == pytest.approx(
        float(to_all.median()) / math.sqrt(one(far).spread), rel=1e-4
    )
    assert of(codes / 3).cause == "encoder drift"
    assert of(codes + 40).cause == "codes out of reach"
    grid = torch.tensor([[a, b] for a in (-9.0, 9.0) for b in (-9.0, 9.0)])
    tight = grid[torch.arange(2000) % 4] + 0.1 * cloud(seed)
    inside = torch.cat([grid, 2 * around(seed, 12) / 3])
    large = of(inside, tight)
    assert large.cause == "codebook too large"
    assert one(large).used == 4
    ignored = of(codes, reads=False)
    assert ignored.cause == "strong decoder"
    assert not bool(ignored.active.any())
    for found in (far, large):
        assert not found.causes["code"].code  # nothing is known of what a stranger can set
    assert "restarts=1" in far.summary()


def test_all_rows_with_one_code() -> None:
    x = cloud(0)
    constant = Given(torch.tensor([[900.0, 0.0], [-900.0, 9e5]]))
    found = seen(constant.model, constant.guide, x)
    assert not one(found).varies
    assert found.cause == "codes out of reach"
    assert found.summary().startswith("Collapse: code uses 1 of 2 codes")
    same = seen(constant.model, constant.guide, x[:1].expand(20, 2))
    assert same.cause == "identical rows"


def test_all_rows_with_one_distribution_of_codes() -> None:
    """The vectors differ a little, and the same code is the nearest one: no temperature tells them apart."""
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    soft = Soft(codes)
    found = seen(soft.model, soft.guide, 0.01 * cloud(0) + torch.tensor([0.4, 0.0]))
    assert found.cause == "constant codes", found.summary()
    assert "all rows have the same q(z | x)" in found.summary()
    use = one(found)
    assert use.used == 4
    assert not use.varies
    # If the nearest one differs, that is what the temperature hides.
    turned = seen(soft.model, soft.guide, 0.01 * cloud(0))
    assert turned.cause == "temperature too high", turned.summary()
    assert not turned.causes["code"].code  # nothing is known of what a stranger can set
    # And vectors that are as far apart as the codes are no fault.
    assert seen(soft.model, soft.guide, cloud(0)).cause != "temperature too high"


def test_codes_that_are_far_away_leave_no_share() -> None:
    x, codes = cloud(0), around(0, 16)
    given = Given(codes + 40)
    found = seen(given.model, given.guide, x)
    assert one(found).error > 1
    assert " leave " not in found.summary()
    assert f"the codes in use are off by {one(found).error:.0%} of the vectors" in found.summary()


def test_a_dead_encoder_is_named() -> None:
    x = bits()[:300]
    model, guide = untrained(x, VectorQuantizer(8, 3, EMA(), RandomStart(), 0))
    with torch.no_grad():
        guide.encoder[1].weight.zero_()
    found = seen(model, guide, x)
    assert found.cause == "dead encoder"
    assert "all rows have the same vectors" in found.summary()
    assert "reset_parameters" in found.causes["z"].code
    assert found.summary().startswith("Collapse: z uses")


def test_codes_that_are_fixed() -> None:
    x = bits()[:300]
    model, guide = untrained(x, FSQ((4, 4)))
    found = seen(model, guide, x)
    assert found.cause == "values without use"
    assert one(found).lag == 0.0


# -- what is written -------------------------------------------------------------------------------------


def test_few_rows_say_so() -> None:
    given = Given(around(0, 16))
    x = cloud(0)
    found = seen(given.model, given.guide, x[:20])
    assert found.cause == "none"
    assert one(found).dead == 0
    assert any("too few to tell which of the others are dead" in note for note in found.notes)
    assert "the rows are too few to tell which are dead" in found.summary()
    single = seen(given.model, given.guide, x[:1])
    assert single.summary().startswith("One row was given")
    assert single.cause == "none"


@pytest.mark.slow
def test_several_codebooks_are_judged_one_by_one() -> None:
    x = bits()[:300]
    model, guide, _ = trained(x, ResidualQuantizer(8, 3, 2), 4, epochs=25)
    first, second = model.quantizer.levels
    with torch.no_grad():
        second.codebook.sums[1:] += 50
        second.codebook.points[1:] += 50
    second.restarts = 0
    found = seen(model, guide, x)
    assert found.names == ("z, level 1", "z, level 2")
    assert set(found.causes) == {"z, level 2"}
    assert found.cause == "codes out of reach"
    of, other = found.of_codes
    assert (of.used, of.dead, other.used, other.dead) == (8, 0, 1, 7)
    with torch.no_grad():
        vectors = guide.vectors(x).reshape(-1, 3)
        z = guide.codes(x).reshape(-1, 2)
        left = (vectors - first.points()[z[:, 0]]).double()
        error = (left - second.points()[z[:, 1]]).square().sum(1).mean()
    assert other.within + other.lag == pytest.approx(float(error), rel=1e-4)
    assert other.spread == pytest.approx(float(left.var(0).sum()), rel=1e-4)
    code = found.causes["z, level 2"].code
    assert (
        "model.quantizer.levels[0].restarts = 1; model.quantizer.levels[1].restarts = 1; " in code
    )
    exec(code, {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": x})
    mended = seen(model, guide, x).of_codes[1]
    assert (mended.dead, mended.used) == (0, 8)


def test_json_and_text() -> None:
    given = Given(torch.cat([around(0, 4), around(0, 4) + 40]))
    x = cloud(0)
    found = seen(given.model, given.guide, x, evaluation=evaluate(given.model, given.guide, x))
    told = json.loads(json.dumps(found.to_dict(), default=str))
    (use,) = told["of_codes"]
    assert (use["values"], use["used"], use["dead"]) == (8, 4, 4)
    assert told["causes"]["code"]["name"] == "codes out of reach"
    text = str(found)
    assert "codes used          4 of 8, perplexity" in text
    assert "Dead codes: code uses 4 of 8 codes" in text
    assert "Pareto" not in text


def test_the_prior_pays_for_codes_that_are_not_used() -> None:
    """log 64 for each of 4 codes that are uniform over 16: 4 log 4 nats too much."""
    given = Given(torch.cat([around(0, 16), around(0, 16) + 40, around(0, 32) + 80]))
    found = seen(given.model, given.guide, cloud(0))
    nats = math.log(64) - one(found).most
    assert nats > 1
    assert f"at least {nats:.1f} nats more" in found.faults["prior mismatch"]


def test_overfitting_is_said_without_log_p() -> None:
    x, model, guide, fitted = (
        bits()[:60],
        *trained(bits()[:60], VectorQuantizer(16, 4), 4, epochs=60),
    )
    held = bits()[600:900]
    train, evaluation = (evaluate(model, guide, of, seed=0) for of in (x, held))
    found = seen(model, guide, held, fit=fitted, train=train, evaluation=evaluation)
    assert "log p(x) of codes is known only from below" in found.faults["overfit"]
    assert "log p(x) not trusted" not in found.faults


def test_vectors_that_are_not_known_leave_the_use() -> None:
    """A codebook for each position, and a model without vectors: how far they are apart is not measured."""

    class ByPlace(Given):
        def model(self, x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                q = dist.Categorical(torch.ones(2, 4) / 4).to_event(1)
                code = pyro.sample("code", q)
                vector = self.codebook[torch.arange(2), code]
                if self.reads:
                    pyro.deterministic("vector", vector, event_dim=2)
                pyro.sample("x", dist.Normal(vector, 1.0).to_event(2), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                pyro.deterministic("vector", x, event_dim=2)
                nearest = (x[:, :, None] - self.codebook).square().sum(-1).argmin(-1)
                pyro.sample("code", dist.Independent(PointMass(nearest, 4), 1), infer=MARK)

    x = torch.randn(200, 2, 3)
    for reads, told in ((True, "is not the same everywhere"), (False, "the model has no vectors")):
        given = ByPlace(torch.randn(2, 4, 3), reads=reads)
        found = seen(given.model, given.guide, x)
        assert one(found).used == 4
        assert math.isnan(one(found).spread)
        assert any(told in note for note in found.notes)
        assert "variance" not in found.summary()


def test_a_picture_of_the_use_of_codes() -> None:
    uses = torch.tensor([0, 6, 2, 0])
    figure = plots.use_of_codes({"z": uses, "other": torch.ones(5)})
    first, second = figure.axes
    (bars,) = (patch for patch in first.patches if isinstance(patch, StepPatch))
    assert bars.get_data()[0].tolist() == [0.75, 0.25, 0.0, 0.0]
    p = torch.tensor([0.75, 0.25])
    perplexity = float((-(p * p.log()).sum()).exp())
    assert first.get_title() == f"z: 2 of 4 codes used, perplexity {perplexity:.1f}"
    assert second.get_title() == "other: 5 of 5 codes used, perplexity 5.0"
    with pytest.raises(ValueError, match="no code of z is used"):
        plots.use_of_codes({"z": [0, 0]})
    with pytest.raises(ValueError, match="the uses of one codebook or more"):
        plots.use_of_codes({})


def test_learning_curves_of_codes() -> None:
    """A rate that is constant up to rounding is a line, and the number of codes a count."""
    history = [
        {"epoch": i, "rate": 16.6 + 1e-6 * (i % 2), "codes_used": 3.0 + i, "perplexity": 2.0 + i}
        for i in range(1, 6)
    ]
    rate, used, perplexity = plots.learning_curves(history).axes
    assert rate.get_ylim()[1] - rate.get_ylim()[0] > 0.5
    assert used.get_ylabel() == "codes\nused"
    assert used.get_ylim()[0] == 0
    assert perplexity.get_ylabel() == "perplexity\nof codes"


# -- the training and the command line -------------------------------------------------------------------

RUN = [
    "--data",
    "digits",
    "--max_rows",
    "500",
    "--num_samples",
    "5",
    "--posterior",
    "never",
    "--quiet",
]
RUN += ["--model", "VQVAE", "--model.network", "Slots", "--model.network.count", "6"]
RUN += ["--model.network.network.hidden", "[32]", "--model.quantizer", "VectorQuantizer"]
RUN += ["--model.quantizer.codes", "32", "--model.quantizer.dim", "64", "--max_epochs", "6"]
RUN += ["--model.quantizer.start", "RandomStart", "--model.quantizer.restarts", "0"]


@pytest.mark.slow
def test_a_run_is_diagnosed_and_mended_by_the_command_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--run_dir", "run", *RUN]) == 0
    said = capsys.readouterr()
    assert "Pareto" not in said.out
    assert "was not drawn" not in said.err
    (line,) = [x.strip() for x in said.out.splitlines() if "  ppl-vae train" in x]
    assert line.startswith("ppl-vae train --config run/config.yaml --run_dir run-again ")
    assert "--model.quantizer.start KMeansStart --model.quantizer.restarts 1" in line
    before: Any = load_run("run").diagnosis
    assert before["cause"] == "codes out of reach"
    pictures = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert "use_of_codes.png" in pictures
    assert not pictures & {
        "khat.png",
        "codes.png",
        "kl_per_dimension.png",
        "aggregate_posterior.png",
    }
    page = (tmp_path / "run" / "report.html").read_text()
    for told in (
        "Dead codes: z uses",
        "Codebooks",
        "Use of the codes",
        "Rows with the lowest ELBO",
    ):
        assert told in page
    for wrong in ("unreliable rows", "k-hat", "Latent dimensions", "active units"):
        assert wrong not in page
    assert line.partition("--model")[2] in page
    history: Any = read_history(tmp_path / "run")
    assert "codes_used" in history[-1]
    assert "active_units" not in history[-1]
    capsys.readouterr()
    assert main(["diagnose", "run", "--overwrite", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert before["summary"] in told
    assert "Pareto" not in told
    assert main([*shlex.split(line)[1:], "--quiet", "--posterior", "never"]) == 0
    after: Any = load_run("run-again").diagnosis
    assert after["of_codes"][0]["dead"] == 0
    assert after["of_codes"][0]["perplexity"] > 1.5 * before["of_codes"][0]["perplexity"]


@pytest.mark.parametrize(
    ("learner", "weak"), [("EMA", False), pytest.param("Gradient", True, marks=pytest.mark.slow)]
)
def test_lines_against_drift_and_weak_commitment_are_taken_by_the_command_line(
    learner: str, weak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_, **__: [])
    quick = ["--max_epochs", "1", "--report", "false", "--posterior", "never", "--quiet"]
    lag = UseOfCodes("z", 2, 8, 999, 4, 4, 4.0, 1.4, 2.1, 9.0, True, 1.0, 0.1, 0.5, 0.2)
    options = [*RUN, "--model.quantizer.learner", learner, *quick]
    if weak:
        options += ["--objective", "QuantizedELBO", "--objective.commitment", "0"]
    assert main(["train", "--run_dir", "run", *options]) == 0
    loaded = load_run("run")
    objective = QuantizedELBO(commitment=0.0) if weak else ELBO()
    facts = Facts(loaded.model, loaded.guide, 1.0, 1, 9.0, 1, objective, learning_rate=1e-3)
    cause = cause_of_codes(lag, facts, identical=False, dead_encoder=False, learn=True)
    assert cause is not None
    assert cause.name == ("weak commitment" if weak else "encoder drift")
    assert may_be_typed(cause.options)
    assert may_be_run(cause.code)
    assert main([*shlex.split(cause.command("run"))[1:], *quick]) == 0
    again: Any = load_run("run-again")
    assert again.model.quantizer.restarts == 1.0
    if weak:
        assert again.config["objective"]["init_args"]["commitment"] == 0.25
    else:
        assert again.model.quantizer.codebook.decay == pytest.approx(0.9)


def test_training_says_nothing_of_the_numbers_of_codes(caplog: pytest.LogCaptureFixture) -> None:
    x = bits()[:200]
    _, _, fitted = trained(x, VectorQuantizer(8, 3), epochs=7)
    assert not caplog.records
    assert fitted.dead_dimensions == ()
    assert not any("active" in name or name.startswith("kl_") for name in fitted.history[-1])
    assert fitted.history[-1]["codes_used"] > 1
