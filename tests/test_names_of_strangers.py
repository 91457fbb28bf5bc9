"""A stranger's programs may have attributes of any name: what ours mean by these, theirs need not."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import check, diagnose, encode, evaluate, fit
from ppl_vae.tasks import sample

ROOT = Path(__file__).resolve().parent.parent
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))

HOOKS = {
    "default_objective",  # docs/own_pair.md
    "keeps_rows",  # docs/architecture.md
    "label_log_prob",  # a classifier's, of SemiSupervisedELBO
}
"""What a stranger's program may say on purpose, and is taken at its word."""

VALUES: dict[str, Callable[[], Any]] = {
    "a number": lambda: 0.5,
    "a method": lambda: lambda *args, **kwargs: None,
    "a text": lambda: "text",
    "a module": nn.Identity,
    "a flag": lambda: True,
    "a tensor": lambda: torch.ones(3),
}


def asked_for() -> Iterator[str]:
    """Names that the library looks for, of whatever object."""
    for file in sorted((ROOT / "ppl_vae").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("getattr", "hasattr", "asked", "stated_by", "_guide_says"):
                yield from (
                    str(each.value)
                    for each in node.args[:2]
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                )


NAMES = sorted({name for name in asked_for() if name.isidentifier() and name[0] != "_"})


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(z), 1.0).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("data", len(x)):
            mean, log_scale = self.layer(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def found(folder: Path, value: Callable[[], Any] | None = None) -> list[Any]:
    """What the functions of the library say of a pair whose attributes have all of the names."""
    torch.manual_seed(0)
    model, guide = Decoder(), Encoder()
    for part in (model, model.layer, guide, guide.layer):
        for name in NAMES:
            if value is not None and not hasattr(nn.Linear(1, 1), name) and name not in HOOKS:
                setattr(part, name, value())
    told = str(check(model, guide, X))
    fitted = fit(model, guide, X, max_epochs=2, batch_size=10, seed=0, run_dir=folder)
    resumed = fit(model, guide, X, max_epochs=3, batch_size=10, run_dir=folder, resume=True)
    history = [{n: v for n, v in row.items() if n != "seconds"} for row in resumed.history]
    return [
        told,
        fitted.best_epoch,
        history,
        str(evaluate(model, guide, X, num_samples=10, seed=0, progress=False)),
        diagnose(model, guide, X, seed=0).summary(),
        encode(model, guide, X)["z"].tolist(),
        sample(model, 3, seed=0, like=X).tolist(),
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return found(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("kind", VALUES)
def test_what_a_stranger_calls_his_attributes_changes_nothing(
    kind: str, plain: list[Any], tmp_path: Path
) -> None:
    assert {"epoch_metrics", "learning_rates", "digest", "noise", "is_prior", *HOOKS} <= {*NAMES}
    assert found(tmp_path, VALUES[kind]) == plain


def test_a_program_is_taken_at_its_word() -> None:
    """So the test above could fail."""
    guide: Any = Encoder()
    guide.keeps_rows = True
    with pytest.raises(ValueError, match="keeps parameters for each row"):
        fit(Decoder(), guide, X, batch_size=10, max_epochs=1)
