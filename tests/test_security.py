"""The promises of docs/security.md, by real attacks: each leaves a marker if it succeeds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.runs import LockedError, RunFolder, Trust, build, load_run, read_csv, save_run
from ppl_vae.runtime import (
    CorruptFileError,
    append_text,
    load_json,
    load_yaml,
    own_folder,
    random_state,
    read_tensors,
    remove,
    replacing,
    set_random_state,
    write_bytes,
    write_tensors,
)

ROOT = Path(__file__).parent.parent
REFUSED = "names code from outside"
Attack = Callable[[Path], dict[str, Any]]


def promise(*numbers: int) -> Callable[[Any], Any]:
    """Says which lines of docs/security.md a test holds."""

    def note(test: Any) -> Any:
        test.promises = numbers
        return test

    return note


def test_every_line_of_the_page_has_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    lines = {int(number) for number in re.findall(r"^(\d+)\. ", page, re.MULTILINE)}
    held = {n for test in globals().values() for n in getattr(test, "promises", ())}
    assert lines == held
    assert lines == set(range(1, len(lines) + 1))


# -- folders and attacks ---------------------------------------------------------------------------------

SIZES = {"data_shape": [1, 8, 8], "latent_dim": 2}
MODEL = {"class_path": "ppl_vae.models.VAE", "init_args": SIZES}
GUIDE = {"class_path": "ppl_vae.guides.MeanField", "init_args": SIZES}
OBJECTIVE = {"class_path": "ppl_vae.objectives.ELBO", "init_args": {}}


def part(path: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


ATTACKS: dict[str, Attack] = {
    "Popen": lambda m: part("subprocess.Popen", args=f"touch {m}", shell=True),
    "FileHandler": lambda m: part("logging.FileHandler", filename=str(m)),
    "ZipFile": lambda m: part("zipfile.ZipFile", file=str(m), mode="w"),
    "a module in the current folder": lambda m: part("planted_module.Thing"),
}


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


def change(folder: Path, **entries: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **entries}))


def is_untouched(marker: Path) -> bool:
    time.sleep(0.05)  # another process may make it
    return not marker.exists()


# -- names -----------------------------------------------------------------------------------------------


@promise(1, 2)
@pytest.mark.parametrize(
    "role", ["model", "guide", "model_guide", "objective", "optimizer", "lr_scheduler"]
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_others_is_run_for_a_role(
    attack: str, role: str, run: Path, marker: Path
) -> None:
    change(run, **{role: ATTACKS[attack](marker)})
    with pytest.raises(ValueError, match=f"config.yaml {REFUSED}.*\\b{role}: "):
        load_run(run)
    assert is_untouched(marker)


def model_with(**arguments: Any) -> dict[str, Any]:
    return part("ppl_vae.models.VAE", **SIZES, **arguments)


NESTED: dict[str, Attack] = {
    "network": lambda m: model_with(network=part("planted_module.Thing")),
    "network as text": lambda m: model_with(network="planted_module.Thing"),
    "YAML in text": lambda m: model_with(network='{"class_path": "planted_module.Thing"}'),
    "YAML in YAML": lambda m: model_with(
        network=yaml.safe_dump({"init_args": "{a: planted_module.T}"})
    ),
    "quoted text": lambda m: model_with(network="'planted_module.Thing'"),
    "dict_kwargs": lambda m: {**model_with(), "dict_kwargs": {"network": "planted_module.Thing"}},
    "a dotted key": lambda m: model_with(**{"network.class_path": "planted_module.Thing"}),
    "a key": lambda m: model_with(**{"planted_module.Thing": 1}),
    "a list": lambda m: model_with(network=[[part("planted_module.Thing")]]),
    "a type": lambda m: model_with(network="list[planted_module . Thing]"),
    "activation": lambda m: model_with(
        network=part("ppl_vae.networks.MLP", activation="planted_module.Thing")
    ),
    "prior": lambda m: model_with(prior=part("subprocess.Popen", args=f"touch {m}", shell=True)),
    "likelihood": lambda m: model_with(likelihood="planted_module.Thing"),
    "data_shape": lambda m: part("ppl_vae.models.VAE", latent_dim=2, data_shape=["os.system"]),
}


@promise(2, 3)
@pytest.mark.parametrize("place", NESTED)
def test_nothing_of_others_is_run_for_an_argument(place: str, run: Path, marker: Path) -> None:
    change(run, model=NESTED[place](marker))
    with pytest.raises(ValueError, match=REFUSED):
        load_run(run)
    assert is_untouched(marker)
    assert "planted_module" not in sys.modules


@promise(2)
def test_no_other_file_is_read_as_a_description(run: Path, marker: Path) -> None:
    Path("network.yaml").write_text("class_path: planted_module.Thing")
    for file in ("network.yaml", str(Path("network.yaml").resolve())):
        change(run, model=model_with(network=file))
        with pytest.raises(ValueError, match=r"config\.yaml"):
            load_run(run)
    assert is_untouched(marker)


@promise(2)
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_of_others_is_run_for_a_constraint(inside: bool, run: Path, marker: Path) -> None:
    file = run / "weights.safetensors"
    own = part("planted_module.Own")
    independent = "torch.distributions.constraints._IndependentConstraint"
    described = part(independent, base_constraint=own) if inside else own
    state = {**read_tensors(file)[0], "param.a": torch.zeros(2)}
    write_tensors(file, state, {"constraints": {"a": described}})
    with pytest.raises(ValueError, match=rf"weights\.safetensors {REFUSED}"):
        load_run(run)
    assert is_untouched(marker)


@promise(3)
def test_the_error_says_all_of_it(run: Path, marker: Path) -> None:
    attack = part("subprocess.Popen", args=f"touch {marker}", shell=True)
    change(run, guide=attack, model=model_with(network="planted_module.Thing"))
    with pytest.raises(ValueError, match=REFUSED) as caught:
        load_run(run)
    message = str(caught.value)
    for words in (
        str(run / "config.yaml"),
        "model.network: planted_module.Thing (module planted_module)",
        "guide: subprocess.Popen (module subprocess)",
        "nothing was imported",
        "--trust_packages planted_module,subprocess",
        "load_run(path, trust=['planted_module', 'subprocess'])",
    ):
        assert words in message
    assert len(message.splitlines()) <= 3
    assert is_untouched(marker)


@promise(4)
@pytest.mark.parametrize(
    ("role", "entry"),
    [
        ("model", part("ppl_vae.runtime.remove", path="precious")),
        ("model", part("ppl_vae.runs.folder.shutil.rmtree", path="precious")),
        ("model", part("ppl_vae.training.metrics.MetricsLog", path="precious/file")),
        ("model", part("ppl_vae.networks.linear_head")),
        ("model", part("ppl_vae.networks.convolutional.Batched")),
        ("model", part("ppl_vae.models.deep.vae.pyro")),
        ("model", part("ppl_vae.models.StandardNormal")),
        ("model", part("ppl_vae.guides.MeanField", **SIZES)),
        ("model", part("ppl_vae.objectives.ELBO")),
        ("model", part("torch.optim.Adam")),
        ("model", part("torch.nn.functional.relu")),
        ("model", part("torch.nn.modules.module.itertools.count")),
        ("model", part("ppl_vae.checkpoints.CorruptFileError", path="a", why="b")),
        ("model", part("ppl_vae.em_steps.torch")),
        ("guide", part("ppl_vae.models.VAE", **SIZES)),
        ("guide", part("ppl_vae.likelihoods.Bernoulli")),
        ("objective", part("ppl_vae.objectives.LinearWarmup", epochs=3)),
        ("objective", part("ppl_vae.models.VAE", **SIZES)),
        ("objective", part("ppl_vae.objectives.as_objective")),
        ("optimizer", part("torch.optim.lr_scheduler.StepLR", step_size=1)),
        ("optimizer", part("torch.nn.Linear", in_features=1, out_features=1)),
        ("lr_scheduler", part("torch.optim.SGD")),
        ("lr_scheduler", part("torch.optim.lr_scheduler.LambdaLR", lr_lambda="os.system")),
        ("model", model_with(network=part("ppl_vae.runtime.remove", path="precious"))),
        ("model", model_with(network="torch.nn.init.torch")),
    ],
)
def test_a_name_must_suit_its_place(role: str, entry: Any, run: Path, marker: Path) -> None:
    Path("precious").mkdir()
    Path("precious/config.yaml").write_text("mine")
    change(run, **{role: entry})
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_run(run)
    assert os.listdir("precious") == ["config.yaml"]


@promise(4)
def test_a_part_of_ours_must_be_a_public_one(run: Path) -> None:
    change(run, model=model_with(network=part("ppl_vae.networks.convolutional.Batched")))
    with pytest.raises(ValueError, match=r"Batched is not a part of a model or a guide"):
        load_run(run)


@promise(4)
def test_a_constraint_must_be_one(run: Path) -> None:
    file = run / "weights.safetensors"
    state = {**read_tensors(file)[0], "param.a": torch.zeros(2)}
    for described in (
        part("torch.distributions.Normal"),
        part("torch.distributions.utils.lazy_property"),
    ):
        write_tensors(file, state, {"constraints": {"a": described}})
        with pytest.raises(ValueError, match="constraint"):
            load_run(run)
    wrong: list[Any] = [5, {"class_path": 3}, part("a.B", c="text")]
    for described in wrong:
        write_tensors(file, state, {"constraints": {"a": described}})
        with pytest.raises(CorruptFileError, match="not the constraint of a parameter"):
            load_run(run)
    write_tensors(file, state, {"constraints": 5})
    with pytest.raises(CorruptFileError, match="lacks the constraints"):
        load_run(run)


@promise(1)
def test_what_is_ours_loads(run: Path) -> None:
    network = part("ppl_vae.networks.MLP", hidden=[4], activation="torch.nn.SiLU")
    change(
        run,
        model={**MODEL, "init_args": {**SIZES, "network": network, "prior": "VampPrior"}},
        optimizer="torch.optim.SGD",
        lr_scheduler=part("torch.optim.lr_scheduler.StepLR", step_size=3),
        note={"of": "mine.and.others", "more": [1, 2]},
    )
    with pytest.raises(
        ValueError, match="another pair"
    ):  # built, and then its weights are not these
        load_run(run)


# -- commands --------------------------------------------------------------------------------------------


@promise(5)
@pytest.mark.parametrize(
    "command",
    [
        *("evaluate RUN", "gaps RUN", "diagnose RUN", "sample RUN", "export RUN", "refit RUN"),
        *("compare RUN GOOD", "compare GOOD RUN", "train --resume RUN"),
    ],
)
@pytest.mark.parametrize("role", ["model", "objective", "optimizer"])
def test_no_command_runs_code_of_others(
    command: str,
    role: str,
    trained: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(trained, bad)
    attack = ATTACKS["Popen" if role == "model" else "a module in the current folder"]
    change(bad, **{role: attack(marker)})
    paths = {"RUN": str(bad), "GOOD": str(trained)}
    assert main([paths.get(word, word) for word in command.split()]) == 1
    error = capsys.readouterr().err
    assert REFUSED in error
    assert "--trust_packages" in error
    assert is_untouched(marker)


@promise(5)
def test_a_refit_does_not_run_code_of_the_run_that_it_came_from(
    trained: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, source = tmp_path / "bad", tmp_path / "source"
    shutil.copytree(trained, bad)
    shutil.copytree(trained, source)
    (bad / "weights.safetensors").unlink()  # so that the model is read from the other run
    change(bad, refit_of=str(source), made_by="refit")
    change(source, model=ATTACKS["a module in the current folder"](marker))
    assert main(["refit", "--resume", str(bad)]) == 1
    assert f"{source / 'config.yaml'} {REFUSED}" in capsys.readouterr().err
    assert is_untouched(marker)


@promise(6)
def test_nothing_is_unpickled(run: Path, tmp_path: Path, marker: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return open, (str(marker), "w")

    torch.save({"x": Touch()}, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", allow_pickle=True, x=np.array([Touch()], dtype=object))
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Touch()))
    for name in ("x.pt", "x.npy", "x.npz", "bare.npy"):
        with pytest.raises(ValueError, match="nothing is unpickled"):
            load_data(str(tmp_path / name))
    with (  # what reads it is told so, too
        patch("ppl_vae.data.arrays.require_plain"),
        pytest.raises(ValueError, match="nothing is unpickled"),
    ):
        load_data(str(tmp_path / "x.pt"))
    torch.save({"x": Touch()}, run / "weights.safetensors")
    with pytest.raises(CorruptFileError, match="weights"):
        load_run(run)
    assert is_untouched(marker)


@promise(7)
def test_names_of_earlier_versions_load(run: Path) -> None:
    change(
        run,
        model=part("ppl_vae.models.vae.VAE", **SIZES),
        guide=part("ppl_vae.guides.mean_field.MeanField", **SIZES),
        objective=part(
            "ppl_vae.objectives.ELBO", beta=part("ppl_vae.schedules.LinearWarmup", epochs=2)
        ),
    )
    assert isinstance(load_run(run).model, VAE)
    old = part("ppl_vae.objectives.ELBO", beta=part("ppl_vae.schedules.LinearWarmup", epochs=2))
    described = build(old, role="objective", trust=Trust.of(False, run))[1]
    assert described["init_args"]["beta"]["class_path"] == "ppl_vae.objectives.LinearWarmup"


# -- trust -----------------------------------------------------------------------------------------------

OWN = """
    import os
    import torch
    from ppl_vae.models import VAE
    from ppl_vae.guides import MeanField

    class Mine(VAE): pass
    class Guide(MeanField): pass
    class NoProgram:
        def __init__(self):
            open(MARKER, "w").close()
