"""Sweeps: their descriptions, what is said of wrong ones, and their tables and pictures."""

from __future__ import annotations

import math
import re
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from ppl_vae import plots
from ppl_vae.cli import main, sweep as command
from ppl_vae.cli.sweep_curves import check_picture
from ppl_vae.sweeps import (
    METRICS,
    ClusterError,
    SpecError,
    SweepSpec,
    SweepTable,
    SweptPoint,
    cluster,
    num_cores,
    read_spec,
    sizes_for,
)
from ppl_vae.sweeps.folder import write_record

ROOT = Path(__file__).parent.parent


# -- descriptions ----------------------------------------------------------------------------------------


def test_a_grid_and_a_list_are_combined_and_named() -> None:
    spec = SweepSpec.of(
        "base: {data: digits, model.latent_dim: 8}\n"
        "grid: {objective.beta: [0.5, 1e-3], seed: [0, 1]}\n"
        "list: [{guide: MeanField}, {guide: NeuralSpline, guide.bins: 4}]\n"
    )
    runs = spec.runs()
    assert len(runs) == spec.num_runs() == 8
    assert [run.name for run in runs[:3]] == [
        "guide=MeanField,beta=0.5,seed=0",
        "guide=MeanField,beta=0.5,seed=1",
        "guide=MeanField,beta=0.001,seed=0",
    ]
    assert runs[-1].options == {
        "seed": 1,
        "data": "digits",
        "model.latent_dim": 8,
        "guide": "NeuralSpline",
        "guide.bins": 4,
        "objective.beta": 0.001,
    }
    assert "seed" not in runs[-1].varied
    assert runs[-1].arguments().index("--guide=NeuralSpline") == 2, "before its arguments"


def test_a_run_without_a_seed_has_the_default_one() -> None:
    (run,) = SweepSpec.of("list: [{objective.beta: 4}]").runs()
    assert (run.seed, run.name) == (0, "beta=4,seed=0")
    (with_seed,) = SweepSpec.of("grid: {seed: [0]}\nlist: [{objective.beta: 4.0}]").runs()
    assert with_seed.identity == run.identity


def test_names_that_cannot_say_all_have_a_digest() -> None:
    text = "grid: {data: [a/b.npy, a_b.npy, 'a b.npy'], model.network.hidden: [[8, 8]]}"
    names = [run.name for run in SweepSpec.of(text).runs()]
    assert len(set(names)) == 3
    assert all("/" not in name and " " not in name and len(name) < 130 for name in names)
    long = SweepSpec.of(f"list: [{{data: {'a' * 300}}}, {{data: {'a' * 301}}}]").runs()
    assert long[0].name != long[1].name
    assert max(len(run.name) for run in long) <= 120


def test_names_that_are_alike_in_their_last_word_are_whole() -> None:
    (run,) = SweepSpec.of(
        "list: [{model.latent_dim: 2, guide.latent_dim: 2, objective.seed: 1}]"
    ).runs()
    assert run.name == "model.latent_dim=2,guide.latent_dim=2,objective.seed=1,seed=0"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: {max_epochs: 3}", "neither `grid` nor `list` is there"),
        ("3", "expected `grid:` or `list:`"),
        ("a: [", "not YAML that can be read"),
        ("grids: {seed: [1]}", "no part 'grids' of a sweep (did you mean grid?)"),
        (
            "max_epochs: 3",
            "no part 'max_epochs' of a sweep (options stand below base, grid or list)",
        ),
        ("grid: {objective.beta: []}", "grid: objective.beta: the list is empty"),
        ("grid: {}", "grid: it is empty"),
        ("grid:", "grid: expected options with values"),
        ("list: []", "list: it is empty"),
        ("list: {seed: 1}", "list: expected points"),
        ("list: [3]", "list, point 1: expected options"),
        ("grid: {objective.beta: 3}", "grid: objective.beta: expected a list of values, got 3"),
        ("grid: {seed: [0, 0]}", "run 1 and run 2 are the same (seed=0)"),
        (
            "list: [{objective.beta: 1}, {objective.beta: 1.0}]",
            "run 1 and run 2 are the same (beta=1",
        ),
        ("grid: {seed: [0]}\nlist: [{seed: 1}]", "seed is in grid and in list"),
        ("grid: {seed: [a]}", "grid: seed: expected whole numbers from 0, got 'a'"),
        ("base: {seed: -1}\ngrid: {objective.beta: [1]}", "base: seed: expected whole numbers"),
        ("base: [1]\ngrid: {seed: [0]}", "base: expected options with values"),
        (
            "base: {data: 2026-11-28}\ngrid: {seed: [0]}",
            "base: data: expected a number, a text or a list",
        ),
        ("grid: {seed: [0]}\npicture: 3", "picture: expected entries such as {entropy: 92.1}"),
        ("grid: {seed: [0]}\npicture: {exat: linear}", "picture: there is no entry 'exat'"),
        ("grid: {seed: [0]}\npicture: {entropy: high}", "entropy: expected a number, nats per row"),
        (
            "grid: {seed: [0]}\npicture: {entropy: 1, entropy_bound: 2}",
            "give entropy or entropy_bound, not both",
        ),
        ("grid: {seed: [0, 1]}\npicture: {frozen: seed=2}", "no run 'seed=2', only seed=0, seed=1"),
        ("grid: {seed: [0]}\npicture: {exact: square}", "exact: expected linear, got 'square'"),
        (f"grid: {{a: {[*range(999)]}, b: {[*range(999)]}}}", "these are 998001 runs"),
    ],
)
def test_a_wrong_description_is_told(text: str, told: str) -> None:
    with pytest.raises(SpecError) as error:
        SweepSpec.of(text)
    assert told in str(error.value)


