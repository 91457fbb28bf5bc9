"""`refit_prior(run_dir=..., resume=True)` ends with the bits of a call that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_vae import fit, refit_prior
from ppl_vae.codes import FSQ, RandomStart, VectorQuantizer
from ppl_vae.guides import HierarchicalQuantizingEncoder, MeanField, QuantizingEncoder
from ppl_vae.models import (
    VAE,
    VQVAE,
    VQVAE2,
    ConditionalVQVAE,
    DiagonalNormal,
    IndependentCodes,
    PixelCNNPrior,
    TransformerPrior,
)
from ppl_vae.models.priors import CodePrior
from ppl_vae.networks import MLP, ConvolutionalGrid, GridPyramid, Labels, Slots
from ppl_vae.runs import RunFolder
from ppl_vae.training import code_prior, prior_checkpoints

X = torch.bernoulli(torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
PRIOR = PixelCNNPrior(channels=4, layers=1, dropout=0.3)
HOW: dict[str, Any] = {"batch_size": 16, "learning_rate": 1e-2, "progress": False}

Pair = tuple[Any, Any]


class Own(CodePrior):
    """A prior of one's own, which says nothing of how it was built."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def build_codes(self, *arguments: Any) -> nn.Module:
        return PRIOR.build_codes(*arguments)


def drawn() -> Pair:
    """Codes that are drawn near their vectors: each call draws them again."""
    torch.manual_seed(0)
    network = Slots(4, MLP((8,)))
    model = VQVAE((1, 8, 8), VectorQuantizer(8, 2, start=RandomStart()), network)
    return model, QuantizingEncoder(model, network, temperature=1.0)


def levels() -> Pair:
    torch.manual_seed(0)
    network = GridPyramid(channels=4, halvings=(1, 1), blocks=0)
    model = VQVAE2((1, 8, 8), [FSQ((2, 2)), FSQ((3, 2))], network)
    return model, HierarchicalQuantizingEncoder(model, network)


@pytest.fixture(autouse=True)
def _after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_checkpoints, "CHECKPOINT_SECONDS", -1.0)


@contextmanager
def killed_in_epoch(number: int) -> Iterator[None]:
    """Ends a call amid an epoch, counted from 1 over all levels."""
    real: Callable[..., float] = code_prior._epoch
    count = 0

    def counted(*arguments: Any) -> float:
        nonlocal count
        count += 1
        found = real(*arguments)
        if count == number:
            raise KeyboardInterrupt
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_prior, "_epoch", counted)
        with pytest.raises(KeyboardInterrupt):
            yield


def weights(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model.prior.state_dict()
    return found


def history(model: Any) -> list[Any]:
    fitted = model.prior.fitted
    return [each.history for each in getattr(fitted, "levels", {"": fitted}).values()]


def require_equal(found: Any, expected: Any) -> None:
    assert history(found) == history(expected)
    assert weights(found).keys() == weights(expected).keys()
    for name, value in weights(expected).items():
        assert torch.equal(weights(found)[name], value), name
    assert found.prior.fitted.rate.mean == expected.prior.fitted.rate.mean


@pytest.mark.parametrize(
    ("epoch", "seed"), [(1, 3), pytest.param(2, None, marks=pytest.mark.slow), (4, 3)]
)
def test_a_call_that_was_killed_goes_on(epoch: int, seed: int | None, tmp_path: Path) -> None:
    pair, folder = drawn(), tmp_path / "run"
    torch.manual_seed(5)
    with killed_in_epoch(epoch):
        refit_prior(*pair, X, PRIOR, max_epochs=4, run_dir=folder, seed=seed, **HOW)
    if seed is None:  # the call has drawn one, as the first thing
        torch.manual_seed(5)
        seed = int(torch.randint(2**31, ()))
    if epoch == 1:  # nothing is there but what it was begun with
        with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
            refit_prior(*pair, X, PRIOR, max_epochs=4, run_dir=folder, resume=True, **HOW)
        return
    found = refit_prior(*drawn(), X, PRIOR, max_epochs=4, run_dir=folder, resume=True, **HOW)
    before = torch.get_rng_state()
    expected = refit_prior(*pair, X, PRIOR, max_epochs=4, seed=seed, **HOW)
    assert torch.equal(torch.get_rng_state(), before)
    require_equal(found, expected)
    assert len(history(found)[0]) == 4


@pytest.mark.parametrize(
    "epoch", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 5]
)
def test_levels_go_on_where_they_were(epoch: int, tmp_path: Path) -> None:
    """The first one has three epochs: in the fourth, it has ended and the next one has no checkpoint."""
    priors = [TransformerPrior(width=8, layers=1, heads=2), PRIOR]
    how: dict[str, Any] = {**HOW, "max_epochs": 3, "validation": X[:20], "seed": 1}
    with killed_in_epoch(epoch):
        refit_prior(*levels(), X, priors, run_dir=tmp_path, **how)
    found = refit_prior(*levels(), X, priors, run_dir=tmp_path, resume=True, **how)
    expected = refit_prior(*levels(), X, priors, **how)
    require_equal(found, expected)
    # A call that has ended gives the same again.
    again = refit_prior(*levels(), X, priors, run_dir=tmp_path, resume=True, **how)
    require_equal(again, expected)
    with pytest.raises(ValueError, match=r"max_epochs=5 .* ended after 3 epochs"):
        refit_prior(
            *levels(), X, priors, run_dir=tmp_path, resume=True, **(how | {"max_epochs": 5})
        )