"""


@pytest.fixture
def own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a class of the user's own, in the current folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    text = textwrap.dedent(OWN).replace("MARKER", repr(str(tmp_path / "marker")))
    (folder / "own_pair.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_pair", raising=False)
    change(run, model=part("own_pair.Mine", **SIZES))
    return run


@promise(8, 9)
def test_what_is_trusted_is_built(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    for trust in (True, ["own_pair"], ("other", "own_pair")):
        assert type(load_run(own, trust=trust).model).__name__ == "Mine"
    for refused in (False, ["other"], ["own"], ["own_pair.Other"]):
        with pytest.raises(ValueError, match=REFUSED):
            load_run(own, trust=refused)
    with pytest.raises(ValueError, match="trust: expected names"):
        load_run(own, trust=["a b"])


@promise(8)
@pytest.mark.parametrize("role", ["model", "objective"])
def test_what_is_trusted_must_suit_its_place(
    role: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    change(own, **{role: part("own_pair.NoProgram")})
    if role == "model":
        with pytest.raises(ValueError, match=r"own_pair\.NoProgram is not a model"):
            load_run(own, trust=True)
    else:
        assert main(["diagnose", str(own), "--trust"]) == 1
    assert is_untouched(tmp_path / "marker")


@promise(9)
def test_what_a_trusted_package_has_imported_is_not_trusted(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    for name in ("own_pair.os.system", "own_pair.torch.save"):
        change(own, model=part(name), guide=GUIDE)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            load_run(own, trust=["own_pair"])
    Path("own_pair.py").write_text("from subprocess import Popen\n")
    sys.modules.pop("own_pair", None)
    attack = f"touch {tmp_path / 'marker'}"
    change(own, model=part("own_pair.Popen", args=attack, shell=True))
    with pytest.raises(ValueError, match=r"own_pair.Popen \(module subprocess\)"):
        load_run(own, trust=["own_pair"])
    assert is_untouched(tmp_path / "marker")


@promise(8, 9, 11)
@pytest.mark.parametrize("how", [["--trust"], ["--trust_packages", "own_pair"]])
def test_the_command_line_trusts_a_folder(how: list[str], own: Path) -> None:
    with patch("ppl_vae.cli.run_commands.evaluate_pair", side_effect=RuntimeError("reached")):
        assert main(["evaluate", str(own)]) == 1
        assert "own_pair" not in sys.modules
        assert str(Path.cwd()) not in sys.path
        with pytest.raises(RuntimeError, match="reached"):
            main(["evaluate", str(own), *how, "--debug"])
    assert "own_pair" in sys.modules


@promise(10)
def test_a_refit_trusts_what_is_typed_alone(
    own: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch("ppl_vae.cli.refit.check_setup", side_effect=RuntimeError("reached")):
        typed = ["--guide", "own_pair.Guide", "--run_dir", str(tmp_path / "new")]
        assert main(["refit", str(trained), *typed]) == 1
        assert "reached" in capsys.readouterr().err
        assert main(["refit", str(own), *typed]) == 1
        assert REFUSED in capsys.readouterr().err
        bad = tmp_path / "bad"
        shutil.copytree(trained, bad)
        change(bad, optimizer="own_pair.NoProgram")
        assert main(["refit", str(bad), *typed]) == 1
        assert REFUSED in capsys.readouterr().err


# -- the current folder ----------------------------------------------------------------------------------


@promise(11)
def test_the_current_folder_is_on_the_path_for_typed_names_alone(
    own: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("samples.py").write_text("raise SystemExit('a trap')")
    library = ["--guide", "FullCovariance", "--optimizer", "torch.optim.SGD", "--print_config"]
    assert main(["train", *catalogue.SMALL_RUN, *library]) == 0
    assert main(["sample", str(trained), "--output", "samples.png"]) == 0
    assert str(Path.cwd()) not in sys.path
    typed = ["--guide", "own_pair.Guide", "--print_config"]
    assert main(["train", *catalogue.SMALL_RUN, *typed]) == 0
    assert sys.path[-1] == str(Path.cwd())  # at the end: what is installed comes first
    assert "own_pair.Guide" in capsys.readouterr().out


ABSENT = """
import json, os, runpy, sys
from importlib.machinery import PathFinder
from pathlib import Path