def test_labels_true_are_not_one_label() -> None:
    assert len({run.identity for run in SweepSpec.of("grid: {labels: [true, 1]}").runs()}) == 2


# -- bad input of the command ----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: {max_epoch: [1]}", "no option 'max_epoch' (did you mean max_epochs?)"),
        ("grid: {objective.betta: [1]}", "(did you mean --objective.beta?)"),
        ("base: {guide: MeanFeild}\ngrid: {seed: [1]}", "(did you mean MeanField?)"),
        ("grid: {max_epochs: [many]}", "max_epochs: expected int, got many"),
        ("grid: {model.latent_dim: [two]}", "latent_dim"),
        ("grid: {run_dir: [a]}", "run_dir cannot be an option of a sweep"),
        ("base: {resume: a}\ngrid: {seed: [1]}", "resume cannot be an option of a sweep"),
        ("base: {quiet: true}\ngrid: {seed: [1]}", "quiet cannot be an option of a sweep"),
        ("grid: {seed: []}", "spec.yaml: grid: seed: the list is empty"),
        (
            "base: {seed: 3}\ngrid: {seed: [0, 1]}",
            "seed is in base (3) and in grid, so that no run",
        ),
        (
            "base: {guide: TopDown}\nlist: [{guide: MeanField}, {guide: LowRank}]",
            "guide is in base (TopDown) and in each point of list, so that no run",
        ),
        (
            "base: {objective: {beta: 3}}\ngrid: {objective.beta: [1]}",
            "objective.beta is in base (3) and in grid, so that no run",
        ),
        (
            "base: {objective: {class_path: ELBO, init_args: {beta: 3}}}\ngrid: {objective.beta: [1]}",
            "objective.beta is in base (3) and in grid, so that no run",
        ),
        (f"grid: {{seed: [1, {10**22}]}}", "seed must be at most"),
        ("grid: {objective.beta: [1, -1]}", "beta is a weight of the KL and must be >= 0, not -1"),
        ("base: {data: digit}\ngrid: {seed: [0]}", "unknown data 'digit'. Did you mean 'digits'?"),
        ("base: {data: nosuch.npy}\ngrid: {seed: [0]}", "nosuch.npy does not exist"),
        ("base: {data: 'folder:nosuch'}\ngrid: {seed: [0]}", "nosuch does not exist"),
        ("grid: {batch_size: [0]}", "batch_size must be at least 1, got 0"),
        ("grid: {patience: [0]}", "a patience of at least 1"),
        ("grid: {learning_rate: [-1]}", "learning_rate must be positive, got -1"),
        ("grid: {num_samples: [0]}", "num_samples must be at least 1, got 0"),
        ("grid: {validation_fraction: [2]}", "validation_fraction must lie in (0, 1), got 2"),
        ("grid: {labels: [0]}", "labels must be at least 1, got 0"),
        ("base: {optimizer: SGD}\ngrid: {optimizer.lr: [-1]}", "Invalid learning rate: -1.0"),
        (
            "base: {objective.beta: LinearWarmup}\ngrid: {objective.beta.epochs: [-3]}",
            "epochs must be positive, got -3",
        ),
        (
            "base: {model.network: MLP}\ngrid: {model.network.hidden: [[-3]]}",
            "MLP.hidden must hold positive widths",
        ),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_run(
    text: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "spec.yaml").write_text(text)
    assert main(["sweep", "spec.yaml"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "spec.yaml" in said
    assert len(said.splitlines()) <= 3, said
    assert [file.name for file in here.iterdir()] == ["spec.yaml"]


def test_a_description_that_is_not_there_is_told_with_what_it_should_be(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "nosuch.yaml"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "there is no file nosuch.yaml: give one that describes a sweep in YAML" in said
    assert "grid: {objective.beta: [0.5, 1, 2], seed: [0, 1]}" in said
    assert "docs/sweep.md" in said


def test_a_point_may_differ_from_base_and_what_is_not_checked_is_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class of the user's own, and one that needs something of the data, are taken."""
    (here / "own_pair.py").write_text(
        "import ppl_vae.guides\nclass Guide(ppl_vae.guides.MeanField): pass\n"
    )
    (here / "spec.yaml").write_text(
        "base: {guide: own_pair.Guide, max_epochs: 3, optimizer: AdamW, optimizer.weight_decay: 0.1}\n"
        "list: [{max_epochs: 4}, {objective.beta: 2},\n"
        "  {model: SemiSupervisedVAE, guide: SemiSupervised, labels: 100}]\n"
    )
    assert main(["sweep", "spec.yaml", "--dry_run"]) == 0
    told = capsys.readouterr()
    assert told.out.count("ppl-vae train") == 3
    assert told.out.count("--max_epochs=3") == 2
    assert "not checked: what the data hold, with that model and guide" in told.err


def test_runs_that_are_done_need_no_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "spec.yaml").write_text("base: {data: gone.npy}\ngrid: {seed: [0, 1]}")
    for run in read_spec("spec.yaml").runs():
        assert main(["sweep", "spec.yaml", "--sweep_dir", "it", "--dry_run"]) == 2
        folder = here / "it" / run.name
        folder.mkdir(parents=True)
        (here / "it" / "sweep.yaml").write_text((here / "spec.yaml").read_text())
        write_record(folder, run.options, "done", 1.0)
        for name in ("weights.safetensors", "evaluation.json", "diagnosis.json"):
            (folder / name).write_text("{}")
    assert main(["sweep", "spec.yaml", "--sweep_dir", "it", "--dry_run"]) == 0
    assert "2 runs in it, 2 of them done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--scheduler", "tcp://a:1", "--workers", "2"], "--workers is for this machine"),
        (["--sweep_dir", "spec.yaml"], "spec.yaml is a file"),
        (["--sweep_dir", "other"], "other is not the folder of a sweep"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "spec.yaml").write_text("grid: {seed: [0]}")
    (here / "other").mkdir()
    (here / "other" / "mine.txt").touch()
    assert main(["sweep", "spec.yaml", *arguments]) in (1, 2)
    assert told in capsys.readouterr().err


