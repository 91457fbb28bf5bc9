"""The current folder is a stranger's: no file in it is run or read in the place of a library's own.

In it lies a module of the name of each module of Python and of many others; what imports one leaves a marker.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import catalogue
import pytest
import torch
import yaml
from attacks import change, part, promise, trained as trained
from forked import Forked
from jsonargparse import _stubs_resolver
from lightning_fabric import Fabric

from ppl_vae.cli import main, rc_files
from ppl_vae.cli.rc_files import ignored_here
from ppl_vae.runs import Trust, build, load_run
from ppl_vae.runtime import devices, safe_children

ROOT = Path(__file__).parent.parent
OTHERS = (
    *("numpy", "torch", "yaml", "scipy", "PIL", "tensorboard", "tensorflow", "triton", "hydra"),
    *("mpi4py", "IPython", "cupy", "usercustomize", "sitecustomize", "samples"),
)
TRAP = "open({marker!r}, 'a').write(__name__ + '\\n')\n"
OWN = """
from ppl_vae.guides import MeanField
class Guide(MeanField): pass
"""


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, full of traps; `sprung` says which were imported."""
    folder = tmp_path / "traps"
    folder.mkdir()
    text = TRAP.format(marker=str(tmp_path / "sprung"))
    for name in {*sys.stdlib_module_names, *OTHERS} - {"__main__"}:
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    return folder


def sprung(traps: Path) -> list[str]:
    file = traps.parent / "sprung"
    return file.read_text().split() if file.exists() else []


def unsafe_processes(work: Any, said: Path) -> tuple[int | None, list[str]]:
    """Does some work in a process of its own; the others that it started with an unsafe path."""
    unsafe = said.with_suffix(".unsafe")
    unsafe.touch()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            environment = os.environ if arguments[3] is None else arguments[3]
            if not environment.get("PYTHONSAFEPATH"):
                unsafe.open("a").write(f"{arguments[1]}\n")
        elif event in ("os.system", "os.exec", "os.posix_spawn"):
            unsafe.open("a").write(f"{event} {arguments[0]}\n")

    def watched() -> int:
        sys.addaudithook(note)
        return int(work() or 0)

    process = Forked(watched, said)
    try:
        code = process.wait(120)
    finally:
        process.kill()
    return code, unsafe.read_text().splitlines()


