"""Priors of codes: exact sums, what a code sees, draws step by step, and what `refit_prior` makes of them."""

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
from ppl_vae.codes import RandomStart, ResidualQuantizer, VectorQuantizer
from ppl_vae.distributions import Ancestral, PointMass
from ppl_vae.guides import MeanField, QuantizingEncoder
from ppl_vae.models import (
    VAE,
    VQVAE,
    ConditionalVQVAE,
    DiagonalNormal,
    IndependentCodes,
    MixturePrior,
    PixelCNNPrior,
    TransformerPrior,
    UniformCodes,
)
from ppl_vae.models.priors import CodePrior
from ppl_vae.networks import MLP, Attributes, Context, Labels, Slots
from ppl_vae.training import DivergenceError, PriorFit

LEARNED: dict[str, CodePrior] = {
    "PixelCNN": CODE_PRIORS["PixelCNNPrior"],
    "PixelCNN-window": PixelCNNPrior(channels=6, layers=2, window=1),
    "Transformer": CODE_PRIORS["TransformerPrior"],
}
learned = pytest.mark.parametrize("prior", LEARNED.values(), ids=LEARNED.keys())
SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((3, 3), 2),
    ((2, 2), 3),
    ((4,), 3),
    ((1, 2, 2), 3),
    ((2, 1, 2), 3),
    ((1, 2, 3), 2),
    ((1,), 5),
]
shapes = pytest.mark.parametrize(("positions", "codes"), SHAPES, ids=str)


def strong(
    prior: CodePrior, positions: Sequence[int], codes: int, context: Context | None = None
) -> Any:
    """A built prior in float64, in evaluation mode, whose codes depend much on each other."""
    built = prior.build_codes(positions, codes, context).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2.0)
    return built.requires_grad_(False)


def all_codes(positions: Sequence[int], codes: int) -> Tensor:
    rows = itertools.product(range(codes), repeat=math.prod(positions))
    return torch.tensor([*rows]).reshape(-1, *positions)


# -- the density -----------------------------------------------------------------------------------


@learned
@shapes
def test_the_probabilities_of_all_codes_sum_to_1(
    prior: CodePrior, positions: tuple[int, ...], codes: int
) -> None:
    p = strong(prior, positions, codes)()
    every = all_codes(positions, codes)
    log_p = p.log_prob(every)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(log_p.max() - log_p.min()) > 0.5
    assert (p.batch_shape, p.event_shape) == ((), positions)
    several = torch.stack([every, every.flip(0)])
    assert torch.allclose(p.log_prob(several), torch.stack([log_p, log_p.flip(0)]), atol=1e-12)
    assert p.expand((5,)).log_prob(every[:5]).shape == (5,)
    assert p.support.check(every).all()
    assert not p.support.check(every + codes).any()


