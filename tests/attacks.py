"""What the tests of docs/security.md share: runs to attack, what an attack leaves, and which promise is held.

A fixture is imported as `run as run`, which says that it is used though nothing calls it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import pytest
import yaml

from ppl_vae.cli import main
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.runs import save_run

REFUSED = "names code from outside"


def promise(*numbers: int) -> Callable[[Any], Any]:
    """Says which lines of docs/security.md a test holds."""

    def note(test: Any) -> Any:
        test.promises = numbers
        return test

    return note


SIZES = {"data_shape": [1, 8, 8], "latent_dim": 2}
MODEL = {"class_path": "ppl_vae.models.VAE", "init_args": SIZES}
GUIDE = {"class_path": "ppl_vae.guides.MeanField", "init_args": SIZES}
OBJECTIVE = {"class_path": "ppl_vae.objectives.ELBO", "init_args": {}}


def part(path: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def model_with(**arguments: Any) -> dict[str, Any]:
    return part("ppl_vae.models.VAE", **SIZES, **arguments)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


def change(folder: Path, **entries: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **entries}))


def is_untouched(marker: Path) -> bool:
    time.sleep(0.05)  # another process may make it
    return not marker.exists()


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What must not appear; in the current folder, on the path, a module makes it when it is imported."""
    marker = tmp_path / "marker"
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "planted_module.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "import torch\nfrom torch.distributions.constraints import Constraint\n"
        "class Thing(torch.nn.Module): pass\n"
        "class Own(Constraint): pass\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)
    return marker


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the smallest kind."""
    config = {"model": MODEL, "guide": GUIDE, "objective": OBJECTIVE, "data": "digits"}
    pair = VAE((1, 8, 8), latent_dim=2), MeanField((1, 8, 8), latent_dim=2)
    save_run(tmp_path / "run", *pair, config=config)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by `ppl-vae train`, with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = [*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--max_epochs", "1"]
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        assert main(["train", "--run_dir", str(folder), *options]) == 0
    return folder


@pytest.fixture
def sets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, AttributeError, OSError):
        pytest.skip("no working torchvision here")
    return datasets