UNTYPED = {
    "model": part("torch.nn.LSTM"),
    "lr_scheduler": part("torch.optim.swa_utils.SWALR", swa_lr=0.5),
}
COMMANDS = (
    *("evaluate .", "gaps . --max_rows 2", "diagnose .", "sample . -o OUT.png"),
    *(
        "compare . GOOD -o OUT.png",
        "compare GOOD . -o OUT.png",
        "export . -o OUT.nc --num_samples 3",
    ),
    *("refit . --max_epochs 1 --run_dir OUT", "train --resume . --max_epochs 2"),
)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads types from stubs begins anew, and asks another Python for its path."""
    monkeypatch.setattr(_stubs_resolver, "stubs_resolver", None)


@pytest.mark.slow(only=("refit . --max_epochs 1 --run_dir OUT-lr_scheduler",))
@promise(1, 11, 17)
# Every command builds the model; a schedule, those that train.
@pytest.mark.parametrize(
    ("command", "role"),
    [
        pytest.param(
            *(command, role),
            marks=()
            if role == "model" or command.startswith(("refit", "train"))
            else pytest.mark.slow,
        )
        for command in COMMANDS
        for role in UNTYPED
    ],
)
@pytest.mark.usefixtures("stubs")
def test_no_command_starts_a_process_that_finds_modules_here(
    command: str, role: str, traps: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, traps, dirs_exist_ok=True)
    change(traps, **{role: UNTYPED[role]})
    places = {
        "GOOD": str(trained),
        **{f"OUT{end}": str(tmp_path / f"out{end}") for end in ("", ".png", ".nc")},
    }
    words = [places.get(word, word) for word in command.split()]
    code, unsafe = unsafe_processes(lambda: main([*words, "--quiet"]), tmp_path / "said")
    assert code in (0, 1, 2), (tmp_path / "said").read_text()
    assert unsafe == []
    assert sprung(traps) == []


@promise(17)
@pytest.mark.parametrize(
    "named",
    ["--model.help torch.nn.LSTM", "--model torch.nn.GRU", "--lr_scheduler.help StepLR"],
)
@pytest.mark.usefixtures("stubs")
def test_neither_does_what_is_typed(named: str, traps: Path, tmp_path: Path) -> None:
    work = ["train", *catalogue.SMALL_RUN, *named.split(), "--print_config"]
    _, unsafe = unsafe_processes(lambda: main(work), tmp_path / "said")
    assert unsafe == []
    assert sprung(traps) == []


BASES = {
    "model": torch.nn.Module,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
}


def untyped() -> Iterator[tuple[str, str]]:
    """The classes of torch that a folder may name and whose constructors have a parameter without a type."""
    for role, base in BASES.items():
        package = torch.nn.modules if role == "model" else torch.optim
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, kind in vars(sys.modules.get(info.name, base)).items():
                if (
                    inspect.isclass(kind)
                    and issubclass(kind, base)
                    and kind.__module__ == info.name
                ):
                    parameters = inspect.signature(kind).parameters.values()
                    if any(parameter.annotation is parameter.empty for parameter in parameters):
                        yield f"{info.name}.{name}", role


@promise(17)
def test_no_class_of_torch_makes_a_loaded_run_start_one(traps: Path, tmp_path: Path) -> None:
    classes = list(untyped())
    assert len(classes) > 20

    def work() -> None:
        for name, role in classes:
            _stubs_resolver.stubs_resolver = None
            try:
                build(part(name), role=role, trust=Trust.of(False, tmp_path))
            except Exception as error:
                print(name, repr(error))

    before = dict(os.environ)
    code, unsafe = unsafe_processes(work, tmp_path / "said")
    assert code == 0, (tmp_path / "said").read_text()
    assert unsafe == []
    assert sprung(traps) == []
    assert dict(os.environ) == before


@promise(17)
@pytest.mark.usefixtures("stubs")
def test_the_environment_of_a_program_is_left_as_it_was(traps: Path, trained: Path) -> None:
    for before in (None, "", "1"):
        with pytest.MonkeyPatch.context() as patch:
            if before is None:
                patch.delenv("PYTHONSAFEPATH", raising=False)
            else:
                patch.setenv("PYTHONSAFEPATH", before)
            load_run(trained)
            assert main(["diagnose", str(trained), "--quiet"]) == 0
            assert os.environ.get("PYTHONSAFEPATH") == before


@promise(17)
def test_it_is_so_for_threads_that_leave_in_another_order() -> None:
    first, second = safe_children(), safe_children()
    before = os.environ.get("PYTHONSAFEPATH")
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    assert os.environ["PYTHONSAFEPATH"] == "1"
    second.__exit__(None, None, None)
    assert os.environ.get("PYTHONSAFEPATH") == before


# -- several processes -----------------------------------------------------------------------------------


def by_itself(*words: str, flags: tuple[str, ...] = ("-P",), path: Path = ROOT) -> tuple[int, str]:
    """The exit code of `python -m` in the current folder, and what it prints."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, *flags, "-m", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@promise(11, 17)
@pytest.mark.parametrize(
    "how",
    [
        "train --resume .",
        pytest.param("refit . --num_samples 3 --run_dir OUT", marks=pytest.mark.slow),
    ],
)
def test_the_other_processes_of_a_run_of_others_are_safe(
    how: str, traps: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, traps, dirs_exist_ok=True)
    change(traps, num_processes=2, device="cpu")
    words = [str(tmp_path / "out") if word == "OUT" else word for word in how.split()]
    code, said = by_itself("ppl_vae.cli", *words, "--max_epochs", "2", "--quiet")
    assert code == 0 or "num_processes = 1, now it is 2" in said, said  # which both of them find
    assert sprung(traps) == []


@pytest.mark.slow  # it starts four processes
@promise(10, 11, 17)
def test_the_other_processes_find_a_class_that_was_typed(traps: Path, tmp_path: Path) -> None:
    for trap in traps.iterdir():  # what is nowhere else would be found here, at the end of the path
        if find_spec(trap.stem) is None:
            trap.unlink()
    (traps / "own_pair.py").write_text(OWN)
    typed = ["--guide", "own_pair.Guide", "--num_processes", "2", "--device", "cpu"]
    short = ["--max_epochs", "1", "--quiet", "--run_dir", str(tmp_path / "out")]
    small = [*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK]
    code, said = by_itself("ppl_vae.cli", "train", *small, *typed, *short)
    assert code == 0, said
    assert sprung(traps) == []
    assert (
        yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["guide"]["class_path"]
        == "own_pair.Guide"
    )


