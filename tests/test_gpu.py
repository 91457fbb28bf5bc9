"""On a GPU: every pair of ours, exact answers, recorded steps, and programs that make tensors on the CPU."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalogue
import kill
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import PAIRS, ROWS
from torch import Tensor, nn
from trainings import Model, X, same, train, weights

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    fit_em,
    inference_gaps,
    load_run,
    save_run,
    to_arviz,
)
from ppl_vae.capture import CudaGraph
from ppl_vae.checks import PairWarning
from ppl_vae.data import Binarization, Buckets
from ppl_vae.em import GradientSteps
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, GaussianMixture, ProbabilisticPCA
from ppl_vae.networks import MLP, WordNoise
from ppl_vae.objectives import (
    ELBO,
    BackTranslation,
    ImportanceWeightedELBO,
    KnownLatents,
    LinearWarmup,
    SentenceDenoising,
    Together,
)
from ppl_vae.pairs import Pair, PairError
from ppl_vae.tasks import translate
from ppl_vae.training import refit_guide
from ppl_vae.training.strides import Strides

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def devices(model: Any, guide: Any, x: Any) -> set[str]:
    """The kinds of devices that a pair's parameters are on."""
    pair = Pair.of(model, guide)
    with pair.scope():
        return {p.device.type for p in pair.parameters(x).values()}


@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_does_everything(name: str, tmp_path: Path) -> None:
    model: Any
    copy: Any
    model, guide, x = PAIRS[name]()
    batch_size = ROWS if Pair(model, guide).keeps_rows else 10
    fit(model, guide, x, max_epochs=1, batch_size=batch_size, seed=0)
    on_gpu = {
        p.device.type for m in Pair.of(model, guide).modules().values() for p in m.parameters()
    }
    assert on_gpu <= {"cuda"}
    found = evaluate(model, guide, x, num_samples=8, seed=1)
    assert found.num_rows == ROWS
    if isinstance(guide, Exact):
        copy, _, _ = PAIRS[name]()
        copy.load_state_dict(model.state_dict())
        torch.testing.assert_close(
            found.log_likelihood.values, copy.log_evidence(x), atol=2e-3, rtol=1e-4
        )
    save_run(tmp_path / "run", model, guide)
    other_model, other_guide, _ = PAIRS[name]()
    run = load_run(tmp_path / "run", other_model, other_guide)  # on the CPU
    again = Pair.of(run.model, run.guide).state()
    for key, value in Pair.of(model, guide).state().items():
        assert torch.equal(again[key].cpu(), value.cpu()), key
    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    assert exported["log_likelihood"]


