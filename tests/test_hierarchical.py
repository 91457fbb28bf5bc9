"""Two layers of latents: a linear Gaussian instance whose evidence and posterior are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import check, diagnose, evaluate, fit, inference_gaps, load_run, save_run, to_arviz
from ppl_vae.guides import BottomUp, TopDown
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, MeanFieldELBO, TraceELBO
from ppl_vae.pairs import Pair

LINEAR = MLP(hidden=())
DIMS = (3, 2)
D = 4
SIGMA = 0.5
# W with orthogonal columns and an A whose every z1 belongs to one z2, so that all posteriors of the
# chain factorize over their dimensions.
W = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 1.0]]).double()
A = torch.tensor([[0.8, 0.0], [-1.2, 0.0], [0.0, 0.6]]).double()
SHIFT = torch.tensor([0.3, -0.2, 0.1]).double()
SCALE = torch.tensor([0.7, 0.4, 1.1]).double()
MEAN = torch.tensor([0.5, -0.5, 0.2, 0.0]).double()

Make = Callable[[HierarchicalVAE, Any], BottomUp | TopDown]
GUIDES: dict[str, Make] = {
    "BottomUp": lambda model, network: BottomUp(model.data_shape, DIMS, network, MLP(hidden=(6,))),
    "TopDown": lambda model, network: TopDown(
        model, model.data_shape, DIMS, network, MLP(hidden=(6,))
    ),
}
guides = pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())


def inverse_softplus(scale: Tensor) -> Tensor:
    return (scale - 1e-6).expm1().log()


def set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def layer(network: nn.Module) -> nn.Linear:
    """The one layer of a linear decoder."""
    (found,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    return found


def linear_model(sigma: float = SIGMA) -> HierarchicalVAE:
    """z1 = A z2 + SHIFT + SCALE e, x = W z1 + MEAN + sigma e."""
    model = HierarchicalVAE((D,), DIMS, LINEAR, LINEAR, Gaussian(sigma)).double()
    zeros = torch.zeros(3, 2).double()
    raw = torch.cat([SHIFT, inverse_softplus(SCALE)])
    set_linear(layer(model.inner_decoder), torch.cat([A, zeros]), raw)
    set_linear(layer(model.decoder), W, MEAN)
    return model


def marginal(sigma: float = SIGMA) -> dist.MultivariateNormal:
    """p(x) with z1 and z2 integrated out."""
    of_z1 = A @ A.T + torch.diag(SCALE.square())
    covariance = W @ of_z1 @ W.T + sigma**2 * torch.eye(D).double()
    return dist.MultivariateNormal(W @ SHIFT + MEAN, covariance)


def exact_top_down(model: HierarchicalVAE, sigma: float = SIGMA) -> TopDown:
    """The guide whose weights make it the posterior.

    p(x | z1) as a function of z1 is N(z1; m1, S1) with S1 = sigma^2 (W^T W)^-1, diagonal, and
    m1 = (W^T W)^-1 W^T (x - mean); so m1 | z2 ~ N(A z2 + shift, diag(scale^2) + S1), and Bayes'
    rule with that as likelihood gives q(z2 | x).
    """
    guide = TopDown(model, (D,), DIMS, LINEAR, LINEAR).double()
    gram = (W.T @ W).diagonal()
    to_m1 = W.T / gram.unsqueeze(-1)
    s1 = sigma / gram.sqrt()
    zeros = torch.zeros(3, D).double()
    raw = torch.cat([-to_m1 @ MEAN, inverse_softplus(s1)])
    set_linear(guide.head, torch.cat([to_m1, zeros]), raw)
    noise = SCALE.square() + s1.square()
    precision = (1 + (A.square() / noise.unsqueeze(-1)).sum(0)).double()
    to_m2 = (A / noise.unsqueeze(-1)).T / precision.unsqueeze(-1)
    weight = torch.cat([to_m2 @ to_m1, torch.zeros(2, D).double()])
    loc = to_m2 @ (-to_m1 @ MEAN - SHIFT)
    set_linear(guide.top_head, weight, torch.cat([loc, inverse_softplus(precision.rsqrt())]))
    return guide


def rows(n: int = 6) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1)).double()


def test_the_ladder_can_be_exact() -> None:
    model, x = linear_model(), rows()
    found = evaluate(model, exact_top_down(model), x, num_samples=16, seed=0, progress=False)
    expected = marginal().log_prob(x)
    torch.testing.assert_close(found.elbo.values, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log_likelihood.values, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.ess, torch.full((6,), 16.0).double())


def best_bottom_up(sigma: float) -> tuple[BottomUp, Tensor]:
    """The guide whose q(z2 | z1) is the posterior, and q(z1 | x) as near as one of independent numbers can be.

    p(z2 | z1) is Bayes' rule with z1 ~ N(A z2 + shift, diag(scale^2)). The posterior of z1, with the prior
    N(shift, A A^T + diag(scale^2)) and the likelihood of x, has a precision, which is returned, too. The best
    q(z1 | x) has its mean and the diagonal of the precision.
    """
    guide = BottomUp((D,), DIMS, LINEAR, LINEAR).double()
    top = 1 + (A.square() / SCALE.square().unsqueeze(-1)).sum(0)
    to_m2 = (A / SCALE.square().unsqueeze(-1)).T / top.unsqueeze(-1)
    bias = torch.cat([-to_m2 @ SHIFT, inverse_softplus(top.rsqrt())])
    set_linear(guide.top_head, torch.cat([to_m2, torch.zeros(2, 3).double()]), bias)
    precision: Tensor = torch.linalg.inv(A @ A.T + torch.diag(SCALE.square()))
    precision = precision + W.T @ W / sigma**2
    to_m1 = torch.linalg.solve(precision, W.T / sigma**2)
    raw = inverse_softplus(precision.diagonal().rsqrt())
    bias = torch.cat([SHIFT - to_m1 @ (W @ SHIFT + MEAN), raw])
    set_linear(guide.head, torch.cat([to_m1, torch.zeros(3, D).double()]), bias)
    return guide, precision


def best_of(kind: str, sigma: float) -> tuple[BottomUp | TopDown, Tensor, Tensor]:
    """The best guide of a family, and the precision of its z1 and z2, each given what is drawn before it."""
    if kind == "BottomUp":
        guide, of_z1 = best_bottom_up(sigma)
        return guide, of_z1, torch.diag(1 + (A.square() / SCALE.square().unsqueeze(-1)).sum(0))
    noise = SCALE.square() + sigma**2 / (W.T @ W).diagonal()
    of_z1 = torch.diag((W.T @ W).diagonal() / sigma**2 + SCALE**-2)
    of_z2 = torch.diag(1 + (A.square() / noise.unsqueeze(-1)).sum(0))
    return exact_top_down(linear_model(sigma), sigma), of_z1, of_z2


@pytest.mark.slow(but=("TopDown",))
@pytest.mark.parametrize("kind", GUIDES)
def test_the_best_q_of_two_layers_is_the_closed_form(kind: str) -> None:
    """Guides that are the best of their family, but for means that are shifted by d: KL d^T precision d / 2.

    A top-down guide then holds the posterior. A bottom-up one loses what independent numbers lose of a normal.
    """
    sigma, lost = 1.5, 0.0
    d1, d2 = torch.full((3,), 0.6).double(), torch.full((2,), 0.3).double()
    model, guide, of_z1, of_z2 = linear_model(sigma), *best_of(kind, sigma)
    if kind == "BottomUp":
        lost = 0.5 * float(of_z1.diagonal().log().sum() - torch.logdet(of_z1))
        assert lost > 0.1
    with torch.no_grad():
        guide.head.bias[:3] += d1
        guide.top_head.bias[:2] += d2
    if kind == "TopDown":  # the shift of m1 counts in the mean of z1 by its share of the precision
        d1 = d1 * (1 - SCALE**-2 / of_z1.diagonal())
    shifted = float(d1 @ of_z1 @ d1 + d2 @ of_z2 @ d2) / 2
    x = rows(4)
    exact = evaluate(model, exact_top_down(model, sigma), x, num_samples=2, progress=False)
    options: dict[str, Any] = {"num_samples": 100, "max_steps": 200, "seed": 0, "progress": False}
    gaps = inference_gaps(model, guide, x, truth=exact, **options)
    truth = marginal(sigma).log_prob(x)
    off = gaps.best_elbo.values - (truth - lost)
    assert float((off.abs() / (gaps.best_elbo_error + 5e-3)).max()) < 4
    off = gaps.elbo.values - (truth - lost - shifted)
    assert float((off.abs() / (gaps.elbo_error + 1e-3)).max()) < 4
    assert float(gaps.elbo_error.max()) < shifted / 3
    assert "depends on another latent" in gaps.notes[0]


@pytest.mark.slow(but=("BottomUp",))
@guides
def test_importance_sampling_meets_the_evidence(make: Make) -> None:
    torch.manual_seed(0)
    model, x = linear_model(), rows(3) * 0.5
    guide = make(model, LINEAR).double()
    with torch.no_grad():  # wide proposals
        for module in (guide.head, guide.top_head):
            size = len(module.bias) // 2
            module.weight.mul_(0.3)
            module.bias[size:] = 1.0
    found = evaluate(model, guide, x, num_samples=30000, seed=0, progress=False, method="guide")
    error = 5 * found.log_likelihood_error
    assert (error < 0.6).all()
    assert ((found.log_likelihood.values - marginal().log_prob(x)).abs() < error).all()


def test_the_model_is_the_chain() -> None:
    model, x = linear_model(), rows()
    with pyro.plate("samples", 3, dim=-2):
        trace: Any = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    z1, z2 = trace.nodes["z1"]["value"], trace.nodes["z2"]["value"]
    assert z1.shape == (3, 6, 3)
    assert z2.shape == (3, 6, 2)
    expected = {
        "z2": dist.Normal(0.0, 1.0).log_prob(z2).sum(-1),
        "z1": dist.Normal(z2 @ A.T + SHIFT, SCALE).log_prob(z1).sum(-1),
        "x": dist.Normal(z1 @ W.T + MEAN, SIGMA).log_prob(x).sum(-1),
    }
    for name, log_prob in expected.items():
        torch.testing.assert_close(trace.nodes[name]["log_prob"], log_prob)


def test_the_combination_is_the_product_of_two_normals() -> None:
    torch.manual_seed(0)
    model = HierarchicalVAE((D,), DIMS, LINEAR, MLP(hidden=(5,))).double()
    guide = TopDown(model, (D,), DIMS, LINEAR, MLP(hidden=(5,))).double()
    evidence, top = guide.encode(rows())
    assert top.event_shape == (2,)
    z2 = torch.randn(7, 6, 2).double()
    q, p = guide.combine(evidence, z2), model.conditional(z2)
    z1 = torch.randn(2, 7, 6, 3).double()
    ratio = q.log_prob(z1) - p.log_prob(z1) - evidence.log_prob(z1)  # constant in z1
    torch.testing.assert_close(ratio[0], ratio[1])


def test_bottom_up_reads_its_networks() -> None:
    torch.manual_seed(0)
    guide, x = BottomUp((D,), DIMS, LINEAR, MLP(hidden=(5,))).double(), rows()
    with pyro.plate("samples", 3, dim=-2):
        trace: Any = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    assert list(trace.stochastic_nodes) == ["data", "z1", "z2"]
    loc, raw = guide.head(x).chunk(2, -1)
    z1 = trace.nodes["z1"]["value"]
    expected = dist.Normal(loc, (1 + raw.exp()).log() + 1e-6).log_prob(z1).sum(-1)
    torch.testing.assert_close(trace.nodes["z1"]["log_prob"], expected)
    loc, raw = guide.top_head(guide.top_encoder(z1)).chunk(2, -1)
    expected = dist.Normal(loc, (1 + raw.exp()).log() + 1e-6).log_prob(trace.nodes["z2"]["value"])
    torch.testing.assert_close(trace.nodes["z2"]["log_prob"], expected.sum(-1))


@guides
def test_the_encoder_of_x_runs_once_a_row(make: Make) -> None:
    model = HierarchicalVAE((D,), DIMS, LINEAR)
    guide = make(model, LINEAR)
    seen: list[int] = []
    guide.encoder.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with pyro.plate("samples", 4, dim=-2):
        guide(torch.rand(6, D))
    assert seen == [6]


@pytest.mark.slow(but=("MLP-TopDown", "C-TopDown"))
@guides
@pytest.mark.parametrize(
    "network",
    [MLP(hidden=(8,)), pytest.param(Convolutional((3, 4), 8), marks=pytest.mark.slow)],
    ids=["MLP", "C"],
)
def test_every_parameter_is_trained_and_everything_works(
    make: Make, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # That the posterior of each row is searched is shown by few steps; how well, in test_gaps.py.
    monkeypatch.setattr("ppl_vae.diagnosis.refinement.ROUND", 4)
    shape = (1, 6, 6)
    x = torch.rand(12, *shape).round()
    model = HierarchicalVAE(shape, DIMS, network, MLP(hidden=(6,)), Bernoulli())
    guide = make(model, network)
    assert check(model, guide, x, max_epochs=2).ok
    pair = Pair(model, guide)
    for objective in (ELBO(), TraceELBO(beta=0.5, num_particles=2), ImportanceWeightedELBO()):
        before = {name: p.detach().clone() for name, p in pair.parameters(x).items()}
        fit(
            model,
            guide,
            x,
            objective=objective,
            max_epochs=1,
            batch_size=6,
            seed=0,
            progress=False,
            capture=False,
        )
        stuck = [n for n, p in pair.parameters(x).items() if torch.equal(p, before[n])]
        assert not stuck, f"no gradient reached {stuck}"

    found = evaluate(model, guide, x, num_samples=8, seed=0, progress=False)
    assert (found.elbo.values <= found.log_likelihood.values + 1e-4).all()
    save_run(tmp_path / "run", model, guide)
    other = HierarchicalVAE(shape, DIMS, network, MLP(hidden=(6,)), Bernoulli())
    run = load_run(tmp_path / "run", other, make(other, network))
    again = evaluate(run.model, run.guide, x, num_samples=8, seed=0, progress=False)
    assert torch.equal(again.log_likelihood.values, found.log_likelihood.values)
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    assert exported["posterior"]["z1"].shape == (1, 3, 12, 3)
    assert exported["posterior"]["z2"].shape == (1, 3, 12, 2)
    assert str(diagnose(model, guide, x, seed=0, progress=False))


def test_the_objective_follows_the_order_of_the_sites() -> None:
    """Top down, the KL of z1 given z2 is analytic; bottom up it is not, and is not taken for it."""
    model, x = linear_model(), rows()
    chosen = {
        name: ELBO().resolve(Pair(model, make(model, LINEAR).double()), x)
        for name, make in GUIDES.items()
    }
    assert isinstance(chosen["TopDown"], MeanFieldELBO)
    assert isinstance(chosen["BottomUp"], TraceELBO)


@pytest.mark.parametrize("dims", [(3,), (3, 2, 1), (0, 2), (3, 0)], ids=str)
def test_wrong_dimensions(dims: tuple[int, ...]) -> None:
    message = r"latent_dims must be two positive numbers, those of z1 and z2, got"
    model = HierarchicalVAE((D,), DIMS, LINEAR)
    with pytest.raises(ValueError, match=f"HierarchicalVAE.{message}"):
        HierarchicalVAE((D,), dims)
    with pytest.raises(ValueError, match=f"BottomUp.{message}"):
        BottomUp((D,), dims)
    with pytest.raises(ValueError, match=f"TopDown.{message}"):
        TopDown(model, (D,), dims)


def test_wrong_rows_and_models() -> None:
    with pytest.raises(ValueError, match="built for data of shape"):
        HierarchicalVAE((D,), DIMS, LINEAR)(torch.zeros(5, 3))
    with pytest.raises(TypeError, match="VAE has none; use BottomUp"):
        TopDown(VAE((D,), 2, LINEAR), (D,), DIMS)


def test_log_evidence_by_quadrature() -> None:
    """A nonlinear instance of one dimension per layer against a grid."""
    torch.manual_seed(0)
    model = HierarchicalVAE((2,), (1, 1), MLP((4,)), MLP((4,)), Gaussian(0.5)).double()
    guide = BottomUp((2,), (1, 1), MLP((4,)), MLP((4,))).double()
    x = torch.randn(3, 2).double()
    grid = torch.linspace(-7, 7, 281).double()
    z2 = grid.reshape(-1, 1, 1).expand(-1, len(grid), 1)
    z1 = grid.reshape(1, -1, 1).expand(len(grid), -1, 1)
    log_prior = model.prior().log_prob(z2) + model.conditional(z2).log_prob(z1)
    log_joint = log_prior + model.decode(grid.unsqueeze(-1)).log_prob(x.reshape(3, 1, 2)).unsqueeze(
        1
    )
    area = 2 * math.log(14 / 280)
    expected = log_joint.flatten(1).logsumexp(-1) + area
    fitted = fit(
        model.requires_grad_(False),
        guide,
        x,
        max_epochs=100,
        batch_size=3,
        learning_rate=0.04,
        seed=0,
        progress=False,
        capture=False,
    )
    assert fitted.steps == 100
    found = evaluate(model, guide, x, num_samples=20000, method="guide", seed=0, progress=False)
    torch.testing.assert_close(found.log_likelihood.values, expected.detach(), atol=0.03, rtol=0)