traps, found = Path(sys.argv[1]), {}


class Last:
    '''Asked for what no other finder has: whether a file in the current folder would be it from now on.'''

    def find_spec(self, name, path=None, target=None):
        if path is None and name not in found:
            found[name] = None
            trap = traps / f"{name}.py"
            trap.touch()
            self.forget()
            found[name] = PathFinder.find_spec(name) is not None
            trap.unlink()
            self.forget()

    def forget(self):
        '''What is known of the current folder alone: to read all others again takes long.'''
        for folder in ("", ".", os.getcwd(), str(traps)):
            sys.path_importer_cache.pop(folder, None)


sys.meta_path.append(Last())
names, sys.argv = sys.argv[2], ["ppl-vae", *sys.argv[3:]]
try:
    runpy.run_module("ppl_vae.cli", run_name="__main__")
finally:
    Path(names).write_text(json.dumps(found))
"""


@promise(11)
def test_no_file_stands_in_for_an_absent_module(trained: Path, tmp_path: Path) -> None:
    script, names, traps = tmp_path / "absent.py", tmp_path / "names.json", tmp_path / "traps"
    script.write_text(ABSENT)
    traps.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--num_samples", "2", "--overwrite", "--output", str(tmp_path / "out.nc")]
    export = ["export", str(trained), *options]
    # As the script `ppl-vae` starts: without -P, Python itself puts a folder on the path.
    command = [sys.executable, "-P", str(script), str(traps), str(names), *export]
    done = subprocess.run(command, env=environment, cwd=traps, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    absent = json.loads(names.read_text())
    assert len(absent) > 5, "nothing has been recorded"
    assert [name for name, stands_in in absent.items() if stands_in] == []


# -- limits ----------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@promise(12)
@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "model: &a\n  class_path: *a\n",
        "a: " + "[" * 100_000,
        "- " * 5_000 + "1",
        "a: [" + "1, " * 5_000_000 + "]",
        "a: " + ":".join(["59"] * 80_000),
        "a: 2001-99-99",
        "a: !!timestamp x",
        "a: !!python/object/apply:os.system ['touch marker']",
        "a: \x00",
    ],
    ids=[
        "laughs",
        "itself",
        "deep",
        "deep blocks",
        "large",
        "base 60",
        "date",
        "tag",
        "python",
        "zero",
    ],
)
def test_a_config_is_read_within_limits(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises((CorruptFileError, ValueError), match=r"config\.yaml"):
        load_run(run)
    assert time.monotonic() - start < 30


@promise(12)
def test_aliases_that_we_write_are_read(run: Path) -> None:
    shared = [1, 8, 8]
    sizes = {"data_shape": shared, "latent_dim": 2}
    change(run, model={**MODEL, "init_args": sizes}, guide={**GUIDE, "init_args": sizes})
    assert "*id" in (run / "config.yaml").read_text()
    load_run(run)


@promise(12)
@pytest.mark.parametrize(
    "entry",
    [
        5,
        "text",
        [1],
        {"class_path": 3, "init_args": {}},
        part("a.B") | {"init_args": 5},
        {"x": 1},
        None,
    ],
)
@pytest.mark.parametrize("role", ["model", "guide"])
def test_wrong_types_are_named(role: str, entry: Any, run: Path) -> None:
    change(run, **{role: entry})
    with pytest.raises(ValueError, match=rf"config\.yaml.*{role}"):
        load_run(run)


@promise(13)
@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 100_000, '{"a": ' * 300 + "1" + "}" * 300, "[1]"]
)
@pytest.mark.parametrize("file", ["evaluation.json", "diagnosis.json"])
def test_json_is_read_within_limits(file: str, text: str, run: Path) -> None:
    (run / file).write_text(text)
    with pytest.raises(CorruptFileError, match=file):
        load_run(run)


@promise(13)
def test_metadata_and_tables_are_read_within_limits(run: Path, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    write_tensors(tmp_path / "deep.safetensors", {}, {"a": deep})
    with pytest.raises(CorruptFileError, match="levels"):
        read_tensors(tmp_path / "deep.safetensors")
    (run / "metrics.csv").write_text("epoch\n" + "1" * 200_000 + "\n")
    with pytest.raises(CorruptFileError, match=r"metrics\.csv"):
        load_run(run)
    with (run / "metrics.csv").open("w") as file:
        file.truncate(2**30)
    with pytest.raises(CorruptFileError, match="it is larger than the 256 MiB"):
        load_run(run)
    (run / "metrics.csv").unlink()
    (run / "evaluation.json").write_text('{"a": "' + "b" * 2**23 + '"}')
    with pytest.raises(CorruptFileError, match="larger than the 8192 KiB"):
        load_run(run)
    with pytest.raises(ValueError, match="larger than the 32768 KiB"):
        load_json('{"a": "' + "b" * 2**25 + '"}')


def bomb(file: Path, method: int, blocks: int) -> bytes:
    """Zeros in an `.npz`; returns the size that its directory states."""
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (blocks << 14, 1024)}
    np.lib.format.write_array_header_1_0(head, shape)
    with (
        zipfile.ZipFile(file, "w", method, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(head.getvalue())
        for _ in range(blocks):
            entry.write(bytes(1 << 24))
    return int(len(head.getvalue()) + (blocks << 24)).to_bytes(4, "little")


@promise(14)
def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**26)
    size = bomb(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, 16)
    with pytest.raises(ValueError, match=r"x\.npz takes 0\.3 GiB.*uncompressed \.npy"):
        load_data(str(tmp_path / "x.npz"))
    liar = (tmp_path / "x.npz").read_bytes().replace(size, (2000).to_bytes(4, "little"))
    (tmp_path / "liar.npz").write_bytes(liar)
    with pytest.raises(ValueError, match=r"liar\.npz cannot be read"):
        load_data(str(tmp_path / "liar.npz"))
    bomb(tmp_path / "other.npz", zipfile.ZIP_BZIP2, 1)
    with pytest.raises(ValueError, match="packed in a way"):
        load_data(str(tmp_path / "other.npz"))
    torch.save(torch.zeros(1).expand(2**15, 2**10), tmp_path / "repeated.pt")
    with pytest.raises(ValueError, match=r"repeated\.pt takes"):
        load_data(str(tmp_path / "repeated.pt"))
    head = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**14, 1)}
    np.lib.format.write_array_header_1_0(head, claim)
    (tmp_path / "claim.npy").write_bytes(head.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"claim\.npy cannot be read"):
        load_data(str(tmp_path / "claim.npy"))
    np.savez_compressed(tmp_path / "good.npz", x=np.zeros((100, 500), dtype=np.uint8))
    assert load_data(str(tmp_path / "good.npz")).shape == (500,)


@promise(14)
def test_arrays_must_fit_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((100, 500)))
    monkeypatch.setattr("ppl_vae.data.sizes._available", lambda: 10_000)
    with pytest.raises(ValueError, match=r"x\.npz takes .*more than there is"):
        load_data(str(tmp_path / "x.npz"))


@promise(15)
def test_suspiciously_large_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        Image.new("L", (30, 30)).save(tmp_path / f"{i}.png")
    assert load_data(f"folder:{tmp_path}").shape == (1, 30, 30)
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 600
    )  # PIL warns above it, and raises above twice as much
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as users have it; pytest makes errors of warnings
        with pytest.raises(ValueError, match=r"0\.png cannot be read"):
            load_data(f"folder:{tmp_path}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    monkeypatch.setattr("ppl_vae.data.sizes._available", lambda: 8000)
    with (
        patch("PIL.ImageOps.exif_transpose", side_effect=AssertionError("a picture was unpacked")),
        pytest.raises(ValueError, match=r"GiB of memory \(more than there is\)"),
    ):
        load_data(f"folder:{tmp_path}")


@promise(16)
def test_nothing_is_written_or_removed_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (tmp_path / "to_folder").symlink_to(precious)
    (tmp_path / "to_file").symlink_to(precious / "file")
    with pytest.raises(NotADirectoryError, match="nothing is written through links"):
        own_folder(tmp_path / "to_folder")
    with pytest.raises(OSError, match="symbolic link"):
        append_text(tmp_path / "to_file", "theirs")
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    with replacing(tmp_path / "new") as temporary:
        pass
    temporary.symlink_to(precious / "file")  # by somebody who knows the name
    with pytest.raises(FileExistsError), replacing(tmp_path / "new") as file:
        file.write_text("theirs")
    write_bytes(tmp_path / "to_file", b"theirs")
    remove(tmp_path / "to_folder")
    assert {p.name: p.read_text() for p in precious.iterdir()} == {"file": "mine"}


@promise(16)
@pytest.mark.parametrize("state", [".ppl_vae-replaced", ".ppl_vae-old", None])
@pytest.mark.parametrize("linked", [".ppl_vae-new", ".ppl_vae-old", ".ppl_vae-replaced"])
def test_a_link_in_the_place_of_a_hidden_folder_leads_nowhere(
    run: Path, tmp_path: Path, state: str | None, linked: str
) -> None:
    """What finishes an interrupted swap moved all that a link to a folder led to."""
    if linked == state:
        return
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("config.yaml", "id_rsa", "weights.safetensors"):
        (precious / name).write_text("mine")
    (run / linked).symlink_to(precious)
    if state is not None:
        (run / state).mkdir()
    with contextlib.suppress(OSError, ValueError):
        load_run(run)
    with contextlib.suppress(OSError, ValueError, LockedError), RunFolder.open(run):
        pass
    assert {path.name: path.read_text() for path in precious.iterdir()} == {
        "config.yaml": "mine",
        "id_rsa": "mine",
        "weights.safetensors": "mine",
    }


@promise(2, 3)
@pytest.mark.parametrize(
    "text",
    [
        "{class_path: planted_module.Thing, init_args: {a: 2001-99-99}}",  # a date that is none
        "{class_path: planted_module.Thing, init_args: " + "{a: " * 120 + "1" + "}" * 121,
        "{class_path: planted_module.Thing, <<: {a: 1}, b: 2001-13-01}",
        "{class_path: planted-module.Thing}",
    ],
)
def test_a_text_that_only_jsonargparse_reads_is_refused(text: str, run: Path, marker: Path) -> None:
    change(run, model=model_with(network=text))
    with pytest.raises(ValueError, match=r"plain value|class_path must be|names code"):
        load_run(run)
    assert is_untouched(marker)


@promise(16)
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_lock_with_another_name_is_not_written(link: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    link(tmp_path / "precious", run / ".ppl_vae-lock")
    with pytest.raises(LockedError, match="remove it"):
        RunFolder.open(run)
    assert (tmp_path / "precious").read_text() == "mine"


@promise(13)
def test_short_lines_and_short_lists_do_not_multiply(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(",".join(f"c{i}" for i in range(20_000)) + "\n" + "1\n" * 20_000)
    started = time.monotonic()
    assert read_csv(file)[0] == {"c0": 1.0}
    assert time.monotonic() - started < 5
    started = time.monotonic()
    with pytest.raises(ValueError, match="levels"):
        load_json('{"a": ' + "[" * 150 + "]" * 150 + "}")
    assert load_json('{"a": "[[[[", "b": [[1]]}')["b"] == [[1]]
    load_json('{"a": [' + ",".join(["[]"] * 1_000_000) + "]}")
    assert time.monotonic() - started < 20


def test_the_position_of_numpys_generator_is_checked() -> None:
    state = random_state(torch.device("cpu"))
    position, *rest = state["numpy"]["rest"]
    for wrong in (-1, 625, 2_000_000_000):
        with pytest.raises(ValueError, match="position"):
            set_random_state(
                {**state, "numpy": {**state["numpy"], "rest": [wrong, *rest]}}, torch.device("cpu")
            )
    set_random_state(state, torch.device("cpu"))
    assert 0 <= position <= 624


@promise(14)
def test_a_file_of_tensors_may_not_make_much_of_little(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    text = b"c_codecs\nencode\n(X\x03\x00\x00\x00abcX\x06\x00\x00\x00utf-32tR."
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + text)
        archive.writestr("x/version", "3\n")
    with pytest.raises(ValueError, match="more than tensors"):
        load_data(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02ctorch\nSize.__new__\n.")
        archive.writestr("x/version", "3\n")
    with pytest.raises(ValueError, match="more than tensors"):
        load_data(str(file))
    torch.save({"x": torch.rand(20, 3)}, file)
    assert load_data(str(file)).shape == (3,)


@promise(13)
def test_a_table_that_is_large_by_holes_is_not_read(run: Path) -> None:
    (run / "evaluation.json").write_text('{"table_sha256": "0"}')
    with (run / "evaluation.csv").open("wb") as table:
        table.truncate(2**33)
    with pytest.raises(CorruptFileError, match=r"evaluation\.csv: it is larger than"):
        load_run(run)


# -- archives that torch and Python read differently -----------------------------------------------------


def zipped(content: bytes, name: str = "e/data.pkl", extra: bytes = b"") -> bytes:
    """A `.pt` file of a pickle and what torch asks for beside it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e/version", "3\n")
        archive.writestr("e/byteorder", "little")
        entry = zipfile.ZipInfo(name)
        entry.compress_type, entry.extra = zipfile.ZIP_DEFLATED, extra
        archive.writestr(entry, content)
    return file.getvalue()