@learned
@pytest.mark.parametrize("context", [Labels(3), Attributes(2)], ids=str)
def test_given_a_context_they_sum_to_1_for_each_value_of_it(
    prior: CodePrior, context: Context
) -> None:
    module = strong(prior, (2, 2), 3, context)
    c = torch.arange(3) if isinstance(context, Labels) else torch.randn(3, 2, dtype=torch.float64)
    every = all_codes((2, 2), 3)
    log_p = module(c).log_prob(every.unsqueeze(1))
    assert log_p.shape == (81, 3)
    assert torch.allclose(log_p.exp().sum(0), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert float((log_p[:, 0] - log_p[:, 1]).abs().max()) > 0.1
    for i in range(3):
        assert torch.allclose(module(c[i]).log_prob(every), log_p[:, i], atol=1e-12)
    assert module(c).sample((5,)).shape == (5, 3, 2, 2)


@learned
@shapes
def test_a_code_sees_those_before_it_by_the_jacobian(
    prior: CodePrior, positions: tuple[int, ...], codes: int
) -> None:
    """Of the logits of each code, by what is read of each: its vectors, all of them at once."""
    module = strong(prior, positions, codes)
    size = math.prod(positions)
    z = torch.randint(codes, (1, *positions))
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    shifts: dict[nn.Module, Tensor] = {}
    hooks = [
        table.register_forward_hook(lambda table, _, out: out + shifts[table]) for table in tables
    ]
    shapes = [_shape_of_output(module, table, z, shifts) for table in tables]

    def logits(*moved: Tensor) -> Tensor:
        shifts.update(zip(tables, moved, strict=True))
        found: Tensor = module.logits(z, None).reshape(size, codes)
        return found

    zeros = tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    slopes: Any = torch.autograd.functional.jacobian(logits, zeros)
    for hook in hooks:
        hook.remove()
    seen = torch.zeros(size, size, dtype=torch.bool)
    for slope in slopes:
        of_codes = slope.reshape(size, codes, *slope.shape[3:])  # without the row
        each = _by_code(of_codes, positions)
        seen[:, : each.shape[1]] |= each
    before = torch.arange(size)[:, None] > torch.arange(size)
    if isinstance(prior, PixelCNNPrior) and prior.window is not None:
        before &= _near(positions, prior.window)
    assert torch.equal(seen, before)


def _shape_of_output(
    module: Any, table: nn.Module, z: Tensor, shifts: dict[nn.Module, Tensor]
) -> torch.Size:
    found: list[torch.Size] = []
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            shifts[each] = torch.zeros((), dtype=torch.float64)
    hook = table.register_forward_hook(lambda _, __, out: found.append(out.shape))
    module.logits(z, None)
    hook.remove()
    return found[0] if found else torch.Size([1, 0, 1])


def _by_code(slope: Tensor, positions: Sequence[int]) -> Tensor:
    """Which of the vectors that were read have a slope, `(codes, vectors)`, in the order of the codes."""
    size, depth = math.prod(positions), positions[2] if len(positions) == 3 else 1
    moved = (slope != 0).flatten(2, -2).any(-1).any(1)  # (size, vectors)
    if moved.shape[1] == size - size // depth and depth > 1:  # all but the last of each position
        full = torch.zeros(size, size // depth, depth, dtype=torch.bool)
        full[..., :-1] = moved.reshape(size, -1, depth - 1)
        moved = full.reshape(size, size)
    return moved


def _near(positions: Sequence[int], window: int) -> Tensor:
    grid = (1, *positions) if len(positions) == 1 else tuple(positions)
    depth = grid[2] if len(grid) == 3 else 1
    row = torch.arange(grid[0])[:, None, None].expand(*grid[:2], depth).flatten()
    column = torch.arange(grid[1])[None, :, None].expand(*grid[:2], depth).flatten()
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    return (rows <= window) & (columns <= window)


@learned
@shapes
def test_a_changed_code_changes_no_logits_before_the_next_one(
    prior: CodePrior, positions: tuple[int, ...], codes: int
) -> None:
    module = strong(prior, positions, codes)
    z = torch.randint(codes, (20, *positions))
    logits = module.logits(z, None).flatten(1, -2)
    for i in range(math.prod(positions)):
        changed = z.flatten(1).clone()
        changed[:, i] = (changed[:, i] + 1) % codes
        found = module.logits(changed.reshape(z.shape), None).flatten(1, -2)
        assert torch.equal(found[:, : i + 1], logits[:, : i + 1])


@pytest.mark.parametrize("positions", [(2, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("context", [None, Labels(3)], ids=str)
@pytest.mark.parametrize("name", CODE_PRIORS)
def test_every_parameter_gets_a_gradient(
    name: str, context: Context | None, positions: tuple[int, ...]
) -> None:
    module = CODE_PRIORS[name].build_codes(positions, 3, context)
    z, c = torch.randint(3, (64, *positions)), torch.arange(64) % 3
    p = module() if context is None else module(c)
    assert p.log_prob(z).shape == (64,)
    if name == "UniformCodes":
        assert not list(module.parameters())
        return
    p.log_prob(z).sum().backward()
    for parameter, weights in module.named_parameters():
        assert weights.grad is not None, parameter
        assert bool((weights.grad != 0).any()), parameter


# -- draws -----------------------------------------------------------------------------------------


@learned
@shapes
@pytest.mark.parametrize("context", [None, Labels(3)], ids=str)
def test_steps_have_the_probabilities_of_a_full_pass(
    prior: CodePrior, positions: tuple[int, ...], codes: int, context: Context | None
) -> None:
    """Steps that are told which codes to choose, so that both see the same ones; also in training mode."""
    module = strong(prior, positions, codes, context)
    z = torch.randint(codes, (30, *positions))
    given = None if context is None else context(torch.arange(30) % 3).double()
    full = module.logits(z, given).flatten(1, -2)
    steps: list[Tensor] = []

    def told(logits: Tensor) -> Tensor:
        steps.append(logits.expand(30, codes))
        return z.flatten(1)[:, len(steps) - 1]

    module.train()
    assert torch.equal(module.draw(30, given, told), z)
    assert torch.allclose(torch.stack(steps, 1), full, rtol=0, atol=1e-11)


@learned
def test_draws_are_as_probable_as_the_density_says(
    prior: CodePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = strong(prior, (2, 2), 2)
    probabilities = module().log_prob(all_codes((2, 2), 2)).exp()
    monkeypatch.setattr(type(module), "logits", None)  # no full pass is made
    z = module().sample((4000,))
    number = (z.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = number.bincount(minlength=16)
    chi2 = float(((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum())
    assert chi2 < 37.7  # one time in a thousand for 15 degrees of freedom


@learned
def test_dropout_is_for_training_alone(prior: CodePrior) -> None:
    module = prior.build_codes((3, 3), 2)
    z = torch.randint(2, (50, 3, 3))
    first, again = (module().log_prob(z) for _ in range(2))
    assert not torch.equal(first, again)
    module.eval()
    first, again = (module().log_prob(z) for _ in range(2))
    assert torch.equal(first, again)


# -- refit_prior -----------------------------------------------------------------------------------


class Copied(nn.Module):
    """A model whose rows are noisy copies of their codes; rows may come with what the prior sees."""

    def __init__(self, prior: CodePrior, positions: Sequence[int], codes: int) -> None:
        super().__init__()
        self.data_shape = tuple(positions)
        self.prior = prior.build_codes(positions, codes)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z.double(), 1.0).to_event(len(self.data_shape)), obs=x)


class Certain(nn.Module):
    """The guide that reads the codes from the rows."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            each: Any = PointMass(x.long(), self.codes)
            pyro.sample("z", each.to_event(x.dim() - 1))


class Soft(nn.Module):
    """The guide that draws each code: the row's with probability 0.9, the next one with 0.1."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, x: Tensor) -> None:
        eye = torch.eye(self.codes, dtype=torch.float64)
        probs = (0.9 * eye + 0.1 * eye.roll(1, 1))[x.long()]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(probs).to_event(x.dim() - 1))


def chain(steps: int, codes: int = 3, stay: float = 0.8) -> tuple[Tensor, Tensor]:
    """All sequences of a Markov chain that mostly stays where it is, and their log-probabilities."""
    every = all_codes((steps,), codes)
    moves = torch.full((codes, codes), (1 - stay) / (codes - 1), dtype=torch.float64)
    moves.fill_diagonal_(stay)
    log_p = moves.log()[every[:, :-1], every[:, 1:]].sum(1) - math.log(codes)
    return every, log_p


def drawn(every: Tensor, log_p: Tensor, n: int) -> Tensor:
    return every[torch.multinomial(log_p.exp(), n, replacement=True)].double()


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(PixelCNNPrior(channels=16, layers=2, dropout=0.0), marks=pytest.mark.slow),
        TransformerPrior(width=16, layers=2, heads=2, dropout=0.0),
    ],
    ids=["PixelCNN", "Transformer"],
)
def test_the_rate_of_a_fitted_prior_is_near_the_entropy(prior: CodePrior) -> None:
    """The codes of a Markov chain cost H nats, and the prior wastes the KL: sums over all codes."""
    every, log_p = chain(3)
    entropy = -float((log_p.exp() * log_p).sum())
    assert entropy < 0.75 * 3 * math.log(3)  # much less than independent codes cost
    model, guide = Copied(IndependentCodes(), (3,), 3), Certain(3)
    x, others = drawn(every, log_p, 4000), drawn(every, log_p, 3000)
    options: Any = {"max_epochs": 10, "learning_rate": 1e-2, "batch_size": 250, "seed": 0}
    refitted = refit_prior(model, guide, x, prior, validation=others, **options)
    found: PriorFit = refitted.prior.fitted
    with torch.no_grad():
        log_q = refitted.prior.eval()().log_prob(every)
    waste = float((log_p.exp() * (log_p - log_q)).sum())
    assert 0 <= waste < 0.005
    assert found.validation_rate is not None
    cost = -log_q[(others.long() * torch.tensor([9, 3, 1])).sum(1)].double()
    assert torch.allclose(found.validation_rate.values, cost, atol=1e-5)
    error = found.validation_rate.standard_error
    assert found.validation_rate.mean == pytest.approx(entropy + waste, abs=4 * error)
    assert found.history[found.best_epoch - 1]["validation_rate"] == found.validation_rate.mean


def test_a_prior_that_is_never_better_than_its_start_is_told() -> None:
    """It is returned as it began: by its history it has stopped early."""
    every, log_p = chain(8, 2, 0.75)
    torch.manual_seed(0)
    model, guide = Copied(IndependentCodes(), (8,), 2).double(), Certain(2)
    x, others = (drawn(every, log_p, n) for n in (40, 200))
    prior = TransformerPrior(width=8, layers=1, heads=2)
    options: Any = {"max_epochs": 3, "learning_rate": 30.0, "batch_size": 20, "seed": 0}
    found: PriorFit = refit_prior(model, guide, x, prior, validation=others, **options).prior.fitted
    assert found.best_epoch == 0
    (told,) = found.warnings
    assert "in no epoch below that of the start" in told
    assert "give a smaller learning_rate" in told
    better = refit_prior(
        model, guide, x, prior, validation=others, **options | {"learning_rate": 1e-2}
    )
    assert better.prior.fitted.best_epoch > 0
    assert not any("start" in told for told in better.prior.fitted.warnings)


def test_it_stops_before_it_overfits_and_keeps_the_best_weights() -> None:
    """A large prior that learns 40 rows by heart."""
    every, log_p = chain(8, 2, 0.75)
    torch.manual_seed(0)
    model, guide = Copied(IndependentCodes(), (8,), 2).double(), Certain(2)
    x, others = (drawn(every, log_p, n) for n in (40, 200))
    prior = TransformerPrior(width=32, layers=2, heads=2, dropout=0.0)
    options: Any = {"validation": others, "learning_rate": 2e-3, "batch_size": 20, "seed": 0}
    refitted = refit_prior(model, guide, x, prior, max_epochs=100, patience=4, **options)
    found: PriorFit = refitted.prior.fitted
    held_out = [row["validation_rate"] for row in found.history]
    assert 2 < found.best_epoch < 100
    assert held_out[found.best_epoch - 1] == min(held_out)
    assert len(held_out) == found.best_epoch + 4
    with torch.no_grad():
        rate = -refitted.prior.eval()().log_prob(others.long()).mean()
    assert found.validation_rate is not None
    assert float(rate) == pytest.approx(min(held_out), abs=1e-10)
    assert found.validation_rate.mean == pytest.approx(min(held_out), abs=1e-10)
    assert not found.warnings
    # Without patience it goes on to learn the rows by heart; what is kept is the same.
    longer = refit_prior(model, guide, x, prior, max_epochs=40, patience=40, **options).prior.fitted
    assert longer.best_epoch == found.best_epoch
    assert longer.history[: len(held_out)] == found.history
    assert longer.validation_rate.mean == found.validation_rate.mean
    assert longer.history[-1]["validation_rate"] > found.validation_rate.mean + 0.5
    assert longer.history[-1]["rate"] < longer.rate.mean - 0.5


def test_a_tenth_is_held_out_if_nothing_else_is_given() -> None:
    every, log_p = chain(4)
    model, guide = Copied(IndependentCodes(), (4,), 3).double(), Certain(3)
    prior = PixelCNNPrior(channels=4, layers=1)
    state = torch.get_rng_state()
    x = drawn(every, log_p, 200)
    torch.set_rng_state(state)
    found = refit_prior(model, guide, x, prior, max_epochs=2, seed=0).prior.fitted
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(found.rate.values), len(found.validation_rate.values)) == (180, 20)
    assert [row["epoch"] for row in found.history] == [1, 2]
    assert "rate, held-out rows" in str(found)
    assert found.to_dict()["epochs"] == 2
    assert any("still falling" in text for text in found.warnings)


def test_independent_codes_are_counted() -> None:
    torch.manual_seed(0)
    x = torch.randint(3, (50, 2, 2)).double()
    model = Copied(IndependentCodes(), (2, 2), 3).double()
    refitted = refit_prior(model, Certain(3), x, IndependentCodes(pseudocount=0.5))
    counts = torch.stack([(x == k).sum(0) for k in range(3)], -1).double() + 0.5
    expected = counts / counts.sum(-1, keepdim=True)
    assert torch.allclose(refitted.prior().base_dist.probs, expected, atol=1e-12)
    found = refitted.prior.fitted
    assert found.validation_rate is None
    assert found.history == []
    chosen = expected.log().expand(50, 2, 2, 3).gather(-1, x.long().unsqueeze(-1))
    assert torch.allclose(found.rate.values, -chosen.sum((1, 2, 3)), atol=1e-12)


def test_soft_codes_are_drawn_several_times() -> None:
    """The aggregate posterior of independent codes is that of the rows, mixed with its neighbor."""
    torch.manual_seed(0)
    x = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 2000, replacement=True).double()[:, None]
    model = Copied(IndependentCodes(), (1,), 3).double()
    refitted = refit_prior(model, Soft(3), x, IndependentCodes(), num_draws=50, seed=0)
    shares = torch.stack([(x == k).double().mean(0) for k in range(3)], -1)
    expected = 0.9 * shares + 0.1 * shares.roll(1, -1)
    assert torch.allclose(refitted.prior().base_dist.probs, expected, atol=5e-3)
    assert len(refitted.prior.fitted.rate.values) == 2000 * 50


def test_the_prior_learns_the_rows_of_an_iterable() -> None:
    """Batches of a loader, for the rows and for those held out."""
    every, log_p = chain(2)
    model, guide = Copied(IndependentCodes(), (2,), 3), Certain(3)
    x = drawn(every, log_p, 300)
    loaders: Any = [torch.utils.data.DataLoader(part, batch_size=70) for part in (x, x[:90])]  # type: ignore[arg-type]
    whole, in_parts = (
        refit_prior(model, guide, rows, IndependentCodes(), validation=others)
        for rows, others in ((x, x[:90]), loaders)
    )
    assert torch.equal(whole.prior.logits, in_parts.prior.logits)
    held_out = in_parts.prior.fitted.validation_rate
    assert torch.equal(held_out.values, whole.prior.fitted.validation_rate.values)
    assert torch.equal(held_out.values, whole.prior.fitted.rate.values[:90])


# -- VQ-VAEs ---------------------------------------------------------------------------------------

NETWORK = Slots(4, MLP(hidden=(8,)))
ROWS = 60


def quantizer(depth: int = 1) -> VectorQuantizer | ResidualQuantizer:
    if depth == 1:
        return VectorQuantizer(codes=3, dim=2, start=RandomStart())
    return ResidualQuantizer(codes=3, dim=2, depth=depth, start=RandomStart())


def rows() -> tuple[Tensor, Tensor]:
    """Binary rows of three classes, which differ."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % 3
    centers = torch.rand(3, 6, generator=generator)
    return torch.bernoulli(centers[labels], generator=generator), labels


def vqvae(prior: CodePrior | None = None, depth: int = 1) -> tuple[VQVAE, QuantizingEncoder]:
    torch.manual_seed(1)
    model = VQVAE((6,), quantizer(depth), NETWORK, prior=prior)
    guide = QuantizingEncoder(model, NETWORK)
    with torch.no_grad():
        for weight in guide.encoder.parameters():
            weight.mul_(3.0)  # so that rows have several codes
    return model, guide


def conditional(prior: CodePrior | None = None) -> tuple[ConditionalVQVAE, QuantizingEncoder]:
    torch.manual_seed(1)
    model = ConditionalVQVAE((6,), quantizer(), NETWORK, prior=prior, context=Labels(3))
    guide = QuantizingEncoder(model, NETWORK)
    with torch.no_grad():
        for weight in guide.encoder.parameters():
            weight.mul_(3.0)
    return model, guide


@pytest.mark.slow(but=("PixelCNN-2", "Transformer-1"))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "prior",
    [IndependentCodes(), PixelCNNPrior(channels=8, layers=2), TransformerPrior(8, 1, 2)],
    ids=["counts", "PixelCNN", "Transformer"],
)
def test_the_elbo_rises_by_what_the_rate_falls(prior: CodePrior, depth: int) -> None:
    model, guide = vqvae(depth=depth)
    x, _ = rows()
    before = evaluate(model, guide, x)
    assert before.rate.mean == pytest.approx(4 * depth * math.log(3), abs=1e-5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    refitted = refit_prior(
        model, guide, x, prior, validation=x, max_epochs=12, learning_rate=1e-2, batch_size=20
    )
    after = evaluate(refitted, guide, x)
    distortion, expected = (each.distortion.values.double() for each in (after, before))
    assert torch.allclose(distortion, expected, atol=1e-6)
    found: PriorFit = refitted.prior.fitted
    assert torch.allclose(after.rate.values.double(), found.rate.values, atol=1e-5)
    drop = before.rate.mean - found.rate.mean
    assert drop > 0.5
    assert after.elbo.mean - before.elbo.mean == pytest.approx(drop, abs=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(PixelCNNPrior(8, 2, dropout=0.0), marks=pytest.mark.slow),
        TransformerPrior(8, 1, 2, dropout=0.0),
        IndependentCodes(),
    ],
    ids=["PixelCNN", "Transformer", "counts"],
)
def test_of_rows_with_labels_it_is_the_conditional_rate(prior: CodePrior) -> None:
    """Each label has its own probabilities of all codes, and the rate is the mean over rows of theirs."""
    model, guide = conditional()
    x, labels = rows()
    assert evaluate(model, guide, (x, labels)).rate.mean == pytest.approx(4 * math.log(3), abs=1e-5)
    options: Any = {"max_epochs": 20, "learning_rate": 1e-2, "batch_size": 20, "seed": 0}
    refitted = refit_prior(model, guide, (x, labels), prior, validation=(x, labels), **options)
    every = all_codes((4,), 3)
    with torch.no_grad():
        table = refitted.prior.eval()(torch.arange(3)).log_prob(every.unsqueeze(1))
        z = guide.codes(x)
    assert torch.allclose(table.exp().sum(0), torch.ones(3), atol=1e-5)
    number = (z * torch.tensor([27, 9, 3, 1])).sum(1)
    expected = -table[number, labels]
    after = evaluate(refitted, guide, (x, labels))
    assert torch.allclose(after.rate.values.float(), expected, atol=1e-5)
    # The labels tell something: the same prior without them costs more.
    plain, its_guide = vqvae()
    alone = refit_prior(plain, its_guide, x, prior, validation=x, **options).prior.fitted
    assert refitted.prior.fitted.rate.mean < alone.rate.mean - 0.1
    # Draws of wanted labels have the probabilities of these labels.
    wanted = torch.arange(3).repeat_interleave(1000)
    refitted.eval()
    found, latents = sample(refitted, 3000, given={"c": wanted}, return_latents=True, seed=0)
    assert found.shape == (3000, 6)
    drawn = (latents["z"] * torch.tensor([27, 9, 3, 1])).sum(1)
    for label in range(3):
        shares = drawn[wanted == label].bincount(minlength=81) / 1000
        p = table[:, label].exp()
        error = (p * (1 - p) / 1000).sqrt()
        assert bool(((shares - p).abs() < 5 * error + 2e-3).all())


def test_soft_codes_of_rows_with_labels_are_drawn_several_times() -> None:
    """The table of a label is the mean of its rows' q(z | x)."""
    model, _ = conditional()
    guide = QuantizingEncoder(model, NETWORK, temperature=1.0)
    x, labels = rows()
    prior = IndependentCodes(pseudocount=1e-9)
    refitted = refit_prior(model, guide, (x, labels), prior, num_draws=500, seed=0)
    q: Any = guide.encode(x)
    for label in range(3):
        expected = q.base_dist.probs[labels == label].mean(0)
        found = refitted.prior(torch.tensor(label)).base_dist.probs
        assert torch.allclose(found, expected, atol=0.025)  # five standard errors of 10,000 draws
    assert len(refitted.prior.fitted.rate.values) == ROWS * 500


def test_a_conditional_pair_trains_with_its_prior() -> None:
    model, guide = conditional(PixelCNNPrior(channels=4, layers=2))
    x, labels = rows()
    before = {name: p.detach().clone() for name, p in model.prior.named_parameters()}
    fit(model, guide, (x, labels), max_epochs=3, batch_size=20, seed=0, progress=False)
    for name, parameter in model.prior.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("name", ["PixelCNN", "Transformer"])
def test_few_codes_are_summed_over_and_each_has_its_share_of_the_rate(name: str) -> None:
    """log p(x | c) is a sum over 81 grids, and code i costs -log p(z_i | z_1, ..., z_{i-1})."""
    model, guide = conditional(LEARNED[name])
    with torch.no_grad():
        for weight in model.prior.parameters():
            weight.mul_(2.0)
    x, labels = rows()
    model.eval()
    every = all_codes((4,), 3)
    with torch.no_grad():
        log_prior = model.prior(labels).log_prob(every.unsqueeze(1))
        log_p = log_prior + model.decode(every.unsqueeze(1)).log_prob(x)
        z = guide.codes(x)
        of_codes = -model.prior(labels).conditionals(z).base_dist.log_prob(z)
    found = evaluate(model, guide, (x, labels))
    assert torch.allclose(found.log_likelihood.values.float(), log_p.logsumexp(0), atol=1e-4)
    rate = diagnose(model, guide, (x, labels)).rate.values
    assert torch.allclose(rate.float(), of_codes.sum(1), atol=1e-4)
    assert float(rate.mean()) == pytest.approx(found.rate.mean, abs=1e-4)


def test_counted_codes_of_each_label() -> None:
    torch.manual_seed(0)
    z, c = torch.randint(3, (90, 2)), torch.arange(90) % 3
    prior: Any = IndependentCodes(pseudocount=1.0).build_codes((2,), 3, Labels(3))
    prior.fit_to_codes(z, c)
    for label in range(3):
        of_label = z[c == label]
        counts = torch.stack([(of_label == k).sum(0) for k in range(3)], -1) + 1.0
        expected = counts / counts.sum(-1, keepdim=True)
        found = prior(torch.tensor([label, label])).base_dist.probs
        assert torch.allclose(found, expected.expand(2, 2, 3), atol=1e-6)


def test_uniform_codes_ignore_the_label() -> None:
    prior = UniformCodes().build_codes((2, 2), 3, Labels(5))
    p = prior(torch.arange(5))
    assert p.batch_shape == (5,)
    assert torch.allclose(p.log_prob(p.sample()), torch.full((5,), -4 * math.log(3)))


def test_a_run_with_the_new_prior_is_saved_and_loaded(tmp_path: Path) -> None:
    model, guide = vqvae()
    x, _ = rows()
    refitted = refit_prior(model, guide, x, PixelCNNPrior(channels=4, layers=1), max_epochs=2)
    save_run(tmp_path / "run", refitted, guide)
    loaded: Any = load_run(tmp_path / "run").model
    z = torch.randint(3, (9, 4))
    with torch.no_grad():
        expected = refitted.prior.eval()().log_prob(z)
        assert torch.equal(loaded.prior.eval()().log_prob(z), expected)


def test_so_is_one_with_a_new_prior_of_vectors(tmp_path: Path) -> None:
    model, guide = gaussian()
    refitted = refit_prior(model, guide, rows()[0], MixturePrior(3), seed=0)
    save_run(tmp_path / "run", refitted, guide)
    loaded: Any = load_run(tmp_path / "run").model
    z = torch.randn(9, 2)
    with torch.no_grad():
        assert torch.equal(loaded.prior().log_prob(z), refitted.prior().log_prob(z))


def test_it_is_an_ancestral_distribution() -> None:
    model, _ = vqvae(PixelCNNPrior(channels=4, layers=1), depth=2)
    p = model.prior()
    assert isinstance(p, Ancestral)
    assert p.event_shape == (4, 2)
    assert sample(model, 7).shape == (7, 6)


# -- what is wrong ---------------------------------------------------------------------------------


def gaussian() -> tuple[VAE, MeanField]:
    return VAE((6,), 2), MeanField((6,), 2)


X, Y = rows()

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "vectors for codes": (
        lambda: refit_prior(*vqvae(), X, MixturePrior(2)),
        TypeError,
        r"are codes, whole numbers from 0 to 2, and MixturePrior is a density of vectors: choose Indep",
    ),
    "codes for vectors": (
        lambda: refit_prior(*gaussian(), X, PixelCNNPrior()),
        TypeError,
        r"PixelCNNPrior is a prior of codes.* not codes at one site \(z\): choose DiagonalNormal\(\)",
    ),
    "nothing to fit": (
        lambda: refit_prior(*vqvae(), X, UniformCodes()),
        TypeError,
        "UniformCodes has no numbers that could be fitted",
    ),
    "validation of vectors": (
        lambda: refit_prior(*gaussian(), X, DiagonalNormal(), validation=X),
        ValueError,
        "validation is for priors of codes, and DiagonalNormal is none",
    ),
    "one row": (
        lambda: refit_prior(*vqvae(), X[:1], PixelCNNPrior()),
        ValueError,
        "there is only 1 row",
    ),
    "no epochs": (
        lambda: refit_prior(*vqvae(), X, PixelCNNPrior(), max_epochs=0),
        ValueError,
        "max_epochs must be at least 1",
    ),
    "no rows in a batch": (
        lambda: refit_prior(*vqvae(), X, PixelCNNPrior(), batch_size=0),
        ValueError,
        "batch_size must be at least 1",
    ),
    "a learning rate of 0": (
        lambda: refit_prior(*vqvae(), X, PixelCNNPrior(), learning_rate=0.0),
        ValueError,
        "learning_rate must be positive",
    ),
    "steps that are too large": (
        lambda: refit_prior(*vqvae(), X, TransformerPrior(8, 1, 1), learning_rate=1e30),
        DivergenceError,
        r"NaN or infinite in epoch \d of refit_prior: give a smaller learning_rate than 1e\+30",
    ),
    "a class": (
        lambda: refit_prior(*vqvae(), X, PixelCNNPrior),  # type: ignore[arg-type]
        TypeError,
        "got the class PixelCNNPrior",
    ),
    "vectors in a VQVAE": (
        lambda: VQVAE((6,), quantizer(), NETWORK, prior=MixturePrior(2)),  # type: ignore[arg-type]
        TypeError,
        "VQVAE.prior must be an object such as UniformCodes",
    ),
    "codes in a VAE": (
        lambda: VAE((6,), 2, prior=PixelCNNPrior()),  # type: ignore[arg-type]
        TypeError,
        "VAE.prior must be an object such as StandardNormal",
    ),
    "counts of attributes": (
        lambda: IndependentCodes().build_codes((2,), 3, Attributes(2)),
        TypeError,
        "counts the codes of each label",
    ),
    "no label": (
        lambda: PixelCNNPrior().build_codes((2,), 3, Labels(2))(),
        TypeError,
        r"built with Labels\(classes=2\): pass c, what the rows come with",
    ),
    "a label too many": (
        lambda: TransformerPrior().build_codes((2,), 3)(torch.zeros(2)),
        TypeError,
        "built without a context",
    ),
    "four dimensions": (
        lambda: PixelCNNPrior().build_codes((2, 2, 2, 2), 3),
        ValueError,
        r"got positions of shape \(2, 2, 2, 2\)",
    ),
    "heads that do not share": (
        lambda: TransformerPrior(width=10, heads=4),
        ValueError,
        "width must be a multiple of heads = 4, got 10",
    ),
    "all is hidden": (
        lambda: TransformerPrior(dropout=1.0),
        ValueError,
        r"TransformerPrior.dropout must be at least 0 and less than 1, got 1.0",
    ),
    "hidden by a text": (
        lambda: PixelCNNPrior(dropout="0.1"),  # type: ignore[arg-type]
        TypeError,
        "PixelCNNPrior.dropout must be a number",
    ),
    "a negative window": (
        lambda: PixelCNNPrior(window=-1),
        ValueError,
        "PixelCNNPrior.window must be at least 0",
    ),
    "no layers": (
        lambda: TransformerPrior(layers=0),
        ValueError,
        "TransformerPrior.layers must be at least 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        call()
