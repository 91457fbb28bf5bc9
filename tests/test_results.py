"""Results alike: per-row values, a summary for JSON, one way to print; and what of them goes to disk."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppl_vae import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    diagnose,
    evaluate,
    fit_em,
    inference_gaps,
    load_run,
    save_run,
)
from ppl_vae.cli.results import with_levels
from ppl_vae.data import Data, Dequantization
from ppl_vae.diagnosis import Diagnosis, Gaps
from ppl_vae.em import EMFit
from ppl_vae.evaluation import Annealed, Evaluation, Sandwich
from ppl_vae.evaluation.result import METHODS
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.plots import comparison_plot
from ppl_vae.runs import Comparison, write_results
from ppl_vae.runtime import CorruptFileError
from ppl_vae.stats import Estimate, Result, RowResult

ROWS = 6


def pair() -> tuple[ProbabilisticPCA, MeanField, Tensor]:
    torch.manual_seed(0)
    return ProbabilisticPCA((3,), 2), MeanField((3,), 2, MLP((4,))), torch.randn(ROWS, 3)


RESULTS: dict[str, Callable[[], Result]] = {
    "Evaluation": lambda: evaluate(*pair(), num_samples=200, seed=0),
    "Annealed": lambda: annealed_importance_sampling(*pair(), num_chains=4, num_steps=4, seed=0),
    "Sandwich": lambda: bidirectional_monte_carlo(*pair(), num_chains=4, num_steps=4, seed=0),
    "Gaps": lambda: inference_gaps(*pair(), num_samples=20, max_steps=5, seed=0),
    "Diagnosis": lambda: diagnose(*pair(), seed=0),
    "EMFit": lambda: fit_em(pair()[0], pair()[2], max_iterations=2, seed=0, progress=False),
}


@pytest.fixture(scope="module", params=RESULTS)
def result(request: pytest.FixtureRequest) -> Result:
    return RESULTS[request.param]()


def test_the_summary_is_plain_and_short(result: Result) -> None:
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain.get("num_rows", ROWS) == ROWS
    assert list(plain)[-2:] == ["notes", "warnings"]
    assert all(not isinstance(value, list) or len(value) <= 4 for value in plain.values())


def test_it_is_printed_as_names_and_values_in_text_and_in_a_notebook(result: Result) -> None:
    shown = str(result).splitlines()
    for name, value in result.lines():
        assert any(line.startswith(name) and line.endswith(value) for line in shown)
    page = result._repr_html_()
    assert page.count("<tr>") == len(result.lines()) + len(result.table())
    assert "<script" not in page


@pytest.mark.parametrize(
    "name", sorted(RESULTS.keys() - {"Diagnosis", "EMFit"})
)  # which have no rows
def test_rows_hold_what_the_summary_summarizes(name: str) -> None:
    result = RESULTS[name]()
    assert isinstance(result, RowResult)
    rows, plain = result.rows(), result.to_dict()
    assert {tuple(values.shape) for values in rows.values()} == {(ROWS,)}
    for name, values in rows.items():
        if "mean" in plain[name]:
            assert plain[name]["mean"] == pytest.approx(float(values.double().mean()), nan_ok=True)
            error = float(values.double().std()) / math.sqrt(ROWS)
            assert plain[name]["standard_error"] == pytest.approx(error)
        elif "count" in plain[name]:
            assert plain[name]["count"] == int(values.sum())
        else:
            assert plain[name]["largest"] == pytest.approx(float(values[values.isfinite()].max()))


def test_not_finite_numbers_are_counted_and_left_out() -> None:
    x = torch.ones(3)
    e = Estimate(x)
    khat = torch.tensor([0.1, math.inf, math.nan])
    found = Evaluation(e, e, e, e, x, x, khat, num_samples=10, num_values=1).to_dict()
    assert found["khat"]["not_finite"] == 2
    assert found["khat"]["largest"] == pytest.approx(0.1)


@dataclass(frozen=True)
class Doubtful(Result):
    def lines(self) -> list[tuple[str, str]]:
        return [("<b>", "a & b")]

    def caption(self) -> list[str]:
        return ["Between."]

    def doubts(self) -> Iterator[str]:
        yield "too few rows"

    def summary_numbers(self) -> dict[str, int]:
        return {"n": 3}


@pytest.mark.parametrize(
    ("khat", "ess", "words"),
    [
        (
            0.8,
            9.0,
            "k-hat exceeds 0.67 on 1 of 3 rows: do not trust their log p(x), which is likely too low; use a "
            "better guide or more samples",
        ),
        (1.2, 9.0, "likely too low; use a better guide or annealed_importance_sampling"),
        (
            0.9,
            1.1,
            "one sample has nearly all of the weight on 1 of 3 rows: their log p(x) may be far too low or ",
        ),
        (math.inf, 1.0, "cannot be estimated on 1 of 3 rows, which have too few different weights"),
        (math.nan, 1000.0, "all samples have the same weight on 1 of 3 rows"),
        (
            0.6,
            90.0,
            "is between 0.5 and 0.67 on 1 of 3 rows: their Monte-Carlo error is larger than",
        ),
    ],
)
def test_each_doubt_about_weights_is_one_short_sentence(
    khat: float, ess: float, words: str
) -> None:
    e, x = Estimate(torch.tensor([-1.0, -2.0, -3.0])), torch.zeros(3)
    khats, sizes = torch.tensor([0.1, khat, 0.2]), torch.tensor([500.0, ess, 400.0])
    found = Evaluation(e, e, e, e, x, sizes, khats, num_samples=1000, num_values=1)
    (warning,) = found.warnings
    assert words in warning
    assert len(warning) < 190
    assert warning.count(";") == 1


def test_notes_and_warnings_have_one_place_in_print_and_on_disk() -> None:
    """Caption, notes, warnings, in this order."""
    found = Doubtful(notes=("of 3 rows",))
    assert found.warnings == ("too few rows",)
    below = ["Between.", "note: of 3 rows", "warning: too few rows"]
    assert str(found).splitlines() == ["<b>  a & b", "", *below]
    assert found.to_dict() == {"n": 3, "notes": ["of 3 rows"], "warnings": ["too few rows"]}
    page = found._repr_html_()
    assert page.endswith("".join(f"<p>{text}</p>" for text in below))


@pytest.mark.parametrize(
    "kind", [Annealed, Comparison, Diagnosis, EMFit, Evaluation, Gaps, Sandwich]
)
def test_no_result_has_a_way_of_its_own_to_show_notes_and_warnings(kind: type[Result]) -> None:
    for method in ("__str__", "_repr_html_", "footnotes", "warnings", "to_dict"):
        assert getattr(kind, method) is getattr(Result, method), method


def test_a_fit_without_convergence_or_log_p_says_so() -> None:
    row = {"iteration": 7.0, "log_likelihood": math.nan, "bound": -3.0}
    found = EMFit(lambda x: None, [row], False, 1.0, notes=("component 1 is empty (iteration 3)",))
    assert found.warnings == ("not converged after 7 iterations: raise max_iterations",)
    assert "log p(x), training rows  not known" in str(found)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["log_likelihood"] is None
    assert not replace(found, converged=True).warnings


def test_a_page_cannot_be_broken_by_a_name() -> None:
    page = Doubtful(notes=("n < 1",))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "a &amp; b" in page
    assert "note: n &lt; 1" in page


# -- on disk ---------------------------------------------------------------------------------------------


def test_a_person_can_read_the_file_and_the_rows_stand_beside_it(tmp_path: Path) -> None:
    model, guide, x = pair()
    evaluation = evaluate(model, guide, x, num_samples=20, seed=0)
    save_run(tmp_path / "run", model, guide, evaluation=evaluation)
    text = (tmp_path / "run" / "evaluation.json").read_text()
    assert 5 < len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) < 200
    with (tmp_path / "run" / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["elbo"]) for line in lines] == evaluation.elbo.values.tolist()
    run = load_run(tmp_path / "run", model, guide)
    assert run.evaluation == json.loads(json.dumps(evaluation.to_dict()))
    assert run.evaluation_rows is not None
    assert run.evaluation_rows["khat"] == pytest.approx(evaluation.khat.tolist(), nan_ok=True)


def test_the_table_names_the_method_of_each_row(tmp_path: Path) -> None:
    model, guide, x = pair()
    found = evaluate(model, guide, x, num_samples=200, seed=0)
    rung = torch.arange(len(x)) % 3
    found = replace(found, rung=rung)
    save_run(tmp_path / "run", model, guide, evaluation=found)
    run = load_run(tmp_path / "run", model, guide)
    assert run.evaluation_rows is not None
    assert run.evaluation_rows["method"] == [METHODS[i] for i in rung.tolist()] == found.method
    assert run.evaluation is not None
    assert sum(run.evaluation["method"].values()) == len(x)
    assert "rung" not in run.evaluation


def test_rows_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    model, guide, x = pair()
    tables = []
    for name, seed in (("run", 0), ("other", 1)):
        found = evaluate(model, guide, x, num_samples=4, seed=seed)
        save_run(tmp_path / name, model, guide, evaluation=found)
        tables.append((tmp_path / name / "evaluation.csv").read_bytes())
    assert tables[0] != tables[1]
    (tmp_path / "run" / "evaluation.csv").write_bytes(tables[1])  # of as many rows
    with pytest.raises(CorruptFileError, match=r"evaluation\.csv: it does not belong to evaluat"):
        load_run(tmp_path / "run", model, guide)


def test_a_summary_alone_takes_the_old_rows_away(tmp_path: Path) -> None:
    model, guide, x = pair()
    found = evaluate(model, guide, x, num_samples=4)
    save_run(tmp_path / "run", model, guide, evaluation=found)
    save_run(tmp_path / "run", model, guide, evaluation=found.to_dict(), overwrite=True)
    assert not (tmp_path / "run" / "evaluation.csv").exists()
    assert load_run(tmp_path / "run", model, guide).evaluation_rows is None


# -- a run folder of the flat layout ---------------------------------------------------------------------

OLD = Path(__file__).parent / "data" / "run-0.1.0"


def test_a_run_written_before_the_rooms_loads_and_evaluates_as_then() -> None:
    run = load_run(OLD)
    assert isinstance(run.model, ProbabilisticPCA)
    assert run.evaluation is not None
    assert run.evaluation_rows is not None
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    found = evaluate(run.model, run.guide, x, num_samples=50, seed=0)
    assert found.elbo.values.tolist() == pytest.approx(run.evaluation_rows["elbo"], abs=1e-4)
    assert torch.allclose(
        run.model.log_evidence(x), torch.tensor(run.config["log_evidence"]), atol=1e-4
    )


def test_it_can_be_compared_with_a_new_one(tmp_path: Path) -> None:
    old = load_run(OLD)
    assert old.evaluation is not None
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    assert isinstance(old.model, ProbabilisticPCA)
    exact = Exact(old.model)
    found = evaluate(old.model, exact, x, num_samples=50, seed=0)
    save_run(tmp_path / "new", old.model, exact)
    write_results(tmp_path / "new", evaluation=found, rows=old.evaluation["rows"])
    comparison = Comparison.of([old, load_run(tmp_path / "new", old.model, exact)])
    difference = comparison.difference("elbo", 1)
    assert difference.mean == pytest.approx(
        found.elbo.mean - old.evaluation["elbo"]["mean"], abs=1e-4
    )
    assert difference.mean > 0  # the exact posterior has no gap
    *table, note = str(comparison).splitlines()
    assert [line.split()[0] for line in table if line] == ["run", *comparison.names]
    assert note.startswith("nats per row, 4 rows")
    head, *lines = comparison.table()
    shares = [line[head.index("unreliable")] for line in lines]
    assert shares == ["-", "0.0%"]  # earlier versions kept no verdict
    assert comparison._repr_html_().count("<tr>") == 3


def test_bits_per_dimension_that_are_not_defined_print_so_everywhere(tmp_path: Path) -> None:
    """Those of a likelihood that a `pyro.factor` gives: it has no count of numbers."""
    old = load_run(OLD)
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    found = replace(evaluate(old.model, old.guide, x, num_samples=50, seed=0), num_values=0)
    why = "not defined, because a pyro.factor does not say how many numbers it scores"
    assert ("bits per dimension", why) in found.lines()
    save_run(tmp_path / "new", old.model, old.guide)
    assert old.evaluation is not None
    write_results(tmp_path / "new", evaluation=found, rows=old.evaluation["rows"])
    text = str(Comparison.of([old, load_run(tmp_path / "new", old.model, old.guide)]))
    assert "not defined" in text
    assert "nan" not in text
    of_levels = Data("grey", x, x, x, transform=Dequantization(levels=256))
    assert with_levels(found, of_levels) is found
    assert with_levels(replace(found, num_values=3), of_levels).notes


# -- a single row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESULTS)
def test_a_single_row_prints_no_nan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_results.ROWS", 1)
    result = RESULTS[name]()
    for text in (str(result), result._repr_html_(), *result.warnings, *result.notes):
        assert "nan" not in text
        assert "1 rows given" not in text
    if isinstance(result, Diagnosis):
        assert result.summary().startswith(
            "One row was given: whether a latent dimension is active"
        )
        assert "active units        not defined for one row" in str(result)
    if isinstance(result, Sandwich):
        assert "meet" not in str(result)


def test_a_single_chain_prints_no_nan() -> None:
    found = annealed_importance_sampling(*pair(), num_chains=1, num_steps=2, seed=0)
    assert "Monte-Carlo error of a row, mean   not known" in str(found)
    assert "nan" not in str(found)


def test_files_of_a_single_row_are_json(tmp_path: Path) -> None:
    """JSON has no NaN; what is read has it again, and can be compared and printed."""
    model, guide, x = pair()
    x = x[:1]
    for name in ("a", "b"):
        found = evaluate(model, guide, x, num_samples=20, seed=0)
        diagnosis = diagnose(model, guide, x, seed=0)
        save_run(tmp_path / name, model, guide, rows=x, evaluation=found, diagnosis=diagnosis)

    def strict(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    for file in (tmp_path / "a").glob("*.json"):
        json.loads(file.read_text(), parse_constant=strict)
    run = load_run(tmp_path / "a", model, guide)
    assert run.evaluation is not None
    assert run.diagnosis is not None
    assert math.isnan(run.evaluation["elbo"]["standard_error"])
    assert all(math.isnan(value) for value in run.diagnosis["mean_variance"])
    comparison = Comparison.of([run, load_run(tmp_path / "b", model, guide)])
    assert "nan" not in str(comparison)
    head, first, _ = comparison.table()
    expected = f"{found.unreliable.double().mean():.1%}"
    assert first[head.index("unreliable")] == expected
    assert "nats per row, 1 row, log p(x)" in str(comparison)
    assert comparison_plot(comparison).axes
