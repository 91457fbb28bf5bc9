"""What a latent dimension carries is measured after each epoch in few operations, with the same results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_live import Above, Guide, Model, above, still
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.models import VAE, DiagonalNormal
from ppl_vae.networks import MLP
from ppl_vae.pairs import Pair, find_layout, normal_rows, sample_rows
from ppl_vae.training import fit, latents
from ppl_vae.training.latents import Known, LatentUse

SMALL = MLP(hidden=(8,))
BITS = (torch.randn(1030, 6, generator=torch.Generator().manual_seed(0)) > 0).float()


def drawn(model: Any, guide: Any, *batch: Tensor) -> Any:
    """Four draws of each row."""
    pair = Pair(model, guide)
    with torch.no_grad(), pair.scope():
        return sample_rows(pair, find_layout(pair, batch), batch, 4)


def learned_prior(latent_dim: int = 3) -> tuple[nn.Module, nn.Module]:
    model = VAE((6,), latent_dim, SMALL, prior=DiagonalNormal())
    with torch.no_grad():
        for number in model.prior.parameters():
            number.normal_()
    return model, MeanField((6,), latent_dim, SMALL)


def default(latent_dim: int = 3) -> tuple[nn.Module, nn.Module]:
    return VAE((6,), latent_dim, SMALL), MeanField((6,), latent_dim, SMALL)


@pytest.mark.parametrize("make", [default, learned_prior], ids=["default", "learned prior"])
@pytest.mark.parametrize("n", [40, 512, 513, 1030])
def test_without_draws_the_numbers_are_the_same(
    make: Callable[[], Any], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch and in several, of which one may have one row."""
    model, guide = make()
    options: dict[str, Any] = {"learning_rate": 1e-30, "max_epochs": 1, "seed": 0}
    options |= {"validation": BITS[:n], "progress": False}
    found = fit(model, guide, BITS[:40], **options).history[0]
    monkeypatch.setattr(latents, "normal_rows", lambda *given: None)
    slow = fit(model, guide, BITS[:40], **options).history[0]
    assert list(found) == list(slow)
    for name in found.keys() - {"seconds"}:
        assert found[name] == pytest.approx(slow[name], rel=1e-5, abs=1e-6), name
    assert "active_units" in found


def test_numbers_of_users_and_scalars_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar beside a vector, a scale that all rows share, priors of another scale and of each row."""
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(1))
    pairs = (Model(), Guide(idle=0.3)), (by_row, Masked())
    found = [still(*pair, validation=x).history[0] for pair in pairs]
    monkeypatch.setattr(latents, "normal_rows", lambda *given: None)
    slow = [still(*pair, validation=x).history[0] for pair in pairs]
    for one, other in zip(found, slow, strict=True):
        for name in one.keys() - {"seconds"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


class Masked(nn.Module):
    """Batches of less than 20 rows have a mask, which leaves out every second row."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        there = torch.arange(len(x)) % 2 == 0
        with pyro.plate("rows", len(x)):
            q = dist.Normal(self.slope * x[:, 0], 0.5)
            pyro.sample("z", q if len(x) >= 20 else q.mask(there))


def of_masked(x: Tensor) -> None:
    there = torch.arange(len(x)) % 2 == 0
    with pyro.plate("rows", len(x)):
        p = dist.Normal(torch.zeros(len(x)), 1.0)
        z = pyro.sample("z", p if len(x) >= 20 else p.mask(there))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=x)


def by_row(x: Tensor) -> None:
    """A prior of its own for each row."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x[:, 1], 1 + x[:, 2].square()))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=x)


def test_batches_of_both_kinds_add_up() -> None:
    """30 rows, and 10 of which 5 have the latent: the exact mean KL is that over 35 rows."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    known = LatentUse(Pair(of_masked, Masked()), Known())
    for part in (x[:30], x[30:]):
        known.update(drawn(of_masked, Masked(), part), (part,))
    found = known.metrics
    there = torch.cat([x[:30, 0], x[30::2, 0]])
    exact = (0.5 * (0.25 + there.square() - 1) + torch.tensor(2.0).log()).mean()
    assert found["kl_z"] == pytest.approx(float(exact), rel=1e-5)
    assert found["active_units"] == 1
    sums = known._sums["z", torch.Size()]
    variance = float((sums.squares / (sums.count - 1))[0])
    assert variance == pytest.approx(float(there.var()), rel=1e-5)


def test_what_needs_draws_is_not_taken_for_what_does_not() -> None:
    """Correlated numbers, a latent above another, and masks; a prior for each row needs none."""
    few, many = BITS[:10, :3], BITS[:30, :3]

    pairs: list[tuple[Any, Any, Tensor, dict[str, bool]]] = [
        (VAE((3,), 2, SMALL), MeanField((3,), 2, SMALL), few, {"z": True}),
        (VAE((3,), 2, SMALL), FullCovariance((3,), 2, SMALL), few, {"z": False}),
        (above, Above(), few, {"z1": True, "z2": False}),
        (of_masked, Masked(), few, {"z": False}),
        (of_masked, Masked(), many, {"z": True}),
        (by_row, Masked(), many, {"z": True}),
    ]
    for model, guide, x, expected in pairs:
        rows = drawn(model, guide, x)
        assert {n: normal_rows(rows, n) is not None for n in rows.layout.latents} == expected


class Counts(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("latent_dim", [2, 60])
def test_a_mean_field_pair_costs_few_operations_and_no_draws(
    latent_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("not for a pair of independent normals")

    for name in ("mean_field_violations", "kl_and_noise_of_dimensions", "prior_moments"):
        monkeypatch.setattr(latents, name, never)
    model, guide = default(latent_dim)
    rows = drawn(model, guide, BITS[:100])
    used, counts = LatentUse(Pair(model, guide), Known()), Counts()
    with counts, torch.no_grad():
        used.update(rows, (BITS[:100],))
        found = used.metrics
    assert len(found) == 1 + latent_dim
    computes = {n: c for n, c in counts.number.items() if "select" not in n and "view" not in n}
    assert sum(computes.values()) <= 30, computes


def test_a_training_that_diverges_has_nan_and_no_warning() -> None:
    guide = Guide()
    rows = drawn(Model(), guide, torch.full((4, 3), 1e30))
    used = LatentUse(Pair(Model(), guide), Known())
    used.update(rows, (torch.zeros(4, 3),))
    used.update(rows, (torch.zeros(4, 3),))
    assert not used.metrics["kl_code[0]"] < 1e30