@promise(17)
@pytest.mark.parametrize("safe", [True, False])
def test_further_processes_are_started_as_the_program_was(
    safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(devices, "sys", SimpleNamespace(flags=SimpleNamespace(safe_path=safe)))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(Fabric, "launch", lambda _: seen.append(os.environ.get("PYTHONSAFEPATH")))
    devices.make_fabric("cpu", num_processes=2)
    assert seen == ["1" if safe else None]
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.slow  # it starts two processes
@promise(17)
@pytest.mark.parametrize("flags", [("-P",), ()])
def test_further_processes_of_a_program_are_as_safe_as_it_is(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom ppl_vae.runtime import make_fabric\n"
        "print('safe:', sys.flags.safe_path)\n"
        "make_fabric('cpu', num_processes=2)\n"
    )
    monkeypatch.chdir(tmp_path)
    _, said = by_itself("mine", flags=flags, path=tmp_path)
    assert said.count(f"safe: {bool(flags)}") == 2, said


# -- settings --------------------------------------------------------------------------------------------

RC = [
    ("sample . --output OUT.png", "matplotlibrc", b"text.usetex: True\n"),
    pytest.param(
        *("sample . --output OUT.png", "matplotlibrc", b"\xff\xfe\x00text"), marks=pytest.mark.slow
    ),  # that of arviz is no text either
    pytest.param(
        *("export . --output OUT.nc --num_samples 3", "arvizrc", b"\xff\xfe\x00text"),
        marks=pytest.mark.slow,
    ),
]
DRAWING = """
import sys
from ppl_vae.cli import main
code = main(sys.argv[1:])
import matplotlib
print("usetex:", matplotlib.rcParams["text.usetex"], "size:", matplotlib.rcParams["font.size"])
sys.exit(code)
"""


def fake_latex(folder: Path, marker: Path) -> str:
    """A path of programs on which `latex` leaves a marker."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("latex", "pdflatex", "xelatex", "dvipng", "kpsewhich"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} >> {marker}\nexit 1\n")
        (programs / name).chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@promise(18)
@pytest.mark.parametrize(("command", "file", "content"), RC)
def test_settings_of_libraries_in_a_run_are_not_read(
    command: str, file: str, content: bytes, trained: Path, tmp_path: Path
) -> None:
    run, marker = tmp_path / "run", tmp_path / "latex_was_started"
    shutil.copytree(trained, run)
    (run / file).write_bytes(content)
    words = [word.replace("OUT", str(tmp_path / "out")) for word in command.split()]
    done = drawn(run, *words, "--quiet", PATH=fake_latex(tmp_path, marker))
    assert done.returncode == 0, done.stderr
    assert "usetex: False" in done.stdout
    assert not marker.exists()
    assert file not in done.stderr


def drawn(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, "-P", "-c", DRAWING, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@promise(18)
@pytest.mark.parametrize(
    ("variable", "relative"),
    [("MATPLOTLIBRC", True), pytest.param("MPLCONFIGDIR", False, marks=pytest.mark.slow)],
)
def test_the_user_s_own_settings_are_read(
    variable: str, relative: bool, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "matplotlibrc").write_text("font.size: 31\n")
    own = tmp_path / "own"
    own.mkdir()
    (own / "matplotlibrc").write_text("font.size: 17\n")
    place = os.path.relpath(own, tmp_path / "here") if relative else str(own)
    words = ["sample", str(trained), "--output", str(tmp_path / "out.png"), "--quiet"]
    done = drawn(tmp_path / "here", *words, **{variable: place})
    assert done.returncode == 0, done.stderr
    assert "size: 17" in done.stdout


@promise(18)
def test_the_current_folder_is_the_same_after_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "where"
    text = f"import os, pathlib\npathlib.Path({str(where)!r}).write_text(os.getcwd())\n1/0"
    (tmp_path / "arviz.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "arviz"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.meta_path)
    with ignored_here(), pytest.raises(ZeroDivisionError):
        importlib.import_module("arviz")
    assert where.read_text() == str(Path(rc_files.__file__).parent)
    assert os.getcwd() == str(tmp_path)
    assert sys.meta_path == before
