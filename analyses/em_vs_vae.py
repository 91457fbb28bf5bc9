"""A VAE generalizes EM: one model, one bound, one axis; only how q is found and p is updated differs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from progress import Table, start
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    kl_divergence,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit, load_data
from ppl_vae.em import GradientSteps, fit_em
from ppl_vae.guides import CategoricalEncoder, Exact, MeanField, Recurrent
from ppl_vae.models import BernoulliMixture, GaussianHMM, GaussianMixture, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.plots import bound_curves
from ppl_vae.runtime import replacing, require_output

Module = Any  # a model with closed forms, or a guide


@dataclass
class Problem:
    """A model, the amortized guide for it, and rows.

    Attributes:
        hard: Whether hard EM climbs a bound. It does not where z is continuous: a point q has no entropy.
        learning_rate: Learning rate of Adam, in all fits by gradient.
        batch_size: Batch size of SVI; EM and its gradient steps see all rows.
        capture: Whether to record SVI's step, which pays off in long trainings of short programs.
    """

    title: str
    model: Module
    amortized: Module
    train: Tensor
    test: Tensor
    learning_rate: float
    batch_size: int
    hard: bool = True
    capture: bool = True


@dataclass
class Fitted:
    """A way to fit and its result: the model, its history, and a function that gives q(z | x)."""

    name: str
    model: Module
    history: list[dict[str, float]]
    infer: Callable[[Tensor], Distribution]
    hard: bool = False

    @torch.no_grad()
    def kl(self, x: Tensor) -> float:
        """KL(q || p(z | x)), the mean over rows."""
        if self.hard:  # q is a point, and the KL is -log p(z | x) there
            point = self.model.expected_statistics(x, hard=True)["log_evidence"] / len(x)
            return log_p(self.model, x) - float(point)
        return float(divergence(self.infer(x), self.model.posterior(x)).double().mean())

    @torch.no_grad()
    def microseconds(self, x: Tensor) -> float:
        """Time that q takes per row, in a batch of new rows."""
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            self.infer(x)
            taken.append(time.perf_counter() - started)
        return 1e6 * median(taken) / len(x)


@torch.no_grad()
def log_p(model: Module, x: Tensor) -> float:
    """log p(x), the mean over rows."""
    return float(model.log_evidence(x).double().mean())


def divergence(q: Distribution, p: Any) -> Tensor:
    """KL(q || p), in closed form."""
    if isinstance(q, Categorical):
        # torch's own is infinite as soon as a probability of p rounds to 0.
        kl: Tensor = (q.probs * (q.logits - p.logits)).sum(-1)
        return kl
    if isinstance(q, Independent) and isinstance(p, MultivariateNormal):
        q = MultivariateNormal(q.mean, scale_tril=q.stddev.diag_embed())
    return kl_divergence(q, p)


@dataclass
class Watch:
    """Measures a fit by `fit` on the axis of `fit_em`; the time for measuring does not count."""

    fitted: Fitted
    x: Tensor
    started: float = field(default_factory=time.monotonic)
    paused: float = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        evidence, epoch = log_p(self.fitted.model, self.x), float(len(self.fitted.history))
        row = {
            "log_likelihood": evidence,
            "bound": evidence - self.fitted.kl(self.x),
            "passes": epoch,
            "gradient_evaluations": epoch,
            "seconds": now - self.started - self.paused,
        }
        self.fitted.history.append(row)
        self.paused += time.monotonic() - now


class Watched(CosineAnnealingLR):
    """A learning rate that falls to 0 along a cosine. `fit` steps it after each epoch; a step also measures."""

    def __init__(self, optimizer: Optimizer, watch: Watch, epochs: int) -> None:
        self.watch: Callable[[], None] = lambda: None  # torch's constructor calls step
        super().__init__(optimizer, T_max=epochs)
        self.watch = watch

    def step(self, epoch: int | None = None) -> None:
        """Sets the learning rate of the next epoch, and measures."""
        super().step()
        self.watch()


def by_em(problem: Problem, name: str, **how: Any) -> Fitted:
    """Fits a copy of the model by `fit_em`, from the model's start."""
    model = copy.deepcopy(problem.model)
    fitted = fit_em(model, problem.train, initialize=False, device="cpu", **how)
    return Fitted(name, model, fitted.history, model.posterior, how.get("hard", False))


def by_svi(
    problem: Problem, name: str, seed: int, *, exact: int = 0, guide: int = 0, both: int = 0
) -> Fitted:
    """Fits a copy of the model by `fit`, with the exact guide or with the amortized one.

    Args:
        exact: Epochs with the exact guide.
        guide: Epochs in which the amortized guide learns and the model stays as it is.
        both: Epochs in which both learn.
    """
    model = copy.deepcopy(problem.model)
    q = Exact(model) if exact else copy.deepcopy(problem.amortized)
    fitted = Fitted(name, model, [], q.encode)
    watch = Watch(fitted, problem.train)
    watch()
    for epochs, learns in ((exact, True), (guide, False), (both, True)):
        if epochs:
            fit(
                model.requires_grad_(learns),
                q,
                problem.train,
                max_epochs=epochs,
                batch_size=problem.batch_size,
                learning_rate=problem.learning_rate,
                lr_scheduler=partial(Watched, watch=watch, epochs=epochs),
                seed=seed,
                device="cpu",
                capture=problem.capture,
            )
    return fitted


