"""Programs, rows and calls of the tests of bad input, and what a good answer is.

A fixture is imported as `run as run`, which says that it is used though nothing calls it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from reports import model as model
from torch import Tensor

import ppl_vae
from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import VAE
from ppl_vae.networks import MLP

Case = tuple[Callable[[], Any], type[Exception], list[str]]
"""A call, the error that it raises, and the words that its message holds."""

X = torch.linspace(-1.0, 1.0, 60).reshape(20, 3)
SMALL = MLP(hidden=(4,))


def put(value: float, row: int, rows: int = 300) -> Tensor:
    """Rows with one other number, in column 2 of a row."""
    x = torch.linspace(-1.0, 1.0, 3 * rows).reshape(rows, 3)
    x[row, 2] = value
    return x


def pair(latent_dim: int = 2, of_guide: int | None = None) -> tuple[VAE, MeanField]:
    torch.manual_seed(0)
    model = VAE((3,), latent_dim, SMALL, LearnedGaussian())
    return model, MeanField((3,), of_guide or latent_dim, SMALL)


def guide(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5).to_event(1))


def observing(likelihood: Any) -> Callable[[Tensor], None]:
    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood, obs=x)

    return of


def one_number(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(shift, 1.0))


def in_plate(name: str, size: int | None = None) -> Callable[[Tensor], None]:
    def of(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(3))
        with pyro.plate(name, size or len(x)):
            pyro.sample("z", dist.Normal(shift, 1.0).to_event(1))

    return of


def fit(*pair_and_rows: Any, **options: Any) -> Any:
    return ppl_vae.fit(
        *pair_and_rows,
        **{"max_epochs": 1, "seed": 0, "device": "cpu", "progress": False, **options},
    )


def evaluate(*pair_and_rows: Any, **options: Any) -> Any:
    return ppl_vae.evaluate(*pair_and_rows, **{"num_samples": 3, "seed": 0, **options})


class Changing:
    """Batches that are others from some pass on."""

    def __init__(self, *later: Tensor, passes: int) -> None:
        self.later, self.left = later, passes

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        return iter((X, X) if self.left >= 0 else self.later)


class Items:
    """Batches of any kind."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def refused(call: Callable[[], Any], kind: type[Exception], *words: str) -> None:
    """The call raises an error of exactly this class, with these words, that is not long."""
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        assert word in said
    assert len(said) < 900
    assert said.count("\n") < 4


def description(kind: str) -> dict[str, Any]:
    sizes = {
        "data_shape": [1, 8, 8],
        "latent_dim": 2,
        "network": {"class_path": "ppl_vae.networks.MLP", "init_args": {"hidden": [4]}},
    }
    return {"class_path": kind, "init_args": sizes}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the command line makes it, untrained."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    torch.manual_seed(0)
    programs = VAE((1, 8, 8), 2, SMALL), MeanField((1, 8, 8), 2, SMALL)
    config: Mapping[str, Any] = {
        "data": "digits",
        "binarize": "threshold",
        "max_rows": 20,
        "max_epochs": 3,
        "seed": 0,
        "model": description("ppl_vae.models.VAE"),
        "guide": description("ppl_vae.guides.MeanField"),
        "objective": {
            "class_path": "ppl_vae.objectives.ELBO",
            "init_args": {
                "beta": {
                    "class_path": "ppl_vae.objectives.LinearWarmup",
                    "init_args": {"epochs": 2},
                }
            },
        },
    }
    x = load_data("digits", binarize="threshold", max_rows=20).test
    found = evaluate(*programs, x)
    ppl_vae.save_run(folder, *programs, config=config, evaluation=found, rows=x)
    (folder / "metrics.csv").write_text("epoch,elbo\n1,-30.0\n2,-20.0\n3,-10.0\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in the current folder; `ppl-vae gaps` takes few steps, and so no seconds."""
    few = partial(ppl_vae.inference_gaps, max_steps=5)
    monkeypatch.setattr("ppl_vae.cli.run_commands.inference_gaps", few)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(saved, tmp_path / "run"))


def command(*arguments: str) -> int:
    return main([*arguments, "--quiet"] if arguments[0] != "compare" else list(arguments))
