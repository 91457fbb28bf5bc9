"""Codes of several levels for a label: p(z_l | z_{l+1}, ..., c) beside sums, counts and exact entropies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import diagnose, evaluate, fit, load_run, refit_prior, sample, save_run
from ppl_vae.codes import RandomStart, VectorQuantizer
from ppl_vae.compression import compress, decompress
from ppl_vae.distributions import PointMass
from ppl_vae.guides import HierarchicalQuantizingEncoder, QuantizingEncoder
from ppl_vae.models import (
    CodePrior,
    ConditionalVQVAE,
    ConditionalVQVAE2,
    IndependentCodes,
    PixelCNNPrior,
    TransformerPrior,
    UniformCodes,
)
from ppl_vae.models.priors import LevelPriors
from ppl_vae.networks import (
    Attributes,
    CodesAbove,
    Context,
    ConvolutionalGrid,
    GridPyramid,
    Labels,
)
from ppl_vae.training import LevelsFit

LEARNED: dict[str, CodePrior] = {
    "PixelCNN": PixelCNNPrior(channels=6, layers=2, dropout=0.0),
    "Transformer": TransformerPrior(width=8, layers=1, heads=2, dropout=0.0),
}
EVERY: dict[str, CodePrior] = {
    "uniform": UniformCodes(),
    "counts": IndependentCodes(),
    **LEARNED,
}
learned = pytest.mark.parametrize("prior", LEARNED.values(), ids=LEARNED.keys())
every = pytest.mark.parametrize("name", EVERY)


def all_codes(*grids: tuple[int, int], codes: int) -> list[Tensor]:
    """All joint codes of some grids, one tensor for each."""
    sizes = [math.prod(grid) for grid in grids]
    rows = torch.tensor([*itertools.product(range(codes), repeat=sum(sizes))])
    parts = rows.split(sizes, 1)
    return [part.reshape(-1, *grid) for part, grid in zip(parts, grids, strict=True)]


def strong(module: nn.Module) -> Any:
    """A module in float64, in evaluation mode, whose codes depend much on all that they are given."""
    module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("logits"):  # counts, which are equal at the start
                parameter.normal_()
            parameter.mul_(4.0 if "above." in name else 3.0)
    return module.requires_grad_(False)


# -- the density -----------------------------------------------------------------------------------

CONTEXTS: dict[str, tuple[Context, list[Tensor]]] = {
    "labels": (Labels(3), [*torch.arange(3)]),
    "attributes": (Attributes(2), [*torch.tensor([[0.3, -1.2], [1.5, 2.25]])]),
}


def log_p_of(levels: LevelPriors, z: list[Tensor], c: Tensor) -> list[Tensor]:
    """log p(z_l | z_{l+1}, ..., c) of each level, of codes that all come with one c."""
    given = c.expand(len(z[0]), *c.shape)
    return [levels.given(*z[i + 1 :], c=given).log_prob(z[i]) for i in range(len(z))]


@every
@pytest.mark.parametrize("grids", [[(2, 2), (1, 1)], [(2, 2), (1, 1), (1, 1)]], ids=str)
def test_the_probabilities_of_all_joint_codes_sum_to_1_for_each_label(
    name: str, grids: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    sites, count = [f"z{i + 1}" for i in range(len(grids))], len(grids)
    priors = [EVERY[name]] * count
    context, values = CONTEXTS["labels"]
    levels = strong(LevelPriors.built(priors, grids, [2] * count, sites, context))
    z = all_codes(*grids, codes=2)
    found = [log_p_of(levels, z, c) for c in values]
    for of_levels in found:
        total = torch.stack(of_levels).sum(0).exp().sum()
        assert float(total) == pytest.approx(1.0, abs=1e-11)
    apart = [float((one - two).abs().max()) for one, two in zip(found[0], found[2], strict=True)]
    # Each level reads the label, but for codes that are uniform.
    assert all((difference > 1e-3) == (name != "uniform") for difference in apart)
    # What is above is read beside it: another code above, all else the same.
    given = values[0].expand(len(z[0]))
    one, other = (levels.given(*z[1:-1], torch.full_like(z[-1], k), c=given) for k in (0, 1))
    difference = float((one.log_prob(z[0]) - other.log_prob(z[0])).abs().max())
    assert (difference > 1e-3) == (name in LEARNED)


@learned
def test_so_do_those_for_attributes(prior: CodePrior) -> None:
    torch.manual_seed(0)
    context, values = CONTEXTS["attributes"]
    grids = [(2, 2), (1, 1)]
    levels = strong(LevelPriors.built([prior] * 2, grids, [2, 2], ["z1", "z2"], context))
    z = all_codes(*grids, codes=2)
    found = [log_p_of(levels, z, c.double()) for c in values]
    for of_levels in found:
        assert float(torch.stack(of_levels).sum(0).exp().sum()) == pytest.approx(1.0, abs=1e-11)
    for one, two in zip(*found, strict=True):
        assert float((one - two).abs().max()) > 1e-3


@learned
def test_the_label_reaches_every_position_of_the_lower_grid(prior: CodePrior) -> None:
    """Even without residual blocks, and beside each code above."""
    context = CodesAbove([(2, 2)], [3], blocks=0, context=Labels(2))
    module = strong(prior.build_codes((4, 4), 2, context))
    above = torch.randint(3, (1, 2, 2))
    one, other = (module.above(context(context.joined(above, c=torch.tensor([k])))) for k in (0, 1))
    moved = (one - other)[0].abs().sum(0)
    assert bool((moved > 1e-3).all())


@learned
def test_steps_have_the_probabilities_of_a_full_pass(prior: CodePrior) -> None:
    context = CodesAbove([(1, 1)], [4], context=Labels(3))
    module = strong(prior.build_codes((2, 2), 3, context))
    z, c = torch.randint(3, (30, 2, 2)), torch.randint(3, (30,))
    given = context(context.joined(torch.randint(4, (30, 1, 1)), c=c))
    full = module.logits(z, given).flatten(1, -2)
    steps: list[Tensor] = []

    def told(logits: Tensor) -> Tensor:
        steps.append(logits.expand(30, 3))
        return z.flatten(1)[:, len(steps) - 1]

    assert torch.equal(module.draw(30, given, told), z)
    assert torch.allclose(torch.stack(steps, 1), full, rtol=0, atol=1e-11)


def test_what_is_joined_is_taken_apart_again() -> None:
    """For codes of several draws, labels of any type, and codes that half precision would round."""
    context = CodesAbove([(2, 2), (1, 1)], [5000, 7], context=Labels(3))
    near, far = torch.randint(4990, 5000, (6, 4, 2, 2)), torch.randint(7, (4, 1, 1))
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        c = torch.tensor([0, 2, 1, 2], dtype=dtype)
        joined = context.joined(near, far, c=c)
        assert joined.shape == (6, 4, 6)
        codes, label = context.apart(joined)
        assert label is not None
        expected = torch.cat([near.flatten(2), far.flatten(1).expand(6, 4, 1)], 2)
        assert torch.equal(codes.long(), expected)
        assert torch.equal(label.long(), c.long().expand(6, 4))
        assert torch.equal(context(joined)[..., :5].long(), expected)
        assert torch.equal(context(joined)[..., 5:], Labels(3)(c).expand(6, 4, 3))


# -- the model -------------------------------------------------------------------------------------

NETWORK = GridPyramid(6, halvings=(1, 1), blocks=1)


def pair(
    prior: Any = None, size: int = 8, codes: tuple[int, int] = (5, 3), context: Any = None
) -> tuple[Any, Any]:
    torch.manual_seed(1)
    quantizers = [VectorQuantizer(k, 2, start=RandomStart(), restarts=0) for k in codes]
    context = Labels(3) if context is None else context
    model = ConditionalVQVAE2((1, size, size), quantizers, NETWORK, prior=prior, context=context)
    guide = HierarchicalQuantizingEncoder(model, NETWORK)
    with torch.no_grad():
        for weight in guide.encoder.parameters():
            weight.mul_(3.0)  # so that rows have several codes
    return model, guide


def rows(n: int = 60, size: int = 8) -> tuple[Tensor, Tensor]:
    """Binary pictures of three kinds, and the kind of each."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(3, 1, size, size, generator=generator)
    labels = torch.arange(n) % 3
    return torch.bernoulli(centers[labels], generator=generator), labels


