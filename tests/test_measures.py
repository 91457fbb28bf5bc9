"""What stands where the ELBO would has its own name, in every history, file, table and picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae import (
    evaluate,
    fit,
    load_run,
    outliers,
    plots,
    reconstruct,
    refit_prior,
    save_run,
    to_arviz,
)
from ppl_vae.checks import PairWarning
from ppl_vae.cli.common import stored_evaluation
from ppl_vae.cli.fitted_prior import RefittedPrior
from ppl_vae.diagnosis.history import still_training
from ppl_vae.evaluation import Evaluation
from ppl_vae.guides import DeltaEncoder, MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, Autoencoder, FlatPrior, FullNormal, LaplacePrior
from ppl_vae.objectives import ELBO, TargetRate
from ppl_vae.pairs import AT_POINT, DISTORTION, ELBO_MEASURE, measure_in, measure_of_result
from ppl_vae.reporting import html_report
from ppl_vae.reporting.numbers import best_epoch
from ppl_vae.reporting.of_sweep import _headline
from ppl_vae.runs import Comparison, describe_rows, write_results
from ppl_vae.stats import Estimate
from ppl_vae.sweeps import METRICS, SweepFolder, SweepTable, SweptPoint, read_spec
from ppl_vae.tasks import Outliers

D, SCALE = 4, 0.5
X = torch.randn(24, D, generator=torch.Generator().manual_seed(0))
BOUND = {"elbo", "rate", "validation_elbo", "validation_rate"}
POINT = {"log_joint", "neg_log_prior", "validation_log_joint", "validation_neg_log_prior"}
QUICK: dict[str, Any] = {"seed": 0, "progress": False}


def sparse() -> tuple[Any, Any]:
    torch.manual_seed(0)
    prior = LaplacePrior(SCALE)
    return Autoencoder((D,), 2, linear=True, prior=prior), DeltaEncoder((D,), 2, linear=True)


def plain() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return Autoencoder((D,), 2, linear=True), DeltaEncoder((D,), 2, linear=True)


def drawn() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return VAE((D,), latent_dim=2, likelihood=Gaussian(1.0)), MeanField((D,), latent_dim=2)


def flat() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = VAE((D,), latent_dim=2, likelihood=Gaussian(1.0), prior=FlatPrior())
    return model, MeanField((D,), latent_dim=2)


PAIRS = {"sparse": sparse, "plain": plain, "drawn": drawn}
OWN = {"sparse": AT_POINT, "plain": DISTORTION, "drawn": ELBO_MEASURE}


@pytest.fixture(scope="module", params=PAIRS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pair's name, its fit, and what the progress bar showed."""
    pair = PAIRS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    how: dict[str, Any] = {"max_epochs": 3, "tensorboard": True, **QUICK}
    return request.param, fit(*pair, X, validation=X, run_dir=folder, **how)