def pickled(text: int) -> bytes:
    """A dictionary with a text of some length."""
    return b"\x80\x02}X\1\0\0\0xX" + struct.pack("<I", text) + b"a" * text + b"s."


LARGE, SMALL = pickled(2**26), pickled(10)
END, END_64, LOCATOR = "<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"


def split_end(archive: bytes) -> tuple[bytes, bytes, int]:
    """The entries, the directory, and the place of the directory of an archive."""
    length, start = struct.unpack_from("<2L", archive, len(archive) - 10)
    return archive[:start], archive[start : start + length], start


def end(num: int, length: int, start: int, comment: bytes = b"") -> bytes:
    return struct.pack(END, b"PK\5\6", 0, 0, num, num, length, start, len(comment)) + comment


def end_64(num: int, length: int, start: int) -> bytes:
    return struct.pack(END_64, b"PK\6\6", 44, 45, 45, 0, 0, num, num, length, start)


def directory_ahead_of_the_end() -> bytes:
    """Python reads the directory ahead of the end, torch the one whose place is stated."""
    entries, directory, start = split_end(zipped(LARGE))
    fake = directory.replace(struct.pack("<I", len(LARGE)), struct.pack("<I", 1000))
    return entries + directory + fake + end(3, len(directory), start)


def record_ahead_of_the_locator() -> bytes:
    """Python reads the record ahead of its locator, torch the one whose place the locator states."""
    entries, directory, start = split_end(zipped(LARGE))
    fake = directory.replace(struct.pack("<I", len(LARGE)), struct.pack("<I", 1000))
    length = len(directory)
    other = start + length + 56
    parts = [
        entries + directory + end_64(3, length, start),
        fake + end_64(3, length, other),
        struct.pack(LOCATOR, b"PK\6\7", 0, start + length, 1),
        end(3, length, other),
    ]
    return b"".join(parts)