def test_without_dask_it_is_said_what_to_type(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "spec.yaml").write_text("grid: {seed: [0]}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["sweep", "spec.yaml"]) == 1
    told = capsys.readouterr().err
    assert "a sweep needs dask.distributed" in told
    assert "pip install 'ppl_vae[sweep]'" in told
    assert main(["sweep", "spec.yaml", "--dry_run"]) == 0, "which needs none"


def test_the_oldest_dask_is_the_one_that_is_asked_for() -> None:
    oldest = ".".join(map(str, cluster._OLDEST))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra in ("sweep", "test"):
        assert f"dask[distributed]>={oldest}" in extras[extra]
    assert {*extras["sweep"]} <= {*extras["test"]}


def test_an_old_dask_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.require_distributed()
    monkeypatch.setattr(cluster, "_version", lambda: "2022.1.0")
    with pytest.raises(ClusterError, match=r"2022\.1\.0: pip install"):
        cluster.require_distributed()


def test_a_scheduler_that_is_not_there_is_told_soon(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "spec.yaml").write_text("grid: {seed: [0]}")
    monkeypatch.setattr(cluster, "_TIMEOUT", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        start = time.monotonic()
        assert main(["sweep", "spec.yaml", "--scheduler", address]) == 1
        assert time.monotonic() - start < 20
        told = capsys.readouterr().err
        assert f"--scheduler {address}: there is no scheduler that answers" in told
        assert "Traceback" not in told


class _Client:
    """A client of one worker, which answers the same to all."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def run(self, *_: object, workers: list[str], **__: object) -> dict[str, object]:
        return {workers[0]: self.answer}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ModuleNotFoundError("No module named 'ppl_vae'"), "cannot import ppl_vae"),
        ("0.0.1", "has ppl_vae 0.0.1, and the sweep"),
    ],
)
def test_a_worker_with_another_ppl_vae_or_none_is_told(answer: object, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        cluster.require_usable(_Client(answer), "tcp://a:1")


@pytest.mark.parametrize("cores", [1, 2, 8, 96])
def test_no_core_is_used_twice(cores: int) -> None:
    for runs in (1, 2, 5, 1000):
        for given in ({}, {"workers": 1}, {"threads": 1}, {"threads": min(cores, 3)}):
            found = sizes_for(runs, cores, **given)
            assert found.workers * found.threads <= cores
            assert 1 <= found.workers <= max(runs, 1)
    assert sizes_for(3, cores, workers=200, threads=7) == (200, 7), "what is given is kept"
    assert num_cores() >= 1


# -- the table -------------------------------------------------------------------------------------------


def points(betas: list[float], *guides: str) -> list[SweptPoint]:
    named = [{"guide": guide} for guide in guides] or [{}]
    return [
        SweptPoint(
            {**guide, "objective.beta": beta},
            {name: [beta + i, beta + i + 2.0, beta + i + 7.0] for i, name in enumerate(METRICS)},
            3,
        )
        for guide in named
        for beta in betas
    ]


def test_means_and_errors_are_those_computed_by_hand() -> None:
    (point,) = points([1.0])
    elbo = point.estimate("elbo")  # of 1, 3 and 8: variance (9 + 1 + 16) / 2 = 13
    assert elbo.mean == 4
    assert elbo.standard_error == pytest.approx(math.sqrt(13 / 3))
    assert point.rate.mean == 7
    line = SweepTable([], [point]).to_markdown().splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["1", "3", f"4.00 ± {math.sqrt(13 / 3):.2f}"]
    assert cells[7] == "9.0 ± 2.1", "active units"
    assert cells[9] == f"1100.0 ± {100 * math.sqrt(13 / 3):.1f} %"


def test_runs_that_failed_are_left_out_of_means_and_counted() -> None:
    values = {name: [2.0] for name in METRICS}
    text = SweepTable([], [SweptPoint({"objective.beta": 1}, values, 3)]).to_markdown()
    assert "| 1 of 3 | 2.00 " in text
    none = SweepTable([], [SweptPoint({"objective.beta": 1}, {name: [] for name in METRICS}, 3)])
    assert "| 0 of 3 | - " in none.to_markdown()
    assert plots.sweep_metrics(none) is None
    assert plots.sweep_plane(none) is None


def test_metrics_are_drawn_against_the_one_number_that_varies() -> None:
    table = SweepTable([], points([0.1, 1.0, 4.0], "A", "B"))
    assert table.axis() == "objective.beta"
    assert [*table.series("objective.beta")] == ["guide A", "guide B"]
    figure = plots.sweep_metrics(table)
    assert isinstance(figure, Figure)
    axes: Any = next(a for a in figure.axes if a.get_ylabel().startswith("ELBO"))
    means = [
        line for line in axes.lines if line.get_label() == "guide A" or len(line.get_ydata()) == 3
    ]
    drawn = [np.asarray(line.get_ydata(), dtype=float).tolist() for line in means]
    assert pytest.approx([3.1, 4.0, 7.0]) in drawn
    low, high = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert (high - low) / 4 == pytest.approx(math.sqrt(13 / 3))
    assert axes.get_xscale() == "log"
    ones = {name: [1.0] for name in METRICS}
    two = [SweptPoint({"a": i, "b": -i}, ones, 1) for i in range(3)]
    assert SweepTable([], two).axis() is None
    assert plots.sweep_metrics(SweepTable([], two)) is None


@pytest.mark.parametrize("draw", [plots.sweep_metrics, plots.sweep_plane])
def test_pictures_say_what_they_take(draw: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"table must be .*SweepTable\.of"):
        draw([1])


def test_the_plane_has_bars_over_seeds_in_sight() -> None:
    figure = plots.sweep_plane(SweepTable([], points([1.0, 2.0])))
    assert figure is not None
    axes: Any = figure.axes[0]
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    ends = [v for c in axes.collections for path in c.get_paths() for v in path.vertices]
    assert len(ends) >= 8
    assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in ends)


# -- the page --------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_accepted() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [SweepSpec.of(text).num_runs() for text in examples] == [12, 9, 6]
    for text in examples:
        spec = SweepSpec.of(text)
        command._check_options(Path("sweep.yaml"), spec.runs())
        check_picture("sweep.yaml", spec.picture, spec.runs())
