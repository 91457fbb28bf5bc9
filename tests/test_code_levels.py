"""Codes of several levels: p(z_l | z_{l+1}, ...) beside sums over all codes, and its fit by `refit_prior`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CODE_PRIORS
from torch import Tensor, nn

from ppl_vae import diagnose, evaluate, fit, load_run, refit_prior, sample, save_run
from ppl_vae.codes import RandomStart, VectorQuantizer
from ppl_vae.compression import compress, decompress
from ppl_vae.distributions import PointMass
from ppl_vae.guides import HierarchicalQuantizingEncoder
from ppl_vae.models import (
    VQVAE2,
    CodePrior,
    IndependentCodes,
    MixturePrior,
    PixelCNNPrior,
    TransformerPrior,
    UniformCodes,
)
from ppl_vae.models.priors import LevelPriors
from ppl_vae.networks import CodesAbove, GridPyramid
from ppl_vae.training import LevelsFit

LEARNED: dict[str, CodePrior] = {
    "PixelCNN": PixelCNNPrior(channels=6, layers=2, dropout=0.0),
    "Transformer": TransformerPrior(width=8, layers=1, heads=2, dropout=0.0),
}
learned = pytest.mark.parametrize("prior", LEARNED.values(), ids=LEARNED.keys())


def all_codes(*positions: Sequence[int], codes: int) -> list[Tensor]:
    """All joint codes of some grids, one tensor for each."""
    sizes = [math.prod(each) for each in positions]
    rows = torch.tensor([*itertools.product(range(codes), repeat=sum(sizes))])
    parts = rows.split(sizes, 1)
    return [part.reshape(-1, *each) for part, each in zip(parts, positions, strict=True)]


def strong(module: nn.Module) -> Any:
    """A module in float64, in evaluation mode, whose codes depend much on each other and on those above."""
    module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(4.0 if "above." in name else 2.0)
    return module.requires_grad_(False)


# -- the density -----------------------------------------------------------------------------------


@learned
@pytest.mark.parametrize(
    "grids", [[(2, 2), (1, 1)], [(2, 4), (1, 2)], [(2, 2), (1, 1), (1, 1)]], ids=str
)
def test_the_probabilities_of_all_joint_codes_sum_to_1(
    prior: CodePrior, grids: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    sites = [f"z{i + 1}" for i in range(len(grids))]
    levels = strong(LevelPriors.built([prior] * len(grids), grids, [2] * len(grids), sites))
    z = all_codes(*grids, codes=2)
    log_p = sum(
        (levels.given(*z[i + 1 :]).log_prob(z[i]) for i in range(len(grids))), torch.zeros(())
    )
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-11)
    # What is above says something of what is below: with another code above, all else the same.
    one, other = (levels.given(*z[1:-1], torch.full_like(z[-1], k)) for k in (0, 1))
    assert float((one.log_prob(z[0]) - other.log_prob(z[0])).abs().max()) > 0.1


@learned
def test_codes_see_those_before_them_and_all_above_by_the_jacobian(prior: CodePrior) -> None:
    module = strong(prior.build_codes((2, 2), 3, CodesAbove([(1, 1)], [4])))
    z, above = torch.randint(3, (1, 2, 2)), torch.randint(4, (1, 1))
    tables: list[Any] = [module.embedding, module.above.embeddings[0]]
    shapes: list[torch.Size] = []
    hooks = [t.register_forward_hook(lambda _, __, out: shapes.append(out.shape)) for t in tables]
    module.logits(z, above)
    for hook in hooks:
        hook.remove()
    # Of the modules, the one that is called first has told its shape first.
    by_table = dict(zip(_order(module, tables, z, above), shapes, strict=True))
    shifts = [torch.zeros(by_table[i], dtype=torch.float64) for i in range(2)]

    def logits(own: Tensor, of_above: Tensor) -> Tensor:
        moved = [
            t.register_forward_hook(lambda _, __, out, by=by: out + by)
            for t, by in zip(tables, (own, of_above), strict=True)
        ]
        found: Tensor = module.logits(z, above).reshape(4, 3)
        for hook in moved:
            hook.remove()
        return found

    slopes: Any = torch.autograd.functional.jacobian(logits, tuple(shifts))
    own = (slopes[0] != 0).flatten(2, -2).any(-1).any(1)  # (4, vectors that were read)
    before = torch.arange(4)[:, None] > torch.arange(own.shape[1])
    assert torch.equal(own, before)
    assert bool((slopes[1] != 0).flatten(1).any(1).all())


def _order(module: Any, tables: list[Any], z: Tensor, above: Tensor) -> list[int]:
    called: list[int] = []
    hooks = [
        t.register_forward_hook(lambda *_, i=i: called.append(i)) for i, t in enumerate(tables)
    ]
    module.logits(z, above)
    for hook in hooks:
        hook.remove()
    return called


@learned
def test_what_is_above_reaches_the_positions_below_it_alone(prior: CodePrior) -> None:
    """Without residual blocks a code above reaches the positions that its convolutions reach, and no others."""
    module = strong(prior.build_codes((16, 16), 2, CodesAbove([(8, 8)], [3], blocks=0)))
    above = torch.zeros(1, 8, 8, dtype=torch.long)
    changed = above.clone()
    changed[0, 4, 4] = 2
    moved = module.above(changed.flatten(1)) - module.above(above.flatten(1))
    rows = moved[0].abs().sum((0, 2)).nonzero().flatten().tolist()
    # A convolution of 3 x 3 above, then a transposed one of 4 x 4: 8 rows around 8 and 9.
    assert rows == list(range(5, 13))


@learned
@pytest.mark.parametrize("positions", [(2, 2), (2, 2, 2), (4, 2)], ids=str)
def test_steps_have_the_probabilities_of_a_full_pass(
    prior: CodePrior, positions: tuple[int, ...]
) -> None:
    above = (positions[0] // 2, positions[1] // 2)
    module = strong(prior.build_codes(positions, 3, CodesAbove([above], [4])))
    z = torch.randint(3, (30, *positions))
    given = torch.randint(4, (30, math.prod(above)))
    full = module.logits(z, given).flatten(1, -2)
    steps: list[Tensor] = []

    def told(logits: Tensor) -> Tensor:
        steps.append(logits.expand(30, 3))
        return z.flatten(1)[:, len(steps) - 1]

    module.train()
    assert torch.equal(module.draw(30, given, told), z)
    assert torch.allclose(torch.stack(steps, 1), full, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CODE_PRIORS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    context = CodesAbove([(2, 2), (1, 1)], [3, 4])
    module = CODE_PRIORS[name].build_codes((4, 4), 3, context)
    z = torch.randint(3, (64, 4, 4))
    c = context.joined(torch.randint(3, (64, 2, 2)), torch.randint(4, (64, 1, 1)))
    p = module(c)
    assert p.batch_shape == (64,)
    assert p.log_prob(z).shape == (64,)
    if name == "UniformCodes":
        return
    p.log_prob(z).sum().backward()
    for parameter, weights in module.named_parameters():
        assert weights.grad is not None, parameter
        assert bool((weights.grad != 0).any()), parameter


# -- the model -------------------------------------------------------------------------------------

NETWORK = GridPyramid(6, halvings=(1, 1), blocks=1)


def pair(
    prior: Any = None, size: int = 8, codes: tuple[int, int] = (5, 3), network: Any = NETWORK
) -> tuple[Any, Any]:
    torch.manual_seed(1)
    quantizers = [VectorQuantizer(k, 2, start=RandomStart(), restarts=0) for k in codes]
    model = VQVAE2((1, size, size), quantizers, network, prior=prior)
    guide = HierarchicalQuantizingEncoder(model, network)
    with torch.no_grad():
        for weight in guide.encoder.parameters():
            weight.mul_(3.0)  # so that rows have several codes
    return model, guide


def rows(n: int = 60, size: int = 8) -> Tensor:
    """Binary pictures of three kinds."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(3, 1, size, size, generator=generator)
    return torch.bernoulli(centers[torch.arange(n) % 3], generator=generator)