def test_a_history_has_the_names_of_what_is_defined(trained: Any) -> None:
    name, fitted = trained
    own = {"sparse": POINT, "plain": set(), "drawn": BOUND}[name]
    for row in fitted.history:
        assert row.keys() & (BOUND | POINT) == own
    with (fitted.run_dir / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert {*columns} & (BOUND | POINT) == own
    assert len(columns) == len({*columns})
    measure = OWN[name]
    assert repr(fitted).startswith(f"Fit({measure.name}=")
    assert f"validation_{measure.name}=" in repr(fitted)
    told = fitted._repr_html_()
    assert f">{measure.text}, training rows<" in told
    assert f">{measure.text}, held-out rows<" in told
    shown = {
        axes.get_ylabel().split("\n")[0] for axes in plots.learning_curves(fitted.history).axes
    }
    assert (
        shown & {"ELBO", "rate", "log p(x, z)", "-log p(z)"}
        == {
            "sparse": {"log p(x, z)", "-log p(z)"},
            "plain": set(),
            "drawn": {"ELBO", "rate"},
        }[name]
    )


def test_tensorboard_has_these_names(trained: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, fitted = trained
    events = EventAccumulator(str(fitted.run_dir / "tensorboard"))
    events.Reload()
    own = {"sparse": POINT, "plain": set(), "drawn": BOUND}[name]
    assert {*events.Tags()["scalars"]} & (BOUND | POINT) == own
    for column in (OWN[name].name, f"validation_{OWN[name].name}"):
        found = [(e.step, e.value) for e in events.Scalars(column)]
        assert found == [(row["epoch"], pytest.approx(row[column])) for row in fitted.history]


def test_the_number_is_log_p_x_z_at_the_point() -> None:
    model, guide = sparse()
    fitted = fit(model, guide, X, validation=X, max_epochs=2, **QUICK)
    with torch.no_grad():
        z = guide.encode(X).mean
        prior = dist.Laplace(0.0, SCALE).log_prob(z).sum(1)
        joint = prior + dist.Normal(reconstruct(model, guide, X), 1.0).log_prob(X).sum(1)
    last = fitted.history[-1]
    assert last["validation_log_joint"] == pytest.approx(float(joint.mean()), abs=1e-4)
    assert last["validation_neg_log_prior"] == pytest.approx(-float(prior.mean()), abs=1e-4)


def test_the_progress_bar_and_the_end_of_a_training_say_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    far: dict[str, Any] = {
        "validation": X,
        "max_epochs": 40,
        "patience": 1,
        "learning_rate": 1.0,
        "seed": 0,
    }
    for name, make in PAIRS.items():
        fitted = fit(*make(), X, progress=True, **far)
        shown, own = capsys.readouterr().err, OWN[name]
        assert f"{own.name}=" in shown
        assert (name == "drawn") == (" elbo=" in shown) == (" rate=" in shown)
        assert fitted.stopped == f"no better held-out {own.text} in 1 epochs"


def test_what_has_not_ended_is_told_by_its_name() -> None:
    for measure, told in (
        (ELBO_MEASURE, "the ELBO still rises: the last one is 9 nats above"),
        (AT_POINT, "epochs log p(x, z) still rises: the last one is 9 nats above"),
        (DISTORTION, "the distortion still falls: the last one is 9 nats below"),
    ):
        rows = [{measure.name: measure.sign * value} for value in (1.0, 10.0)]
        assert told in still_training(rows, None)


def test_a_controller_that_misses_its_target_finds_the_rate_at_points() -> None:
    model, guide = sparse()
    with pytest.warns(UserWarning, match="missed its target"):
        fitted = fit(
            model, guide, X, objective=ELBO(beta=TargetRate(nats=50.0)), max_epochs=4, **QUICK
        )
    rate, distortion = (
        sum(row[name] for row in fitted.history) / 4 for name in ("neg_log_prior", "distortion")
    )
    assert 0 < rate < 50
    (told,) = fitted.warnings
    assert f"the rate is {rate:.4g} and the distortion {distortion:.4g} nats per row" in told


def test_a_training_of_an_earlier_version_goes_on_under_the_names_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("ppl_vae.training.loop.measure_of", lambda known: ELBO_MEASURE)
        old = fit(*sparse(), X, validation=X, max_epochs=2, run_dir=tmp_path, **QUICK)
    assert "elbo" in old.history[0]
    found = fit(*sparse(), X, validation=X, max_epochs=4, run_dir=tmp_path, resume=True, **QUICK)
    whole = fit(*sparse(), X, validation=X, max_epochs=4, **QUICK)
    for row, expected in zip(found.history, whole.history, strict=True):
        assert row | {"seconds": 0} == pytest.approx(expected | {"seconds": 0})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 4
    assert all(row["log_joint"] and "elbo" not in row for row in rows)


def test_a_run_of_an_earlier_version_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    before = SimpleNamespace(history=[{"epoch": 1, "elbo": -5.0, "rate": 2.0, "distortion": 3.0}])
    expected = {
        "sparse": {"epoch": 1, "log_joint": -5.0, "neg_log_prior": 2.0, "distortion": 3.0},
        "plain": {"epoch": 1, "distortion": 3.0},
        "drawn": before.history[0],
    }
    for name, make in PAIRS.items():
        pair, run = make(), tmp_path / name
        save_run(run, *pair, fit=before, evaluation=evaluate(*pair, X, num_samples=2))
        assert load_run(run).history == [expected[name]]
        page = html_report(run)
        assert (">ELBO<" in page) == (name == "drawn"), "the table of epochs, and that of rows"
        assert ("log p(x, z)" in page) == (name == "sparse")
    # One that was not evaluated does not say that it is of points.
    save_run(tmp_path / "unknown", *sparse(), fit=before)
    assert load_run(tmp_path / "unknown").history == before.history


def test_no_difference_of_bounds_is_made_of_points(tmp_path: Path) -> None:
    runs = []
    for name in ("drawn", "sparse", "plain"):
        pair = PAIRS[name]()
        save_run(tmp_path / name, *pair, evaluation=evaluate(*pair, X, num_samples=2), rows=X)
        runs.append(load_run(tmp_path / name))
    comparison = Comparison.of(runs)
    numbers = comparison.to_dict()["runs"]
    for name in ("sparse", "plain"):
        for quantity in ("elbo", "rate", "log_likelihood"):
            assert all(map(math.isnan, numbers[name][quantity].values()))
        assert math.isfinite(numbers[name]["distortion"]["difference"])
    assert math.isfinite(numbers["drawn"]["elbo"]["mean"])
    for axes in plots.comparison_plot(comparison).axes:
        assert [text.get_text() for text in axes.texts] == ["not defined"] * 2
        assert not axes.containers
    both = plots.comparison_plot(Comparison.of([runs[0], runs[0]]))
    assert [len(axes.containers) for axes in both.axes] == [1, 1]


def test_a_sweep_of_both_kinds_leaves_cells_empty(tmp_path: Path) -> None:
    spec = tmp_path / "sweep.yaml"
    spec.write_text(
        "base: {data: digits}\ngrid:\n  model.prior: [LaplacePrior, FlatPrior]\n  seed: [0]\n"
    )
    runs = read_spec(spec).runs()
    folder = SweepFolder(tmp_path, runs, lenient=True)
    evaluations = {}
    for name, run in zip(("sparse", "plain"), runs, strict=True):
        model, guide = PAIRS[name]()
        evaluations[name] = found = evaluate(model, guide, X, num_samples=2)
        save_run(folder.of(run), model, guide, evaluation=found)
    states = dict.fromkeys((run.name for run in runs), "done")
    table = SweepTable.of(_Done(folder, states), runs)  # type: ignore[arg-type]
    rows = [dict(zip(head_of(table), line_of(line), strict=True)) for line in lines_of(table)]
    log_joint = f"{evaluations['sparse'].elbo.mean:.2f}"
    assert [(r["ELBO"], r["rate"], r["log p(x, z)"]) for r in rows] == [
        ("-", "-", log_joint),
        ("-", "-", "-"),
    ]
    assert all(row["distortion"] != "-" for row in rows)
    (sparse_row, plain_row) = csv.DictReader(table.to_csv().splitlines())
    assert (sparse_row["elbo"], sparse_row["rate"], plain_row["log_joint"]) == ("", "", "")
    assert float(sparse_row["log_joint"]) == pytest.approx(evaluations["sparse"].elbo.mean)
    only = SweepTable.of(_Done(folder, states), runs[1:])  # type: ignore[arg-type]
    assert "log p(x, z)" not in only.to_markdown()
    assert "log_joint" not in only.to_csv()


def headline(*points: dict[str, list[float]]) -> str:
    missing = {name: [math.nan] for name in METRICS}
    swept = [SweptPoint({"scale": i}, {**missing, **of}, 1) for i, of in enumerate(points)]
    return " ".join(map(str, _headline(SweepTable([{"state": "done"}] * len(swept), swept))))


def test_the_headline_of_a_sweep_tells_of_what_is_there() -> None:
    both = headline({"log_joint": [-5.0]}, {"log_joint": [-4.0]})
    assert "The highest log p(x, z) is -4.00 nats, at scale 1" in both
    assert "ELBO" not in both
    assert "two standard errors" in both
    mixed = headline({"log_joint": [-5.0]}, {"elbo": [-4.0], "log_likelihood": [-3.5]})
    for text in ("log p(x, z) is -5.00 nats, at scale 0", "ELBO is -4.00", "log p(x) is -3.50"):
        assert text in mixed
    none = headline({"distortion": [1.0]}, {"distortion": [2.0]})
    assert "2 of 2 runs have ended well" in none
    assert "highest" not in none
    assert "two standard errors" not in none


class _Done:
    """A folder of a sweep all of whose runs have ended well."""

    def __init__(self, folder: SweepFolder, states: dict[str, str]) -> None:
        self.folder = folder

    def state(self, run: Any) -> str:
        return "done"

    def seconds(self, run: Any) -> float:
        return 1.0

    def of(self, run: Any) -> Path:
        return self.folder.of(run)


def lines_of(table: SweepTable) -> list[str]:
    return table.to_markdown().splitlines()[2:]


def line_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def head_of(table: SweepTable) -> list[str]:
    return line_of(table.to_markdown().splitlines()[0])


def test_arviz_gets_the_names_of_what_is_defined() -> None:
    for name, expected in (
        ("sparse", {"log_joint", "neg_log_prior"}),
        ("plain", set()),
        ("drawn", {"elbo", "rate"}),
    ):
        pair = PAIRS[name]()
        found = to_arviz(*pair, X, num_samples=2, num_draws=2, seed=0)["sample_stats"]
        assert {*found.data_vars} & (BOUND | POINT) == expected
        assert "distortion" in found
        if name == "sparse":
            parts = found["neg_log_prior"] + found["distortion"]
            torch.testing.assert_close(
                torch.tensor(found["log_joint"].values), -torch.tensor(parts.values)
            )


def test_a_refitted_prior_at_points_has_no_elbo_before_and_after() -> None:
    model, guide = plain()
    refitted = refit_prior(model, guide, X, FullNormal(), seed=0)
    before, after = (evaluate(m, guide, X, num_samples=2) for m in (model, refitted))
    told = RefittedPrior("FullNormal", None, before.elbo, after.elbo, 0, after.measure)
    assert [name for name, _ in told.lines()] == [
        "prior",
        "log p(x, z), at the point, prior before",
        "log p(x, z), at the point, new prior",
    ]
    assert {"log_joint_before", "log_joint_after"} <= told.to_dict().keys()


def test_rows_are_sorted_by_what_the_pair_has_and_by_nothing_else() -> None:
    for name, make in PAIRS.items():
        pair, own = make(), OWN[name]
        evaluation = evaluate(*pair, X, num_samples=2, seed=0)
        chosen = Outliers.of(evaluation, num=3)
        assert chosen.by == own.name
        order = (
            own.sign * getattr(evaluation, "elbo" if own.sign > 0 else own.name).values
        ).argsort()
        assert chosen.index.tolist() == order[:3].tolist()
        side = "lowest" if own.sign > 0 else "highest"
        expected = {
            "sparse": {"log_joint", "neg_log_prior"},
            "plain": set(),
            "drawn": {"elbo", "rate"},
        }
        for numbers in (chosen.rows(), chosen.to_dict()):
            assert numbers.keys() & (BOUND | POINT) == expected[name]
        assert f"the 3 of {len(X)} rows with the {side} {own.text}, nats" in str(chosen)
        assert torch.equal(Outliers.of(evaluation, num=3, by=own.name).index, chosen.index)  # type: ignore[arg-type]
        assert Outliers.of(evaluation, num=3, by="distortion").by == "distortion"
        for other in (ELBO_MEASURE, AT_POINT):
            if other is not own:
                told = f"by='{other.name}' is not defined for this pair, .* give by='{own.name}'"
                with pytest.raises(ValueError, match=told):
                    outliers(*pair, X, by=other.name, num_samples=2)  # type: ignore[arg-type]
        x = X[chosen.index]
        figure = plots.worst_reconstructions(x, reconstruct(*pair, x), chosen)
        told = figure.get_suptitle()
        assert told == f"{side} {own.text} of {len(X)} rows"


@pytest.mark.parametrize("name", [*PAIRS, "flat"])
def test_a_file_has_the_measure_of_its_evaluation(name: str, tmp_path: Path) -> None:
    pair = flat() if name == "flat" else PAIRS[name]()
    own = {**OWN, "flat": DISTORTION}[name]
    found = evaluate(*pair, X, num_samples=2, seed=0)
    assert found.measure is own
    assert found.to_dict()["measure"] == own.name
    assert Outliers.of(found).by == own.name
    assert Outliers.of(found).measure is own
    save_run(tmp_path, *pair, evaluation=found, rows=X)
    run = load_run(tmp_path)
    assert measure_of_result(run.evaluation) is own
    value = found.distortion if own is DISTORTION else found.elbo
    assert f"{own.text} {value.mean:.3f} nats" in repr(run)
    row = Comparison.of([run, run]).table()[1]
    assert ("not defined" in row) == (own is not ELBO_MEASURE)
    assert (row[5] == "-") == (own is not ELBO_MEASURE), "unreliable"


def test_points_whose_density_is_not_finite_are_points(tmp_path: Path) -> None:
    pair = sparse()
    found = evaluate(*pair, X, num_samples=2)
    infinite = replace(found, elbo=Estimate(found.elbo.values - math.inf))
    assert infinite.measure is AT_POINT
    save_run(tmp_path, *pair, evaluation=infinite, rows=X)
    assert measure_of_result(load_run(tmp_path).evaluation) is AT_POINT
    assert ">ELBO<" not in html_report(tmp_path)
    assert "The model has no density of z" not in html_report(tmp_path)


def test_a_prior_that_is_improper_for_some_rows_leaves_the_distortion_to_all() -> None:
    def model(x: torch.Tensor, flag: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = (
                dist.ImproperUniform(dist.constraints.real, (), ())
                if flag[0]
                else dist.Normal(0, 1)
            )
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: torch.Tensor, flag: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    batches = [(torch.randn(5), torch.full((5,), flag)) for flag in (0, 1)]
    found = evaluate(model, guide, batches, num_samples=5)
    assert found.measure is DISTORTION
    assert found.elbo.values.isfinite().tolist() == [True] * 5 + [False] * 5
    lines = dict(found.lines())
    assert lines["ELBO, rate"].startswith(
        "defined for 5 of 10 rows only, because p(z) of 'z' on 5 of 10 rows is improper"
    )
    assert Outliers.of(found).by == "distortion"


class Earlier:
    """An evaluation as an earlier version wrote it: all is called an ELBO, and nothing says what it is."""

    def __init__(self, found: Evaluation) -> None:
        self._found = found
        self._values = {"elbo": found.elbo, "rate": found.rate}

    def to_dict(self) -> dict[str, Any]:
        known = self._found.to_dict()
        own = {name: value for name, value in known.items() if name not in POINT | {"measure"}}
        return own | {name: of.to_dict() for name, of in self._values.items()}

    def rows(self) -> dict[str, torch.Tensor]:
        own = {name: of for name, of in self._found.rows().items() if name not in POINT}
        return {name: of.values for name, of in self._values.items()} | own

    def names(self) -> dict[str, list[str]]:
        return self._found.names()


@pytest.mark.parametrize("name", PAIRS)
def test_files_of_an_evaluation_have_the_names_of_what_is_defined(
    name: str, tmp_path: Path
) -> None:
    pair, data = PAIRS[name](), SimpleNamespace(name="x", test=X)
    own = {"sparse": {"log_joint", "neg_log_prior"}, "plain": set(), "drawn": {"elbo", "rate"}}
    found = evaluate(*pair, X, num_samples=2, seed=0)
    read: dict[str, Any] = {}
    for when, evaluation in (("now", found), ("earlier", Earlier(found))):
        save_run(tmp_path / when, *pair)
        weights = load_run(tmp_path / when).weights_sha256
        held_out = describe_rows(X, "x", "test")
        write_results(tmp_path / when, evaluation=evaluation, rows=held_out, weights=weights)
        read[when] = load_run(tmp_path / when)
    with (tmp_path / "now" / "evaluation.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    known = json.loads((tmp_path / "now" / "evaluation.json").read_text())
    assert rows[0].keys() & (BOUND | POINT) == known.keys() & (BOUND | POINT) == own[name]
    if name == "sparse":
        parts = zip(found.elbo.values.tolist(), found.rate.values.tolist(), strict=True)
        assert [(float(r["log_joint"]), float(r["neg_log_prior"])) for r in rows] == [*parts]
    # Readers take both; by repr, in which NaN is the same as NaN.
    old, new = read["earlier"], read["now"]
    assert repr(sorted(old.evaluation_rows.items())) == repr(sorted(new.evaluation_rows.items()))
    same = {"measure": "elbo", **old.evaluation}
    assert repr(sorted(same.items())) == repr(sorted(new.evaluation.items()))
    for run in (old, new):
        told = Comparison.of([run, new]).table()
        assert told[1][1:6] == told[2][1:6]
        page = html_report(run.path)
        worst = {"sparse": "lowest log p(x, z)", "plain": "highest distortion"}
        assert f">Rows with the {worst.get(name, 'lowest log p(x)')}<" in page
        in_place = "What stands where the ELBO would, of held-out rows"
        assert (in_place in page) == (name == "sparse")
        assert "What was maximized" not in page
        stored = stored_evaluation(run, data)  # type: ignore[arg-type]
        assert stored is not None
        assert repr(stored.elbo.values.tolist()) == repr(found.elbo.values.double().tolist())


def normals(x: torch.Tensor, flag: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def partly(x: torch.Tensor, flag: torch.Tensor) -> None:
    """Draws from the exact posterior, or gives its mean."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        if bool(flag.all()):
            pyro.sample("z", dist.Delta(slope * x))
        else:
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


def of_kind(points: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    return x, torch.full((8,), points)


STILL: dict[str, Any] = {**QUICK, "learning_rate": 1e-12, "max_epochs": 2}
"""The slope stays what it is, so that numbers are known exactly."""


@pytest.mark.parametrize("points", [False, True])
def test_training_and_held_out_rows_have_names_of_their_own(points: bool, tmp_path: Path) -> None:
    (train, flags), (held, other) = of_kind(points), of_kind(not points, seed=1)
    fitted = fit(
        *(normals, partly, [(train, flags)]),
        validation=[(held, other)],
        patience=1,
        run_dir=tmp_path,
        **STILL,
    )
    rows = {True: train if points else held, False: held if points else train}
    at = rows[True]
    joint = dist.Normal(0.0, 1.0).log_prob(at / 2) + dist.Normal(at / 2, 1.0).log_prob(at)
    exact = dist.Normal(0.0, 2**0.5).log_prob(rows[False])
    names = ("log_joint", "validation_elbo") if points else ("validation_log_joint", "elbo")
    parts = {name.replace("elbo", "rate").replace("log_joint", "neg_log_prior") for name in names}
    for row in fitted.history:
        assert row.keys() & (BOUND | POINT) == {*names} | parts
        assert row[names[0]] == pytest.approx(float(joint.mean()), abs=1e-5)
        assert row[names[1]] == pytest.approx(float(exact.mean()), abs=1e-5)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert {*next(csv.reader(file))} & (BOUND | POINT) == {*names} | parts
    assert all(f"{name}=" in repr(fitted) for name in names)
    own, of_held_out = ("log p(x, z)", "ELBO") if points else ("ELBO", "log p(x, z)")
    assert f">{own}, training rows<" in fitted._repr_html_()
    assert f">{of_held_out}, held-out rows<" in fitted._repr_html_()
    assert fitted.stopped == f"no better held-out {of_held_out} in 1 epochs"
    assert best_epoch(fitted.history) == 0
    assert not fitted.warnings


def test_a_history_of_points_and_draws_says_that_it_mixes_them() -> None:
    told = "a point for 'z' in some batches only: .* so that ELBO and rate mix two kinds of rows"
    with pytest.warns(PairWarning, match=told):
        fitted = fit(normals, partly, [of_kind(True), of_kind(False)], **STILL)
    (warning,) = fitted.warnings
    assert "mix two kinds of rows" in warning
    assert all("elbo" in row and "log_joint" not in row for row in fitted.history)
    held = [of_kind(True), of_kind(False)]
    with pytest.warns(PairWarning, match=f"validation: the guide gives {told}"):
        fitted = fit(normals, partly, [of_kind(True)], validation=held, **STILL)
    assert all({"log_joint", "validation_elbo"} <= row.keys() for row in fitted.history)


class Changing:
    """Batches that are points in the first epoch, and draws from then on."""

    points = True

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield of_kind(self.points)

    def switch(self, epoch: int) -> float:
        self.points = epoch == 0
        return 1.0


def test_a_kind_that_was_seen_among_held_out_rows_counts_once_it_is_trained_on() -> None:
    batches = Changing()

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, batches.switch)

    options = {"validation": [of_kind(False)], "lr_scheduler": schedule, **STILL}
    with pytest.warns(PairWarning, match="mix two kinds of rows"):
        fitted = fit(normals, partly, batches, **options)
    first, second = fitted.history
    assert ("log_joint" in first, "elbo" in first) == (True, False)
    assert ("log_joint" in second, "elbo" in second) == (False, True)
    assert measure_in(fitted.history) is ELBO_MEASURE