def compare(
    problem: Problem, epochs: int, output: Path, seed: int, overwrite: bool
) -> list[Fitted]:
    """Fits in every way from one start, prints the table and saves the picture."""
    require_output(output, overwrite=overwrite)
    problem.model.initialize(problem.train, seed=seed)
    # The first gradient of a process loads half of torch: that time belongs to no method.
    by_svi(replace(problem, train=problem.train[:64]), "", seed, exact=1)
    one = GradientSteps(steps=1, learning_rate=problem.learning_rate)
    limits: dict[str, Any] = {"max_iterations": 1000, "tolerance": 1e-6}
    gradient: dict[str, Any] = {"m_step": one, "max_iterations": epochs, "batch_size": 4096}
    first = max(1, epochs // 10)
    ways: dict[str, Callable[[str], Fitted]] = {
        "EM": lambda name: by_em(problem, name, **limits),
        "hard EM": lambda name: by_em(problem, name, hard=True, **limits),
        "gradient EM": lambda name: by_em(problem, name, **gradient),
        "SVI, exact q": lambda name: by_svi(problem, name, seed, exact=epochs),
        "SVI, amortized q": lambda name: by_svi(problem, name, seed, both=epochs),
        "SVI, q learns first": lambda name: by_svi(problem, name, seed, guide=first, both=epochs),
    }
    if not problem.hard:
        del ways["hard EM"]
    columns = ["method", "passes", "gradients", "seconds", "bound", "log p(x)", "KL", "then EM"]
    table = Table([*columns, "test log p(x)", "test KL", "µs a new row"], steps=len(ways))
    print(f"{problem.title}\n")
    table.head()
    found = []
    for name, fitted in ways.items():
        found.append(fitted(name))
        table.row(cells_of(found[-1], problem))
        table.step(name)
    exact, amortized = found[0], max(found[-2:], key=lambda f: f.history[-1]["bound"])
    kl = amortized.kl(problem.train)
    loss = log_p(exact.model, problem.train) - log_p(amortized.model, problem.train)
    times = [brief(f.microseconds(problem.test)) for f in (exact, amortized)]
    print(
        f"\n'{amortized.name}' ends {loss + kl:.3f} nats below EM: {kl:.3f} of KL, and {loss:.3f} of log p(x). "
        f"q of a new row takes {times[1]} µs instead of {times[0]}.\n{len(problem.train)} training "
        f"and {len(problem.test)} test rows, nats per row. 'then EM': log p(x) of the training rows after EM "
        f"that starts from there. The picture is in {output}."
    )
    # Hard EM comes last, so that the others keep their colors where it is left out.
    histories = {f.name: f.history for f in sorted(found, key=lambda f: f.hard)}
    figure = bound_curves(histories, against=("passes", "gradient_evaluations", "seconds"))
    with replacing(output, overwrite=overwrite) as file:
        figure.savefig(file)
    return found


def brief(value: float) -> str:
    """A number with two significant digits."""
    return f"{float(f'{value:.2g}'):g}"


def cells_of(fitted: Fitted, problem: Problem) -> list[str]:
    """A row of the table."""
    last = fitted.history[-1]
    again = copy.deepcopy(fitted.model)
    after = fit_em(again, problem.train, initialize=False, max_iterations=1000, device="cpu")
    nats = [last["bound"], last["log_likelihood"], last["log_likelihood"] - last["bound"]]
    nats += [after.log_likelihood, log_p(fitted.model, problem.test), fitted.kl(problem.test)]
    return [
        fitted.name,
        f"{last['passes']:.0f}",
        f"{last['gradient_evaluations']:.0f}",
        f"{last['seconds']:.2f}",
        *(f"{value:z.3f}" for value in nats),
        brief(fitted.microseconds(problem.test)),
    ]


def say_used(found: list[Fitted]) -> None:
    """Prints how many components of a mixture have more than a tenth of an equal share."""
    weights = {f.name: f.model.prior().probs for f in found}
    used = [f"{name} {int((w > 0.1 / len(w)).sum())}" for name, w in weights.items()]
    print(f"Components with more than a tenth of an equal weight: {', '.join(used)}.")


def digits(
    components: int = 20,
    epochs: int = 200,
    max_rows: int | None = None,
    output: Path = Path("em_vs_vae_digits.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """A mixture of Bernoullis on scikit-learn's digits, black or white.

    Args:
        components: Number of components of the mixture.
        epochs: Passes of SVI, and iterations of gradient EM.
        max_rows: Maximum number of rows per split.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    data = load_data("digits", binarize="threshold", max_rows=max_rows)
    torch.manual_seed(seed)
    model = BernoulliMixture(data.shape, components)
    guide = CategoricalEncoder(data.shape, components, MLP(hidden=(64,)))
    title = f"Mixture of {components} Bernoullis, digits"
    problem = Problem(title, model, guide, data.train, data.test, 0.05, 128)
    say_used(compare(problem, epochs, output, seed, overwrite))


def mnist(
    data_dir: Path = Path("data"),
    dimensions: int = 20,
    components: int = 20,
    epochs: int = 30,
    max_rows: int | None = 10_000,
    output: Path = Path("em_vs_vae_mnist.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """A mixture of Gaussians with full covariances on the principal components of MNIST.

    Args:
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        dimensions: Number of principal components to keep.
        components: Number of components of the mixture.
        epochs: Passes of SVI, and iterations of gradient EM.
        max_rows: Maximum number of rows per split.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    data = load_data("MNIST", data_dir=data_dir, max_rows=max_rows)
    pca = PCA(dimensions, random_state=seed).fit(data.train.flatten(1))
    train, test = (
        torch.as_tensor(pca.transform(x.flatten(1)), dtype=torch.float32)
        for x in (data.train, data.test)
    )
    torch.manual_seed(seed)
    model = GaussianMixture((dimensions,), components, "full")
    guide = CategoricalEncoder((dimensions,), components, MLP(hidden=(64,)))
    title = f"Mixture of {components} Gaussians, {dimensions} principal components of MNIST"
    problem = Problem(title, model, guide, train, test, 0.02, 500)
    say_used(compare(problem, epochs, output, seed, overwrite))


def pca(
    latent_dim: int = 8,
    epochs: int = 200,
    max_rows: int | None = None,
    output: Path = Path("em_vs_vae_pca.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Probabilistic PCA on scikit-learn's digits, gray levels dequantized once.

    Args:
        latent_dim: Number of latents.
        epochs: Passes of SVI, and iterations of gradient EM.
        max_rows: Maximum number of rows per split.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    data = load_data("digits", dequantize=True, max_rows=max_rows)
    torch.manual_seed(seed)
    assert data.transform is not None
    train = data.transform(data.train)
    model = ProbabilisticPCA(data.shape, latent_dim)
    guide = MeanField(data.shape, latent_dim, MLP(hidden=()))
    title = f"Probabilistic PCA, {latent_dim} latents, digits"
    problem = Problem(title, model, guide, train, data.test, 0.01, 128, hard=False)
    compare(problem, epochs, output, seed, overwrite)
    best = copy.deepcopy(model).maximum_likelihood(train)
    print(f"The maximum, by eigenvalues: {log_p(best, train):.3f} nats.")


def hmm(
    states: int = 4,
    steps: int = 20,
    rows: int = 500,
    epochs: int = 30,
    output: Path = Path("em_vs_vae_hmm.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """A hidden Markov model on simulated sequences.

    The sequences come from a chain that starts in any state, and at each step stays in its state with
    probability 0.9 or moves to one of the others. State k emits points of the plane, N(mu_k, I), with mu_k at
    equal angles on a circle of radius 2: a single point tells little about its state, its neighbors in time
    tell more.

    Args:
        states: Number of states, of the simulation and of the model.
        steps: Steps of each sequence.
        rows: Number of training sequences; there are half as many test sequences.
        epochs: Passes of SVI, and iterations of gradient EM.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    torch.manual_seed(seed)
    truth = GaussianHMM((steps, 2), states, "spherical")
    angles = torch.arange(states) * (2 * torch.pi / states)
    with torch.no_grad():
        leave = torch.full((states, states), 0.1 / (states - 1)).fill_diagonal_(0.9)
        truth.transition_logits.copy_(leave.log())
        truth.means.copy_(2 * torch.stack([angles.cos(), angles.sin()], -1))
        paths = truth.prior(steps).sample((rows + rows // 2,))
        x = truth.means[paths] + torch.randn(len(paths), steps, 2)
    train, test = x[:rows], x[rows:]
    model = GaussianHMM((steps, 2), states)
    guide = Recurrent((steps, 2), states)
    title = f"Hidden Markov model with {states} states, simulated sequences of {steps} steps"
    problem = Problem(title, model, guide, train, test, 0.05, 100, capture=False)
    compare(problem, epochs, output, seed, overwrite)
    print(f"log p(x) of the test rows under the simulation: {log_p(truth, test):.3f}.")


if __name__ == "__main__":
    start(
        {"digits": digits, "mnist": mnist, "pca": pca, "hmm": hmm},
        quick={
            "digits": {
                "components": 3,
                "max_rows": 80,
                "epochs": 4,
                "output": "em_vs_vae_digits_quick.png",
            },
            "mnist": {
                **{"dimensions": 2, "components": 2, "max_rows": 200, "epochs": 3},
                "output": "em_vs_vae_mnist_quick.png",
            },
            "pca": {
                "latent_dim": 2,
                "max_rows": 80,
                "epochs": 4,
                "output": "em_vs_vae_pca_quick.png",
            },
            "hmm": {
                "states": 2,
                "steps": 4,
                "rows": 40,
                "epochs": 3,
                "output": "em_vs_vae_hmm_quick.png",
            },
        },
    )