ENCODED = b"\x80\x02}X\1\0\0\0xc_codecs\nencode\n(X\3\0\0\0abcX\6\0\0\0utf-32tRs."
ZEROS = b"\x80\x02}X\1\0\0\0xc__builtin__\nbytearray\n(J" + struct.pack("<i", 2**26) + b"tRs."


@promise(14)
@pytest.mark.parametrize("made", [directory_ahead_of_the_end, record_ahead_of_the_locator])
def test_a_file_has_one_directory_only(
    made: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    file = tmp_path / "x.pt"
    file.write_bytes(made())
    assert file.stat().st_size < 2**17
    with zipfile.ZipFile(file) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 2000
    assert len(torch.load(file, weights_only=True)["x"]) == 2**26  # the attack is a real one
    with (
        patch("torch.load", side_effect=AssertionError("torch has read it")),
        pytest.raises(ValueError, match=r"directory is not laid out as torch\.save does it"),
    ):
        load_data(str(file))


@promise(14)
@pytest.mark.parametrize(
    "change",
    [
        lambda file: b"ahead" + file,
        lambda file: file + b"behind",
        lambda file: file[:-2] + struct.pack("<H", 3) + b"abc",
        lambda file: file[:-2] + struct.pack("<H", 22) + file[-22:],
        lambda file: file[:-12] + struct.pack("<H", 7) + file[-10:],
        lambda file: file[:-18] + b"\1\0" + file[-16:],
        lambda file: file[:-42] + bytes(20) + file[-22:],
        lambda file: file[:-98] + b"between" + file[-98:],
    ],
)
def test_an_unusual_layout_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"x": torch.rand(20, 3), "y": torch.arange(20)}, file)
    load_data(str(file))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
        load_data(str(file))


