"""Rows in files and back: each pair's own code, at the length that its densities say; and no damage unseen."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import scipy.stats
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from ppl_vae import evaluate, fit
from ppl_vae.coding import SEAL, sealed
from ppl_vae.compression import Compressed, compress, decompress
from ppl_vae.compression.interval_masses import masses_of
from ppl_vae.compression.latent_grid import Grid
from ppl_vae.guides import (
    CategoricalEncoder,
    Exact,
    FullCovariance,
    InverseAutoregressive,
    LowRank,
    MeanField,
    MixtureOfGaussians,
    PerRow,
    SemiSupervised,
    TopDown,
)
from ppl_vae.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Binomial,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
)
from ppl_vae.models import (
    VAE,
    Autoregressive,
    BernoulliMixture,
    CategoricalHMM,
    ConditionalVAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
)
from ppl_vae.models.priors import (
    AutoregressivePrior,
    DiagonalNormal,
    FlowPrior,
    MixturePrior,
    VampPrior,
)
from ppl_vae.networks import MLP, AutoregressiveDecoder, Labels
from ppl_vae.pairs import PairError

SHAPE = (1, 3, 4)
NET = MLP((8,))
HEADER = 4 + 4 + 2 + 20 + 8


class Case(NamedTuple):
    model: Any
    guide: Any
    x: Any
    context: Any = ()


def binary(n: int, *shape: int) -> Tensor:
    return (torch.rand(n, *shape) > 0.5).float()


def vae(
    guide: Any = MeanField,
    prior: Any = None,
    likelihood: Likelihood | None = None,
    x: Tensor | None = None,
    network: Any = NET,
) -> Case:
    model = VAE(SHAPE, 3, network, likelihood, prior)
    q = guide(SHAPE, 3, NET)
    if isinstance(prior, VampPrior):
        cast(Any, model.prior).attach_guide(q)
    return Case(model, q, binary(40, *SHAPE) if x is None else x)


def levels(n: int, steps: int, *shape: int) -> Tensor:
    return (torch.rand(n, *shape) * steps).round() / steps


# Programs that a stranger may write for plain Pyro.
WEIGHTS = torch.linspace(-1, 1, 15).reshape(3, 5)  # single precision, which nobody finds


def plain_model(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        h = pyro.sample("h", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        logits = h @ WEIGHTS * s.unsqueeze(-1) + k.unsqueeze(-1) - 1
        pyro.sample("seen", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))


def plain_guide(x: Tensor) -> None:
    mean = x.mean((1, 2))
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=torch.stack([mean, 0 * mean, 1 - mean], -1)))
        h = pyro.sample("h", dist.Normal(torch.zeros(3) + 0.1 * k.unsqueeze(-1), 0.5).to_event(1))
        pyro.sample("s", dist.LogNormal(0.1 * h[:, 0], 0.5))


def steps_model(x: Tensor) -> None:
    """Latents and observed steps in turns, each of which depends on those before it."""
    with pyro.plate("data", len(x)):
        h: Any = 0.0
        for t in range(x.shape[1]):
            z = pyro.sample(f"z{t}", dist.Normal(h, 1.0))
            h = 0.9 * z + (x[:, t - 1] if t else 0.0)
            pyro.sample(f"x{t}", dist.Bernoulli(logits=h), obs=x[:, t])


def steps_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        h: Any = 0.0
        for t in range(x.shape[1]):
            h = pyro.sample(f"z{t}", dist.Normal(x[:, t] + 0.2 * h, 0.8))


def plates_model(x: Tensor) -> None:
    """A plate inside of rows, with latents that are Laplace and Gamma."""
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with pyro.plate("inner", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Laplace(0.0, 1.0))
            pyro.sample("x", dist.Binomial(3, logits=z - a + 1), obs=x)


def plates_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5 + 0 * x.mean(-1, keepdim=True)))
        with pyro.plate("inner", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x - 0.5 + 0 * a, 0.7))


def tokens_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.8])))
        logits = torch.stack([z[:, 0], z[:, 1], 0 * z[:, 0]], -1)
        pyro.sample("x", dist.Categorical(logits=logits), obs=x.long())


def tokens_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=torch.stack([x, 1 - x], -1)))


def hmm() -> Case:
    model = CategoricalHMM((6,), 3, 4)
    return Case(model, Exact(model), torch.randint(4, (30, 6)).float())


def mixture() -> Case:
    model = BernoulliMixture((6,), components=3)
    return Case(model, Exact(model), binary(60, 6))


def hierarchical() -> Case:
    model = HierarchicalVAE(SHAPE, (3, 2), NET, NET)
    return Case(model, TopDown(model, SHAPE, (3, 2), NET, NET), binary(40, *SHAPE))


def conditional() -> Case:
    c, x = torch.randint(10, (40,)), binary(40, *SHAPE)
    model = ConditionalVAE(SHAPE, 3, NET, context=Labels(10))
    return Case(model, MeanField(SHAPE, 3, NET, context=Labels(10)), (x, c), c)


def some_labels() -> Case:
    c, x = torch.randint(3, (40,)), binary(40, *SHAPE)
    c[:25] = -1
    return Case(SemiSupervisedVAE(SHAPE, 3, 3, NET), SemiSupervised(SHAPE, 3, 3, NET), (x, c), c)


def of_pixels() -> Case:
    shape = (3, 2, 3)
    decoder = AutoregressiveDecoder(NET, 4, layers=2, window=3)
    model = VAE(shape, 2, decoder, DiscretizedLogistic(8))
    return Case(model, MeanField(shape, 2, NET), levels(12, 7, *shape))


def of_tokens() -> Case:
    decoder = AutoregressiveDecoder(NET, 4, layers=2, window=3, categories=3)
    model = VAE((7,), 2, decoder, Categorical(3))
    return Case(model, MeanField((7,), 2, NET), torch.randint(3, (12, 7)).float())


def nothing(x: Tensor) -> None:
    """The guide of a model without latents."""


def by_row() -> Case:
    x = binary(20, *SHAPE)
    model = VAE(SHAPE, 3, NET)
    return Case(model, PerRow(MeanField(SHAPE, 3, NET), x), x)


def point_masses() -> Case:
    case = vae()
    guide = AutoDelta(case.model)
    with pyro.get_param_store().scope():
        guide(case.x)
    return Case(case.model, guide, case.x)


CASES: dict[str, Callable[[], Case]] = {
    "MeanField": vae,
    "FullCovariance": lambda: vae(FullCovariance),
    "LowRank": lambda: vae(LowRank),
    "MixtureOfGaussians": lambda: vae(MixtureOfGaussians),
    "DiagonalNormal": lambda: vae(prior=DiagonalNormal()),
    "MixturePrior": lambda: vae(prior=MixturePrior(3)),
    "VampPrior": lambda: vae(prior=VampPrior(components=4)),
    "AutoregressivePrior": lambda: vae(prior=AutoregressivePrior(0.5)),
    "HierarchicalVAE": hierarchical,
    "BetaBinomial": lambda: vae(likelihood=BetaBinomial(), x=levels(20, 255, *SHAPE)),
    "DiscretizedLogistic": lambda: vae(likelihood=DiscretizedLogistic(), x=levels(20, 255, *SHAPE)),
    "Binomial": lambda: vae(likelihood=Binomial(3), x=(3 * torch.rand(20, *SHAPE)).round()),
    "Categorical": lambda: vae(likelihood=Categorical(3), x=torch.randint(3, (20, *SHAPE)).float()),
    "AutoregressiveDecoder": of_pixels,
    "tokens": of_tokens,
    "no latents": lambda: Case(
        Autoregressive((3, 4), 3, (8,)), nothing, torch.randint(3, (20, 3, 4)).float()
    ),
    "CategoricalHMM": hmm,
    "BernoulliMixture": mixture,
    "CategoricalEncoder": lambda: Case(
        BernoulliMixture((6,), components=3), CategoricalEncoder((6,), 3, NET), binary(40, 6)
    ),
    "ConditionalVAE": conditional,
    "SemiSupervisedVAE": some_labels,
    "PerRow": by_row,
    "AutoDelta": point_masses,
    "plain": lambda: Case(plain_model, plain_guide, binary(40, 1, 5)),
    "steps in turns": lambda: Case(steps_model, steps_guide, binary(40, 4)),
    "plates": lambda: Case(plates_model, plates_guide, torch.randint(4, (30, 3)).double()),
    "copies": lambda: Case(tokens_model, tokens_guide, torch.randint(3, (40,)).float()),
}
DISCRETE = {"no latents", "CategoricalHMM", "BernoulliMixture", "CategoricalEncoder", "copies"}


def made(name: str) -> Case:
    torch.manual_seed(0)
    case = CASES[name]()
    with torch.no_grad():
        for program in (case.model, case.guide):
            if isinstance(program, torch.nn.Module) and name != "AutoDelta":
                for p in program.parameters():
                    p.add_(0.1 * torch.randn_like(p))
    return case


def rows_of(case: Case) -> Tensor:
    found: Tensor = case.x[0] if isinstance(case.x, tuple) else case.x
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_was_written_at_the_length_of_the_bound(name: str) -> None:
    case = made(name)
    file = compress(case.model, case.guide, case.x, progress=False)
    found = decompress(case.model, case.guide, file.data, context=case.context, progress=False)
    assert found.dtype == rows_of(case).dtype
    assert torch.equal(found, rows_of(case))
    coded = float(file.code_length.values.sum())
    assert file.payload_bits <= coded + file.initial_bits + 64
    assert file.payload_bits >= coded + file.initial_bits - 64
    parts = file.discretization + file.initial + file.coder + file.header
    total = file.expected_bits_per_dim.mean + parts
    assert total == pytest.approx(file.file_bits_per_dim, rel=1e-9)
    lost = file.discretization * file.num_values
    if name in DISCRETE:
        assert abs(lost) < 1e-6
    elif name != "AutoDelta":
        assert abs(lost) < 0.02  # bits for each row, by 16 bits for each latent
    assert file.context == (case.context != () if isinstance(case.context, tuple) else 1)


@pytest.mark.parametrize("name", ["BernoulliMixture", "CategoricalHMM"])
def test_with_the_exact_posterior_a_row_costs_its_evidence(name: str) -> None:
    case = made(name)
    file = compress(case.model, case.guide, case.x, progress=False)
    evidence = case.model.double().log_evidence(case.x.double())
    torch.testing.assert_close(
        file.code_length.values, -evidence.detach() / math.log(2), atol=1e-6, rtol=1e-6
    )
    assert abs(file.payload_bits - file.initial_bits - float(file.code_length.values.sum())) <= 64


def test_the_length_is_the_elbo_of_another_sampler() -> None:
    case = made("MeanField")
    which = torch.randint(10, (500,))
    file = compress(case.model, case.guide, case.x[which], progress=False)
    found = evaluate(
        case.model,
        case.guide,
        case.x[:10],
        num_samples=2000,
        method="guide",
        seed=1,
        progress=False,
    )
    gaps = file.elbo.values - found.elbo.values[which]
    assert abs(float(gaps.mean())) < 4 * float(gaps.std()) / math.sqrt(len(gaps))


@pytest.mark.parametrize("name", ["MeanField", "HierarchicalVAE", "MixtureOfGaussians"])
def test_a_finer_grid_costs_less(name: str) -> None:
    case = made(name)
    lost = []
    for bits in (1, 10):
        file = compress(case.model, case.guide, case.x, latent_bits=bits, progress=False)
        found = decompress(case.model, case.guide, file.data, progress=False)
        assert torch.equal(found, case.x)
        lost.append(file.discretization * file.num_values)
    assert 2 * abs(lost[1]) < 0.1 < 2 * abs(lost[0])


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_latents_are_draws_of_the_guide(at_once: int) -> None:
    """Each one, also the first of a row, which is popped from where the last number was pushed."""
    seen: list[Tensor] = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            seen.append(z)
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 + torch.zeros(len(x), 2), 1.3).to_event(1))

    compress(model, guide, binary(300), rows_at_once=at_once, progress=False)
    z = torch.cat([each for each in seen if each.dim() == 2])[-300:]
    u = scipy.stats.norm.cdf(z, 0.3, 1.3)
    for of_latent in u.T:
        assert scipy.stats.kstest(of_latent, "uniform").pvalue > 1e-3
    before, after = u[:-1, 0], u[1:, 0]
    assert abs(scipy.stats.spearmanr(before, after).statistic) < 4 / math.sqrt(300)


def test_a_thousand_random_pictures() -> None:
    torch.manual_seed(0)
    model = VAE((1, 8, 8), 4, NET, Bernoulli())
    guide = MeanField((1, 8, 8), 4, NET)
    x = binary(1000, 1, 8, 8)
    file = compress(model, guide, x, progress=False)
    assert torch.equal(decompress(model, guide, file.data, progress=False), x)
    # Nothing is known of them: one bit each, and what an untrained pair wastes.
    assert 1.0 <= file.file_bits_per_dim < 1.1
    assert file.payload_bits <= float(file.code_length.values.sum()) + file.initial_bits + 64
    for i in range(0, 1000, 100):  # and each in a file of its own
        alone = compress(model, guide, x[i : i + 1], progress=False)
        bits = float(alone.code_length.values)
        assert 8 * len(alone.data) <= bits + alone.initial_bits + alone.header_bits + 64
        assert torch.equal(decompress(model, guide, alone.data, progress=False), x[i : i + 1])


def test_initial_bits_do_not_grow_with_the_rows_nor_with_how_many_are_coded_at_once() -> None:
    case = made("MeanField")
    files = [
        compress(case.model, case.guide, case.x.repeat(n, 1, 1, 1), rows_at_once=k, progress=False)
        for n, k in ((1, 1), (4, 1), (4, 256))
    ]
    assert files[0].initial_bits == files[1].initial_bits
    assert files[2].initial_bits <= files[1].initial_bits + 64


def test_a_trained_pair_codes_in_fewer_bits_than_a_new_one() -> None:
    torch.manual_seed(0)
    x = binary(1, 12).repeat(64, 1)
    model, guide = VAE((12,), 2, NET), MeanField((12,), 2, NET)
    before = compress(model, guide, x, progress=False)
    fit(model, guide, x, max_epochs=40, learning_rate=0.02, seed=0, progress=False)
    after = compress(model, guide, x, progress=False)
    assert after.payload_bits < 0.5 * before.payload_bits
    assert torch.equal(decompress(model, guide, after.data, progress=False), x)


# -- distributions that are hard ---------------------------------------------------------------------------


def seen_as(p: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """A pair whose rows have a distribution that depends on a coin."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", p(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.3 + 0 * x.reshape(len(x), -1).sum(-1)))

    return model, guide