def test_numbers_are_those_of_the_cpu() -> None:
    """An exact guide: log p(x), the gaps and the KL do not depend on draws."""
    torch.manual_seed(0)
    model = ProbabilisticPCA((5,), latent_dim=2)
    guide, x = Exact(model), torch.randn(50, 5)
    exact = model.log_evidence(x)
    on_cpu = diagnose(model, guide, x, seed=0)
    model.cuda()
    found = evaluate(model, guide, x, num_samples=20, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=1e-5)
    annealed = annealed_importance_sampling(
        model, guide, x[:10], num_steps=20, num_chains=4, seed=0
    )
    torch.testing.assert_close(
        annealed.log_likelihood.values.double(), exact[:10].double(), atol=1e-4, rtol=1e-5
    )
    gaps = inference_gaps(model, guide, x[:10], seed=0)
    assert abs(gaps.approximation_gap.mean) < 1e-3
    assert abs(gaps.amortization_gap.mean) < 1e-3
    torch.testing.assert_close(
        diagnose(model, guide, x, seed=0).kl, on_cpu.kl, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("recorded", [False, True])
def test_it_learns_what_the_cpu_learns(recorded: bool) -> None:
    """Draws differ between devices; with the exact posterior as guide, they hardly matter."""
    torch.manual_seed(2)
    x = torch.randn(200, 3) @ torch.randn(3, 3)
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        model = ProbabilisticPCA((3,), latent_dim=2)
        start = model.log_evidence(x).mean()
        options: dict[str, Any] = {"device": device, "capture": recorded, "seed": 0}
        fit(model, Exact(model), x, max_epochs=200, batch_size=100, learning_rate=0.01, **options)
        ends.append(model.cpu().log_evidence(x).mean())
        assert ends[-1] > start + 0.5
    torch.testing.assert_close(ends[0], ends[1], atol=0.02, rtol=0)


def test_recorded_steps_are_pyros() -> None:
    """To float precision: the order in which a GPU adds numbers may differ."""
    (plain, weights), (recorded, recorded_weights) = (
        train(max_epochs=20, capture=capture, device="cuda") for capture in (False, True)
    )
    for a, b in zip(plain.history, recorded.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(recorded_weights[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": ImportanceWeightedELBO(num_particles=5)},
        {"objective": ELBO(beta=LinearWarmup(epochs=20)), "clip_grad_norm": 1.0},
    ],
    ids=["ELBO", "IWAE", "beta, clipped"],
)
def test_strides_give_the_bits_of_single_steps(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph for each step, against the same compiled recording in Python, over many epochs."""
    x = torch.rand(600, 784, generator=torch.Generator().manual_seed(0))
    replays = 0
    replay = CudaGraph.__call__

    def counted(self: CudaGraph) -> None:
        nonlocal replays
        replays += 1
        replay(self)

    monkeypatch.setattr(CudaGraph, "__call__", counted)
    ends = []
    for single in (False, True):
        if single:
            monkeypatch.setattr(Strides, "of", lambda *_: None)
        torch.manual_seed(0)
        network = MLP(hidden=(200, 200))
        model, guide = VAE((784,), 50, network), MeanField((784,), 50, network)
        settings: dict[str, Any] = {"batch_size": 20, "max_epochs": 40, **options}
        fitted = fit(
            model,
            guide,
            x,
            transform=Binarization(),
            seed=0,
            compile=True,
            device="cuda",
            **settings,
        )
        losses = [{**epoch, "seconds": 0.0} for epoch in fitted.history]
        ends.append((losses, weights(model, guide)))
    assert replays > 1000
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])


@pytest.mark.parametrize("recorded", [False, True])
def test_a_resumed_training_ends_with_the_same_bits(recorded: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cuda", "capture": recorded, "batch_size": 5}
    _, whole = train(max_epochs=8, **options)
    train(max_epochs=4, run_dir=tmp_path, **options)
    _, resumed = train(max_epochs=8, run_dir=tmp_path, resume=True, **options)
    assert same(whole, resumed)


KILLED = """
import os, signal, sys
from ppl_vae.cli import main
from ppl_vae.training import checkpoints
from ppl_vae.training.step import Step

checkpoints.CHECKPOINT_SECONDS = (0.0, 0.0)  # after every step
deadly, *arguments = sys.argv[1:]
calls, take = 0, Step.__call__

def counted(self, *given):
    global calls
    calls += 1
    if calls == int(deadly):
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *given)

Step.__call__ = counted
sys.exit(main(arguments))
"""


def test_a_killed_command_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed before its steps are recorded, and again afterwards."""

    def command(deadly: int, *arguments: str | Path) -> int:
        line = [sys.executable, "-c", KILLED, str(deadly), *map(str, arguments), "--quiet"]
        return subprocess.run(line, check=False).returncode

    options = ["--max_rows", "60", "--num_samples", "5", "--batch_size", "15", "--max_epochs", "16"]
    options += [*catalogue.SMALL_NETWORK, "--model.latent_dim", "2", "--device", "cuda"]
    assert command(0, "train", "--run_dir", tmp_path / "whole", *options) == 0
    assert command(9, "train", "--run_dir", tmp_path / "killed", *options) == -signal.SIGKILL
    resume: list[str | Path] = ["train", "--resume", tmp_path / "killed"]
    assert command(40, *resume) == -signal.SIGKILL
    assert command(0, *resume) == 0
    kill.require_same(tmp_path / "killed", kill.contents(tmp_path / "whole"))


class Recurrent(nn.Module):
    """q(z | x) by a GRU with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> None:
        _, h = self.gru(x.unsqueeze(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.out(h[-1]), 1.0).to_event(1))


def test_recurrent_layers_have_gradients_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model, guide = Model(), Recurrent()
    gradients = []
    for device in ("cpu", "cuda"):
        pair = Pair(model, guide)
        pair.to(torch.device(device))
        x = X.to(device)
        with pair.mode(training=False):
            _, h = guide.gru(x.unsqueeze(-1))
            (gradient,) = torch.autograd.grad(h.square().sum(), [guide.gru.all_weights[0][1]])
            gradients.append(gradient.cpu())
        assert guide.gru.training
        assert guide.gru.dropout == 0.5
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)
    assert check(model, guide, X.cuda()).ok
    fit(model, guide, X, max_epochs=2, seed=0, device="cuda")
    inference_gaps(model, guide, X[:5], seed=0)
    refit_guide(model, Recurrent(), X, max_epochs=2, seed=0)


def strangers_model(x: Tensor) -> None:
    """Written for the CPU: a tensor of its own."""
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc + torch.zeros(2), torch.ones(2)).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class StrangersGuide(nn.Module):
    """A module, which `fit` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), torch.ones(2)).to_event(1))