@pytest.mark.slow(but=("counts", "PixelCNN"))
@every
def test_log_p_of_x_given_c_is_a_sum_over_all_joint_codes(name: str) -> None:
    """The trace's density of each of 2^5 joint codes; the ELBO is that of the guide's, and a bound."""
    model, guide = pair(EVERY[name], size=4, codes=(2, 2))
    strong(model.prior).float()
    model.eval()
    x, c = rows(9, 4)
    z1, z2 = all_codes((2, 2), (1, 1), codes=2)

    def traced(a: Tensor, b: Tensor) -> Tensor:
        held = pyro.poutine.condition(
            model, data={"z1": a.expand(9, 2, 2), "z2": b.expand(9, 1, 1)}
        )
        trace = pyro.poutine.trace(held).get_trace(x, c)
        trace.compute_log_prob()
        return sum(
            (trace.nodes[site]["log_prob"] for site in ("z1", "z2", "x", "context")), torch.zeros(9)
        )

    with torch.no_grad():
        joint = torch.stack([traced(a, b) for a, b in zip(z1, z2, strict=True)])
        c1, c2 = guide.codes(x)
    number = (c1.flatten(1) * torch.tensor([16, 8, 4, 2])).sum(1) + c2.flatten()
    found = evaluate(model, guide, (x, c))
    exact = joint.logsumexp(0)
    chosen = joint.gather(0, number[None])[0]
    assert torch.allclose(found.elbo.values.float(), chosen, atol=1e-4)
    assert torch.allclose(found.log_likelihood.values.float(), exact, atol=1e-4)
    assert bool((found.elbo.values.float() <= exact + 1e-4).all())
    # The label is read: with others, the same rows have another density.
    others = evaluate(model, guide, (x, (c + 1) % 3)).log_likelihood.values
    moved = float((others - found.log_likelihood.values).abs().max())
    assert moved == 0.0 if name == "uniform" else moved > 1e-3