@promise(14)
@pytest.mark.parametrize(
    "content",
    [
        zipped(LARGE),
        zipped(ENCODED),
        zipped(ZEROS),
        zipped(ENCODED, "e/DATA.PKL"),
        zipped(SMALL) + zipped(ENCODED),
        zipped(SMALL).replace(b"e/version", b"e\0version"),
        zipped(SMALL, "\u00e9/data.pkl"),
        zipped(SMALL, extra=b"\x99\x99\0\0"),
        zipped(b"N0" * 60_000 + SMALL),
    ],
)
def test_what_unpacks_or_makes_much_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    file = tmp_path / "x.pt"
    file.write_bytes(content)
    tracemalloc.start()
    with (
        patch("torch.load", side_effect=AssertionError("torch has read it")),
        pytest.raises(ValueError, match=r"GiB of memory|more than tensors|laid out"),
    ):
        load_data(str(file))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@promise(14)
@pytest.mark.parametrize("content", [ENCODED, ZEROS])
def test_a_file_of_before_torch_1_6_makes_no_more(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    x = torch.rand(20, 3)
    torch.save({"x": x}, file, _use_new_zipfile_serialization=False)
    assert load_data(str(file)).shape == (3,)
    old = file.read_bytes()
    third = old.index(b".", old.index(b"little_endian")) + 1  # after the pickle of the system
    for attack in (old[:third] + content, content + old, old[:third] + content + zipped(SMALL)):
        file.write_bytes(attack)
        with (
            patch("torch.load", side_effect=AssertionError("torch has read it")),
            pytest.raises(ValueError, match="more than tensors"),
        ):
            load_data(str(file))


@promise(14)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.uint16]
)
def test_what_torch_saves_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.ones(20, 3).to(dtype)
    for content in (x, {"x": x, "y": torch.arange(20)}, {"x": torch.nn.Parameter(x.float())}):
        torch.save(content, tmp_path / "x.pt")
        assert load_data(str(tmp_path / "x.pt")).shape == (3,)