def test_a_program_for_the_cpu_is_trained_there() -> None:
    x = torch.randn(20, 2)
    with pytest.warns(PairWarning, match="computes on the CPU: on the GPU it mixes devices"):
        fitted = fit(strangers_model, StrangersGuide(), x, max_epochs=2, seed=0)
    assert devices(fitted.model, fitted.guide, x) == {"cpu"}
    evaluate(fitted.model, fitted.guide, x, num_samples=3)
    with pytest.warns(PairWarning, match="computes on the CPU"):
        refitted = refit_guide(fitted.model, StrangersGuide(), x, max_epochs=2, seed=0)
    assert devices(refitted.model, refitted.guide, x) == {"cpu"}
    with pytest.raises(PairError, match="make the program's own tensors there"):
        fit(strangers_model, StrangersGuide(), x, max_epochs=2, seed=0, device="cuda")


def test_em_of_a_program_for_the_cpu() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = torch.randn(30)
    with pytest.warns(PairWarning, match="computes on the CPU"):
        fit_em(model, x, m_step=GradientSteps(steps=2), max_iterations=2)


def test_em_on_the_gpu_is_that_of_the_cpu() -> None:
    x = torch.randn(200, 2)
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model = GaussianMixture((2,), components=2)
        ends.append(fit_em(model, x, seed=0, max_iterations=20, device=device).log_likelihood)
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_sentences_are_trained_and_translated_on_the_gpu() -> None:
    """What is given on the CPU goes there: rows, real latents and pairs. Translations are those of the CPU."""
    model: Any
    guide: Any
    model, guide, x = PAIRS["LatentTranslation-Translator"]()
    z = x.flip(0)
    parts = Together(
        [
            BackTranslation(Buckets(z, batch_size=5), greedy=True),
            SentenceDenoising(z, noise=WordNoise(), learn_prior=False, elbo_rows=0),
            KnownLatents((x, z), learn_prior=False, elbo_rows=0),
        ]
    )
    rows = Buckets(x, batch_size=10)
    fitted = fit(model, guide, rows, objective=parts, max_epochs=2, seed=0, device="cuda")
    assert torch.isfinite(torch.tensor([each["loss"] for each in fitted.history])).all()
    assert devices(model, guide, x) == {"cuda"}
    fit(model, guide, x, objective=ELBO(num_particles=4), max_epochs=1, seed=0, device="cuda")
    found = translate(model, guide, x, num=3)
    drawn = translate(model, guide, x, num=3, draws=True, seed=0)
    assert found.rows.device.type == "cpu"
    assert diagnose(model, guide, x, seed=0).of_sentences is not None
    model.cpu()
    guide.cpu().eval()
    again = translate(model, guide, x, num=3)
    torch.testing.assert_close(found.log_probs, again.log_probs, atol=1e-3, rtol=1e-4)
    scores = guide.encode(x).log_prob(drawn.rows.transpose(0, 1)).T.detach()
    torch.testing.assert_close(drawn.log_probs, scores, atol=1e-3, rtol=1e-4)