@learned
def test_log_p_of_x_is_a_sum_over_all_joint_codes(prior: CodePrior) -> None:
    """The trace's density of each of 2^5 joint codes, and the ELBO is that of the guide's."""
    model, guide = pair(prior, size=4, codes=(2, 2))
    strong(model.prior).float()
    model.eval()
    x = rows(9, 4)
    z1, z2 = all_codes((2, 2), (1, 1), codes=2)
    with torch.no_grad():
        joint = torch.stack(
            [
                model.prior.given().log_prob(b)
                + model.prior.given(b).log_prob(a)
                + model.decode(a, b).log_prob(x)
                for a, b in zip(z1, z2, strict=True)
            ]
        )
    c1, c2 = guide.codes(x)
    number = (c1.flatten(1) * torch.tensor([16, 8, 4, 2])).sum(1) + c2.flatten()
    found = evaluate(model, guide, x)
    chosen = joint.gather(0, number[None])[0]
    assert torch.allclose(found.elbo.values.float(), chosen, atol=1e-4)
    assert torch.allclose(found.log_likelihood.values.float(), joint.logsumexp(0), atol=1e-4)
    traced = torch.stack(
        [
            _log_density(model, x, a.expand(9, 2, 2), b.expand(9, 1, 1))
            for a, b in zip(z1, z2, strict=True)
        ]
    )
    assert torch.allclose(traced, joint.sum(1), atol=1e-3)