@promise(14)
def test_a_file_of_holes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._available", lambda: 2**30)
    file = tmp_path / "x.npy"
    with file.open("wb") as stream:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**10)}
        np.lib.format.write_array_header_1_0(stream, shape)
        stream.truncate(stream.tell() + 2**30)
    with pytest.raises(ValueError, match=r"x\.npy takes 4\.0 GiB .*more than there is"):
        load_data(str(file))
    assert len(load_data(str(file), max_rows=10).train) == 10
    with file.open("wb") as stream:
        stream.write(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31))
        stream.truncate(2**32)
    with pytest.raises(ValueError, match="header is too long"):
        load_data(str(file))
    with file.open("wb") as stream:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (-5, 3)}
        np.lib.format.write_array_header_1_0(stream, shape)
    with pytest.raises(ValueError, match=r"x\.npy cannot be read.*its shape is \(-5, 3\)"):
        load_data(str(file))


@promise(14)
def test_an_archive_of_very_many_files_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for i in range(1001):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(ValueError, match="more than 1000 files"):
        load_data(str(tmp_path / "x.npz"))


@promise(12)
def test_a_pipe_is_not_waited_for(run: Path, tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz", "x.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="is a pipe or a device"):
            load_data(str(tmp_path / name))


# -- torchvision's sets ----------------------------------------------------------------------------------


@pytest.fixture
def sets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, AttributeError, OSError):
        pytest.skip("no working torchvision here")
    return datasets


def write_idx(file: Path, *shape: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    file.write_bytes(head + bytes(int(np.prod(shape))))


def write_mnist(raw: Path) -> None:
    for name in ("train", "t10k"):
        write_idx(raw / f"{name}-images-idx3-ubyte", 20, 4, 4)
        write_idx(raw / f"{name}-labels-idx1-ubyte", 20)


@promise(6)
@pytest.mark.usefixtures("sets")
def test_only_the_published_pickles_of_cifar_are_read(tmp_path: Path, marker: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return open, (str(marker), "w")

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Touch()))
    with pytest.raises(FileNotFoundError, match="CIFAR10"):
        load_data("CIFAR10", data_dir=tmp_path, download=False)
    assert is_untouched(marker)


@promise(6, 14)
@pytest.mark.usefixtures("sets")
def test_old_files_of_mnist_are_checked_as_other_files_of_tensors(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return open, (str(marker), "w")

    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    folder = tmp_path / "MNIST" / "processed"
    folder.mkdir(parents=True)
    write_mnist(tmp_path / "MNIST" / "raw")

    def read() -> Any:
        return load_data("MNIST", data_dir=tmp_path, download=False)

    good = (torch.zeros(20, 4, 4, dtype=torch.uint8), torch.arange(20))
    for name in ("training.pt", "test.pt"):
        torch.save(good, folder / name)
    assert read().shape == (1, 4, 4)
    for attack in (zipped(LARGE), directory_ahead_of_the_end(), zipped(ENCODED), ENCODED):
        (folder / "training.pt").write_bytes(attack)
        with (
            patch("torch.load") as torch_load,
            pytest.raises(ValueError, match="MNIST: a file is broken"),
        ):
            read()
        torch_load.assert_not_called()
    x, y = good
    for content, words in (
        ((x[:1, :1, :1].expand(2**20, 2**10, 2**10), y[:1].expand(2**20)), "hold no pictures"),
        ((x, y[:1].expand(2**40)), "20 pictures but"),
        ((x, y[:1].expand(20, 2**40)), "20 pictures but"),
        ((x.float(), y), "hold no pictures"),
        ((x.to_sparse(), y), "hold no pictures|a file is broken"),
        (Touch(), "a file is broken"),
    ):
        torch.save(content, folder / "training.pt")
        with pytest.raises(ValueError, match=f"MNIST: .*({words})"):
            read()
    assert is_untouched(marker)


@promise(14)
@pytest.mark.usefixtures("sets")
def test_files_of_mnist_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(raw := tmp_path / "MNIST" / "raw")
    with (raw / "t10k-labels-idx1-ubyte").open("r+b") as file:
        file.truncate(2**43)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte takes .*more than there is"):
        load_data("MNIST", data_dir=tmp_path, download=False)
    write_mnist(raw)
    with (raw / "train-images-idx3-ubyte").open("r+b") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**15, 2**15))
    with pytest.raises(ValueError, match="a file is broken"):
        load_data("MNIST", data_dir=tmp_path, download=False)