@pytest.mark.parametrize(
    "table",
    [
        [0.15, 0.69, 0.15],
        [1e-300, 1.0, 0.5],
        [1e-30, 1.0, 1e-30],
        [1.0, 1.0, 1e-300],
        [5e-324, 1.0],
        [1.0, 1.0],
        [1.0] * 4096,
        [1.0, *[1e-300] * 4095],
    ],
    ids=lambda table: f"{table[:3]} of {len(table)}",
)
def test_adversarial_likelihoods(table: list[float]) -> None:
    logits = torch.tensor(table, dtype=torch.float64).log()
    model, guide = seen_as(lambda z: dist.Categorical(logits=logits + z.unsqueeze(-1)))
    x = torch.arange(300) * 7919 % len(table)
    file = compress(model, guide, x, progress=False)
    assert torch.equal(decompress(model, guide, file.data, progress=False), x)
    leaked = 300 * len(table) * 2**-24 * 1.5  # each value has 2^-24 at least
    coded = float(file.code_length.values.sum())
    assert file.payload_bits <= coded + file.initial_bits + 64 + leaked


def test_latents_far_out_and_points() -> None:
    """q in the tails of the prior, wider than it, narrower than its intervals, and certain."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1)), obs=x)

    loc = torch.tensor([40.0, -40.0, 0.0, 1e6, 3.0, -1e-9])
    scale = torch.tensor([1e-3, 1.0, 1e9, 1e-6, 1e-12, 1e-30])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + 0 * x.unsqueeze(-1), scale).to_event(1))

    x = binary(50)
    file = compress(model, guide, x, progress=False)
    assert torch.equal(decompress(model, guide, file.data, progress=False), x)
    assert "the grid of the latents costs" in str(file)


def test_what_is_certain_costs_nothing() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])))
            logits = torch.stack([z - math.inf, 0.0 * z], -1)
            pyro.sample("x", dist.Categorical(logits=logits, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])))

    file = compress(model, guide, torch.ones(500), progress=False)
    assert file.payload_bits == file.initial_bits == 64
    assert torch.equal(decompress(model, guide, file.data, progress=False), torch.ones(500))
    with pytest.raises(PairError, match="at site 'x' the probability 0"):
        compress(model, guide, torch.zeros(500), progress=False)


@pytest.mark.parametrize("far", [0.0, 3.0, 20.0, 200.0])
def test_masses_of_intervals_in_both_tails(far: float) -> None:
    grid = Grid(10, torch.zeros(1).double(), torch.ones(1).double())
    edges = grid.edges(torch.zeros(1, 1).long(), 0, 8, slice(None))
    for sign in (-1.0, 1.0):
        p = dist.Normal(torch.tensor([[sign * far]]).double(), 0.7).to_event(1)
        masses = masses_of(p)
        assert masses is not None
        found = masses.of(slice(0, 1), edges, torch.zeros(1, 1).double())[0, 0]
        found = found / found.sum()
        low, high = edges[0, 0, :-1].numpy(), edges[0, 0, 1:].numpy()
        if sign > 0:  # the left tail of scipy is exact
            logs = scipy.stats.norm.logcdf(high, far, 0.7) + _log1m(
                scipy.stats.norm.logcdf(low, far, 0.7) - scipy.stats.norm.logcdf(high, far, 0.7)
            )
            expected = torch.from_numpy(logs).softmax(0)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
            right = found
    torch.testing.assert_close(left(far, edges), right.flip(0), rtol=1e-6, atol=1e-12)


def left(far: float, edges: Tensor) -> Tensor:
    masses = masses_of(dist.Normal(torch.tensor([[-far]]).double(), 0.7).to_event(1))
    assert masses is not None
    found = masses.of(slice(0, 1), edges, torch.zeros(1, 1).double())[0, 0]
    return found / found.sum()


def _log1m(logs: Any) -> Any:
    """log(1 - exp(logs))."""
    return torch.log1p(-torch.from_numpy(logs).exp()).numpy()


# -- files of others -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> tuple[Case, Compressed]:
    case = made("MeanField")
    return case, compress(case.model, case.guide, case.x, progress=False)


def read(case: Case, data: Any, **options: Any) -> Any:
    return decompress(case.model, case.guide, data, progress=False, **options)


def test_every_damage_is_found(written: tuple[Case, Compressed]) -> None:
    case, file = written
    data = file.data
    for place in range(5, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(ValueError, match="damaged or truncated"):
            read(case, damaged)
    for length in range(5, len(data)):
        with pytest.raises(ValueError, match="damaged or truncated"):
            read(case, data[:length])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read(case, data + bytes(4))
    for other in (b"", b"ppl", b"PK\3\4" + data, b"pplC" + data[4:]):
        with pytest.raises(ValueError, match="these bytes are no file of compress"):
            read(case, other)
    with pytest.raises(ValueError, match="has the version 2 of the format"):
        read(case, data[:4] + b"\2" + data[5:])
    with pytest.raises(TypeError, match="data must be the bytes of a file, got"):
        read(case, "text")
    assert torch.equal(read(case, memoryview(data)), case.x)


def fields(data: bytes) -> Iterator[tuple[int, str]]:
    """Where each field of the header is."""
    kinds = ["B"] * 4 + ["H"] + ["I"] * 5 + ["8s"]
    place = 4
    for kind in kinds:
        yield place, kind
        place += struct.calcsize("<" + kind)
    assert place == HEADER


def test_fields_of_strangers_are_not_believed(written: tuple[Case, Compressed]) -> None:
    """Even if the checksum is right."""
    case, file = written
    header, rest = file.data[:HEADER], file.data[HEADER + SEAL :]
    assert len(file.data) * 8 - file.payload_bits == file.header_bits
    for place, kind in fields(file.data):
        size = struct.calcsize("<" + kind)
        for new in (
            bytes(size),
            b"\1" + bytes(size - 1),
            b"\xff" * size,
            b"\xff" + bytes(size - 1),
        ):
            if header[place : place + size] == new:
                continue
            changed = header[:place] + new + header[place + size :]
            try:
                found = read(case, sealed(changed, rest))
            except ValueError:
                continue
            assert torch.equal(
                found, case.x
            )  # such as another limit of rows that are coded at once
    for shape in ((2**31,), (2**31, 2**31), (0,), (2, 3, 4, 5)):
        more = struct.pack(f"<3B{len(shape)}I", 0, 0, len(shape), *shape)
        changed = header[: HEADER - 12] + struct.pack("<I", len(more)) + header[HEADER - 8 :]
        with pytest.raises(ValueError, match=r"most_numbers|another pair"):
            read(case, sealed(changed, more + rest))
    with pytest.raises(ValueError, match=r"480 numbers, more than most_numbers=479: raise"):
        read(case, file.data, most_numbers=479)


def test_another_pair_is_found(written: tuple[Case, Compressed]) -> None:
    case, file = written
    model, guide = (made("MeanField") for _ in range(2))
    with torch.no_grad():
        next(model.model.parameters()).view(-1)[0].add_(1e-6)
        next(guide.guide.parameters()).view(-1)[0].add_(1e-6)
    others = [
        (model.model, case.guide),
        (case.model, guide.guide),
        (case.model, made("FullCovariance").guide),
        (VAE((5,), 3, NET), case.guide),
        (made("DiagonalNormal").model, case.guide),
        (plain_model, plain_guide),
    ]
    for one, two in others:
        with pytest.raises(ValueError, match="was written with another pair than this"):
            decompress(one, two, file.data, progress=False)


def test_another_program_with_the_same_sites_is_found() -> None:
    model, guide = seen_as(lambda z: dist.Bernoulli(0.2 + 0.5 * z))
    other, _ = seen_as(lambda z: dist.Bernoulli(0.3 + 0.5 * z))
    x = binary(200)
    data = compress(model, guide, x, progress=False).data
    with pytest.raises(ValueError, match="or the programs are others"):
        decompress(other, guide, data, progress=False)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_that_nobody_wrote_are_found(written: tuple[Case, Compressed], seed: int) -> None:
    """As if this machine rounded otherwise."""
    case, file = written
    beside = file.header_bits // 8
    rest = file.data[HEADER + SEAL : beside]
    noise = torch.randint(1, 256, (200 + 4 * seed,), generator=torch.Generator().manual_seed(seed))
    forged = sealed(file.data[:HEADER], rest + noise.byte().numpy().tobytes())
    with pytest.raises(ValueError, match="probabilities are rounded differently here"):
        read(case, forged)
    for empty in (b"", b"abc", bytes(8)):
        with pytest.raises(ValueError, match="rounded differently"):
            read(case, sealed(file.data[:HEADER], rest + empty))


def test_what_the_receiver_has_is_checked() -> None:
    case = made("ConditionalVAE")
    data = compress(case.model, case.guide, case.x, progress=False).data
    c = case.context
    with pytest.raises(ValueError, match="1 arguments that are not in the file, such as labels"):
        read(case, data)
    with pytest.raises(ValueError, match="another context"):
        read(case, data, context=(c + 1) % 10)
    with pytest.raises(ValueError, match=r"context must have the shape \(40,\)"):
        read(case, data, context=c[1:])
    assert torch.equal(read(case, data, context=[c.int()]), case.x[0])


def test_threads_and_modes_do_not_change_a_file(written: tuple[Case, Compressed]) -> None:
    case, file = written
    threads = torch.get_num_threads()
    before = [(p, p.dtype, p.requires_grad) for p in case.model.parameters()]
    try:
        torch.set_num_threads(2)
        with torch.inference_mode(), torch.autocast("cpu"):
            again = compress(case.model, case.guide, case.x, progress=False)
            assert again.data == file.data
            assert torch.equal(read(case, file.data), case.x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert before == [(p, p.dtype, p.requires_grad) for p in case.model.parameters()]
    assert case.model.training
    state = torch.get_rng_state()
    case.model.double()
    case.guide.double()
    assert torch.equal(read(case, file.data), case.x)
    case.model.float()
    case.guide.float()
    assert torch.equal(torch.get_rng_state(), state)


# -- what cannot be coded --------------------------------------------------------------------------------------


def observing(obs: Callable[[Tensor], Tensor], latent: Any = None) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        if latent is not None:
            latent()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(4, logits=z), obs=obs(x))

    def guide(x: Tensor) -> None:
        if latent is not None:
            latent()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.1 * x.reshape(len(x), -1).mean(-1), 1.0))

    return model, guide


def with_factor() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(4, logits=z), obs=x)
            pyro.factor("extra", x * 0.1)

    return model, observing(lambda x: x)[1]


def with_mask() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=cast(Any, x > 1)):
                pyro.sample("x", dist.Binomial(4, logits=z), obs=x)

    return model, observing(lambda x: x)[1]


def auxiliary() -> tuple[Any, Any]:
    model, _ = observing(lambda x: x)
    guide = AutoNormal(model)
    with pyro.get_param_store().scope():
        guide(torch.zeros(8))
    return model, guide


def pairs_of(case: Case) -> tuple[Any, Any]:
    return case.model, case.guide


COUNTS = torch.arange(8.0) % 5
REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any]], Tensor, str]] = {
    "normal pixels": (
        lambda: pairs_of(vae(likelihood=Gaussian())),
        torch.zeros(4, *SHAPE),
        r"site 'x' is Normal, which has a density.* Use a likelihood such as Bernoulli",
    ),
    "flow guide": (
        lambda: pairs_of(vae(InverseAutoregressive)),
        torch.zeros(4, *SHAPE),
        r"latent 'z' is FlowDistribution, .* MeanField",
    ),
    "flow prior": (
        lambda: pairs_of(vae(prior=FlowPrior(1, (4,)))),
        torch.zeros(4, *SHAPE),
        r"the prior of latent 'z' is FlowDistribution",
    ),
    "auxiliary draws": (
        auxiliary,
        COUNTS,
        r"the guide samples 'z_unconstrained', which the model does not",
    ),
    "factor": (with_factor, COUNTS, r"'extra' is a pyro.factor"),
    "mask": (with_mask, COUNTS, r"site 'x' has a mask: what it hides"),
    "shared latent": (
        lambda: observing(lambda x: x, lambda: pyro.sample("w", dist.Normal(0.0, 1.0))),
        COUNTS,
        r"latent 'w' is shared by all rows",
    ),
    "computed rows": (
        lambda: observing(lambda x: (4 * x).round()),
        COUNTS / 4,
        r"site 'x' .* A site has to observe the rows themselves",
    ),
    "a part of the rows": (
        lambda: observing(lambda x: x[:, 0]),
        COUNTS.reshape(4, 2),
        r"observes a part of argument 1 alone",
    ),
    "values that are nearly those": (
        lambda: pairs_of(vae(likelihood=DiscretizedLogistic())),
        torch.full((4, *SHAPE), 77 / 255) + 1e-7,
        r"row 0 has the value 0\.30.*, of which a reader would find 0\.30.*: give values that are exactly",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_coded_is_said(name: str) -> None:
    make, x, told = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(PairError, match=told) as error:
        compress(*make(), x, progress=False)
    assert "Trace Shapes" not in str(error.value)


def test_values_outside_of_the_support_are_found_first() -> None:
    case = made("MeanField")
    with pytest.raises(PairError, match="outside of the support of Bernoulli"):
        compress(case.model, case.guide, case.x + 0.5, progress=False)


def test_bad_options() -> None:
    case = made("MeanField")
    for options, told in (
        ({"latent_bits": 0}, "latent_bits"),
        ({"latent_bits": 21}, "latent_bits must be from 1 to 20, got 21"),
        ({"rows_at_once": 0}, "rows_at_once"),
        ({"rows_at_once": 2**16}, "rows_at_once must be from 1 to 65535"),
    ):
        with pytest.raises(ValueError, match=told):
            compress(case.model, case.guide, case.x, progress=False, **cast(Any, options))
    with pytest.raises(TypeError, match="must be tensors in memory"):
        compress(case.model, case.guide, [case.x, case.x], progress=False)
