"""Evaluation by a recorded chunk gives Pyro's numbers, or says why it cannot."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluate
from ppl_vae.capture import importance_weights as weighing
from ppl_vae.capture.recording import Recording, record
from ppl_vae.evaluation import Evaluation
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP

SHAPE = (1, 8, 8)
AUXILIARY: Any = {"is_auxiliary": True}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**17)
    monkeypatch.setattr(weighing, "RECORD_FROM", 3)


def rows(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (n, *SHAPE), generator=generator).float()


def pair(likelihood: Any = Bernoulli, guide: Any = MeanField) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = MLP(hidden=(16,))
    return VAE(SHAPE, 2, network, likelihood()), guide(SHAPE, 2, network)


# The numbers of the guide are those of both; better proposals, which "auto" finds, take most of the time.
methods = pytest.mark.parametrize("method", ["guide", pytest.param("auto", marks=pytest.mark.slow)])


def same(one: Evaluation, other: Evaluation) -> None:
    for name in ("elbo", "rate", "distortion", "log_likelihood"):
        assert torch.equal(getattr(one, name).values, getattr(other, name).values), name
    assert torch.equal(one.khat, other.khat)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    made: list[Recording] = []

    def remembered(*args: Any) -> Recording:
        made.append(record(*args))
        return made[-1]

    monkeypatch.setattr(weighing, "record", remembered)
    return made


@methods
@pytest.mark.parametrize("guide", [MeanField, FullCovariance])
@pytest.mark.parametrize("likelihood", [Bernoulli, pytest.param(Gaussian, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_pyro_bit_by_bit(
    method: str, likelihood: Any, guide: Any, recorded: list[Recording]
) -> None:
    model, q = pair(likelihood, guide)
    options: dict[str, Any] = {"num_samples": 301, "seed": 1, "method": method}  # a ragged chunk
    same(
        evaluate(model, q, rows(), **options),
        evaluate(model, q, rows(), capture=False, **options),
    )
    assert len(recorded) == 1


def test_a_recorded_chunk_makes_no_call_to_pyro(monkeypatch: pytest.MonkeyPatch) -> None:
    model, q = pair()
    calls = []
    original = pyro.sample

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(pyro, "sample", counted)
    evaluate(model, q, rows(), num_samples=200, method="guide", seed=1)
    few = len(calls)
    calls.clear()
    evaluate(model, q, rows(), num_samples=800, method="guide", seed=1)
    assert len(calls) <= few + 8 + 3  # a ragged last chunk; the hundredth run is compared with Pyro


def test_the_closed_form_is_met(recorded: list[Recording]) -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA(SHAPE, 2)

    class Shifted(nn.Module):
        """Near the exact posterior, and not equal to it."""

        def forward(self, x: Tensor) -> None:
            exact = model.posterior(x)
            scale_tril = 1.1 * exact.scale_tril
            with pyro.plate("data", len(x), dim=-1):
                shifted = exact.mean + 0.3 * scale_tril.diagonal(dim1=-2, dim2=-1)
                pyro.sample("z", dist.MultivariateNormal(shifted, scale_tril=scale_tril))

    found = evaluate(model, Shifted(), rows(), num_samples=400, seed=1, method="guide")
    assert len(recorded) == 1
    error = found.log_likelihood.values - model.log_evidence(rows())
    assert (error.abs() < 5 * found.log_likelihood_error + 1e-4).all()


def test_few_chunks_are_not_recorded(
    recorded: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "RECORD_FROM", 10**6)
    evaluate(*pair(), rows(), num_samples=300, seed=1, method="guide")
    assert not recorded


@methods
def test_the_last_rows_are_recorded_if_they_come_often(
    method: str, recorded: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, q = pair()
    options: dict[str, Any] = {"num_samples": 301, "seed": 1, "method": method}
    monkeypatch.setattr("ppl_vae.checks.session.chunk_sizes", lambda *_: (4, 20))
    same(
        evaluate(model, q, rows(), **options),
        evaluate(model, q, rows(), capture=False, **options),
    )
    assert [tuple(r.example[0].shape) for r in recorded] == [(4, *SHAPE), (2, *SHAPE)]


def test_samples_that_have_to_be_looped_over_are_recorded(recorded: list[Recording]) -> None:
    model, q = pair()

    class Flattening(nn.Module):
        """A guide that knows of no dimension of samples."""

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                u = pyro.sample("u", q.encode(x), infer=AUXILIARY)  # type: ignore[operator]
                assert u.dim() == 2
                pyro.sample("z", dist.Delta(u, event_dim=1))

    options: dict[str, Any] = {"num_samples": 50, "seed": 1}
    same(
        evaluate(model, Flattening(), rows(), **options),
        evaluate(model, Flattening(), rows(), capture=False, **options),
    )
    assert len(recorded) == 1


def test_a_program_that_counts_its_calls_runs_as_often(caplog: pytest.LogCaptureFixture) -> None:
    model, q = pair()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> None:
            self.calls += 1
            q(x)

    counts = []
    for capture in (True, False):
        guide = Counting()
        with caplog.at_level(logging.WARNING):
            evaluate(model, guide, rows(), num_samples=300, seed=1, capture=capture, method="guide")
        counts.append(guide.calls)
    assert counts[0] == counts[1]
    assert "the evaluation goes on in Pyro: the pair changes Python state" in caplog.text


def test_what_cannot_be_recorded_is_done_by_pyro(caplog: pytest.LogCaptureFixture) -> None:
    model, q = pair()

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> None:
            np.random.rand()
            q(x)

    with caplog.at_level(logging.WARNING):
        found = evaluate(model, Noisy(), rows(), num_samples=300, seed=1, method="guide")
    assert "the evaluation goes on in Pyro: the pair draws from NumPy's" in caplog.text
    same(found, evaluate(model, q, rows(), capture=False, num_samples=300, seed=1, method="guide"))


@methods
def test_a_wrong_recording_is_found(
    method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, q = pair()
    options: dict[str, Any] = {"num_samples": 300, "seed": 1, "method": method}
    truth = evaluate(model, q, rows(), capture=False, **options)

    def wrong(self: Recording, *args: Any) -> Any:
        return [1.01 * t for t in self.run(*args, *self.tensors)]

    monkeypatch.setattr(Recording, "__call__", wrong)
    with caplog.at_level(logging.WARNING):
        same(evaluate(model, q, rows(), **options), truth)
    assert "differ from Pyro's" in caplog.text


@pytest.mark.slow
@methods
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiled_chunks_agree_to_float_precision(
    method: str, monkeypatch: pytest.MonkeyPatch, recorded: list[Recording]
) -> None:
    monkeypatch.setattr(weighing, "COMPILE_FROM", 3)
    model, q = pair()
    options: dict[str, Any] = {"num_samples": 301, "seed": 1, "method": method}
    found = evaluate(model, q, rows(), **options)
    truth = evaluate(model, q, rows(), capture=False, **options)
    assert [r.compiled for r in recorded] == [True]
    for name in ("elbo", "log_likelihood"):
        mine, theirs = getattr(found, name).values, getattr(truth, name).values
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


# -- what a recording would not see ----------------------------------------------------------------------

READERS = {
    "numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "__array__": lambda x: torch.as_tensor(np.asarray(x).copy()),
    "numpy of a copy": lambda x: torch.from_numpy(x.detach().cpu().clone().numpy()),
}


@pytest.mark.slow(but=("numpy", "__array__"))
@pytest.mark.parametrize("reader", READERS)
def test_rows_read_outside_of_torch_are_not_recorded(
    reader: str, recorded: list[Recording], caplog: pytest.LogCaptureFixture
) -> None:
    """log p(x) is exact: the guide is the posterior, by way of numbers that leave torch."""

    model = programs.normal

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(READERS[reader](x) / 2, 0.5**0.5))

    x = 2 * torch.randn(400)
    with caplog.at_level(logging.WARNING):
        found = evaluate(model, guide, x, num_samples=300, seed=0, method="guide")
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-4, rtol=0)
    assert recorded == []
    name = reader.split()[0]
    assert f"read tensors outside of torch, by .{name}()" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("wrong_from", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_a_recording_that_turns_out_wrong_is_done_again(
    wrong_from: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that are off by a nat from one run on: those given before are thrown away, too."""
    runs = 0

    def spoiled(*args: Any) -> Recording:
        made = record(*args)
        right = made.run

        def run(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            log_weights, *others = right(*inputs)
            return (log_weights + float(runs > wrong_from), *others)

        made.run = run
        return made

    monkeypatch.setattr(weighing, "record", spoiled)
    (model, guide), x = pair(), rows(60)
    plain = evaluate(model, guide, x, num_samples=100, method="guide", seed=0, capture=False)
    with caplog.at_level(logging.WARNING):
        found = evaluate(model, guide, x, num_samples=100, method="guide", seed=0)
    assert "the evaluation starts again in Pyro" in caplog.text
    assert runs > wrong_from
    same(found, plain)
    torch.manual_seed(5)
    without_a_seed = evaluate(model, guide, x, num_samples=100, method="guide", capture=False)
    runs = 0
    torch.manual_seed(5)
    same(evaluate(model, guide, x, num_samples=100, method="guide"), without_a_seed)
