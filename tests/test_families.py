"""The families of the amortized guides as distributions: densities, samples, gradients, against quadrature."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import catalogue
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vae import diagnose, fit, guides
from ppl_vae.capture import step as capture
from ppl_vae.distributions import DiagonalNormalMixture, MonotonicSpline, zuko
from ppl_vae.distributions.normal_mixture import _Draw
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import TraceELBO
from ppl_vae.pairs import Pair, find_layout

LINEAR = MLP(hidden=())
FAMILIES = tuple(catalogue.AMORTIZED)
FLOWS = catalogue.FLOWS
families = pytest.mark.parametrize("family", FAMILIES)
dimensions = pytest.mark.parametrize("d", [1, 2])


def linear(family: str, d: int) -> Any:
    """A guide of three numbers per row, whose encoder is its head alone."""
    return catalogue.AMORTIZED[family]((3,), d, LINEAR)


def guide_of(family: str, d: int, seed: int = 0) -> Any:
    """A guide in double precision whose flow, if it has one, is far from the identity."""
    torch.manual_seed(seed)
    guide = linear(family, d).double()
    for module in guide.modules():
        if hasattr(module, "hyper"):
            for parameter in module.hyper[-1].parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    return guide


def outputs_of(guide: Any) -> Tensor:
    """Numbers that a trained encoder could give for one row."""
    size = guide.amortize(torch.zeros(3, dtype=torch.float64)).shape[-1]
    return 0.8 * torch.randn(size, dtype=torch.float64)


def grid(q: Any) -> tuple[Tensor, float]:
    """Midpoints of equal cells within 8 standard deviations of q's mean, and the volume of a cell."""
    d = q.event_shape[0]
    points = {1: 4800, 2: 256}[d]
    with torch.no_grad():
        draws = q.sample((2000,))
    line = (torch.arange(points, dtype=torch.float64) + 0.5) * (16 / points) - 8
    z = torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), -1)
    return draws.mean(0) + draws.std(0) * z, float((draws.std(0) * 16 / points).prod())


def smooth(z: Tensor) -> Tensor:
    """Something smooth without symmetries, of every order."""
    first, last = z[..., 0], z[..., -1]
    return torch.sin(1.3 * first) + 0.5 * last.square() * torch.tanh(first + 0.4)


@torch.no_grad()
def masses(family: str, d: int) -> tuple[Any, Tensor, Tensor]:
    """A distribution of the family, the points of its grid, and the probability of each cell."""
    guide = guide_of(family, d)
    q = guide.family(outputs_of(guide))
    z, cell = grid(q)
    return q, z, q.log_prob(z).exp() * cell


@families
@dimensions
def test_the_density_integrates_to_one(family: str, d: int) -> None:
    assert masses(family, d)[-1].sum() == pytest.approx(1, abs=5e-4)


@families
@dimensions
def test_samples_have_that_density(family: str, d: int) -> None:
    """Chi-squared over coarse cells, whose probabilities are sums over fine ones."""
    q, z, fine = masses(family, d)
    with torch.no_grad():
        draws = q.sample((20_000,))
    bins = 120 if d == 1 else 32
    shape = [bins, len(z) // bins] * d
    expected = fine.reshape(shape).sum(tuple(range(1, 2 * d, 2))).numpy().ravel() * len(draws)
    low, high = z.flatten(0, -2)[0], z.flatten(0, -2)[-1]
    half = (high - low) / (len(z) - 1) / 2
    edges = [
        np.linspace(float(low[i] - half[i]), float(high[i] + half[i]), bins + 1) for i in range(d)
    ]
    observed = np.histogramdd(draws.numpy(), edges)[0].ravel()
    often = expected >= 10
    observed = np.append(observed[often], len(draws) - observed[often].sum())
    expected = np.append(expected[often], len(draws) - expected[often].sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 10)).sum()
    assert often.sum() >= 5
    assert stats.chi2.sf(statistic, often.sum()) > 1e-3