def test_more_epochs_take_it_further(tmp_path: Path) -> None:
    pair = drawn()
    refit_prior(*pair, X, PRIOR, max_epochs=2, run_dir=tmp_path, seed=0, **HOW)
    found = refit_prior(*pair, X, PRIOR, max_epochs=5, run_dir=tmp_path, resume=True, **HOW)
    require_equal(found, refit_prior(*pair, X, PRIOR, max_epochs=5, seed=0, **HOW))


def test_a_prior_that_overfits_stops_where_it_would_have_stopped(tmp_path: Path) -> None:
    """After its patience, with the weights of its best epoch; a larger patience takes it further."""
    pair = drawn()
    how: dict[str, Any] = {**HOW, "learning_rate": 0.3, "max_epochs": 30, "validation": X[:5]}
    with killed_in_epoch(3):
        refit_prior(*pair, X[5:20], PRIOR, patience=2, run_dir=tmp_path, seed=0, **how)
    found = refit_prior(*pair, X[5:20], PRIOR, patience=2, run_dir=tmp_path, resume=True, **how)
    expected = refit_prior(*pair, X[5:20], PRIOR, patience=2, seed=0, **how)
    require_equal(found, expected)
    assert found.prior.fitted.best_epoch == expected.prior.fitted.best_epoch
    assert len(history(found)[0]) < 30
    found = refit_prior(*pair, X[5:20], PRIOR, patience=6, run_dir=tmp_path, resume=True, **how)
    require_equal(found, refit_prior(*pair, X[5:20], PRIOR, patience=6, seed=0, **how))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    pair = drawn()
    with killed_in_epoch(4):
        refit_prior(*pair, X, PRIOR, max_epochs=4, run_dir=tmp_path, seed=0, **HOW)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:200])
    with pytest.warns(UserWarning, match=f"{newest.name}.*continuing from step-000000002"):
        found = refit_prior(*pair, X, PRIOR, max_epochs=4, run_dir=tmp_path, resume=True, **HOW)
    require_equal(found, refit_prior(*pair, X, PRIOR, max_epochs=4, seed=0, **HOW))


