"""A result in a run folder is one of the weights that are in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import pytest
import torch
from bad_inputs import X, command, pair, run as run, saved as saved

import ppl_vae
from ppl_vae.cli import main, run_commands
from ppl_vae.runs import ReplacedError, require_weights, write_weights
from ppl_vae.runs.weights import read_weights
from ppl_vae.runtime import CorruptFileError, content_digest, write_tensors

SMALL = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--model.latent_dim", "2", "--quiet")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def change_weights(run: Path, by: float = 1.0) -> None:
    """Puts other weights into a run, as another training would."""
    found = ppl_vae.load_run(run, results=False)
    with torch.no_grad():
        next(iter(found.model.parameters())).add_(by)  # type: ignore[attr-defined]
    write_weights(run, found.model, found.guide)


# -- the digest ------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    """Of names, values, dtypes and metadata, and not of the bytes, in which metadata have a random order."""
    digests: dict[str, set[str]] = {}
    for name, tensors, metadata in [
        ("one", {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": 1}),
        ("again", {"b": torch.zeros(3), "a": torch.ones(2)}, {"c": 1}),
        ("values", {"a": torch.ones(2), "b": torch.ones(3)}, {"c": 1}),
        ("names", {"a": torch.ones(2), "c": torch.zeros(3)}, {"c": 1}),
        ("dtypes", {"a": torch.ones(2).int(), "b": torch.zeros(3)}, {"c": 1}),
        ("metadata", {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": 2}),
    ]:
        for _ in range(4):
            write_tensors(tmp_path / name, tensors, metadata)
            digests.setdefault(name, set()).add(content_digest(tmp_path / name))
    assert digests["one"] == digests["again"]
    assert all(len(found) == 1 for found in digests.values())
    assert len(set.union(*digests.values())) == 5


def test_every_result_holds_the_digest_and_the_api_leaves_it_out(run: Path) -> None:
    weights = content_digest(run / "weights.safetensors")
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 0
    ais = ("--method", "ais", "--num_steps", "2", "--max_rows", "2")
    assert command("evaluate", "run", "--num_chains", "2", *ais) == 0
    assert command("diagnose", "run", "--overwrite") == 0
    assert command("gaps", "run", "--max_rows", "2", "--num_samples", "5") == 0
    for name in ("evaluation", "annealed", "diagnosis", "gaps"):
        assert json.loads((run / f"{name}.json").read_text())["weights_sha256"] == weights, name
    loaded = ppl_vae.load_run(run)
    assert loaded.weights_sha256 == weights
    assert "weights_sha256" not in {**(loaded.evaluation or {}), **(loaded.diagnosis or {})}


def test_draws_for_arviz_hold_the_digest(run: Path) -> None:
    xr = pytest.importorskip("xarray")
    assert command("export", "run", "--num_samples", "2") == 0
    with xr.open_dataset(run / "posterior.nc", engine="h5netcdf") as data:
        assert data.attrs["weights_sha256"] == content_digest(run / "weights.safetensors")
        assert data.attrs["creation_library"] == "ppl_vae"


# -- results that are read -------------------------------------------------------------------------------


def test_results_of_other_weights_are_not_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("diagnose", "run") == 0
    change_weights(run)
    with pytest.raises(
        CorruptFileError, match=r"belongs to other weights.*`ppl-vae evaluate"
    ) as caught:
        ppl_vae.load_run(run)
    assert caught.value.path == run / "evaluation.json"
    assert f"`ppl-vae diagnose {run} --overwrite`" in str(caught.value)
    assert ppl_vae.load_run(run, results=False).evaluation is None
    assert command("compare", "run", "run", "-o", "c.png") == 1
    assert "evaluation.json: it belongs to other weights" in capsys.readouterr().err
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 0
    with pytest.raises(CorruptFileError, match=r"diagnosis\.json.*diagnose \S+ --overwrite` makes"):
        ppl_vae.load_run(run)
    assert command("diagnose", "run", "--overwrite") == 0
    assert ppl_vae.load_run(run).evaluation is not None
    assert command("compare", "run", "run", "-o", "c.png") == 0


def test_a_result_of_other_weights_is_replaced_only_when_told_to(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(run)
    before = content(run)
    assert command("evaluate", "run", "--num_samples", "2") == 0
    assert "left as it was, though it belongs to other weights (--overwrite replaces it)" in (
        capsys.readouterr().err
    )
    assert content(run) == before


def test_a_run_saved_from_python_is_told_to_be_saved_again(tmp_path: Path) -> None:
    model, guide = pair()
    evaluation = ppl_vae.evaluate(model, guide, X, num_samples=3)
    ppl_vae.save_run(tmp_path / "a", model, guide, evaluation=evaluation, rows=X)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    write_weights(tmp_path / "a", model, guide)
    with pytest.raises(CorruptFileError, match=r"evaluate the pair, and save it again with save_r"):
        ppl_vae.load_run(tmp_path / "a", *pair())


def test_a_result_that_is_saved_again_belongs_to_the_weights_beside_it(
    run: Path, tmp_path: Path
) -> None:
    """The dict of a file may hold the digest of the run that it was read from."""
    change_weights(run)
    found = ppl_vae.load_run(run, results=False)
    evaluation = json.loads((run / "evaluation.json").read_text())
    ppl_vae.save_run(
        tmp_path / "new", found.model, found.guide, config=found.config, evaluation=evaluation
    )
    new = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert new["weights_sha256"] == content_digest(tmp_path / "new" / "weights.safetensors")


@pytest.mark.slow
def test_results_of_earlier_versions_are_read_as_before(run: Path) -> None:
    assert command("diagnose", "run") == 0
    for name in ("evaluation.json", "diagnosis.json"):
        result = json.loads((run / name).read_text())
        del result["weights_sha256"]
        (run / name).write_text(json.dumps(result))
    change_weights(run)
    loaded = ppl_vae.load_run(run)
    assert loaded.evaluation is not None
    assert loaded.diagnosis is not None


def test_a_training_that_writes_its_results_meanwhile_is_read_again(run: Path) -> None:
    """Weights are read before, and results after, another process has written both."""
    real, first = read_weights, [True]

    def read(*arguments: Any) -> str:
        found = real(*arguments)
        if first.pop() if first else False:
            change_weights(run)
            for name in ("evaluate", "diagnose"):
                assert command(name, "run", "--overwrite") == 0
        return found

    with patch("ppl_vae.runs.run.read_weights", read):
        loaded = ppl_vae.load_run("run")
    assert loaded.weights_sha256 == content_digest(run / "weights.safetensors")


# -- results that are written ----------------------------------------------------------------------------


COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "evaluate": ("evaluate_pair", ("--num_samples", "2", "--overwrite")),
    "ais": (
        "annealed_importance_sampling",
        ("--method", "ais", "--num_steps", "2", "--num_chains", "2", "--max_rows", "2"),
    ),
    "gaps": ("inference_gaps", ("--max_rows", "2", "--num_samples", "5")),
    "diagnose": ("diagnose_pair", ("--overwrite",)),
    "sample": ("sampled", ("--num", "2", "--overwrite")),
    "export": ("to_arviz", ("--num_samples", "2", "--overwrite")),
}


def meanwhile(function: str, work: Callable[[], object]) -> Any:
    """What a command calls does something else, too."""
    real = getattr(run_commands, function)

    def both(*arguments: Any, **options: Any) -> Any:
        work()
        return real(*arguments, **options)

    return patch.object(run_commands, function, both)


# One function tells the weights from those that were read: each command meets one change, in turn.
@pytest.mark.slow(only=("diagnose-other weights", "export-broken weights"))
@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param(name, left, marks=() if j == i % 3 else pytest.mark.slow)
        for i, name in enumerate(COMMANDS)
        for j, left in enumerate(("other weights", "no weights", "broken weights"))
    ],
)
def test_a_result_is_not_written_beside_other_weights(
    name: str, left: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function, options = COMMANDS[name]
    after: dict[str, bytes] = {}

    def replaced() -> None:
        if left == "other weights":
            change_weights(run)
        elif left == "no weights":
            (run / "weights.safetensors").unlink()
        else:
            (run / "weights.safetensors").write_bytes(b"broken")
        after.update(content(run))

    word = "evaluate" if name == "ais" else name
    with meanwhile(function, replaced):
        assert command(word, "run", *options) == 1
    told = capsys.readouterr()
    assert "run holds other weights than those that were read" in told.err
    assert content(run) == after
    if name not in ("sample", "export"):
        assert told.out.count("\n") > 3


@pytest.mark.parametrize("name", ["sample", pytest.param("export", marks=pytest.mark.slow)])
def test_what_is_written_elsewhere_is_written(name: str, run: Path) -> None:
    function, options = COMMANDS[name]
    output = "x.png" if name == "sample" else "x.nc"
    with meanwhile(function, lambda: change_weights(run)):
        assert command(name, "run", *options, "-o", output) == 0
    assert Path(output).stat().st_size > 0


def test_epochs_of_another_run_are_not_those_of_the_pair(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """diagnose takes the last beta from metrics.csv, which may be that of another run by then."""
    with meanwhile("last_beta", lambda: change_weights(run)):
        assert command("diagnose", "run") == 1
    told = capsys.readouterr()
    assert "holds other weights" in told.err
    assert not told.out


def test_weights_that_are_there_are_told_from_others(run: Path) -> None:
    weights = content_digest(run / "weights.safetensors")
    require_weights(run, weights)
    with pytest.raises(ReplacedError):
        require_weights(run, weights[::-1])


# -- trainings that go on --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        assert main(["train", "--run_dir", str(folder), "--max_epochs", "1", *SMALL]) == 0
        assert main(["gaps", str(folder), "--max_rows", "2", "--num_samples", "5", "--quiet"]) == 0
    return folder


def test_a_training_that_went_on_and_was_not_evaluated(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_: [])
    monkeypatch.setattr("ppl_vae.cli.finish.to_arviz", lambda *_, **__: None)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    on = ["train", "--resume", str(run), "--quiet"]
    with patch("ppl_vae.cli.finish._measure", side_effect=KeyboardInterrupt):
        assert main([*on, "--max_epochs", "3"]) == 130
    compare = ["compare", str(run), str(trained), "-o", str(tmp_path / "c.png")]
    assert main(compare) == 1
    assert "evaluation.json: it belongs to other weights" in capsys.readouterr().err
    assert main(on) == 0
    told = capsys.readouterr().err
    assert f"{run / 'gaps.json'} belongs to the weights before: `ppl-vae gaps {run}" in told
    with pytest.warns(UserWarning, match=r"gaps\.(json|png) belongs to other weights.*`ppl-vae g"):
        assert len(ppl_vae.load_run(run).history) == 3


def test_a_finished_training_that_is_resumed_has_the_same_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert "weights before" not in capsys.readouterr().err
    assert (run / "evaluation.json").read_bytes() == (trained / "evaluation.json").read_bytes()