# Not the spline in two dimensions: the derivative of its density jumps between its pieces, on which
# this quadrature has an error of several percent; its pieces and its order are tested apart.
@pytest.mark.parametrize(
    ("family", "d"),
    [(f, d) for f in FAMILIES for d in (1, 2) if (f, d) != ("NeuralSpline", 2)],
)
def test_gradients_of_expectations_are_unbiased(family: str, d: int) -> None:
    """d E_q f / d outputs: the mean over pathwise gradients against quadrature, every output."""
    guide = guide_of(family, d)
    outputs = outputs_of(guide).requires_grad_()
    q = guide.family(outputs)
    z, cell = grid(q)
    exact_mean = (q.log_prob(z).exp() * smooth(z)).sum() * cell
    (exact,) = torch.autograd.grad(exact_mean, outputs)

    rows = outputs.detach().expand(50_000, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(smooth(guide.family(rows).rsample()).sum(), rows)
    error = found.std(0) / len(rows) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4 * error + 2e-3).all()
    assert (error < 0.05).all()
    assert (exact.abs() > 4 * error + 2e-3).sum() >= d  # the test can fail


@families
@dimensions
def test_own_samples_are_scored_as_given_ones(family: str, d: int) -> None:
    guide = guide_of(family, d)
    outputs = outputs_of(guide).expand(5, -1).clone().requires_grad_()
    q = guide.family(outputs).expand((4, 5))
    z = q.rsample()
    own, given = q.log_prob(z), q.log_prob(z.clone())
    torch.testing.assert_close(own, given)
    leaves = [outputs, *(p for n, p in guide.named_parameters() if n.startswith("to_noise"))]
    gradients = [torch.autograd.grad(v.sum(), leaves, retain_graph=True) for v in (own, given)]
    torch.testing.assert_close(*gradients)


@families
def test_a_sample_drawn_without_gradients_is_scored_with_them(family: str) -> None:
    guide = guide_of(family, 2)
    outputs = outputs_of(guide).requires_grad_()
    q = guide.family(outputs)
    z = q.sample()
    assert not z.requires_grad
    (gradient,) = torch.autograd.grad(q.log_prob(z), outputs)
    assert gradient.abs().max() > 0


def steep_flow(family: str) -> Any:
    """A guide in single precision whose flow maps points far apart to values that rounding makes equal."""
    torch.manual_seed(0)
    guide: Any = catalogue.AMORTIZED[family]((3,), 8, MLP((8,)))
    for module in guide.modules():
        if hasattr(module, "hyper"):
            for parameter in module.hyper[-1].parameters():
                torch.nn.init.normal_(parameter, std=3.0)
    return guide


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("gradients", [True, False])
def test_draws_of_a_steep_flow_have_their_own_density(family: str, gradients: bool) -> None:
    """log p(u) - log |dT/du| of the noise u in double precision, where log q(z) of z is off by far more."""
    guide, x = steep_flow(family), torch.randn(20, 3)
    q = guide.encode(x)
    torch.manual_seed(1)
    noise = [q.dist.base.rsample((50,)).double() for _ in range(2)]
    torch.manual_seed(1)
    with torch.set_grad_enabled(gradients):
        draws = [q.rsample((50,)) for _ in noise]
    exact = copy.deepcopy(guide).double().encode(x.double()).dist
    for u, z in zip(noise, draws, strict=True):
        _, jacobian = exact.transform.inv.call_and_ladj(u)
        truth = exact.base.log_prob(u) - jacobian
        assert (q.log_prob(z) - truth).abs().max() < 0.01
        assert not (q.log_prob(z.clone()) - truth).abs().max() < 1  # the test can fail
        assert q.log_prob(z).requires_grad


