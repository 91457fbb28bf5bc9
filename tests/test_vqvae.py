"""Codes as the latent of a pair: gradients by hand, and bounds beside sums over all codes."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from catalogue import LIKELIHOODS
from sklearn.decomposition import PCA
from torch import Tensor, nn
from vector_quantize_pytorch import SimVQ as OtherSimVQ, VectorQuantize

from ppl_vae import check, evaluate, fit
from ppl_vae.capture.recording import record
from ppl_vae.codes import (
    EMA,
    FSQ,
    LFQ,
    CodebookLearner,
    Gradient,
    KMeansStart,
    Quantizer,
    RandomStart,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.compression import compress, decompress
from ppl_vae.distributions import PointMass
from ppl_vae.guides import HierarchicalQuantizingEncoder, QuantizingEncoder
from ppl_vae.models import (
    VQVAE,
    VQVAE2,
    CodePrior,
    IndependentCodes,
    PixelCNNPrior,
    TransformerPrior,
    UniformCodes,
)
from ppl_vae.networks import MLP, ConvolutionalGrid, GridNetwork, GridPyramid, Slots
from ppl_vae.objectives import ELBO, MeanFieldELBO, QuantizedELBO, TraceELBO
from ppl_vae.pairs import Pair, PairError, find_layout

MARK: Any = {"quantizes": "vector"}
SLOTS = Slots(4, MLP(hidden=(8,), activation=nn.Tanh))


def pair_of(
    quantizer: Quantizer, network: GridNetwork = SLOTS, temperature: float = 0.0, **options: Any
) -> tuple[Any, Any]:
    model = VQVAE((1, 4, 4), quantizer, network, **options)
    return model, QuantizingEncoder(model, network, temperature)


def still(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair in evaluation mode, in which no codebook moves."""
    model, guide = pair
    return model.eval(), guide.eval()


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows(n: int = 12) -> Tensor:
    return (torch.rand(n, 1, 4, 4) > 0.5).to(torch.get_default_dtype())


def loss_of(model: Any, guide: Any, x: Tensor, objective: QuantizedELBO, beta: float = 1.0) -> Any:
    pair = Pair(model, guide)
    with pair.scope():
        return objective(pair, find_layout(pair, x), x, beta)


def plain(codes: int, dim: int, learner: CodebookLearner) -> VectorQuantizer:
    return VectorQuantizer(codes, dim, learner, RandomStart(), restarts=0)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("commitment", [0.0, 0.25, 3.0])
def test_the_gradient_goes_straight_through(commitment: float) -> None:
    model, guide = pair_of(plain(5, 3, Gradient()))
    x = rows()
    kept: dict[str, Tensor] = {}
    vectors_of = guide.vectors

    def keeping(x: Tensor) -> Tensor:
        kept["L"] = vectors_of(x)
        if kept["L"].requires_grad:
            kept["L"].retain_grad()
        return kept["L"]

    guide.vectors = keeping
    loss = loss_of(model, guide, x, QuantizedELBO(commitment=commitment)).loss
    loss.backward()
    given = kept["L"]
    n, z, vectors = len(x), guide.codes(x), given.detach()
    points = model.quantizer.points().detach()
    # The decoder's gradient at the codes' vectors, by hand.
    read = points[z].requires_grad_()
    (-model.decode_vectors(read).log_prob(x).sum() / n).backward()
    assert read.grad is not None
    by_hand = read.grad + 2 * commitment * (vectors - points[z]) / n
    torch.testing.assert_close(given.grad, by_hand)
    of_codes = torch.zeros_like(points)
    for k in range(5):
        of_codes[k] = 2 * (points[k] - vectors[z == k]).sum(0) / n
    torch.testing.assert_close(model.quantizer.codebook.points.grad, of_codes)
    expected = (
        -model.decode(z).log_prob(x).mean()
        + 4 * math.log(5)
        + (1 + commitment) * (vectors - points[z]).square().sum() / n
    )
    torch.testing.assert_close(loss, expected)


def test_a_running_codebook_has_no_gradient_and_no_term_in_the_loss() -> None:
    model, guide = still(pair_of(plain(5, 3, EMA())))
    x = rows()
    with_term = loss_of(model, guide, x, QuantizedELBO(commitment=0.5))
    z, vectors = guide.codes(x), guide.vectors(x)
    apart = (vectors - model.quantizer.embed(z)).square().sum() / len(x)
    torch.testing.assert_close(with_term.loss.detach(), (-with_term.elbo + 0.5 * apart).detach())


