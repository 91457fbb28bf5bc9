"""Sweeps on real workers: what they do, and what is left of one that was stopped, killed or changed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import yaml

from ppl_vae.cli import main, sweep as command
from ppl_vae.runs import RunFolder, read_result
from ppl_vae.runtime import read_tensors
from ppl_vae.sweeps import (
    SweepFolder,
    SweepRun,
)
from ppl_vae.sweeps.spec import as_text

ROOT = Path(__file__).parent.parent
SMALL = dict(
    zip(
        (word.removeprefix("--") for word in (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK)[::2]),
        (yaml.safe_load(w) for w in (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK)[1::2]),
        strict=True,
    )
)
STUB = '''
"""In the place of `ppl-vae train`: a checkpoint every 50 ms, and results at the end."""
import json, os, signal, sys, threading, time
from pathlib import Path

def attend():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=attend, daemon=True).start()
given = dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
folder = Path(given.get("run_dir") or given["resume"])
if "resume" in given:
    options = json.loads((folder / "config.yaml").read_text())["options"]
else:
    options = given
    (folder / "config.yaml").write_text(json.dumps({"made_by": "ppl_vae", "options": given}))
print("threads", os.environ["OMP_NUM_THREADS"], "begins", "resume" not in given)
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
first = len(list((folder / "checkpoints").iterdir()))
try:
    for step in range(first, int(options["max_epochs"])):
        if options.get("learning_rate") == "0.5":
            sys.exit("ppl-vae: error: it does not fit")
        if options.get("learning_rate") == "0.25":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        (folder / "checkpoints" / f"step-{step:03}.safetensors").write_text("")
except KeyboardInterrupt:
    sys.exit("ppl-vae: interrupted")
mean = {name: {"mean": float(options["seed"]) - i} for i, name in enumerate(
    ("elbo", "log_likelihood", "rate", "distortion", "mutual_information"))}
(folder / "weights.safetensors").write_text("")
(folder / "evaluation.json").write_text(json.dumps({**mean, "num_rows": 8, "unreliable": {"count": 2}}))
(folder / "diagnosis.json").write_text(json.dumps({**mean, "active_units": 3}))
'''
WITHOUT_PICTURES = '''
"""`ppl-vae` itself, but for its pictures, which take most of the time."""
import sys
from unittest.mock import patch
from ppl_vae.cli import main

with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
    sys.exit(main())
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- on workers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules that stand in for `ppl-vae train`."""
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub_of_train.py").write_text(STUB)
    (folder / "without_pictures.py").write_text(WITHOUT_PICTURES)
    return folder


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (ROOT, *folders)))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def cluster_in(folder: Path, of_workers: Mapping[str, str], workers: int) -> Iterator[str]:
    """The address of a scheduler with workers, processes that nobody but dask has started."""
    file = folder / "scheduler.json"
    shared = ["--no-dashboard", "--scheduler-file", str(file)]
    count = ["--nworkers", str(workers), "--nthreads", "1", "--local-directory", str(folder)]
    started = []
    for words, variables in (
        (["scheduler", "--host", "127.0.0.1", "--port", "0"], environment(folder)),
        (["worker", *count], of_workers),
    ):
        with (folder / f"{words[0]}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *words, *shared],
                    env=variables,
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        until(file.exists)
        until(lambda: bool(file.read_text().strip()))
        yield str(json.loads(file.read_text())["address"])
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def scheduler(stubs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One with two workers."""
    with cluster_in(tmp_path_factory.mktemp("cluster"), environment(stubs), 2) as address:
        yield address


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.05)


def spec(folder: Path, base: Mapping[str, Any], name: str = "spec.yaml", **parts: Any) -> None:
    (folder / name).write_text(yaml.safe_dump({"base": dict(base), **parts}, sort_keys=False))


def table_of(sweep: Path) -> dict[str, dict[str, str]]:
    with (sweep / "sweep.csv").open() as lines:
        return {row["run"]: row for row in csv.DictReader(lines)}


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def stubbed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of this process run the module that stands in for `ppl-vae train`, and draw nothing."""
    monkeypatch.setattr(command, "_COMMAND", "stub_of_train")
    for picture in ("sweep_plane", "sweep_metrics"):
        monkeypatch.setattr(command, picture, lambda *_, **__: None)
    monkeypatch.setattr(command, "write_report", lambda _: [])
    return here


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_real_runs_on_a_scheduler_that_runs_elsewhere(
    whole: bool,
    scheduler: str,
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are whole have pictures, draws of the posterior and a report, too; there are four of them."""
    seeds = [0, 1] if whole else [1]
    small = {**SMALL} if whole else {**SMALL, "posterior": "never", "report": False}
    if not whole:
        monkeypatch.setattr(command, "_COMMAND", "without_pictures")
    fits, fails = {"objective.beta": 2}, {"model.likelihood": "Bernoulli"}
    spec(here, small, list=[fits, fails], grid={"seed": seeds})
    assert main(["sweep", "spec.yaml", "--scheduler", scheduler]) == 1
    out, err = capfd.readouterr()
    sweep = here / "runs" / "spec"
    found = table_of(sweep)
    assert [row["state"] for row in found.values()] == [
        s for s in ("done", "failed") for _ in seeds
    ]
    for seed in seeds:
        run = sweep / f"beta=2,seed={seed}"
        row = found[run.name]
        evaluation = read_result(run / "evaluation.json") or {}
        assert float(row["elbo"]) == evaluation["elbo"]["mean"]
        assert (
            float(row["unreliable"]) == evaluation["unreliable"]["count"] / evaluation["num_rows"]
        )
        assert "run folder:" in (run / "log.txt").read_text()
        for name in ("posterior.nc", "report.html", "plots"):
            assert (run / name).exists() == whole, name
    assert "outside of the support of Bernoulli" in found["likelihood=Bernoulli,seed=1"]["error"]
    error = (sweep / "likelihood=Bernoulli,seed=1" / "error.txt").read_text()
    assert "outside of the support of Bernoulli" in error.splitlines()[0]
    assert "OMP_NUM_THREADS=1 ppl-vae train" in error
    assert f"{len(seeds)} of {2 * len(seeds)} runs failed; --retry_failed runs them again" in err
    assert "ELBO" in err
    assert "left" in err
    assert "run folder:" not in out + err, "what a run prints is in its log"
    mean = np.mean([float(found[f"beta=2,seed={seed}"]["elbo"]) for seed in seeds])
    assert f"| {mean:.2f}{' ± ' if whole else ' '}" in out
    assert (sweep / "plots" / "rate_distortion.png").is_file()
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        words = [f"--{name}={as_text(value)}" for name, value in small.items()]
        by_hand = ["--seed=1", "--objective.beta=2", "--run_dir=by_hand"]
        assert main(["train", *words, *by_hand]) == 0
    one, other = (
        read_tensors(f / "weights.safetensors")[0]
        for f in (sweep / "beta=2,seed=1", here / "by_hand")
    )
    assert {n: t.numpy().tobytes() for n, t in one.items()} == {
        n: t.numpy().tobytes() for n, t in other.items()
    }
    for name in ("config.yaml", "evaluation.csv"):
        assert (sweep / "beta=2,seed=1" / name).read_bytes() == (
            here / "by_hand" / name
        ).read_bytes()


def test_failed_runs_are_retried_only_if_asked_for(
    scheduler: str, stubbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = {"learning_rate": [0.125, 0.25, 0.5]}
    spec(stubbed, {"max_epochs": 2}, grid=rates)
    again = ["sweep", "spec.yaml", "--scheduler", scheduler, "--threads", "3"]
    assert main(again) == 1
    sweep = stubbed / "runs" / "spec"
    before = stamps(sweep / "learning_rate=0.125,seed=0")
    failed = stamps(sweep / "learning_rate=0.5,seed=0")
    found = table_of(sweep)
    assert [row["error"] for row in found.values()] == [
        "",
        "it was ended by SIGKILL: perhaps there was not enough memory",
        "it does not fit",
    ]
    assert "threads 3" in (sweep / "learning_rate=0.125,seed=0" / "log.txt").read_text()
    assert main(again) == 1
    assert "3 runs in runs/spec: 1 done, 2 failed" in capfd.readouterr().err
    assert stamps(sweep / "learning_rate=0.5,seed=0") == failed
    assert main([*again, "--retry_failed"]) == 1
    assert stamps(sweep / "learning_rate=0.5,seed=0") != failed
    assert stamps(sweep / "learning_rate=0.125,seed=0") == before


def test_a_changed_description_adds_and_leaves_out_and_never_mixes(
    scheduler: str, stubbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "spec.yaml", "--scheduler", scheduler]
    base = {"max_epochs": 1, "model.latent_dim": 4}
    spec(stubbed, base, grid={"objective.beta": [1, 2]})
    assert main(words) == 0
    sweep = stubbed / "runs" / "spec"
    before = stamps(sweep / "beta=2,seed=0")
    # Another value, more seeds, and an option that was the same for all: what is there is used.
    spec(
        stubbed,
        {"max_epochs": 1},
        grid={"objective.beta": [2.0, 3], "model.latent_dim": [4], "seed": [0, 1]},
    )
    assert main(words) == 0
    assert "4 runs in runs/spec: 1 done" in capfd.readouterr().err
    assert stamps(sweep / "beta=2,seed=0") == before
    assert [*table_of(sweep)] == [
        "beta=2,seed=0",
        *("beta=2,latent_dim=4,seed=1", "beta=3,latent_dim=4,seed=0", "beta=3,latent_dim=4,seed=1"),
    ]
    assert (sweep / "sweep.yaml").read_text() == (stubbed / "spec.yaml").read_text()
    everything = stamps(sweep)
    spec(stubbed, {"max_epochs": 2}, grid={"objective.beta": [9]})
    assert main(words) == 2
    assert "holds another sweep, whose base is another: max_epochs (1 there, 2 here)" in (
        capfd.readouterr().err
    )
    spec(stubbed, {"model.latent_dim": 9}, grid={"objective.beta": [2]})
    assert main(words) == 2
    assert "is a run of other options: max_epochs (1 there, none here), model.latent_dim (4" in (
        capfd.readouterr().err
    )
    assert stamps(sweep) == everything


def test_a_worker_without_the_folders_is_told(scheduler: str, stubbed: Path) -> None:
    spec(stubbed, {}, grid={"seed": [0, 1]})
    task = command._task
    with patch.object(command, "_task", lambda *a: replace(task(*a), place="/no/such/folder")):
        assert main(["sweep", "spec.yaml", "--scheduler", scheduler]) == 1
    found = table_of(stubbed / "runs" / "spec")["seed=1"]
    assert found["state"] == "failed"
    assert "/no/such/folder is not there" in found["error"]
    assert "/no/such/folder" in (stubbed / "runs" / "spec" / "seed=1" / "error.txt").read_text()


@pytest.mark.slow
def test_a_worker_without_ppl_vae_is_told(
    stubbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec(stubbed, {}, grid={"seed": [0]})
    (stubbed / "ppl_vae.py").write_text("raise ImportError('it is not here')")
    variables = os.environ | {"PYTHONPATH": str(stubbed)}
    with cluster_in(stubbed, variables, 1) as address:
        assert main(["sweep", "spec.yaml", "--scheduler", address]) == 1
    told = capsys.readouterr().err
    assert "cannot import ppl_vae (it is not here): start `dask worker` in an environment" in told
    assert not (stubbed / "runs" / "spec" / "seed=0").exists()


def test_a_run_with_a_class_of_the_users_own_is_trusted_when_it_goes_on(here: Path) -> None:
    options = {"guide": {"class_path": "my_pair.Guide"}, "model": "VAE", "seed": 0}
    folder = SweepFolder(here, [run := SweepRun(options, {}, "seed=0")])
    assert command._task(folder, run).go_on[-1] == "--trust_packages=my_pair"
    folder = SweepFolder(here, [run := SweepRun({"guide": "MeanField", "seed": 0}, {}, "seed=0")])
    assert command._task(folder, run).go_on == ["train", f"--resume={here / 'seed=0'}"]


def test_what_a_sweep_writes_beside_a_run_is_in_nobodys_way(here: Path) -> None:
    (here / "log.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a run folder"):
        RunFolder.new(here, {"seed": 1})
    for name in ("sweep.json", "error.txt"):
        (here / name).write_text("{}")
    with RunFolder.new(here, {"seed": 1}) as run:
        run.begin()
    with RunFolder.new(here, {"seed": 2}, overwrite=True) as run:
        run.begin()
    assert (here / "log.txt").read_text() == "mine"
    assert (here / "error.txt").exists()
    (here / "other.txt").touch()
    (here / "config.yaml").unlink()
    with pytest.raises(FileExistsError, match="is not a run folder"):
        RunFolder.new(here, {"seed": 3}, overwrite=True)


def test_what_is_done_needs_no_cluster_and_what_is_lost_is_done_again(
    scheduler: str, stubbed: Path
) -> None:
    spec(stubbed, {"max_epochs": 1}, grid={"seed": [0, 1]})
    words = ["sweep", "spec.yaml", "--scheduler"]
    assert main([*words, scheduler]) == 0
    sweep = stubbed / "runs" / "spec"
    assert main([*words, "tcp://127.0.0.1:9"]) == 0
    (sweep / "seed=1" / "evaluation.json").unlink()
    before = stamps(sweep / "seed=0")
    assert main([*words, scheduler]) == 0
    assert (sweep / "seed=1" / "evaluation.json").is_file()
    assert stamps(sweep / "seed=0") == before


def test_no_thread_is_left_behind() -> None:
    """Other tests fork."""
    until(lambda: not [t for t in threading.enumerate() if "IO loop" in t.name], 10)


# -- killed ----------------------------------------------------------------------------------------------


def started(folder: Path, stubs: Path, *words: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    from ppl_vae.cli import main, sweep\n"
        "    sweep._COMMAND = 'stub_of_train'\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (folder / "started.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, str(folder / "started.py"), "sweep", "spec.yaml", *words],
        cwd=folder,
        env=environment(stubs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lives(run: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):
        status = Path(f"/proc/{int((run / 'pid').read_text())}/status").read_text()
        return "State:\tZ" not in status
    return False


def steps(run: Path) -> int:
    return len(list((run / "checkpoints").glob("*")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("how", "where"),
    [
        (signal.SIGKILL, "here"),
        pytest.param(signal.SIGKILL, "elsewhere", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "here", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "elsewhere", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_was_ended_goes_on_with_what_is_missing(
    how: signal.Signals, where: str, scheduler: str, stubs: Path, stubbed: Path
) -> None:
    spec(stubbed, {}, list=[{"max_epochs": 1}, {"max_epochs": 40}], grid={"seed": [0, 1, 2]})
    sweep = stubbed / "runs" / "spec"
    short = [sweep / f"max_epochs=1,seed={seed}" for seed in range(3)]
    long = [sweep / f"max_epochs=40,seed={seed}" for seed in range(3)]
    words = ["--workers", "2"] if where == "here" else ["--scheduler", scheduler]
    process = started(stubbed, stubs, *words)
    until(lambda: all(steps(run) > 3 for run in long[:2]))
    if how == signal.SIGINT and where == "here":
        os.killpg(process.pid, how)  # as a terminal does, to the workers, too
    else:
        process.send_signal(how)
    told, _ = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130, told
        assert f"go on with: ppl-vae sweep spec.yaml {' '.join(words)}" in told
        assert "Traceback" not in told
    if how == signal.SIGINT or where == "here":
        until(lambda: not any(map(lives, long)), 20)
    assert not (long[2] / "checkpoints").exists()
    finished = [stamps(run) for run in short]
    kept = [steps(run) for run in long[:2]]
    assert max(kept) < 40
    assert main(["sweep", "spec.yaml", "--scheduler", scheduler]) == 0
    assert [stamps(run) for run in short] == finished
    for run in long[:2]:
        log = (run / "log.txt").read_text()
        assert "begins True" in log
        assert "begins False" in log
    assert all(row["state"] == "done" for row in table_of(sweep).values())


@pytest.mark.slow
def test_a_real_run_that_was_interrupted_ends_with_the_same_bits(
    scheduler: str, here: Path
) -> None:
    """A checkpoint is written after 10 s at the soonest."""
    base = {**SMALL, "posterior": "never", "max_rows": 1000, "patience": 9999}
    spec(here, {**base, "max_epochs": 500}, grid={"seed": [3]})
    run = here / "runs" / "spec" / "seed=3"
    words = [sys.executable, "-m", "ppl_vae.cli", "sweep", "spec.yaml", "--workers", "1"]
    with subprocess.Popen([*words, "--threads", "1"], cwd=here, env=environment()) as process:
        until(lambda: steps(run) > 0)
        process.kill()
    assert not (run / "weights.safetensors").exists(), "too late"
    assert main(["sweep", "spec.yaml", "--scheduler", scheduler]) == 0
    assert "train --resume=runs/spec/seed=3" in (run / "log.txt").read_text()
    by_hand = [f"--{name}={as_text(value)}" for name, value in base.items()]
    by_hand += ["--max_epochs=500", "--seed=3", "--run_dir=by_hand"]
    assert main(["train", *by_hand]) == 0
    one, other = (read_tensors(f / "weights.safetensors")[0] for f in (run, here / "by_hand"))
    assert {n: t.numpy().tobytes() for n, t in one.items()} == {
        n: t.numpy().tobytes() for n, t in other.items()
    }


@pytest.mark.slow
def test_a_run_whose_worker_is_gone_goes_on_elsewhere(
    scheduler: str, stubs: Path, stubbed: Path
) -> None:
    spec(stubbed, {"max_epochs": 60}, grid={"seed": [0]})
    run = stubbed / "runs" / "spec" / "seed=0"
    process = started(stubbed, stubs, "--scheduler", scheduler)
    until(lambda: steps(run) > 3)
    status = Path(f"/proc/{(run / 'pid').read_text()}/status").read_text()
    worker = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid"))
    os.kill(worker, signal.SIGKILL)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "begins False" in (run / "log.txt").read_text()


def test_a_sweep_that_runs_is_not_run_twice(
    stubbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec(stubbed, {}, grid={"seed": [0]})
    path = stubbed / "runs" / "spec"
    path.mkdir(parents=True)
    (path / "sweep.yaml").write_text((stubbed / "spec.yaml").read_text())
    with RunFolder.open(path):
        assert main(["sweep", "spec.yaml"]) == 1
    assert "the sweep is running already" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.5, pytest.param(2, marks=pytest.mark.slow)])
def test_a_command_is_interrupted_when_its_standard_input_closes(
    seconds: float, here: Path
) -> None:
    """Also while it imports libraries, some of which go on after a `KeyboardInterrupt`."""
    words = [sys.executable, "-P", "-m", "ppl_vae.cli.attended", "train", "--patience", "99999"]
    with (here / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--max_epochs", "99999"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    assert process.stdin is not None
    time.sleep(seconds)
    process.stdin.close()
    assert process.wait(90) in (130, 1), "1: a library has made another error of it"