@pytest.mark.parametrize("family", FLOWS)
def test_pairs_with_a_steep_flow(family: str) -> None:
    """A run of many samples is seen to be right; with q(z | x) far apart from row to row, I(x; z) is log n."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :3], 1.0).to_event(1), obs=x)

    guide, x = steep_flow(family), torch.randn(60, 3)
    pair = Pair.of(model, guide)
    with pair.scope():
        assert find_layout(pair, x).vectorizes
    found = diagnose(model, guide, x, seed=0).mutual_information.values
    assert found.max() <= math.log(60) + 1e-6
    assert found.mean() > math.log(60) - 0.5


def test_the_inverse_of_a_steep_spline_is_finite() -> None:
    """Its derivatives, too."""
    wide = [(10 * torch.randn(100_000, k)).requires_grad_() for k in (8, 8, 7)]
    spline = MonotonicSpline(*wide)
    y = spline(10 * torch.rand(100_000) - 5).detach().requires_grad_()
    assert zuko.transforms.MonotonicRQSTransform(*wide).inv(y).isnan().any()  # the test can fail
    x = spline.inv(y)
    assert x.abs().max() <= 5
    assert (spline(x) - y).abs().max() < 0.02  # rounding of x, times a slope of up to 1e4
    assert all(g.isfinite().all() for g in torch.autograd.grad(x.sum(), [y, *wide]))
    with torch.no_grad():  # of ordinary pieces it is zuko's
        tame = [0.1 * part for part in wide]
        mine, theirs = (
            s(*tame).inv(y) for s in (MonotonicSpline, zuko.transforms.MonotonicRQSTransform)
        )
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


# What the families contain --------------------------------------------------------------------


def inverse_softplus(y: Tensor) -> Tensor:
    return y + (-(-y).expm1()).log()


def posterior_as_outputs(guide: Any, loc: Tensor, covariance: Tensor) -> None:
    """Let the guide's head say N(loc(x), covariance): it is linear in x, as PCA's posterior is."""
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.zero_()
        zero, basis = loc[0], (loc[1:] - loc[0]).mT
        scale = covariance.diagonal().sqrt()
        if isinstance(guide, guides.LowRank):
            # Sigma = s^2 (I + B B^T), s^2 below its smallest eigenvalue.
            values, vectors = torch.linalg.eigh(covariance)
            scale = (values[0] / 2).sqrt().expand(len(values))
            factor = vectors * (values / (values[0] / 2) - 1).sqrt()
            guide.head.bias[-factor.numel() :] = 100 * torch.atanh(factor / 100).flatten()
        copies, start = 1, 0
        if isinstance(guide, guides.MixtureOfGaussians):
            copies = start = guide.components
        size = copies * len(zero)
        guide.head.weight[start : start + size] = basis.repeat(copies, 1)
        guide.head.bias[start : start + size] = zero.repeat(copies)
        scales = slice(start + size, start + 2 * size)
        guide.head.bias[scales] = inverse_softplus(scale - 1e-6).repeat(copies)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "FullCovariance"])
def test_the_exact_posterior_is_contained(family: str) -> None:
    """log p(x, z) - log q(z | x) is log p(x), whatever z: no gap.

    Where W has orthogonal columns; for LowRank whatever W is.
    """
    torch.manual_seed(3)
    d, width = 3, 6
    make: dict[str, Callable[[], Any]] = {
        "LowRank": lambda: guides.LowRank((width,), d, LINEAR, rank=d),
        "MeanField": lambda: guides.MeanField((width,), d, LINEAR),
        "MixtureOfGaussians": lambda: guides.MixtureOfGaussians((width,), d, LINEAR),
        "MaskedAutoregressive": lambda: guides.MaskedAutoregressive((width,), d, LINEAR),
        "InverseAutoregressive": lambda: guides.InverseAutoregressive((width,), d, LINEAR),
        "NeuralSpline": lambda: guides.NeuralSpline((width,), d, LINEAR),
    }
    model, guide = ProbabilisticPCA((width,), d, sigma=0.6).double(), make[family]().double()
    with torch.no_grad():
        columns = torch.randn(width, d, dtype=torch.float64)
        if family != "LowRank":
            columns = torch.linalg.qr(columns).Q * torch.tensor([2.0, 1.0, 0.5])
        model.weight.copy_(columns)
        model.mean.copy_(torch.randn(width))
        if family in FLOWS:
            for parameter in guide.to_noise.parameters():
                parameter.zero_()
        probes = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
        posterior = model.posterior(probes)
        posterior_as_outputs(guide, posterior.mean, posterior.covariance_matrix[0])
        x = torch.randn(4, width, dtype=torch.float64)
        z = guide.encode(x).sample((5,))
        log_joint = model.prior().log_prob(z) + model.decode(z).log_prob(x)
        gap = model.log_evidence(x) - (log_joint - guide.encode(x).log_prob(z))
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", FLOWS)
def test_a_flow_starts_as_the_mean_field_guide(family: str) -> None:
    torch.manual_seed(0)
    guide, plain = linear(family, 3), guides.MeanField((3,), 3, LINEAR)
    plain.load_state_dict(
        {name: value for name, value in guide.state_dict().items() if name.startswith("head")}
    )
    x = 10 * torch.randn(50, 3)
    z = plain.encode(x).sample()
    torch.testing.assert_close(
        guide.encode(x).log_prob(z), plain.encode(x).log_prob(z), rtol=0, atol=0.05
    )


# Flows ----------------------------------------------------------------------------------------


def passes(guide: Any, run: Callable[[Any], object]) -> int:
    """How often the first layer's network runs."""
    calls: list[int] = []
    hyper = next(module.hyper for module in guide.modules() if hasattr(module, "hyper"))
    q = guide.family(outputs_of(guide))
    handle = hyper.register_forward_hook(lambda *_: calls.append(1))
    run(q)
    handle.remove()
    return len(calls)