class Looked(nn.Module):
    """Vectors that are parameters, quantized, and rows that are normal around a linear map of the codes."""

    def __init__(self, quantizer: Quantizer, n: int, positions: int) -> None:
        super().__init__()
        self.quantizer: Any = quantizer
        self.vectors = nn.Parameter(torch.randn(n, positions, quantizer.dim))
        self.register_buffer("map", torch.randn(positions * quantizer.dim, 7))

    def density(self, read: Tensor) -> Any:
        return dist.Normal(read.flatten(-2) @ self.map, 1.0).to_event(1)  # type: ignore[operator]

    def model(self, x: Tensor) -> None:
        positions, codes = self.vectors.shape[1], self.quantizer.codes
        with pyro.plate("rows", len(x)):
            uniform = dist.Categorical(torch.ones(positions, codes) / codes).to_event(1)
            z = pyro.sample("z", uniform)
            read = pyro.deterministic("vector", self.quantizer.embed(z), event_dim=2)
            pyro.sample("x", self.density(read), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            projected = self.quantizer.project(self.vectors)
            vector = pyro.deterministic("vector", projected, event_dim=2)
            q = PointMass(self.quantizer.nearest(vector), self.quantizer.codes)
            pyro.sample("z", dist.Independent(q, 1), infer=MARK)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
@pytest.mark.parametrize("name", ["EMA", "cosine", "Gradient", "SimVQ"])
def test_losses_and_gradients_are_those_of_another_library(name: str, gradient: Any) -> None:
    """Ours sums over the numbers of a row, and weighs the encoder's term alone; it takes the mean over all.

    For a codebook of parameters it has one weight for both terms, and no angles: the weight is 1 then.
    """
    n, positions, codes, dim = 20, 3, 8, 4
    rotates = gradient == "rotation"
    learner = {"Gradient": Gradient(), "SimVQ": SimVQ()}.get(name, EMA())
    quantizer: Any = VectorQuantizer(
        codes, dim, learner, RandomStart(), restarts=0, cosine=name == "cosine"
    )
    commitment = 1.0 if name == "Gradient" else 0.6
    other: Any
    if name == "SimVQ":
        with torch.no_grad():
            quantizer.codebook.map.weight.normal_()
        other = OtherSimVQ(
            dim, codes, rotation_trick=rotates, input_to_quantize_commit_loss_weight=commitment
        )
        other.frozen_codebook.copy_(quantizer.codebook.basis)
        other.code_transform.load_state_dict(quantizer.codebook.map.state_dict())
        of_both = [quantizer.codebook.map.weight, other.code_transform.weight]
    else:
        learns = name == "Gradient"
        other = VectorQuantize(
            dim,
            codes,
            use_cosine_sim=name == "cosine",
            rotation_trick=rotates,
            commitment_weight=commitment,
            learnable_codebook=learns,
            ema_update=not learns,
        )
        with torch.no_grad():
            other._codebook.embed.copy_(quantizer.points()[None])
        of_both = [next(each.parameters()) for each in (quantizer, other)] if learns else []
    looked, x = Looked(quantizer, n, positions), torch.randn(n, 7)
    found = loss_of(
        looked.model, looked.guide, x, QuantizedELBO(commitment=commitment, gradient=gradient)
    )
    ours = torch.autograd.grad(found.loss, [looked.vectors, *of_both[:1]])

    vectors = looked.vectors.detach().requires_grad_()
    read, z, lost = other.train()(vectors)
    assert torch.equal(z, quantizer.nearest(quantizer.project(vectors)))
    assert len(z.unique()) > 4
    distortion = -looked.density(read).log_prob(x).mean()
    torch.testing.assert_close(found.distortion, distortion.detach(), rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(distortion + positions * dim * lost, [vectors, *of_both[1:]])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two.reshape(one.shape), rtol=1e-4, atol=1e-5)
    of_codes = float(positions * dim * lost.detach())
    of_codes *= 2 if name == "Gradient" else 1  # here both terms have their value, there it is one
    rate = positions * math.log(codes)
    expected = float(found.distortion) + rate + of_codes
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_beta_weighs_the_rate(beta: float) -> None:
    model, guide = still(pair_of(plain(5, 3, EMA()), prior=IndependentCodes()))
    with torch.no_grad():
        model.prior.logits.normal_()
    found = loss_of(model, guide, rows(), QuantizedELBO(commitment=0.0), beta)
    torch.testing.assert_close(found.loss.detach(), found.distortion + beta * found.rate)
    torch.testing.assert_close(found.elbo, -(found.distortion + found.rate))


@pytest.mark.usefixtures("in_double")
def test_the_rate_is_the_prior_of_the_codes_and_the_bound_holds() -> None:
    """4^4 joint codes: log p(x) by their sum; the gap is -log p(z | x) of the one that the guide chooses."""
    model, guide = pair_of(plain(4, 2, EMA()), prior=IndependentCodes())
    with torch.no_grad():
        model.prior.logits.normal_()
    x = rows()
    every = torch.tensor(list(itertools.product(range(4), repeat=4)))
    with torch.no_grad():
        joint = model.decode(every[:, None]).log_prob(x) + model.prior().log_prob(every)[:, None]
        z = guide.codes(x)
        log_posterior = (joint - joint.logsumexp(0)).gather(0, _number(z)[None])[0]
    found = evaluate(model, guide, x)
    torch.testing.assert_close(found.rate.values, -model.prior().log_prob(z).detach())
    torch.testing.assert_close(
        found.log_likelihood.values, joint.logsumexp(0)
    )  # exact: they are few
    torch.testing.assert_close(found.log_likelihood.values - found.elbo.values, -log_posterior)
    assert bool((found.elbo.values <= found.log_likelihood.values).all())


def _number(z: Tensor) -> Tensor:
    return (z * 4 ** torch.arange(3, -1, -1)).sum(-1)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("several", [False, True], ids=["VQVAE", "VQVAE2"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_elbo_of_each_likelihood_is_log_p_of_the_row_and_of_its_codes(
    name: str, several: bool
) -> None:
    """The codes are certain: log p(x | z) + log p(z), in training, too."""
    make, data = LIKELIHOODS[name]
    quantizer, prior = plain(5, 3, Gradient()), IndependentCodes()
    model: Any
    guide: Any
    if several:
        pyramid = GridPyramid(6, halvings=(1, 1), blocks=1)
        model = VQVAE2((1, 4, 4), [quantizer, FSQ((3, 2))], pyramid, make(), prior)
        guide = HierarchicalQuantizingEncoder(model, pyramid)
    else:
        model, guide = pair_of(quantizer, likelihood=make(), prior=prior)
    tables = [p for n, p in model.prior.named_parameters() if n.endswith("logits")]
    with torch.no_grad():
        for table in tables:
            table.normal_()
    x = data(torch.rand(12, 1, 4, 4)).double()
    found = guide.codes(x)
    codes = list(found) if several else [found]
    log_prior = sum(
        table.log_softmax(-1).expand(12, *table.shape).gather(-1, z[..., None]).flatten(1).sum(1)
        for table, z in zip(tables, codes, strict=True)
    )
    by_hand = (still((model, guide))[0].decode(*codes).log_prob(x) + log_prior).detach()
    torch.testing.assert_close(evaluate(model, guide, x).elbo.values, by_hand)
    mean = model.decode(*codes).mean.detach()
    model.train()
    guide.train()
    if name == "OptimalGaussian":  # the noise of the batch
        variance = (x - mean).square().mean()
        by_hand = -8 * (2 * math.pi * variance).log() - 8 + log_prior.detach()
    loss = loss_of(model, guide, x, QuantizedELBO())
    torch.testing.assert_close(loss.elbo.detach(), by_hand.mean())
    loss.loss.backward()
    of_decoder = [each.grad for each in model.decoder.parameters()]
    assert all(each is not None and bool(each.isfinite().all()) for each in of_decoder)
    if name == "OptimalGaussian":
        assert float(model.likelihood.variance) == pytest.approx(float(variance))


def test_of_many_codes_the_elbo_is_exact_and_log_p_is_not_claimed() -> None:
    model, guide = pair_of(plain(16, 2, EMA()))
    x = rows()
    found = evaluate(model, guide, x, num_samples=100, seed=0)
    z = guide.codes(x)
    exact = model.decode(z).log_prob(x) - 4 * math.log(16)
    torch.testing.assert_close(found.elbo.values, exact.detach().double(), check_dtype=False)
    assert bool(found.log_likelihood.values.isnan().all())
    assert found.certain
    assert not bool(found.unreliable.any())
    text = str(found)
    assert "log p(x)            at least the ELBO" in text
    assert f"at most {-float(found.elbo.mean) / 16 / math.log(2):.4f}, by the ELBO" in text
    assert "the guide puts all of its mass on one value of 'z'" in text
    assert "warning" not in text
    again = evaluate(model, guide, x, num_samples=7)
    assert torch.equal(found.elbo.values, again.elbo.values)


class Stranger(nn.Module):
    """A vector-quantized autoencoder in plain Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 6), nn.Linear(6, 16)
        self.codebook = nn.Parameter(torch.randn(3, 2))

    def model(self, x: Tensor) -> None:
        pyro.module("stranger", self)
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.Independent(dist.Categorical(torch.ones(3, 3) / 3), 1))
            vector = pyro.deterministic("vector", self.codebook[code], event_dim=2)
            logits = self.decoder(vector.flatten(-2)).unflatten(-1, (1, 4, 4))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            vector = self.encoder(x.flatten(1)).unflatten(-1, (3, 2))
            vector = pyro.deterministic("vector", vector, event_dim=2)
            nearest = torch.cdist(vector, self.codebook).argmin(-1)
            q = dist.Independent(PointMass(nearest, 3), 1)
            pyro.sample("code", q, infer=MARK)


def test_a_pair_in_plain_pyro_is_trained_and_evaluated() -> None:
    stranger, x = Stranger(), rows(64)
    assert not check(stranger.model, stranger.guide, x).problems
    before = evaluate(stranger.model, stranger.guide, x).elbo.mean
    found = fit(stranger.model, stranger.guide, x, max_epochs=60, learning_rate=0.02)
    assert not found.warnings
    after = evaluate(stranger.model, stranger.guide, x)
    assert after.elbo.mean > before + 1
    assert "27 joint values" in str(after)


def test_the_default_objective_is_the_quantized_one_and_others_are_told_apart() -> None:
    model, guide = pair_of(plain(5, 3, EMA()))
    assert isinstance(ELBO(beta=0.5).resolve(Pair(model, guide), rows()), QuantizedELBO)
    with pytest.raises(PairError, match="passes no gradient through that"):
        fit(model, guide, rows(), objective=TraceELBO(), max_epochs=1)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_the_decoder_reads_the_codes_exactly(gradient: Any) -> None:
    model, guide = still(pair_of(plain(5, 3, EMA())))
    read: list[Tensor] = []
    model.decoder.register_forward_hook(lambda module, given, out: read.append(given[0]))
    x = rows()
    loss_of(model, guide, x, QuantizedELBO(gradient=gradient))
    assert torch.equal(read[-1], model.quantizer.embed(guide.codes(x)))


def test_a_rotated_gradient_is_another_gradient() -> None:
    def gradient(kind: Any) -> Tensor:
        torch.manual_seed(0)
        model, guide = pair_of(plain(5, 3, EMA()))
        loss_of(model, guide, rows(), QuantizedELBO(gradient=kind, commitment=0.0)).loss.backward()
        return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])

    assert not torch.allclose(gradient("straight-through"), gradient("rotation"), rtol=0.1)


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "EMA": lambda: VectorQuantizer(6, 3, start=KMeansStart(steps=2)),
    "Gradient": lambda: VectorQuantizer(6, 3, Gradient(), KMeansStart(steps=2)),
    "SimVQ": lambda: VectorQuantizer(6, 3, SimVQ(), KMeansStart(steps=2)),
    "cosine": lambda: VectorQuantizer(6, 3, Gradient(), KMeansStart(steps=2), cosine=True),
    "FSQ": lambda: FSQ((4, 3)),
    "LFQ": lambda: LFQ(bits=3),
    "residual": lambda: ResidualQuantizer(4, 3, 2, start=KMeansStart(steps=2)),
}


@pytest.mark.slow(but=("EMA", "FSQ"))
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_recorded_training_is_that_of_pyro(name: str) -> None:
    def trained(capture: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, guide = pair_of(QUANTIZERS[name](), ConvolutionalGrid(6, 1, 1))
        x = rows(64)
        found = fit(model, guide, x, max_epochs=6, batch_size=16, seed=0, capture=capture)
        assert not found.warnings
        return {**model.state_dict(), **{f"guide.{k}": v for k, v in guide.state_dict().items()}}

    recorded, run = trained(True), trained(False)
    for each, value in run.items():
        torch.testing.assert_close(recorded[each], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_recording_waits_until_the_codebook_has_begun(
    depth: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = KMeansStart(steps=30)
    quantizer = (
        VectorQuantizer(6, 3, start=start)
        if depth == 1
        else ResidualQuantizer(4, 3, 2, start=start)
    )
    model, guide = pair_of(quantizer)
    recorded: list[bool] = []

    def noted(*args: Any) -> Any:
        levels = quantizer.levels if isinstance(quantizer, ResidualQuantizer) else [quantizer]
        recorded.append(any(level.is_starting for level in levels))
        return record(*args)

    monkeypatch.setattr("ppl_vae.capture.step.record", noted)
    with caplog.at_level(logging.WARNING):
        fit(model, guide, rows(64), max_epochs=15, batch_size=16, seed=0)
    assert recorded == [False]
    assert not caplog.records


@pytest.mark.parametrize("name", ["EMA", pytest.param("Gradient", marks=pytest.mark.slow)])
def test_a_training_that_goes_on_is_the_one_that_was_not_interrupted(
    name: str, tmp_path: Any
) -> None:
    def trained(*epochs: int, folder: str) -> dict[str, Tensor]:
        x = (torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
        for until in epochs:
            torch.manual_seed(0)
            model, guide = pair_of(QUANTIZERS[name](), ConvolutionalGrid(6, 1, 1))
            fit(
                model,
                guide,
                x,
                max_epochs=until,
                batch_size=16,
                seed=0,
                run_dir=tmp_path / folder,
                resume=until != epochs[0],
            )
        return {**model.state_dict(), **{f"guide.{k}": v for k, v in guide.state_dict().items()}}

    whole, parts = trained(5, folder="a"), trained(2, 5, folder="b")
    for each, value in whole.items():
        assert torch.equal(parts[each], value), each


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_drawn_codes_have_their_entropy_in_the_bound(temperature: float) -> None:
    model, guide = still(pair_of(plain(3, 2, EMA()), temperature=temperature))
    x = rows(4)
    q = guide.encode(x).base_dist
    assert isinstance(q, dist.Categorical)
    squared = (guide.vectors(x)[..., None, :] - model.quantizer.points()).square().sum(-1)
    torch.testing.assert_close(q.probs, (-squared / temperature).softmax(-1))
    found = evaluate(model, guide, x)  # a sum over 3^4 codes
    kl = (q.probs * (q.logits + math.log(3))).sum((-1, -2))
    torch.testing.assert_close(found.rate.values, kl.detach())
    # The gradient of the encoder is that of the analytic KL, where the likelihood says nothing.
    loss = loss_of(model, guide, x, QuantizedELBO(commitment=0.0))
    torch.testing.assert_close(loss.rate, kl.mean().detach())
    parameters = list(guide.parameters())
    of_rate = torch.autograd.grad(kl.mean(), parameters)
    many = [
        torch.autograd.grad(
            loss_of(model, guide, x, QuantizedELBO(commitment=0.0), 1e6).loss, parameters
        )
        for _ in range(2)
    ]
    for found_, again, expected in zip(*many, of_rate, strict=True):
        torch.testing.assert_close(found_ / 1e6, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(again / 1e6, expected, rtol=1e-3, atol=1e-5)


def test_an_objective_without_a_term_for_drawn_codes_names_the_site() -> None:
    prior = PixelCNNPrior(channels=4, layers=1)
    model, guide = pair_of(plain(5, 3, EMA()), temperature=1.0, prior=prior)
    words = r"site 'z' has no analytic KL \(Categorical from Ancestral\).* use ELBO \(the default\)"
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False), pytest.raises(PairError, match=words):
        MeanFieldELBO()(pair, find_layout(pair, rows()), rows())


def test_several_particles_are_their_mean() -> None:
    model, guide = still(pair_of(plain(5, 3, EMA())))
    x = rows()
    one, many = (loss_of(model, guide, x, QuantizedELBO(num_particles=k)) for k in (1, 3))
    torch.testing.assert_close(one.loss, many.loss)
    torch.testing.assert_close(one.rate, many.rate)


@pytest.mark.parametrize("optimizer", [None, torch.optim.RMSprop], ids=str)
@pytest.mark.parametrize("learner", [Gradient(rate=7.0), SimVQ(rate=0.2)], ids=str)
def test_a_codebook_has_a_step_size_of_its_own(learner: Any, optimizer: Any) -> None:
    """The first step of Adam is the step size times the gradient's sign, and that of RMSprop 10 times it."""
    model, guide = pair_of(plain(2, 3, learner))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, guide, rows(), optimizer=optimizer, learning_rate=1e-3, max_epochs=1, seed=0)
    step = 1e-3 if optimizer is None else 1e-2
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max()
        rate = learner.rate if "codebook" in name else 1.0
        torch.testing.assert_close(moved, torch.tensor(step * rate), rtol=1e-3, atol=0)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("name", ["vector", "FSQ", "residual"])
def test_the_uses_of_an_epoch_are_those_of_all_its_rows(name: str, capture: bool) -> None:
    kinds: dict[str, Quantizer] = {
        "vector": plain(9, 3, Gradient()),
        "FSQ": FSQ((2, 2, 3)),
        "residual": ResidualQuantizer(4, 3, 2, Gradient(), RandomStart(), restarts=0),
    }
    quantizer = kinds[name]
    model, guide = pair_of(quantizer)
    x = rows(64)
    found = fit(model, guide, x, max_epochs=5, batch_size=16, learning_rate=1e-12, capture=capture)
    z = guide.codes(x).reshape(-1, quantizer.depth)
    counts = torch.cat([each.bincount(minlength=quantizer.codes) for each in z.T]).double()
    p = counts / counts.sum()
    for row in found.history:
        assert row["codes_used"] == int((counts > 0).sum())
        assert row["perplexity"] == pytest.approx(float((-torch.special.xlogy(p, p).sum()).exp()))


# -- files -----------------------------------------------------------------------------------------------

CODE_PRIORS: dict[str, CodePrior] = {
    "uniform": UniformCodes(),
    "independent": IndependentCodes(),
    "PixelCNN": PixelCNNPrior(channels=8, layers=2),
    "Transformer": TransformerPrior(width=8, layers=1, heads=2),
}


@pytest.mark.slow(but=("1-PixelCNN", "2-Transformer"))
@pytest.mark.parametrize("prior", CODE_PRIORS)
@pytest.mark.parametrize("depth", [1, 2])
def test_rows_are_written_at_their_elbo(prior: str, depth: int) -> None:
    """q is certain, so that no bits come back: -log2 p(z) - log2 p(x | z) of each row, exactly."""
    quantizer = ResidualQuantizer(4, 3, 2, start=RandomStart()) if depth > 1 else plain(6, 3, EMA())
    network = ConvolutionalGrid(6, 1, 1)
    model, guide = still(pair_of(quantizer, network, prior=CODE_PRIORS[prior]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = rows(40)
    file = compress(model, guide, x)
    assert torch.equal(decompress(model, guide, file.data), x)
    bits = -evaluate(model, guide, x).elbo.values.double() / math.log(2)
    torch.testing.assert_close(file.code_length.values.double(), bits, rtol=1e-5, atol=1e-5)
    assert file.payload_bits <= float(bits.sum()) + file.initial_bits + 64


def test_rows_of_several_levels_are_written_at_their_elbo() -> None:
    model, guide = still(levels(5, 3))
    x = (torch.rand(20, 1, 8, 8) > 0.5).float()
    file = compress(model, guide, x)
    assert torch.equal(decompress(model, guide, file.data), x)
    bits = -evaluate(model, guide, x).elbo.values.double() / math.log(2)
    torch.testing.assert_close(file.code_length.values.double(), bits, rtol=1e-5, atol=1e-5)


# -- several levels --------------------------------------------------------------------------------------


def levels(*codes: int, learner: CodebookLearner = EMA()) -> tuple[Any, Any]:  # frozen
    """Codes on grids of 4 x 4, 2 x 2 and so on, for rows of 8 x 8."""
    network = GridPyramid(6, halvings=(1,) * len(codes), blocks=1)
    model = VQVAE2((1, 8, 8), [plain(k, 2, learner) for k in codes], network)
    return model, HierarchicalQuantizingEncoder(model, network)


@pytest.mark.parametrize("codes", [(5, 3), (5, 4, 3)], ids=str)
def test_the_rate_of_several_levels_is_the_sum_of_theirs(codes: tuple[int, ...]) -> None:
    model, guide = still(levels(*codes))
    x = (torch.rand(6, 1, 8, 8) > 0.5).float()
    found = evaluate(model, guide, x)
    sizes = [(8 // 2 ** (i + 1)) ** 2 for i in range(len(codes))]
    rate = sum(size * math.log(k) for size, k in zip(sizes, codes, strict=True))
    torch.testing.assert_close(
        found.rate.values, torch.full((6,), rate).double(), rtol=1e-6, atol=0
    )
    likelihood = model.decode(*guide.codes(x)).log_prob(x).detach()
    torch.testing.assert_close(found.distortion.values, -likelihood.double())


def test_the_lower_level_is_chosen_by_what_is_above() -> None:
    model, guide = still(levels(64, 3))
    x = (torch.rand(6, 1, 8, 8) > 0.5).float()
    features = guide.encoder.features(x)
    vectors = [
        guide.encoder.vectors(0, features, guide.encoder.context(1, above, None))
        for above in (torch.zeros(6, 2, 2, 2), torch.ones(6, 2, 2, 2))
    ]
    assert not torch.allclose(*vectors)
    z1, z2 = guide.codes(x)
    above = guide.encoder.context(1, model.quantizer(1).embed(z2), None)
    lowest = guide.encoder.vectors(0, features, above)
    assert torch.equal(model.quantizer(0).nearest(lowest), z1)


@pytest.mark.usefixtures("in_double")
def test_gradients_go_straight_through_both_levels() -> None:
    """The top vectors get the decoder's gradient, and that of the lower vectors, which are computed from C."""
    model, guide = levels(5, 3, learner=Gradient())
    x = (torch.rand(6, 1, 8, 8) > 0.5).double()
    commitment = 0.5
    loss_of(model, guide, x, QuantizedELBO(commitment=commitment)).loss.backward()
    found = [p.grad.clone() for p in guide.parameters()]
    # By hand: what each level reads is the code plus (L - sg(L)).
    features, n = guide.encoder.features(x), len(x)
    top = guide.encoder.vectors(1, features, None)
    c_top = model.quantizer(1).embed(model.quantizer(1).nearest(top)).detach()
    context = guide.encoder.context(1, c_top + top - top.detach(), None)
    low = guide.encoder.vectors(0, features, context)
    c_low = model.quantizer(0).embed(model.quantizer(0).nearest(low)).detach()
    p = model.decode_vectors(c_low + low - low.detach(), c_top + top - top.detach())
    squares = (low - c_low).square().sum() + (top - c_top).square().sum()
    loss = (-p.log_prob(x).sum() + commitment * squares) / n
    by_hand = torch.autograd.grad(loss, list(guide.parameters()))
    for each, expected in zip(found, by_hand, strict=True):
        torch.testing.assert_close(each, expected)


def test_levels_that_do_not_fit_are_told() -> None:
    network = GridPyramid(6, halvings=(1, 1), blocks=1)
    with pytest.raises(ValueError, match="one for each of the 2 levels of the network, got 1"):
        VQVAE2((1, 8, 8), [FSQ((3, 3))], network)
    with pytest.raises(ValueError, match="one code per vector, but ResidualQuantizer has 2"):
        VQVAE2((1, 8, 8), [FSQ((3, 3)), ResidualQuantizer()], network)
    with pytest.raises(ValueError, match="multiples of 4, got 6 x 8"):
        VQVAE2((1, 6, 8), None, network)
    with pytest.raises(ValueError, match="for one level take ConvolutionalGrid"):
        GridPyramid(halvings=(2,))
    model = VQVAE2((1, 8, 8), None, network)
    with pytest.raises(ValueError, match=r"grids of \(\(4, 4\), \(2, 2\)\), but the guide's"):
        HierarchicalQuantizingEncoder(model, GridPyramid(6, halvings=(2, 1)))
    with pytest.raises(TypeError, match="needs a model with quantizers"):
        HierarchicalQuantizingEncoder(nn.Linear(2, 2), network)


# -- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(("halvings", "blocks"), [(0, 1), (1, 0), (2, 2), (3, 1)])
def test_a_vector_depends_on_the_pixels_in_its_radius(
    halvings: int, blocks: int, patches: bool
) -> None:
    network = ConvolutionalGrid(16, halvings, blocks, patches)
    stride, size = network.stride, 16 * network.stride
    encoder = network.grid_encoder((1, size, size), 3).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    encoder(x)[0, 8, 8].sum().backward()
    assert x.grad is not None
    reached = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    first, last = 8 * stride - network.radius, 9 * stride - 1 + network.radius
    assert (int(reached.min()), int(reached.max())) == (first, last)
    decoder: Any = network.grid_decoder(3, (1, 1, size, size)).double()
    vectors = torch.randn(1, 16, 16, 3, dtype=torch.float64, requires_grad=True)
    decoder(vectors)[0, 0, 0, 8 * stride : 9 * stride, 8 * stride : 9 * stride].sum().backward()
    assert vectors.grad is not None
    positions = vectors.grad[0].abs().sum((0, 2)).nonzero().flatten()
    beside = max(8 - int(positions.min()), int(positions.max()) - 8)
    assert beside <= decoder.radius if not patches else beside == decoder.radius


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(
    ("halvings", "blocks"), [((1, 1), 0), ((2, 1), 1), ((1, 2), 0), ((1, 1, 1), 1)], ids=str
)
def test_the_codes_of_all_levels_depend_on_the_pixels_in_the_radius(
    halvings: tuple[int, ...], blocks: int, patches: bool
) -> None:
    network = GridPyramid(12, halvings, blocks, patches)
    strides, dims = network.strides, [3] * len(halvings)
    stride, at = strides[-1], 15
    size = (2 * at + 1) * stride
    encoder: Any = network.encoder((1, size, size), dims).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    features, above = encoder.features(x), None
    total = torch.zeros((), dtype=torch.float64)
    for i in reversed(range(len(strides))):
        vectors = encoder.vectors(i, features, above)
        here = slice(at * stride // strides[i], (at + 1) * stride // strides[i])
        total = total + vectors[:, here, here].sum()
        above = encoder.context(i, vectors, above) if i else None
    total.backward()
    assert x.grad is not None
    reached = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    beside = (at * stride - int(reached.min()), int(reached.max()) - (at + 1) * stride + 1)
    assert max(beside) == encoder.radius < at * stride
    decoder: Any = network.decoder(dims, (1, 1, size, size)).double()
    z: list[Any] = [
        torch.randn(1, size // s, size // s, 3, dtype=torch.float64, requires_grad=True)
        for s in strides
    ]
    pixels = slice(at * stride, (at + 1) * stride)
    decoder(*z)[0, 0, 0, pixels, pixels].sum().backward()
    far = [0]
    for vectors, s in zip(z, strides, strict=True):
        lines = vectors.grad[0].abs().sum((0, 2)).nonzero().flatten() * s // stride
        far += [at - int(lines.min()), int(lines.max()) - at]
    assert max(far) == decoder.radius


def test_a_pyramid_with_patches_has_a_way_without_a_relu() -> None:
    """With the residual blocks silent, codes of all levels are linear in a patch, and pixels in the codes."""
    network = GridPyramid(12, (2, 1), blocks=2, patch_embedding=True)
    encoder, decoder = network.encoder((3, 16, 16), (5, 4)), network.decoder((5, 4), (1, 3, 16, 16))
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if "second" in name:  # the way out of a residual block
            nn.init.zeros_(parameter)
    x, y = torch.randn(2, 1, 3, 16, 16)
    above = torch.randn(1, 12, 4, 4)

    def lowest(rows: Tensor) -> Tensor:
        found: Tensor = encoder.vectors(0, encoder.features(rows), above)
        return found

    def pictures(vectors: Tensor) -> Tensor:
        found: Tensor = decoder(vectors, torch.zeros(1, 2, 2, 4))
        return found

    for of, a, b in ((lowest, x, y), (pictures, *torch.randn(2, 1, 4, 4, 5))):
        torch.testing.assert_close(of((a + b) / 2), (of(a) + of(b)) / 2, atol=1e-5, rtol=0)
        assert float((of(a) - of(b)).detach().abs().max()) > 0.1
    convolutional = GridPyramid(12, (2, 1), blocks=2).encoder((3, 16, 16), (5, 4))
    a, b, mean = (
        convolutional.vectors(0, convolutional.features(rows), above)
        for rows in (x, y, (x + y) / 2)
    )
    assert float((mean - (a + b) / 2).detach().abs().max()) > 1e-3


def test_what_a_pyramid_cannot_be_is_told() -> None:
    for patches in (False, True):
        network = GridPyramid(10**9, patch_embedding=patches)
        with pytest.raises(
            ValueError, match=r"GridPyramid would hold .*choose fewer GridPyramid.ch"
        ):
            network.encoder((3, 16, 16), (4, 4))
        with pytest.raises(ValueError, match=r"GridPyramid would hold .*or smaller dims"):
            GridPyramid(8, patch_embedding=patches).decoder((4, 10**12), (1, 3, 16, 16))
    with pytest.raises(TypeError, match=r"GridPyramid.patch_embedding"):
        GridPyramid(patch_embedding=1)  # type: ignore[arg-type]
    encoder = GridPyramid(8).encoder((3, 16, 16), (4, 4))
    with pytest.raises(
        ValueError, match=r"built for pictures of shape \(3, 16, 16\), but the input"
    ):
        encoder.features(torch.rand(2, 1, 16, 16))


def test_patches_are_a_linear_map_away_from_pca() -> None:
    """Without blocks the encoder is a linear map of each patch: here onto its principal axes."""
    torch.manual_seed(0)
    network = ConvolutionalGrid(channels=12, halvings=1, blocks=0, patch_embedding=True)
    x = torch.randn(300, 3, 8, 8, dtype=torch.float64)
    x[:, :, ::2] += x[:, :, 1::2]
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).movedim(1, 3).reshape(-1, 12)  # (c, row, column)
    pca = PCA(5).fit(patches.numpy())
    encoder: Any = network.grid_encoder((3, 8, 8), 5).double()
    cut, head = encoder.net[1], encoder.net[-1]
    with torch.no_grad():
        cut.weight.copy_(torch.eye(12).reshape(12, 12, 1, 1))
        cut.bias.copy_(-torch.from_numpy(pca.mean_))
        head.weight.copy_(torch.from_numpy(pca.components_).reshape(5, 12, 1, 1))
        head.bias.zero_()
        found = encoder(x)
    expected = torch.from_numpy(pca.transform(patches.numpy())).reshape(300, 4, 4, 5)
    torch.testing.assert_close(found, expected)


def test_networks_of_a_grid_take_pictures_of_other_sizes() -> None:
    network = ConvolutionalGrid(4, 2, 1)
    encoder, decoder = network.grid_encoder((3, 8, 8), 5), network.grid_decoder(5, (2, 3, 8, 8))
    vectors = encoder(torch.rand(7, 2, 3, 16, 12))
    assert vectors.shape == (7, 2, 4, 3, 5)
    assert decoder(vectors).shape == (7, 2, 2, 3, 16, 12)
    with pytest.raises(ValueError, match=r"built for pictures of shape \(3, 8, 8\)"):
        encoder(torch.rand(2, 1, 8, 8))


# -- what is wrong ---------------------------------------------------------------------------------------


def test_what_is_wrong_is_told() -> None:
    model, guide = pair_of(plain(5, 3, EMA()))
    with pytest.raises(ValueError, match="multiples of 4, got 6 x 8"):
        VQVAE((1, 6, 8))
    with pytest.raises(
        ValueError, match=r"a grid of \(4,\), but the guide's network one of \(2,\)"
    ):
        QuantizingEncoder(model, Slots(2))
    with pytest.raises(TypeError, match="needs a model with a quantizer"):
        QuantizingEncoder(nn.Linear(2, 2), SLOTS)
    with pytest.raises(ValueError, match="finite and at least 0, got -1"):
        QuantizingEncoder(model, SLOTS, temperature=-1)
    with pytest.raises(ValueError, match="commitment must be finite"):
        QuantizedELBO(commitment=-1)
    with pytest.raises(ValueError, match="gradient must be 'straight-through' or 'rotation'"):
        QuantizedELBO(gradient="copy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no free bits for codes"):
        QuantizedELBO(free_bits=1.0)
    with pytest.raises(
        TypeError, match=r"ConvolutionalGrid\.patch_embedding must be True or False"
    ):
        ConvolutionalGrid(patch_embedding="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="network"):
        VQVAE((1, 4, 4), network=MLP())  # type: ignore[arg-type]
    residual = ResidualQuantizer(4, 3, 2)
    with pytest.raises(ValueError, match="choose temperature=0"):
        QuantizingEncoder(VQVAE((1, 4, 4), residual, SLOTS), SLOTS, temperature=1.0)
    del guide


@pytest.mark.parametrize(
    ("hidden", "told"),
    [
        ("code", "no site of the guide is marked as computed from vectors"),
        ("guide", "the guide has no deterministic site of that name"),
        ("model", "the model has no deterministic site of that name"),
    ],
)
def test_marks_and_sites_that_are_missing_are_told(hidden: str, told: str) -> None:
    stranger = Stranger()
    model, guide = stranger.model, stranger.guide
    if hidden == "code":

        def guide(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                pyro.sample(
                    "code", dist.Independent(PointMass(torch.zeros(len(x), 3).long(), 3), 1)
                )

    elif hidden == "guide":
        guide = poutine.block(guide, hide=["vector"])
    else:
        model = poutine.block(model, hide=["vector"])
    with pytest.raises(PairError, match=told):
        loss_of(model, guide, rows(), QuantizedELBO())


def test_vectors_of_another_shape_are_told() -> None:
    stranger = Stranger()

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.deterministic("vector", stranger.encoder(x.flatten(1)), event_dim=1)
            q = dist.Independent(PointMass(torch.zeros(len(x), 3).long(), 3), 1)
            pyro.sample("code", q, infer=MARK)

    with pytest.raises(
        PairError, match=r"the shape \(12, 6\) in the guide and \(12, 3, 2\) in the model"
    ):
        loss_of(stranger.model, guide, rows(), QuantizedELBO())
