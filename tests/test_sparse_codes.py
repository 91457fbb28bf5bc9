"""Sparse codes: of a dictionary, under a penalty that weights cannot cheat, and units that die."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_autoencoders import D, exact_rows, train
from sklearn.decomposition import sparse_encode
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import (
    diagnose,
    evaluate,
    fit,
    refit_prior,
)
from ppl_vae.guides import DeltaEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import (
    Autoencoder,
    DiagonalNormal,
    FlatPrior,
    LaplacePrior,
)
from ppl_vae.networks import (
    MLP,
    Convolutional,
    Network,
    UnitNorm,
)
from ppl_vae.objectives import ELBO, LinearWarmup
from ppl_vae.tasks import reconstruct


@pytest.fixture(scope="module")
def dictionary() -> Tensor:
    """12 unit vectors of 10 numbers, as rows."""
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    unit: Tensor = atoms / atoms.norm(dim=1, keepdim=True)
    return unit


def sparse_model(dictionary: Tensor, penalty: float) -> Any:
    model: Any = Autoencoder((10,), 12, linear=True, prior=LaplacePrior(1 / penalty)).double()
    with torch.no_grad():
        model.decoder.net[0].weight.copy_(dictionary.T)
        model.decoder.net[0].bias.zero_()
    return model.requires_grad_(False)


def test_codes_of_a_fixed_dictionary_are_those_of_sparse_coding(dictionary: Tensor) -> None:
    """The codes of scikit-learn satisfy the conditions of an optimum of -log p(x, z), and so does a guide."""
    penalty = 0.3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 10, generator=generator, dtype=torch.float64)
    codes = torch.from_numpy(
        sparse_encode(
            x.numpy(), dictionary.numpy(), algorithm="lasso_cd", alpha=penalty, max_iter=20_000
        )
    )
    model = sparse_model(dictionary, penalty)

    def joint(z: Tensor) -> Tensor:
        found: Tensor = -model.decode(z).log_prob(x) - model.prior().log_prob(z)
        return found

    # The subgradient of the penalty, apart from the rest, which is smooth.
    z = codes.clone().requires_grad_()
    (slope,) = torch.autograd.grad(-model.decode(z).log_prob(x).sum(), z)
    there = codes != 0
    assert 0.1 < float(there.double().mean()) < 0.9
    torch.testing.assert_close(slope[there], -penalty * codes[there].sign(), atol=1e-6, rtol=0)
    assert float(slope[~there].abs().max()) <= penalty + 1e-6
    residuals = (x - codes @ dictionary).square().sum(1) / 2 + penalty * codes.abs().sum(1)
    constant = 5 * math.log(2 * math.pi) + 12 * math.log(2 / penalty)
    torch.testing.assert_close(joint(codes), residuals + constant)

    class Codes(nn.Module):
        """A code for each of the rows."""

        keeps_rows = True

        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.zeros(20, 12, dtype=torch.float64) + 0.01)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Delta(self.z, event_dim=1))

    guide = Codes()
    schedule = partial(CosineAnnealingLR, T_max=600)
    fit(
        model,
        guide,
        x,
        max_epochs=600,
        learning_rate=0.05,
        lr_scheduler=schedule,
        seed=0,
        progress=False,
    )
    z = guide.z.detach()
    assert float((joint(z) - joint(codes)).abs().max()) < 5e-3
    # All optima have the same residuals, so that only numbers on the edge of the penalty can be other than 0.
    # If their atoms are independent, there is one optimum (arXiv:1206.0313). Where they nearly are not, what is
    # maximized hardly changes along a valley, and steps of Adam are slow.
    compared = 0
    for row, edge in enumerate(slope.abs() > penalty - 1e-6):
        assert int(torch.linalg.matrix_rank(dictionary[edge])) == int(edge.sum())
        if float(torch.linalg.cond(dictionary[edge])) < 10:
            torch.testing.assert_close(z[row], codes[row], atol=2e-2, rtol=0)
            compared += 1
    assert compared >= 15


PER_ROW = 2
"""Atoms of a row."""


def planted_rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """20 unit vectors as rows; codes `(n, 20)` with two numbers each, from 1 to 2; and their rows `(n, 16)`."""
    generator = torch.Generator().manual_seed(3)
    dictionary = torch.randn(20, 16, generator=generator)
    dictionary = dictionary / dictionary.norm(dim=1, keepdim=True)
    chosen = torch.rand(n, 20, generator=generator).topk(PER_ROW, 1).indices
    weights = 1 + torch.rand(n, PER_ROW, generator=generator)
    codes = torch.zeros(n, 20).scatter(1, chosen, weights)
    return dictionary, codes, codes @ dictionary


@pytest.mark.slow
def test_a_planted_dictionary_is_found() -> None:
    dictionary, codes, x = planted_rows(4000)
    torch.manual_seed(0)
    model: Any = Autoencoder((16,), 20, UnitNorm(MLP(hidden=())), Gaussian(0.2), LaplacePrior(0.2))
    guide = DeltaEncoder((16,), 20, linear=True, nonnegative=True)
    fit(
        *(model, guide, x),
        objective=ELBO(beta=LinearWarmup(epochs=10)),
        max_epochs=100,
        batch_size=200,
        learning_rate=5e-3,
        lr_scheduler=partial(CosineAnnealingLR, T_max=100),
        seed=0,
        progress=False,
    )
    atoms = model.decoder.net[0].weight.detach()
    torch.testing.assert_close(atoms.norm(dim=0), torch.ones(20))
    matched = (dictionary @ atoms).max(1)
    assert float(matched.values.min()) > 0.95
    assert len(set(matched.indices.tolist())) == 20  # another one for each
    # The two largest numbers of nearly all codes are those that made the row, and the others are small.
    z = guide.encode(x).mean.detach()[:, matched.indices]
    largest = z.topk(PER_ROW, 1).indices.sort(1).values
    own = codes.topk(PER_ROW, 1).indices.sort(1).values
    assert float((largest == own).all(1).double().mean()) > 0.9
    assert float((z * (codes > 0)).sum() / z.sum()) > 0.9


def least_of_held_weights(x: Tensor, slope: float, scale: float) -> float:
    """The least mean of |x - f(z)|^2 / 2 + |z|_1 / scale over all f with |f(z) - c| <= slope |z|_1.

    f is at c for z = 0, and |z|_1 = t brings it nearer to a row by `slope * t` at best. Of a distance r from
    the row, the least over t is Huber's function with the edge d = 1 / (slope scale): r^2 / 2, or
    d r - d^2 / 2 if r > d. It is convex in c.
    """
    edge = 1 / (slope * scale)
    c = x.mean(0).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([c], max_iter=50)

    def mean() -> Tensor:
        r = (x - c).norm(dim=1)
        return torch.where(r < edge, r**2 / 2, edge * r - edge**2 / 2).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(mean().detach())


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(("hidden", "slope"), [((), 1.0), ((16,), 4.0)])
def test_a_penalty_is_cheated_unless_the_weights_are_held(
    hidden: Any, slope: float, held: bool
) -> None:
    """By small codes and large weights: nothing of the squared error has to be given up.

    |W z| <= |z|_1 if the columns of W have norm 1; and so |V h| <= |h|_1 <= 4 |h| for a layer of 16 on top.
    """
    x, _ = exact_rows()
    network = MLP(hidden=hidden, activation=nn.ReLU)
    torch.manual_seed(0)
    of_model = UnitNorm(network) if held else network
    model: Any = Autoencoder((D,), D, of_model, prior=LaplacePrior(0.5)).double()
    guide = DeltaEncoder((D,), D, network).double()
    train(model, guide, x, 500)
    penalty = float(guide.encode(x).mean.detach().abs().sum(1).mean()) / 0.5
    squares = float((reconstruct(model, guide, x) - x).square().sum(1).mean())
    least = least_of_held_weights(x, slope, 0.5)
    layers = [m for m in model.decoder.modules() if isinstance(m, nn.Linear)]
    norms = torch.cat([part.weight.detach().norm(dim=0) for part in layers])
    if held:
        assert penalty + squares / 2 >= least
        torch.testing.assert_close(norms, torch.ones_like(norms))
    else:
        assert penalty + squares / 2 < 0.8 * least
        assert float(norms.max()) > 2


@dataclass(frozen=True)
class Led(Network):
    """A linear network whose decoder begins with another layer."""

    first: Callable[[], nn.Module]

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        return MLP(hidden=()).encoder(data_shape)

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(self.first(), MLP(hidden=()).decoder(latent_dim, out_shape))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": partial(nn.BatchNorm1d, 4),
    "BatchNorm1d, no weights": partial(nn.BatchNorm1d, 4, affine=False),
    "BatchNorm2d, no weights": partial(nn.BatchNorm2d, 4, affine=False),
    "BatchNorm3d, no weights": partial(nn.BatchNorm3d, 4, affine=False),
    "SyncBatchNorm, no weights": partial(nn.SyncBatchNorm, 4, affine=False),
    "InstanceNorm1d": partial(nn.InstanceNorm1d, 4),  # without weights by default
    "InstanceNorm2d": partial(nn.InstanceNorm2d, 4),
    "InstanceNorm3d": partial(nn.InstanceNorm3d, 4),
    "LayerNorm": partial(nn.LayerNorm, 4),
    "LayerNorm, no weights": partial(nn.LayerNorm, 4, elementwise_affine=False),
    "GroupNorm, no weights": partial(nn.GroupNorm, 2, 4, affine=False),
    "RMSNorm, no weights": partial(nn.RMSNorm, 4, elementwise_affine=False),
    "LocalResponseNorm": partial(nn.LocalResponseNorm, 2),
    "CrossMapLRN2d": partial(nn.CrossMapLRN2d, 2),
}


@pytest.mark.parametrize("kind", NORMS)
def test_unit_norm_refuses_layers_that_normalize(kind: str) -> None:
    told = rf"decoder of Led has {kind.split(',')[0]}, which makes up for small codes"
    with pytest.raises(ValueError, match=told):
        UnitNorm(Led(NORMS[kind])).decoder(4, (3,))


def test_a_norm_without_weights_makes_the_penalty_free() -> None:
    z = torch.randn(5, 4)
    decoder = Led(partial(nn.LayerNorm, 4, eps=0.0, elementwise_affine=False)).decoder(4, (3,))
    torch.testing.assert_close(decoder(z / 1000), decoder(z))


def test_unit_norm_refuses_what_scales_anew() -> None:
    with pytest.raises(ValueError, match="has PReLU, whose weights would make up for small codes"):
        UnitNorm(Led(nn.PReLU)).decoder(4, (3,))
    with pytest.raises(
        ValueError, match=r"BatchNorm2d.*such as .* Convolutional\(batch_norm=False\)"
    ):
        UnitNorm(Convolutional(channels=(4, 8))).decoder(2, (1, 8, 8))
    held: Any = UnitNorm(Convolutional(channels=(4, 8), batch_norm=False)).decoder(2, (1, 8, 8))
    for part in (m for m in held.modules() if isinstance(m, nn.ConvTranspose2d)):
        norms = part.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(part.in_channels))
    with pytest.raises(TypeError, match=r"UnitNorm\.network"):
        UnitNorm(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_largest_numbers_of_a_code_stay() -> None:
    torch.manual_seed(0)
    guide = DeltaEncoder((5,), 8, MLP(hidden=(16,)), top_k=3)
    x = torch.randn(50, 5)
    outputs = guide.amortize(x)
    z = guide.encode(x).mean
    assert bool(((z != 0).sum(1) == 3).all())
    kept = outputs.abs().sort(1, descending=True).values[:, :3].sum(1)
    torch.testing.assert_close(z.abs().sum(1), kept)
    torch.testing.assert_close(z[z != 0], outputs[z != 0])
    for k in (0, 9):
        with pytest.raises(ValueError, match="top_k"):
            DeltaEncoder((5,), 8, top_k=k)


def sparse_with(prior: Any, objective: ELBO, seed: int) -> tuple[Any, DeltaEncoder, Any]:
    """Atoms from large steps on rows of a planted dictionary; the pair and what `fit` returned."""
    torch.manual_seed(seed)
    model: Any = Autoencoder((16,), 20, UnitNorm(MLP(hidden=())), Gaussian(0.2), prior)
    guide = DeltaEncoder((16,), 20, linear=True, nonnegative=True)
    x = planted_rows(500)[2]
    options: dict[str, Any] = {"learning_rate": 0.015, "batch_size": 100, "progress": False}
    fitted = fit(model, guide, x, objective=objective, max_epochs=60, seed=seed, **options)
    return model, guide, fitted


@pytest.fixture(scope="module")
def killed() -> Any:
    """With a penalty from the start."""
    return [sparse_with(LaplacePrior(0.04), ELBO(), seed) for seed in (0, 1)]


def num_dead(guide: DeltaEncoder) -> int:
    z = guide.encode(planted_rows(500)[2]).mean
    return int((z == z[0]).all(0).sum())


def test_a_penalty_kills_units_unless_it_grows_slowly(killed: Any) -> None:
    """With a flat p(z) none dies. With a penalty that ends at the same size none does, and more is gained."""
    x = planted_rows(500)[2]
    for seed, (model, guide, _) in enumerate(killed):
        assert num_dead(guide) >= 5
        _, of_flat, _ = sparse_with(FlatPrior(), ELBO(), seed)
        assert num_dead(of_flat) == 0
        warm = sparse_with(LaplacePrior(0.04), ELBO(beta=LinearWarmup(epochs=30)), seed)
        assert num_dead(warm[1]) == 0
        joint = evaluate(model, guide, x, num_samples=2).elbo.mean
        assert evaluate(warm[0], warm[1], x, num_samples=2).elbo.mean > joint + 1


def test_dead_units_under_a_penalty_are_named_and_mended(killed: Any) -> None:
    """New weights alone are none: those of the other seed died as well."""
    x = planted_rows(500)[2]
    model, guide, fitted = killed[0]
    found = diagnose(model, guide, x, fit=fitted)
    assert found.cause == "dead units under a penalty"
    assert 20 - found.active_units >= 5
    assert "the same in all rows" in found.summary()
    (code,) = {cause.code for cause in found.causes.values() if "penalty" in cause.name}
    assert "LinearWarmup" in code
    assert "learning_rate=0.015" in code
    import ppl_vae

    model, guide = copy.deepcopy((model, guide))
    torch.manual_seed(1)
    exec(code, {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": x})
    assert num_dead(guide) == 0
    assert diagnose(model, guide, x).active_units == 20


def test_units_that_died_before_there_was_a_density_are_no_work_of_a_penalty() -> None:
    x = exact_rows()[0].float()
    torch.manual_seed(0)
    model: Any = Autoencoder((D,), 8)
    guide = DeltaEncoder((D,), 8, nonnegative=True)
    with torch.no_grad():
        guide.head.bias[:5] = -50.0
    fitted = fit(model, guide, x, max_epochs=2, seed=0, progress=False)
    assert diagnose(model, guide, x).causes["z[0]"].name == "dead units"
    refitted = refit_prior(model, guide, x, DiagonalNormal(), seed=0)
    known = diagnose(refitted, guide, x, fit=fitted).causes["z[0]"]
    assert known.name == "dead units"
    assert "LinearWarmup" not in known.code
    guessed = diagnose(refitted, guide, x).causes["z[0]"]  # how it was trained is not known
    assert (guessed.name, "may have" in guessed.meaning) == ("dead units under a penalty", True)