@pytest.mark.parametrize(
    ("family", "drawing", "scoring"),
    [
        ("MaskedAutoregressive", 6, 1),  # one pass per dimension, and one for the density
        ("InverseAutoregressive", 1, 6),
        ("NeuralSpline", 1, 6),
    ],
)
def test_the_direction_that_is_fast(family: str, drawing: int, scoring: int) -> None:
    guide = guide_of(family, 5)

    def draw(q: Any) -> None:
        q.log_prob(q.rsample((2,)))

    assert passes(guide, draw) == drawing
    assert passes(guide, lambda q: q.log_prob(torch.zeros(5).double())) == scoring


@pytest.mark.parametrize("family", FLOWS)
def test_under_autocast_a_flow_keeps_its_precision(family: str) -> None:
    guide = guide_of(family, 3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = guide.encode(torch.randn(6, 3))
        z = q.rsample((50,))
        assert z.dtype == q.log_prob(z).dtype == torch.float32
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: guides.InverseAutoregressive((3,), 2, transforms=0),
            "transforms must be at least 1",
        ),
        (
            lambda: guides.MaskedAutoregressive((3,), 2, hidden=()),
            r"hidden must hold positive widths",
        ),
        (
            lambda: guides.NeuralSpline((3,), 2, hidden=(4, 0)),
            r"NeuralSpline.hidden .* got \(4, 0\)",
        ),
        (
            lambda: guides.NeuralSpline((3,), 2, bins=1),
            "NeuralSpline.bins must be at least 2, got 1",
        ),
        (lambda: guides.LowRank((3,), 2, rank=0), "LowRank.rank must be at least 1, got 0"),
        (lambda: guides.MixtureOfGaussians((3,), 2, components=0), "components must be at least 1"),
    ],
)
def test_numbers_that_make_no_family(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_flows_leave_the_validation_of_distributions_on() -> None:
    """In a process of its own: zuko switches it off when it is imported for the first time."""
    program = "import ppl_vae.guides, torch; torch.distributions.Normal(0.0, -1.0)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ValueError: Expected parameter scale" in run.stderr


# Mixtures -------------------------------------------------------------------------------------


def mixture(logits: Tensor, locs: Tensor, scales: Tensor) -> DiagonalNormalMixture:
    return DiagonalNormalMixture(
        dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1)
    )