def test_counts_are_those_of_each_label() -> None:
    """(count + 1) / (rows of the label + K) at each position, from the guide's codes."""
    model, guide = pair()
    x, c = rows()
    new = refit_prior(model, guide, (x, c), IndependentCodes(pseudocount=1.0))
    z = guide.codes(x)
    above = torch.zeros(3, 2, 2, dtype=torch.long)
    found = [new.prior.given(above, c=torch.arange(3)), new.prior.given(c=torch.arange(3))]
    for p, of_level, codes in zip(found, z, (5, 3), strict=True):
        for label in range(3):
            counts = nn.functional.one_hot(of_level[c == label], codes).sum(0)
            expected = (counts + 1) / (20 + codes)
            assert torch.allclose(p.base_dist.probs[label], expected, atol=1e-6)


# -- refit_prior -----------------------------------------------------------------------------------

NOISE = 0.1


class Source(nn.Module):
    """Rows that hold their codes: one of three, then those of a grid of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.data_shape = (5,)
        self.context = Labels(3)
        priors = [IndependentCodes()] * 2
        grids = [(2, 2), (1, 1)]
        self.prior = LevelPriors.built(priors, grids, [2, 3], ["low", "high"], self.context)

    def forward(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            high = pyro.sample("high", self.prior.given(c=c))
            low = pyro.sample("low", self.prior.given(high, c=c))
            told = torch.cat([high.flatten(-2), low.flatten(-2)], -1).double()
            pyro.sample("x", dist.Normal(told, 1.0).to_event(1), obs=x)


def reader(x: Tensor, c: Tensor) -> None:
    high, low = (part.long() for part in x.split([1, 4], 1))
    with pyro.plate("data", len(x), dim=-1):
        for site, z, codes in (
            ("high", high.reshape(-1, 1, 1), 3),
            ("low", low.reshape(-1, 2, 2), 2),
        ):
            each: Any = PointMass(z, codes)
            pyro.sample(site, each.to_event(2))


def planted(n: int) -> tuple[Tensor, Tensor]:
    """The code above is the label or the one after it; each code below says which, with noise."""
    c, after = torch.randint(3, (n,)), torch.randint(2, (n,))
    low = after[:, None] ^ (torch.rand(n, 4) < NOISE)
    return torch.cat([((c + after) % 3)[:, None], low], 1).double(), c


def entropy(p: list[float]) -> float:
    return -sum(each * math.log(each) for each in p)


# The label leaves two codes above, and with one of them says all of those below but their noise.
EXACT = {"high": math.log(2), "low": 4 * entropy([NOISE, 1 - NOISE])}
# Without the label there are three codes above. The codes below copy a fair coin, if either the label or the
# code above is not known: k of them are 1.
FOUR = [
    0.5 * ((1 - NOISE) ** (4 - k) * NOISE**k + NOISE ** (4 - k) * (1 - NOISE) ** k)
    for k in (bin(number).count("1") for number in range(16))
]
LESS_TOLD = {"high": math.log(3), "low": entropy(FOUR)}

WIDER: dict[str, CodePrior] = {
    "PixelCNN": PixelCNNPrior(channels=12, layers=2, dropout=0.0),
    "Transformer": TransformerPrior(width=16, layers=1, heads=2, dropout=0.0),
}


@pytest.fixture(
    scope="module", params=["PixelCNN", pytest.param("Transformer", marks=pytest.mark.slow)]
)
def fitted(request: pytest.FixtureRequest) -> Any:
    """The planted source with a prior that was fitted."""
    torch.manual_seed(0)
    data, others = planted(2000), planted(1500)
    options: Any = {"max_epochs": 7, "learning_rate": 2e-2, "batch_size": 100, "seed": 0}
    prior = WIDER[request.param]
    return refit_prior(Source().double(), reader, data, prior, validation=others, **options)


def test_rates_are_the_conditional_entropies(fitted: Any) -> None:
    found: LevelsFit = fitted.prior.fitted
    for site, exact in EXACT.items():
        rate = found.levels[site].validation_rate
        assert rate is not None
        assert rate.mean == pytest.approx(exact, abs=4 * rate.standard_error + 0.03), site
        assert rate.mean < LESS_TOLD[site] - 0.3
    assert "low given high" in str(found)


def test_draws_of_each_label_have_the_planted_codes(fitted: Any) -> None:
    n = 1500
    c = torch.arange(3).repeat_interleave(n)
    _, latents = sample(fitted.eval(), 3 * n, given={"c": c}, return_latents=True, seed=0)
    after = (latents["high"].flatten() - c) % 3
    for label in range(3):
        shares = after[c == label].bincount(minlength=3) / n
        assert torch.allclose(shares, torch.tensor([0.5, 0.5, 0.0]), atol=0.08)
    copies = latents["low"].flatten(1)[after < 2] == after[after < 2, None]
    assert torch.allclose(copies.float().mean(0), torch.tensor(1 - NOISE), atol=0.05)


@pytest.fixture(scope="module")
def refitted() -> tuple[Any, Any, Any]:
    model, guide = pair()
    data = rows()
    prior = [PixelCNNPrior(channels=8, layers=2), TransformerPrior(8, 1, 2)]
    options: Any = {"max_epochs": 8, "learning_rate": 1e-2, "batch_size": 20, "seed": 0}
    return model, guide, refit_prior(model, guide, data, prior, validation=data, **options)


def test_the_elbo_rises_by_what_the_rates_fall(refitted: tuple[Any, Any, Any]) -> None:
    model, guide, new = refitted
    before, after = (evaluate(each, guide, rows()) for each in (model, new))
    found: LevelsFit = new.prior.fitted
    assert before.rate.mean == pytest.approx(16 * math.log(5) + 4 * math.log(3), abs=1e-4)
    assert torch.allclose(after.rate.values.double(), found.rate.values, atol=1e-4)
    gain = after.elbo.mean - before.elbo.mean
    assert gain == pytest.approx(before.rate.mean - found.rate.mean, abs=1e-4)
    assert gain > 3


def test_each_level_pays_its_part(refitted: tuple[Any, Any, Any]) -> None:
    _, guide, new = refitted
    diagnosis = diagnose(new, guide, rows())
    rates = {name: level.rate.mean for name, level in new.prior.fitted.levels.items()}
    assert {use.name for use in diagnosis.of_codes} == {"z1", "z2"}
    for use in diagnosis.of_codes:
        assert use.rate * use.count == pytest.approx(rates[use.name], abs=1e-3)


def test_a_file_of_rows_has_the_length_of_the_elbo_and_is_read_back(
    refitted: tuple[Any, Any, Any],
) -> None:
    _, guide, new = refitted
    x, c = rows(30)
    file = compress(new, guide, (x, c))
    assert torch.equal(decompress(new, guide, file.data, context=c), x)
    bits = float(-evaluate(new, guide, (x, c)).elbo.values.double().sum()) / math.log(2)
    assert float(file.code_length.values.double().sum()) == pytest.approx(bits, rel=1e-5)
    assert 8 * len(file.data) == file.header_bits + file.payload_bits
    assert abs(file.payload_bits - file.initial_bits - bits) <= 64
    with pytest.raises(ValueError, match="another context"):
        decompress(new, guide, file.data, context=(c + 1) % 3)


def test_it_is_saved_and_loaded_and_draws_of_labels_are_the_same(
    refitted: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    _, guide, new = refitted
    save_run(tmp_path / "run", new, guide)
    loaded = load_run(tmp_path / "run")
    pairs: list[Any] = [(loaded.model, loaded.guide), (new, guide)]
    one, two = (evaluate(m, g, rows()).elbo.values for m, g in pairs)
    assert torch.equal(one, two)
    given = {"c": torch.tensor([2, 0, 1, 2])}
    drawn, again = (sample(model, 4, given=given, seed=0) for model, _ in pairs)
    assert torch.equal(drawn, again)


def test_a_training_moves_all_that_reads_the_label() -> None:
    model, guide = pair(PixelCNNPrior(channels=4, layers=1), context=Attributes(2))
    x, c = rows(40)
    attributes = torch.stack([c - 1.0, (c == 2).float()], 1)
    before = {name: p.detach().clone() for name, p in model.prior.named_parameters()}
    fit(model, guide, (x, attributes), max_epochs=2, batch_size=20, seed=0, progress=False)
    for name, parameter in model.prior.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert any("of_row" in name for name in before)


class Shares(CodePrior):
    """A prior of one's own, which does not say what it was built with: shares of codes for each thing told."""

    def build_codes(self, positions: Any, codes: int, context: Context | None = None) -> nn.Module:
        assert context is not None
        return _Shares(tuple(positions), codes, context)