def _log_density(model: Any, x: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    held = pyro.poutine.condition(model, data={"z1": z1, "z2": z2})
    with torch.no_grad():
        return torch.as_tensor(pyro.poutine.trace(held).get_trace(x).log_prob_sum())


@pytest.mark.slow
@learned
def test_draws_are_from_the_top_down_and_as_probable_as_the_density_says(prior: CodePrior) -> None:
    model, _ = pair(prior, size=4, codes=(2, 2))
    strong(model.prior).float()
    model.eval()
    names = [name for name, site in pyro.poutine.trace(model).get_trace(rows(2, 4)).nodes.items()]
    assert names.index("z2") < names.index("z1") < names.index("x")
    n = 6000
    _, latents = sample(model, n, return_latents=True, seed=0)
    number = (latents["z1"].flatten(1) * torch.tensor([16, 8, 4, 2])).sum(1)
    counts = (number + latents["z2"].flatten()).bincount(minlength=32)
    z1, z2 = all_codes((2, 2), (1, 1), codes=2)
    with torch.no_grad():
        log_p = model.prior.given().log_prob(z2) + model.prior.given(z2).log_prob(z1)
    expected = n * log_p.exp()
    often = expected > 5
    chi2 = ((counts - expected) ** 2 / expected)[often].sum()
    rest = expected[~often].sum()
    chi2 = chi2 + (counts[~often].sum() - rest) ** 2 / rest.clamp_min(1e-3)
    assert float(chi2) < 62.5  # one time in a thousand for 32 degrees of freedom


def test_a_prior_for_each_level() -> None:
    top, bottom = IndependentCodes(pseudocount=2.0), PixelCNNPrior(channels=4, layers=1)
    model, _ = pair([bottom, top])
    assert [type(each).__name__ for each in model.prior] == ["_PixelCNN", "_CodesByPosition"]
    assert model.prior.given().event_shape == (2, 2)
    assert model.prior.given(torch.zeros(7, 2, 2)).batch_shape == (7,)


# -- refit_prior -----------------------------------------------------------------------------------


class Source(nn.Module):
    """Rows that hold their codes: those of a grid of 2 x 2, then those of a grid of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = LevelPriors.built(
            [IndependentCodes()] * 2, [(4, 4), (2, 2)], [2, 2], ["low", "high"]
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            high = pyro.sample("high", self.prior.given())
            low = pyro.sample("low", self.prior.given(high))
            told = torch.cat([high.flatten(-2), low.flatten(-2)], -1).double()
            pyro.sample("x", dist.Normal(told, 1.0).to_event(1), obs=x)


class Reader(nn.Module):
    def forward(self, x: Tensor) -> None:
        high, low = (part.long() for part in x.split([4, 16], 1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("high", _certain(high.reshape(-1, 2, 2)))
            pyro.sample("low", _certain(low.reshape(-1, 4, 4)))


def _certain(z: Tensor) -> Any:
    each: Any = PointMass(z, 2)
    return each.to_event(2)


NOISE = 0.1


def copies(n: int) -> Tensor:
    """Codes above that are fair coins, and below each four copies of it, each with noise."""
    high = torch.randint(2, (n, 2, 2))
    spread = high.repeat_interleave(2, 1).repeat_interleave(2, 2)
    low = spread ^ (torch.rand(n, 4, 4) < NOISE)
    return torch.cat([high.flatten(1), low.flatten(1)], 1).double()


@pytest.mark.slow
def test_the_rate_is_the_conditional_entropy_and_that_without_the_top_more_by_the_information() -> (
    None
):
    """H(low | high) = 16 h(noise). Without what is above, a code costs log 2 alone, and H(low) all together."""
    torch.manual_seed(0)
    x, others = copies(2000), copies(1500)
    entropy = 16 * -(NOISE * math.log(NOISE) + (1 - NOISE) * math.log(1 - NOISE))
    four = [
        0.5 * ((1 - NOISE) ** (4 - k) * NOISE**k + NOISE ** (4 - k) * (1 - NOISE) ** k)
        for k in range(5)
    ]
    alone = 4 * -sum(math.comb(4, k) * p * math.log(p) for k, p in enumerate(four))
    information = alone - entropy  # I(low; high), exactly
    options: Any = {
        "validation": others,
        "max_epochs": 8,
        "learning_rate": 1e-2,
        "batch_size": 100,
        "seed": 0,
    }
    prior = PixelCNNPrior(channels=12, layers=2, dropout=0.0)
    model = Source().double()
    found: LevelsFit = refit_prior(
        model, Reader(), x, [prior, IndependentCodes()], **options
    ).prior.fitted
    counted: LevelsFit = refit_prior(
        model, Reader(), x, IndependentCodes(), validation=others
    ).prior.fitted
    low, high = found.levels["low"], found.levels["high"]
    assert low.validation_rate is not None
    assert high.validation_rate is not None
    assert counted.validation_rate is not None
    error = low.validation_rate.standard_error
    assert low.validation_rate.mean == pytest.approx(entropy, abs=4 * error + 0.1)
    assert high.validation_rate.mean == pytest.approx(4 * math.log(2), abs=0.02)
    independent = counted.levels["low"].validation_rate
    assert independent is not None
    saved = independent.mean - low.validation_rate.mean
    assert saved == pytest.approx(16 * math.log(2) - entropy, abs=4 * error + 0.1)
    # The same network without what is above, which has to guess it from the codes before.
    blind = _blind(prior, x, others, options)
    assert blind - low.validation_rate.mean == pytest.approx(information, abs=4 * error + 0.25)
    assert information > 1.5
    assert found.validation_rate is not None
    total = found.validation_rate.values
    assert torch.equal(total, low.validation_rate.values + high.validation_rate.values)


def _blind(prior: CodePrior, x: Tensor, others: Tensor, options: Any) -> float:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior = IndependentCodes().build_codes((4, 4), 2)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("low", self.prior())
                p: Any = dist.Normal(z.double().flatten(-2), 1.0)
                pyro.sample("x", p.to_event(1), obs=x)

    def reader(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("low", _certain(x.long().reshape(-1, 4, 4)))

    of_low = {**options, "validation": others[:, 4:]}
    found: Any = refit_prior(Low().double(), reader, x[:, 4:], prior, **of_low).prior.fitted
    rate: float = found.validation_rate.mean
    return rate


@pytest.fixture(scope="module")
def refitted() -> tuple[Any, Any, Any]:
    model, guide = pair()
    x = rows()
    prior = [PixelCNNPrior(channels=8, layers=2), TransformerPrior(8, 1, 2)]
    options: Any = {"max_epochs": 8, "learning_rate": 1e-2, "batch_size": 20, "seed": 0}
    return model, guide, refit_prior(model, guide, x, prior, validation=x, **options)


def test_the_elbo_rises_by_what_the_rates_fall(refitted: tuple[Any, Any, Any]) -> None:
    model, guide, new = refitted
    x = rows()
    before, after = (evaluate(each, guide, x) for each in (model, new))
    found: LevelsFit = new.prior.fitted
    assert before.rate.mean == pytest.approx(16 * math.log(5) + 4 * math.log(3), abs=1e-4)
    assert torch.allclose(after.rate.values.double(), found.rate.values, atol=1e-4)
    assert torch.allclose(after.distortion.values.double(), before.distortion.values.double())
    gain = after.elbo.mean - before.elbo.mean
    assert gain == pytest.approx(before.rate.mean - found.rate.mean, abs=1e-4)
    assert gain > 3
    assert [*found.levels] == ["z1", "z2"]
    assert [each.prior for each in found.levels.values()] == ["PixelCNNPrior", "TransformerPrior"]
    assert "z1 given z2" in str(found)
    assert found.to_dict()["levels"]["z2"]["prior"] == "TransformerPrior"


def test_each_level_pays_its_part(refitted: tuple[Any, Any, Any]) -> None:
    _, guide, new = refitted
    x = rows()
    diagnosis = diagnose(new, guide, x)
    rates = {name: f.rate.mean for name, f in new.prior.fitted.levels.items()}
    for use in diagnosis.of_codes:
        assert use.rate * use.count == pytest.approx(rates[use.name], abs=1e-3)


@pytest.mark.slow
def test_a_file_of_it_has_the_length_of_the_elbo_and_is_read_back(
    refitted: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    _, guide, new = refitted
    x = rows(30)
    file = compress(new, guide, x)
    (tmp_path / "rows").write_bytes(file.data)
    assert torch.equal(decompress(new, guide, (tmp_path / "rows").read_bytes()), x)
    bits = -evaluate(new, guide, x).elbo.values.double() / math.log(2)
    torch.testing.assert_close(file.code_length.values.double(), bits, rtol=1e-5, atol=1e-5)
    assert file.payload_bits <= float(bits.sum()) + file.initial_bits + 64


def test_a_run_of_it_is_saved_and_loaded(refitted: tuple[Any, Any, Any], tmp_path: Path) -> None:
    _, guide, new = refitted
    x = rows()
    save_run(tmp_path / "run", new, guide)
    loaded = load_run(tmp_path / "run")
    found, expected = (
        evaluate(m, g, x).elbo.values for m, g in ((loaded.model, loaded.guide), (new, guide))
    )
    assert torch.equal(found, expected)
    drawn, again = (sample(m, 4, seed=0) for m in (loaded.model, new))
    assert torch.equal(drawn, again)


def test_a_tenth_is_held_out_the_same_of_all_levels() -> None:
    model, guide = pair()
    x = rows()
    prior = [PixelCNNPrior(channels=4, layers=1), IndependentCodes()]
    found = refit_prior(model, guide, x, prior, max_epochs=1, seed=0).prior.fitted
    assert len(found.rate.values) == 54
    assert found.validation_rate is not None
    assert len(found.validation_rate.values) == 6
    counted = refit_prior(model, guide, x, IndependentCodes(), seed=0).prior.fitted
    assert counted.validation_rate is None
    assert len(counted.rate.values) == 60


@pytest.mark.slow
def test_a_training_with_its_prior_goes_on_as_if_it_had_not_been_interrupted(
    tmp_path: Path,
) -> None:
    def trained(*epochs: int, folder: str) -> dict[str, Tensor]:
        for until in epochs:
            model, guide = pair(PixelCNNPrior(channels=4, layers=1))
            fit(
                model,
                guide,
                rows(40),
                max_epochs=until,
                batch_size=20,
                seed=0,
                run_dir=tmp_path / folder,
                resume=until != epochs[0],
                progress=False,
            )
        found: dict[str, Tensor] = model.state_dict()
        return found

    torch.manual_seed(1)
    start = pair(PixelCNNPrior(channels=4, layers=1))[0].state_dict()
    whole, parts = trained(4, folder="a"), trained(2, 4, folder="b")
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name
    moved = [name for name, value in start.items() if not torch.equal(whole[name], value)]
    assert any("above" in name for name in moved)


# -- what is wrong ---------------------------------------------------------------------------------

X = rows(20)

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "three priors": (
        lambda: pair([UniformCodes()] * 3),
        ValueError,
        "VQVAE2.prior must be one prior, or a list with one for each of the 2 levels, got 3",
    ),
    "a prior of vectors": (
        lambda: pair([UniformCodes(), MixturePrior(2)]),
        TypeError,
        "VQVAE2.prior must be an object such as UniformCodes",
    ),
    "three new priors": (
        lambda: refit_prior(*pair(), X, [IndependentCodes()] * 3),
        ValueError,
        r"prior must be one prior, or a list of 2 for the latents of a row \(z1, z2\), got a list of 3",
    ),
    "vectors for codes": (
        lambda: refit_prior(*pair(), X, MixturePrior(2)),
        TypeError,
        "the latents 'z1' and 'z2' of a row are codes, whole numbers from 0 to 4, and MixturePrior",
    ),
    "nothing to fit": (
        lambda: refit_prior(*pair(), X, UniformCodes()),
        TypeError,
        "UniformCodes has no numbers that could be fitted",
    ),
    "no grid": (lambda: CodesAbove([], []), ValueError, r"grids must be the height and width"),
    "a line": (lambda: CodesAbove([(4,)], [3]), ValueError, r"got \[\(4,\)\]"),
    "one number of codes": (
        lambda: CodesAbove([(2, 2), (1, 1)], [3]),
        ValueError,
        r"one number for each of the 2 grids, got \(3,\)",
    ),
    "a grid that is not half": (
        lambda: PixelCNNPrior().build_codes((6, 6), 2, CodesAbove([(2, 2)], [3])),
        ValueError,
        r"codes on a grid of \(2, 2\) cannot tell the positions of a grid of \(6, 6\)",
    ),
    "a grid that is narrower": (
        lambda: TransformerPrior().build_codes((4, 4), 2, CodesAbove([(2, 1)], [3])),
        ValueError,
        r"codes on a grid of \(2, 1\) cannot tell",
    ),
    "too few codes above": (
        lambda: PixelCNNPrior().build_codes((4, 4), 2, CodesAbove([(2, 2)], [3]))(
            torch.zeros(3, 3)
        ),
        ValueError,
        r"the codes above have shape \(3, 3\): expected \(n, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        call()