@dimensions
def test_second_derivatives_of_a_mixture_are_unbiased(d: int) -> None:
    torch.manual_seed(0)
    parts = [
        torch.tensor([0.3, -0.2, 0.1]).double(),
        torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.0]]).double()[:, :d],
        torch.tensor([[0.5, 0.8], [0.4, 0.6], [0.9, 0.3]]).double()[:, :d],
    ]
    directions = [torch.randn_like(part) for part in parts]

    def hessian_product(mean: Callable[..., Tensor], at: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(mean(*at), at, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(first, directions, strict=True))
        return torch.autograd.grad(along, at)  # type: ignore[arg-type]

    z, cell = grid(mixture(*parts))
    exact = hessian_product(
        lambda *at: (mixture(*at).log_prob(z).exp() * smooth(z)).sum() * cell,
        [part.clone().requires_grad_() for part in parts],
    )
    found = hessian_product(
        lambda *at: smooth(mixture(*at).rsample()).sum(),
        [part.expand(60_000, *part.shape).clone().requires_grad_() for part in parts],
    )
    for mine, truth in zip(found, exact, strict=True):
        error = mine.std(0) / len(mine) ** 0.5
        assert ((mine.mean(0) - truth).abs() < 4 * error + 1e-3).all()


def test_a_mixture_of_many_dimensions_has_gradients_in_single_precision() -> None:
    """Where densities underflow: the same component and noise in both precisions."""
    parts = [torch.zeros(40, 5), torch.randn(40, 5, 200), 0.5 + torch.rand(40, 5, 200)]
    which, noise = torch.arange(40) % 5, torch.randn(40, 200)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [part.to(dtype).requires_grad_() for part in parts]
        logits = leaves[0].log_softmax(-1)
        z: Tensor = _Draw.apply(logits, *leaves[1:], which, noise.to(dtype))
        gradients.append([g.double() for g in torch.autograd.grad(z.sin().sum(), leaves)])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_equal_components_are_one_normal() -> None:
    locs, scales = torch.randn(2).double(), torch.tensor([0.3, 2.0]).double()
    leaves = [torch.randn(3).double(), locs.expand(3, 2).clone(), scales.expand(3, 2).clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    q, z = mixture(*leaves), torch.randn(7, 2).double()
    torch.testing.assert_close(q.log_prob(z), dist.Normal(locs, scales).to_event(1).log_prob(z))
    by_logits, *_ = torch.autograd.grad(smooth(q.rsample((50,))).sum(), leaves)
    torch.testing.assert_close(by_logits, torch.zeros(3).double())


def test_components_start_apart() -> None:
    torch.manual_seed(0)
    for d in (1, 10):
        guide = guides.MixtureOfGaussians((3,), d, LINEAR)
        locs = guide.encode(torch.zeros(1, 3)).component_distribution.mean[0]
        apart = torch.cdist(locs, locs) + 100 * torch.eye(5)
        assert apart.min() > 0.02
        assert 0.7 < torch.pdist(locs).mean() < 2.5


# Recorded steps -------------------------------------------------------------------------------


@pytest.mark.slow(but=("MixtureOfGaussians",))
@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in ("MeanField", "FullCovariance")]
)
def test_recorded_steps_walk_the_same_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with several particles and beta; the two means are tested with capture itself."""
    monkeypatch.setattr(capture, "RECORD_AFTER", 0)
    made: list[capture.CapturedLoss] = []
    original = capture.CapturedLoss.__init__

    def remembered(self: capture.CapturedLoss, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(capture.CapturedLoss, "__init__", remembered)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    ends = []
    for use in (True, False):
        torch.manual_seed(0)
        model, guide = VAE((3,), 2, LINEAR, Gaussian()), linear(family, 2)
        fit(
            model,
            guide,
            x,
            objective=TraceELBO(beta=2.0, num_particles=2),
            max_epochs=3,
            batch_size=5,
            seed=1,
            capture=use,
            progress=False,
        )
        ends.append([t.clone() for m in (model, guide) for t in m.state_dict().values()])
    assert [step.recordings for step in made] == [1]
    assert all(torch.equal(*both) for both in zip(*ends, strict=True))