class _Shares(nn.Module):
    def __init__(self, positions: tuple[int, ...], codes: int, told: Context) -> None:
        super().__init__()
        self.told, self.positions = told, positions
        self.logits = nn.Linear(told.size, codes)

    def forward(self, c: Tensor) -> Any:
        told = self.told(c).to(self.logits.weight.dtype)
        logits = self.logits(told).unsqueeze(-2).unsqueeze(-2)
        shape = (*logits.shape[:-3], *self.positions, logits.shape[-1])
        return dist.Categorical(logits=logits.expand(shape)).to_event(2)


def test_a_prior_of_ones_own_is_replaced_by_another(fitted: Any) -> None:
    data, options = planted(200), {"max_epochs": 2, "seed": 0}
    new = refit_prior(fitted, reader, data, Shares(), **options)  # type: ignore[arg-type]
    assert new.prior.fitted.rate.mean > fitted.prior.fitted.rate.mean
    again = refit_prior(new, reader, data, IndependentCodes(), seed=0)
    x, c = data
    for label in range(3):
        counts = nn.functional.one_hot(x[c == label, 0].long(), 3).sum(0) + 0.5
        p = again.prior.given(c=torch.tensor(label)).base_dist.probs
        assert torch.allclose(p.flatten(), (counts / counts.sum()).double(), atol=1e-6)