def test_what_is_resumed_must_be_the_same(tmp_path: Path) -> None:
    pair, folder = drawn(), tmp_path / "run"
    how: dict[str, Any] = {**HOW, "max_epochs": 2, "run_dir": folder}
    refit_prior(*pair, X, PRIOR, seed=0, **how)
    others = drawn()
    with torch.no_grad():
        next(others[1].parameters()).add_(1.0)
    other_prior = PixelCNNPrior(channels=4, layers=1, dropout=0.2)
    given: Any
    for given, options, message in (
        ((*pair, 1 - X, PRIOR), {}, "rows of x are other rows"),
        ((*others, X, PRIOR), {}, "the model that is kept has other weights"),
        ((*pair, X, other_prior), {}, "prior.z.init_args.dropout = 0.3, now it is 0.2"),
        (
            (*pair, X, Own(2)),
            {},
            "prior.z.class_path = ppl_vae.models.PixelCNNPrior, now it is Own",
        ),
        (
            (*pair, X, PixelCNNPrior(channels=5, layers=1)),
            {},
            "prior.z.init_args.channels = 4, now it is 5",
        ),
        ((*pair, X, PRIOR), {"seed": 7}, "seed = 0, now it is 7"),
        ((*pair, X, PRIOR), {"learning_rate": 1e-3}, "learning_rate = 0.01, now it is 0.001"),
        ((*pair, X, PRIOR), {"num_draws": 3}, "num_draws = 10, now it is 3"),
    ):
        with pytest.raises(ValueError, match=f"(?s)a run is resumed as it was started.*{message}"):
            refit_prior(*given, resume=True, **(how | options))
    with pytest.raises(FileExistsError, match="resume"):
        refit_prior(*pair, X, PRIOR, seed=0, **how)
    found = refit_prior(*pair, X, PRIOR, resume=True, **how)  # nothing was lost
    require_equal(found, refit_prior(*pair, X, PRIOR, seed=0, **(how | {"run_dir": None})))


def test_settings_of_a_prior_of_ones_own_are_compared(tmp_path: Path) -> None:
    pair = drawn()
    how: dict[str, Any] = {**HOW, "max_epochs": 1, "run_dir": tmp_path}
    refit_prior(*pair, X, Own(1), seed=0, **how)
    refit_prior(*pair, X, Own(1), resume=True, **how)
    with pytest.raises(ValueError, match=r"prior\.z\.init_args\.scale = 1, now it is 2"):
        refit_prior(*pair, X, Own(2), resume=True, **how)


def test_labels_of_larger_pictures_are_compared(tmp_path: Path) -> None:
    network = ConvolutionalGrid(channels=4, halvings=1, blocks=0)
    model = ConditionalVQVAE((1, 8, 8), FSQ((2, 2)), network, context=Labels(3))
    guide = QuantizingEncoder(model, network)
    x, c = torch.bernoulli(torch.rand(20, 1, 16, 16)), torch.arange(20) % 3
    how: dict[str, Any] = {**HOW, "max_epochs": 1, "run_dir": tmp_path}
    refit_prior(model, guide, (x, c), PRIOR, seed=0, **how)
    refit_prior(model, guide, (x, c), PRIOR, resume=True, **how)
    with pytest.raises(ValueError, match="rows of x are other rows"):
        refit_prior(model, guide, (x, (c + 1) % 3), PRIOR, resume=True, **how)


def test_what_has_no_epochs_has_no_checkpoints(tmp_path: Path) -> None:
    pair = drawn()
    with pytest.raises(ValueError, match="resume=True needs the run_dir"):
        refit_prior(*pair, X, PRIOR, resume=True, **HOW)
    refit_prior(*pair, X, IndependentCodes(), run_dir=tmp_path / "counted", **HOW)
    assert not [*(tmp_path / "counted").glob("checkpoints/*")]
    vae = VAE((1, 8, 8), 2, MLP((8,))), MeanField((1, 8, 8), 2, MLP((8,)))
    with pytest.raises(
        ValueError, match="run_dir is for priors of codes, and DiagonalNormal is none"
    ):
        refit_prior(*vae, X, DiagonalNormal(), run_dir=tmp_path / "vectors", progress=False)
    fit(*drawn(), X, max_epochs=1, run_dir=tmp_path / "fit", progress=False)
    with pytest.raises(ValueError, match="not written by refit_prior"):
        refit_prior(*pair, X, PRIOR, run_dir=tmp_path / "fit", resume=True, **HOW)


def test_a_run_takes_the_place_of_another_after_its_first_epoch(tmp_path: Path) -> None:
    with RunFolder.new(tmp_path / "run", {"seed": 1}) as folder:
        folder.begin()
    there = tmp_path / "run" / "config.yaml"
    for epoch, seed in ((1, 1), (2, 2)):
        with (
            killed_in_epoch(epoch),
            RunFolder.new(tmp_path / "run", {"seed": 2}, overwrite=True) as folder,
        ):
            refit_prior(*drawn(), X, PRIOR, max_epochs=3, run_dir=folder, seed=0, **HOW)
        assert there.read_text().startswith(f"seed: {seed}")
