"""A stranger's programs may have attributes of any name: what ours mean by these, theirs need not."""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from trainings import Guide, Model, X

from ppl_vae import check, diagnose, encode, evaluate, fit, fit_em, inference_gaps, refit_guide
from ppl_vae.pairs import Pair, attach_guide, keep_guide, kept_guides, least_rate
from ppl_vae.tasks import sample

ROOT = Path(__file__).resolve().parent.parent

TEXTS = {"default_objective"}  # docs/own_pair.md
FLAGS = {"fitted_to_rows", "keeps_rows"}  # docs/architecture.md, "Contracts", as all that follow
METHODS = {"attach_guide", "keep_guide", "learn_together", "why_not_committed"}
METHODS |= {"amortise", "amortize", "family", "label_log_prob", "log_evidence"}
METHODS |= {
    "check_start",
    "conditional",
    "expected_statistics",
    "first_problem",
    "initialize",
    "maximize",
}
"""What a stranger's program may say on purpose, and is taken at its word."""


def misused(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a method of a stranger was called")


VALUES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "a number": (lambda: 0.5, TEXTS),
    "a method": (lambda: misused, TEXTS | METHODS),
    "a text": (lambda: "text", TEXTS),
    "a module": (nn.Identity, TEXTS | {"label_log_prob"}),
    "a flag": (lambda: True, TEXTS | FLAGS),
    "a tensor": (lambda: torch.ones(3), TEXTS),
}
"""What an attribute is, and the names that mean something then."""


ASKS = {"getattr", "hasattr", "own_attribute", "hook_of", "stated_by", "_guide_says", "_methods"}


def asked_for() -> Iterator[str]:
    """Names that the library looks for, of whatever object; also in `hook_of(model, m) for m in (...)`."""
    for folder in ("ppl_vae", "models", "guides"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ASKS:
                    yield from texts(*node.args[:2])
                elif isinstance(node, ast.GeneratorExp) and "hook_of" in ast.unparse(node.elt):
                    yield from texts(
                        *(each for of in node.generators for each in ast.walk(of.iter))
                    )


def texts(*nodes: ast.AST) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


NAMES = sorted({name for name in asked_for() if name.isidentifier() and name[0] != "_"})


class Clusters(nn.Module):
    """Latents that are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            of_all: Any = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(3)), infer=of_all)
            pyro.sample("x", dist.Normal(self.means[k], 1.0).to_event(1), obs=x)


class Chooser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            of_all: Any = {"enumerate": "parallel"}
            pyro.sample("k", dist.Categorical(logits=self.layer(x)), infer=of_all)


def called(program: nn.Module, kind: str) -> nn.Module:
    """A program whose attributes, and those of its layer, have all names that mean nothing to us."""
    if kind:
        value, meant = VALUES[kind]
        for part in [*program.modules()]:
            for name in {*NAMES} - meant:
                if not hasattr(part, name):
                    setattr(part, name, value())
    return program


def found(folder: Path, kind: str = "") -> dict[str, Any]:
    """What the functions of the library say of such pairs."""
    torch.manual_seed(0)
    model, guide, other = (called(make(), kind) for make in (Model, Guide, Guide))
    pair = model, guide
    said: dict[str, Any] = {"check": str(check(*pair, X))}
    fitted = fit(*pair, X, max_epochs=2, batch_size=10, seed=0, run_dir=folder)
    resumed = fit(*pair, X, max_epochs=3, batch_size=10, run_dir=folder, resume=True)
    said["fit"] = fitted.best_epoch, without_seconds(resumed.history)
    said["evaluate"] = str(evaluate(*pair, X, num_samples=10, seed=0, progress=False))
    said["diagnose"] = diagnose(*pair, X, fit=resumed, seed=0, progress=False).summary()
    said["gaps"] = str(inference_gaps(*pair, X[:5], num_samples=50, seed=0, progress=False))
    said["encode"] = encode(*pair, X)["z"].tolist()
    said["sample"] = sample(model, 3, seed=0, like=X).tolist()
    refitted = refit_guide(model, other, X, max_epochs=2, seed=0)
    said["refit_guide"] = without_seconds(refitted.history)
    clusters = called(Clusters(), kind), called(Chooser(), kind)
    history = fit(*clusters, X, max_epochs=2, seed=0).history
    said["enumerated"] = (
        without_seconds(history),
        str(evaluate(*clusters, X, seed=0, progress=False)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        fitted_em = fit_em(called(Clusters(), kind), X, max_iterations=2, seed=0, progress=False)
    said["fit_em"] = fitted_em.history[-1]["log_likelihood"]
    return said


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("kind", VALUES)
def test_what_a_stranger_calls_his_attributes_changes_nothing(
    kind: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    assert {"epoch_metrics", "learning_rates", "digest", "noise", "is_prior", "waits"} <= {*NAMES}
    assert {*METHODS, *FLAGS, *TEXTS} <= {*NAMES}  # else the list above is of another time
    assert found(tmp_path, kind) == plain


class OwnPart(nn.Module):
    """A part of a stranger's model that says what docs/architecture.md lets it say."""

    least_rate = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.guides: list[Any] = []

    def attach_guide(self, guide: Any) -> None:
        self.guides.append(guide)

    def keep_guide(self) -> None:
        self.kept = copy.deepcopy(self.guides[-1])

    def why_not_committed(self, q: Any, p: Any) -> str:
        return f"a {type(q).__name__} is not what was promised"


def test_what_the_contracts_let_him_say_is_taken_at_its_word() -> None:
    """So the test above could fail."""
    model, guide = Model(), Guide()
    assert (keep_guide(model), [*kept_guides(model)], least_rate(Pair(model, guide))) == (
        False,
        [],
        0,
    )
    model.part = OwnPart()
    attach_guide(model, guide)
    assert keep_guide(model)
    (kept,) = kept_guides(model)
    assert isinstance(kept, Guide)
    assert kept is not guide
    assert least_rate(Pair(model, guide)) == 2
    assert "a Independent is not what was promised" in str(check(model, guide, X))
    held: Any = Guide()
    held.keeps_rows = True
    with pytest.raises(ValueError, match="keeps parameters for each row"):
        fit(Model(), held, X, batch_size=10, max_epochs=1)