@promise(16)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MNIST", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("EMNIST", "EMNIST/raw/gzip.zip"),
        ("CIFAR10", "cifar-10-python.tar.gz"),
        ("SVHN", "train_32x32.mat"),
    ],
)
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_downloaded_through_a_link(
    link: Any, name: str, place: str, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    def download(_: str, file: str) -> None:
        Path(file).write_text("theirs")

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(utils, "_urlretrieve", download)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    link(precious, tmp_path / place)
    with pytest.raises(ValueError, match=r"is not downloaded, because .* is a link"):
        load_data(name, data_dir=tmp_path)
    assert precious.read_text() == "mine"
    (tmp_path / place).unlink()
    with pytest.raises(ConnectionError, match="corrupted"):  # what was downloaded is not the set
        load_data(name, data_dir=tmp_path)


@promise(15)
def test_a_picture_starts_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would give PostScript, whatever its name, to Ghostscript."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = f"#!/bin/sh\ntouch {tmp_path / 'marker'}\nexit 1\n"
    (programs / "gs").write_text(script)
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("L", (30, 30)).save(folder / f"{i}.png", "EPS")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        load_data(f"folder:{folder}")
    assert not (tmp_path / "marker").exists()


@promise(12)
def test_a_long_text_is_not_repeated_by_aliases(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    repeated = (
        "x: &t '" + "a " * 60_000 + "'\nnote: [" + "*t, " * 20_000 + "1]\n"
    )  # 2 GiB if written
    (run / "config.yaml").write_text(text + repeated)
    with pytest.raises(CorruptFileError, match="stand for more than"):
        load_run(run)
    (run / "config.yaml").write_text(text + "note: '" + "a " * 60_000 + "'\n")
    load_run(run)


@promise(12)
def test_no_more_of_a_config_is_read_than_is_taken(run: Path) -> None:
    with (run / "config.yaml").open("r+b") as file:
        file.truncate(2**28)
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="larger than the 256 KiB"):
        load_run(run)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24
    with pytest.raises(ValueError, match="larger than the 256 KiB"):  # of a text in a text, too
        load_yaml("a: " + "b" * 2**18)


@promise(12)
def test_a_text_that_is_no_argument_is_not_read(run: Path) -> None:
    quoted: Any = "a"
    for _ in range(6):
        quoted = json.dumps([quoted])
    for text in ("a b" * 4000, quoted):
        change(run, model=model_with(network=text))
        with pytest.raises(ValueError, match=r"a text of \d+ characters is not an argument"):
            load_run(run)
    digits = ":".join(["59"] * 1000)  # of a number to base 60, which takes time to convert
    assert load_yaml(f"a: {digits}") == {"a": digits}


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Ends a call that waits for another process."""

    def end(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@promise(12)
@pytest.mark.filterwarnings("ignore:.*metrics.csv is missing")
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "weights.safetensors", "metrics.csv", "evaluation.json", ".ppl_vae-lock"],
)
def test_a_pipe_in_a_run_is_not_waited_for(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with no_waiting():
        if name == ".ppl_vae-lock":
            with pytest.raises(LockedError, match="no file of a lock alone: remove it"):
                RunFolder.open(run)
        elif name in ("config.yaml", "weights.safetensors"):
            with pytest.raises(FileNotFoundError, match=re.escape(name)):
                load_run(run)
        else:
            found = load_run(run)
            assert (found.history, found.evaluation) == ([], None)


@promise(12)
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(run: Path) -> None:
    (run / "evaluation.json").write_text('{"table_sha256": "0"}')
    os.mkfifo(run / "evaluation.csv")
    with no_waiting(), pytest.raises(CorruptFileError, match=r"evaluation\.csv: it is missing"):
        load_run(run)


@promise(12)
def test_texts_in_texts_do_not_multiply(run: Path) -> None:
    """Each of them is small, and is read within the limits of its own; together they took hours."""
    text: Any = "[" + "1, " * 500 + "1]"
    for times in (200, 150, 50):
        text = "[&a " + json.dumps(text) + ", *a" * times + "]"
    change(run, optimizer=text)
    assert (run / "config.yaml").stat().st_size < 20_000
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml, optimizer.*too much"):
        load_run(run)
    assert time.monotonic() - started < 30


@promise(13)
def test_a_table_of_very_many_lines_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "metrics.csv").write_text("a\n" + "1\n" * 2_000_001)
    with pytest.raises(CorruptFileError, match=r"metrics\.csv: it has more than the 2000000 lines"):
        load_run(run)
    monkeypatch.setattr("ppl_vae.runs.folder._MOST_LINES", 3)
    (run / "metrics.csv").write_text("a\n1\n\n1\n")
    assert len(load_run(run).history) == 2
    (run / "metrics.csv").write_text("a\n1\n\n1\n1\n")
    with pytest.raises(CorruptFileError, match="more than the 3 lines"):
        load_run(run)


@promise(16)
@pytest.mark.parametrize("name", [".ppl_vae-old", ".ppl_vae-replaced"])
def test_a_folder_of_the_users_is_not_taken_for_a_swap(
    name: str, trained: Path, tmp_path: Path
) -> None:
    """`refit_of` may name any folder; what finishes a swap there removed it and the files beside it."""
    project = tmp_path / "project"
    (project / name).mkdir(parents=True)
    (project / name / "thesis.tex").write_text("mine")
    (project / "config.yaml").write_text("a: 1")
    bad = tmp_path / "bad"
    shutil.copytree(trained, bad)
    change(bad, refit_of=str(project), made_by="refit")
    assert main(["refit", "--resume", str(bad)]) == 1
    with contextlib.suppress(ValueError):
        load_run(project)
    with pytest.raises(FileExistsError, match="is in the way of the run that would be replaced"):
        RunFolder.new(project, {"seed": 1}, overwrite=True)
    for other in (".ppl_vae-old", ".ppl_vae-replaced"):  # an empty one beside it changes nothing
        (project / other).mkdir(exist_ok=True)
    with contextlib.suppress(ValueError):
        load_run(project)
    assert (project / name / "thesis.tex").read_text() == "mine"
    assert (project / "config.yaml").read_text() == "a: 1"
    (project / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="move away what else is in there"):
        load_run(project)