# -- what is wrong ---------------------------------------------------------------------------------

X, Y = rows(20)


def one_grid(context: Any = None) -> tuple[Any, Any]:
    network = ConvolutionalGrid(6, halvings=1, blocks=0)
    quantizer = VectorQuantizer(5, 2, start=RandomStart(), restarts=0)
    context = Labels(3) if context is None else context
    model = ConditionalVQVAE((1, 8, 8), quantizer, network, context=context)
    return model, QuantizingEncoder(model, network)


def elbo(pair: tuple[Any, Any], data: Any) -> Any:
    return evaluate(pair[0], pair[1], data).elbo


BAD_ROWS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no labels": (lambda make: elbo(make(), X), "missing 1 required positional argument: 'c'"),
    "labels out of range": (lambda make: elbo(make(), (X, Y + 1)), "integers from 0 to 2"),
    "one-hot labels": (lambda make: make()[0](X, Labels(3)(Y)), r"such as labels.argmax\(-1\)"),
    "too few labels": (lambda make: make()[0](X, Y[1:]), "one number for each of 20 rows"),
    "other rows": (lambda make: make()[0](X[..., 1:], Y), "was built for data of shape"),
    "other attributes": (
        lambda make: make(Attributes(2))[0](X, torch.zeros(20, 3)),
        r"attributes have shape \(20, 3\): expected \(n, 2\)",
    ),
    "a class": (lambda make: make(Labels), r"context must be an object such as Labels\(10\)"),
    "a label to draw": (
        lambda make: sample(make()[0], 2, given={"c": torch.tensor([1, 7])}),
        "integers from 0 to 2",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_as_by_a_conditional_vqvae(name: str) -> None:
    call, words = BAD_ROWS[name]
    told = []
    for make in (one_grid, pair):
        with pytest.raises((TypeError, ValueError), match=words) as raised:
            call(make if make is one_grid else lambda context=None: pair(context=context))
        told.append((raised.type, str(raised.value)))
    (kind, of_one), (its_kind, of_levels) = told
    assert its_kind is kind
    assert of_levels.replace("ConditionalVQVAE2", "ConditionalVQVAE") == of_one


class Picture(Labels):
    """A context that is neither a number nor a vector."""

    @property
    def support(self) -> Any:
        return dist.constraints.independent(dist.constraints.real, 2)


ABOVE = CodesAbove([(2, 2)], [3], context=Labels(2))
Z = torch.zeros(4, 2, 2, dtype=torch.long)

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "counts of attributes": (
        lambda: pair(IndependentCodes(), context=Attributes(2)),
        TypeError,
        r"counts the codes of each label, but rows come with Attributes\(count=2\)",
    ),
    "three priors": (
        lambda: pair([UniformCodes()] * 3),
        ValueError,
        "ConditionalVQVAE2.prior must be one prior, or a list with one for each of the 2 levels, got 3",
    ),
    "one quantizer": (
        lambda: ConditionalVQVAE2((1, 8, 8), [VectorQuantizer(4, 2)], NETWORK),
        ValueError,
        "ConditionalVQVAE2.quantizers must be one for each of the 2 levels",
    ),
    "no label for a level": (
        lambda: pair()[0].prior.given(Z),
        TypeError,
        r"the prior of 'z1' is p\(z \| c\), built with Labels\(classes=3\)",
    ),
    "no label for the codes above": (
        lambda: ABOVE.joined(Z),
        TypeError,
        r"built with the context Labels\(classes=2\) of the rows, but is given codes alone: pass c",
    ),
    "a label too many": (
        lambda: CodesAbove([(2, 2)], [3]).joined(Z, c=torch.zeros(4)),
        TypeError,
        "built with no context of the rows, but is given labels or attributes: leave out c",
    ),
    "codes without a label": (
        lambda: PixelCNNPrior().build_codes((4, 4), 2, ABOVE)(Z.flatten(1)),
        ValueError,
        r"have shape \(4, 4\): expected \(n, 5\), as joined\(z, c=c\) makes it",
    ),
    "a context that is a class": (
        lambda: CodesAbove([(2, 2)], [3], context=Labels),  # type: ignore[arg-type]
        TypeError,
        r"CodesAbove.context must be an object such as Labels\(10\)",
    ),
    "a context that is a picture": (
        lambda: CodesAbove([(2, 2)], [3], context=Picture(2)),
        ValueError,
        "CodesAbove.context must be one number or one vector of a row",
    ),
    "a prior without labels": (
        lambda: UniformCodes().build_codes((2,), 3)(torch.zeros(2)),
        TypeError,
        "build it for a ConditionalVQVAE or ConditionalVQVAE2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        call()
