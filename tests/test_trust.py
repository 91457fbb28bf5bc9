"""Which code a run folder may name (docs/security.md), by real attacks: each leaves a marker if it succeeds."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch
import yaml
from attacks import (
    GUIDE,
    MODEL,
    REFUSED,
    SIZES,
    Touch,
    change,
    is_untouched,
    marker as marker,
    model_with,
    part,
    promise,
    run as run,
    trained as trained,
)

from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.models import VAE
from ppl_vae.runs import Trust, build, load_run
from ppl_vae.runtime import CorruptFileError, read_tensors, write_tensors

ROOT = Path(__file__).parent.parent
Attack = Callable[[Path], dict[str, Any]]


def test_every_line_of_the_page_has_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    lines = {int(number) for number in re.findall(r"^(\d+)\. ", page, re.MULTILINE)}
    files = re.findall(r"tests/(test_\w+)\.py", page)
    tests = [test for file in files for test in vars(importlib.import_module(file)).values()]
    held = {number for test in tests for number in getattr(test, "promises", ())}
    assert lines == held
    assert lines == set(range(1, len(lines) + 1))


# -- names -----------------------------------------------------------------------------------------------

ATTACKS: dict[str, Attack] = {
    "Popen": lambda m: part("subprocess.Popen", args=f"touch {m}", shell=True),
    "FileHandler": lambda m: part("logging.FileHandler", filename=str(m)),
    "ZipFile": lambda m: part("zipfile.ZipFile", file=str(m), mode="w"),
    "a module in the current folder": lambda m: part("planted_module.Thing"),
}


@promise(1, 2)
@pytest.mark.parametrize(
    "role", ["model", "guide", "model_guide", "prior", "objective", "optimizer", "lr_scheduler"]
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_others_is_run_for_a_role(
    attack: str, role: str, run: Path, marker: Path
) -> None:
    change(run, **{role: ATTACKS[attack](marker)})
    with pytest.raises(ValueError, match=f"config.yaml {REFUSED}.*\\b{role}: "):
        load_run(run)
    assert is_untouched(marker)


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


# -- commands --------------------------------------------------------------------------------------------


@promise(5)
@pytest.mark.parametrize(
    "command",
    [
        *("evaluate RUN", "gaps RUN", "diagnose RUN", "sample RUN", "export RUN", "refit RUN"),
        *("compare RUN GOOD", "compare GOOD RUN", "train --resume RUN"),
        "translate TEXT --run RUN",
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
    paths = {"RUN": str(bad), "GOOD": str(trained), "TEXT": str(ROOT / "README.md")}
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
    torch.save({"x": Touch(marker)}, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([Touch(marker)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", allow_pickle=True, x=np.array([Touch(marker)], dtype=object))
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Touch(marker)))
    for name in ("x.pt", "x.npy", "x.npz", "bare.npy"):
        with pytest.raises(ValueError, match="nothing is unpickled"):
            load_data(str(tmp_path / name))
    with (  # what reads it is told so, too
        patch("ppl_vae.data.arrays.require_plain"),
        pytest.raises(ValueError, match="nothing is unpickled"),
    ):
        load_data(str(tmp_path / "x.pt"))
    torch.save({"x": Touch(marker)}, run / "weights.safetensors")
    with pytest.raises(CorruptFileError, match="weights"):
        load_run(run)
    assert is_untouched(marker)


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


@pytest.mark.slow
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
