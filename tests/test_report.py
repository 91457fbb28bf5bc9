"""A report: the diagnosis first, all pictures with sentences, nothing from elsewhere, no HTML of others."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from attacks import promise
from browser import Browser, browser as browser, faults, in_browser
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ppl_vae import diagnose, evaluate, load_run, plots, save_run
from ppl_vae.cli import main
from ppl_vae.diagnosis.causes import CAUSES
from ppl_vae.diagnosis.faults import what_to_type_against
from ppl_vae.diagnosis.remedies import Facts, what_to_type
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, AutoregressivePrior, ProbabilisticPCA
from ppl_vae.objectives import ELBO, LinearWarmup
from ppl_vae.reporting import ReportExtraError, html_report
from ppl_vae.reporting.remedy import may_be_run, may_be_typed
from ppl_vae.sweeps import CurvePlace, SweepFolder, read_spec, write_curves
from ppl_vae.sweeps.folder import write_record

TINY = ("--max_epochs=3", "--num_samples=20", "--model.network.hidden=[16]", "--posterior=never")
PICTURES = {
    *("learning_curves", "reconstructions", "worst_reconstructions", "prior_samples", "traversals"),
    *("interpolations", "kl_per_dimension", "aggregate_posterior", "codes", "khat"),
}
CAUSE = {
    "name": "large beta",
    "meaning": "beta is 4, so that their KL costs 4 times as much",
    "evidence": "2 more dimensions would pay at beta = 1",
    "remedy": "lower beta to use more of them",
    "code": "",
    "options": ["train", "--objective.beta", "1"],
}


class Page(HTMLParser):
    """What a page holds: its tags, what it loads, its headings, pictures, lines to type, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.typed: list[str] = []
        self.parts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags[tag] += 1
        self.loads += [found[n] or "" for n in ("src", "href", "srcset", "action") if n in found]
        assert not any(name.startswith("on") for name in found), found
        if tag == "img":
            self.pictures.append(found)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "pre" and found.get("class") == "type":
            self.typed.append("")
            tag = "type"
        if tag not in ("img", "source", "meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()
        assert opened in (tag, "type"), f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & {*self._open}:
            return
        self.parts.append(data)
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if "type" in self._open:
            self.typed[-1] += data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `ppl-vae train` makes it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", *TINY, "--model.latent_dim=3", f"--run_dir={folder}", "--quiet"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def sweep_in(folder: Path, seeds: int = 2) -> Path:
    """The folder of a sweep with results that no training has made."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(
        f"base: {{data: digits}}\ngrid:\n  objective.beta: [0.5, 1, 4]\n  seed: {[*range(seeds)]}\n"
    )
    spec = read_spec(folder / "sweep.yaml")
    for run in spec.runs():
        beta, place = run.options["objective.beta"], folder / run.name
        place.mkdir()
        write_record(place, run.options, "done", 9.0 + run.seed)
        rate = 20 - 4 * beta + run.seed
        numbers = {
            "elbo": -100 - beta,
            "rate": rate,
            "distortion": 100 + beta - rate,
            "log_likelihood": -95,
        }
        evaluation = {name: {"mean": value} for name, value in numbers.items()}
        summary = {**evaluation, "num_rows": 50, "unreliable": {"count": 5}}
        (place / "evaluation.json").write_text(json.dumps(summary))
        causes = {"z[0]": CAUSE} if beta == 4 else {}
        found = {"active_units": 4, "mutual_information": {"mean": 3.0}, "causes": causes}
        (place / "diagnosis.json").write_text(
            json.dumps({**found, "faults": {"poor guide": "It."}})
        )
        (place / "weights.safetensors").write_text("")
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    return sweep_in(tmp_path_factory.mktemp("sweeps") / "beta")


@pytest.fixture(scope="module")
def of_sweep(swept: Path) -> str:
    return html_report(swept)


# -- what the page of a run shows --------------------------------------------------------------------------


def test_a_training_ends_with_a_report(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (trained / "report.html").read_text()
    assert len(page) < 5e6
    again = html_report(trained)
    assert [line for line in page.splitlines() if "Made by" not in line] == [
        line for line in again.splitlines() if "Made by" not in line
    ]


@pytest.mark.slow
def test_the_end_of_a_training_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Any] = []

    def draw_run(*given: Any) -> list[str]:
        drawn.append(given)
        return []

    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", draw_run)
    monkeypatch.chdir(tmp_path)
    short = ["train", *TINY[1:], "--max_epochs=1", "--model.latent_dim=2"]
    assert main([*short, "--run_dir=a"]) == 0
    told = capsys.readouterr()
    assert f"report:     {Path('a') / 'report.html'}\n" in told.out
    assert "report" in told.err.partition("took")[2]
    assert drawn[-1][-1] == Path("a/plots_dark")
    assert main([*short, "--run_dir=b", "--report=false", "--quiet"]) == 0
    assert "report" not in capsys.readouterr().out
    assert not (tmp_path / "b" / "report.html").exists()
    assert drawn[-1][-1] is None
    assert "report" not in (tmp_path / "b" / "config.yaml").read_text()
    (tmp_path / "b" / "plots_dark").mkdir()  # what is there would be of other weights
    assert main(["train", "--resume=b", "--max_epochs=2", "--report=false", "--quiet"]) == 0
    assert drawn[-1][-1] == Path("b/plots_dark")


def test_the_diagnosis_comes_first(run: Path) -> None:
    change(
        run / "diagnosis.json",
        active=[True, False, False],
        collapsed=[False, True, True],
        causes={"z[1]": CAUSE, "z[2]": CAUSE},
        faults={"poor guide": "It does not reach 5% of the rows (k-hat; 5 of 90); use a flow."},
        mutual_information={"mean": 1.25, "standard_error": 0.1},
        warnings=["not for everyone"],
    )
    page = Page(html_report(run))
    assert page.headings[:4] == ["run", "Diagnosis", "Large beta", "Poor guide"]
    said = page.text
    assert (
        "1 of 3 latent dimensions is active, 2 have collapsed onto the prior. z carries 1.2 nats"
        in said
    )
    assert "z[1], z[2]: Beta is 4, so that their KL costs 4 times as much." in said
    assert "What shows it: 2 more dimensions would pay at beta = 1." in said
    assert "It does not reach 5% of the rows (k-hat; 5 of 90). What to do: use a flow." in said
    command = f"ppl-vae train --config {run}/config.yaml --run_dir {run}-again --objective.beta 1"
    assert page.typed[0] == command
    assert "Warning: not for everyone" in said
    assert said.index("What shows it") < said.index("Numbers") < said.index("Learning curves")


def test_numbers_have_errors_and_sentences(trained: Path) -> None:
    said = Page(html_report(trained)).text
    found = json.loads((trained / "evaluation.json").read_text())
    for name, called in (("elbo", "ELBO"), ("log_likelihood", "log p(x)"), ("rate", "rate")):
        mean, error = found[name]["mean"], found[name]["standard_error"]
        assert f"{called} {mean:.3f} ± {error:.3f} nats" in said
    assert "held-out rows 359 digits: none of these rows was trained on." in said
    assert f"unreliable rows {found['unreliable']['count']} of 359" in said
    assert "3 epochs in" in said


def test_numbers_say_what_they_are_under(run: Path) -> None:
    """As the command line does: bounds as bounds, and with which beta a guide has lost so much."""
    limit = ["the mutual information is within a nat of its limit log n: read it as a lower bound"]
    information, marginal = ({"mean": m, "standard_error": 0.01} for m in (5.876, 1.234))
    numbers = {"mutual_information": information, "marginal_kl": marginal}
    change(run / "diagnosis.json", **numbers, warnings=limit, beta=20.0)
    found = Page(html_report(run)).text
    assert "mutual information ≥ 5.88 nats" in found
    assert "marginal KL ≤ 1.23 nats" in found
    assert "so much the guide loses. It was trained with beta = 20, for which" in found
    change(run / "diagnosis.json", **numbers, warnings=[], beta=1.0)
    found = Page(html_report(run)).text
    assert "mutual information 5.876 ± 0.010 nats" in found
    assert "marginal KL 1.234 ± 0.010 nats" in found
    assert "so much the guide loses." in found
    assert "It was trained with beta" not in found
    (run / "diagnosis.json").unlink()  # then the history has it
    history = (run / "metrics.csv").read_text().splitlines()
    name = history[0].split(",").index("beta")
    last = history[-1].split(",")
    last[name] = "7"
    (run / "metrics.csv").write_text("\n".join([*history[:-1], ",".join(last)]) + "\n")
    assert "It was trained with beta = 7, for which" in Page(html_report(run)).text


def test_rows_that_may_have_been_trained_on_are_not_called_held_out(run: Path) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    change(run / "evaluation.json", rows={**found["rows"], "split": ""})
    said = Page(html_report(run)).text
    assert "none of these rows was trained on" not in said
    assert "held-out rows" not in said.partition("Training")[0]


def test_every_picture_is_inside_with_a_sentence(trained: Path) -> None:
    page = Page(html_report(trained))
    assert {file.stem for file in (trained / "plots").iterdir()} == PICTURES
    assert {file.stem for file in (trained / "plots_dark").iterdir()} == PICTURES
    assert len(page.pictures) == page.tags["source"] == page.tags["figcaption"] == len(PICTURES)
    for picture in page.pictures:
        sentence = (picture["alt"] or "").partition(". ")[2]
        assert len(sentence) > 40
        assert sentence in page.text
        assert int(picture["width"] or 0) > 100
    assert all(url.startswith("data:") for url in page.loads), [u[:40] for u in page.loads]
    assert page.tags["script"] == 0
    assert page.tags["th"] > 20


def test_samples_of_a_run_are_drawn_for_dark_pages(run: Path, capsys: Any) -> None:
    before = Page(html_report(run)).tags["source"]
    assert main(["sample", str(run), "--num=4", "--quiet"]) == 0
    capsys.readouterr()
    dark = imread(run / "plots_dark" / "samples.png")
    np.testing.assert_allclose(dark[0, 0, :3], to_rgb(plots.DARK_PAPER), atol=0.01)
    assert Page(html_report(run)).tags["source"] == before + 1
    # Drawn elsewhere, it is none of the run's.
    (run / "plots_dark" / "samples.png").unlink()
    assert main(["sample", str(run), "--num=4", "-o", str(run.parent / "s.png"), "--quiet"]) == 0
    assert not (run / "plots_dark" / "samples.png").exists()


def test_dark_pictures_are_on_the_papers_color(trained: Path) -> None:
    for file in sorted((trained / "plots_dark").iterdir()):
        dark, light = (imread(f / file.name) for f in (file.parent, trained / "plots"))
        np.testing.assert_allclose(dark[0, 0, :3], to_rgb(plots.DARK_PAPER), atol=0.01)
        np.testing.assert_allclose(light[0, 0, :3], 1.0)
        assert dark.shape[1] == light.shape[1]


def test_dark_pictures_have_light_colors() -> None:
    """Curves of the KL, on the gray of epochs with another beta: by the contrast of WCAG 2.1."""

    def light(color: Any) -> float:
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
        return float(np.dot([0.2126, 0.7152, 0.0722], parts))

    history = [{"epoch": i, "beta": 20.0, "elbo": -9.0 + i, "kl_z[0]": 0.5 * i} for i in (1, 2, 3)]
    for scheme in (plots.dark_paper, nullcontext):
        with scheme():
            axes = plots.learning_curves(history).axes[-1]
            line, paper = light(axes.lines[0].get_color()), to_rgb(axes.get_facecolor())
        gray = np.asarray(to_rgb(axes.patches[0].get_facecolor()))
        behind = light(0.75 * np.asarray(paper) + 0.25 * gray)
        low, high = sorted([line, behind])
        assert (high + 0.05) / (low + 0.05) > (4.5 if scheme is plots.dark_paper else 3)


def test_what_is_drawn_twice_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    styles: list[str] = []

    def prepare() -> Any:
        calls["computed"] += 1

        def draw() -> Any:
            calls["drawn"] += 1
            figure = plots.learning_curves([{"epoch": 1, "elbo": -1.0}])
            styles.append(str(figure.get_facecolor()))
            return figure

        return draw

    told = plots.files.draw_into(tmp_path / "a", {"x": prepare}, "digest", tmp_path / "b")
    assert told == []
    assert calls == {"computed": 1, "drawn": 2}
    assert len({*styles}) == 2
    assert b"digest" in (tmp_path / "b" / "x.png").read_bytes()


@promise(19)
def test_texts_of_others_are_no_html(run: Path) -> None:
    """Names, options, messages: the hostile page has the same elements as the harmless one."""
    hostile = "<b>&\"'</style><script>alert(1)</script><img src=x onerror=alert(2)>"

    def page(word: str, name: str) -> Page:
        folder = Path(shutil.copytree(run, run.with_name(name)))
        config = (folder / "config.yaml").read_text()
        quoted = json.dumps(word)
        (folder / "config.yaml").write_text(config.replace("data: digits", f"data: {quoted}"))
        cause = {name: word for name in CAUSE} | {"options": ["train", word]}
        change(
            folder / "diagnosis.json",
            names=[word, "z[1]", "z[2]"],
            causes={word: cause},
            faults={word: word},
            warnings=[word],
            notes=[word],
        )
        found = json.loads((folder / "evaluation.json").read_text())
        change(folder / "evaluation.json", rows={**found["rows"], "name": word}, method={word: 3})
        assert main(["report", str(folder), "--overwrite", "--quiet"]) == 0
        return Page((folder / "report.html").read_text())

    plain, wild = page("plain", "plain"), page(hostile, '<b>&"')
    assert wild.tags == plain.tags
    assert wild.headings[0] == '<b>&"'
    assert hostile in wild.text
    assert all(url.startswith("data:") for url in wild.loads)


def remedies() -> Iterator[tuple[tuple[str, ...], str]]:
    """What diagnoses say to type, as far as it depends on pair and training."""
    model, guide = VAE((3,), latent_dim=2, likelihood=Gaussian()), MeanField((3,), latent_dim=2)
    for pair_model in (model, ProbabilisticPCA((3,), 2)):
        for objective in (
            None,
            ELBO(beta=4.0),
            ELBO(beta=LinearWarmup(epochs=9)),
            ELBO(free_bits=1.0),
        ):
            for epochs in (None, 20):
                facts = Facts(pair_model, guide, 4.0, epochs, 3.0, 2, objective)
                for cause in CAUSES:
                    code, options = what_to_type(cause, facts)
                    yield options, code


def test_every_remedy_may_be_typed() -> None:
    kinds = set()
    for options, code in remedies():
        assert not options or may_be_typed(options), options
        assert not code or may_be_run(code), code
        kinds.add(options[:1])
    assert kinds == {(), ("train",), ("refit",), ("resume",)}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["train", "--model", "evil.Model"], "exec(x)"),
        (["train", "--model.likelihood", "evil.Likelihood"], "__import__('os').system('ls')"),
        (["train", "--objective.beta", "evil.Beta"], "ppl_vae.load_run(x, trust=True)"),
        (["train", "--trust"], "import os; os.system('ls')"),
        (["train", "--objective.beta"], "(lambda: 0)()"),
        (["compare", "--seed", "1"], "torch.load('x')"),
        (["train", "--seed", "1; ls"], "ppl_vae.fit(model, guide, x).__class__"),
        (["train", "--objective.beta", "1", "--config", "evil"], "model.modules.__self__()"),
    ],
)
@promise(19)
def test_a_stranger_says_nothing_to_type(run: Path, options: list[str], code: str) -> None:
    """What is typed is trusted."""
    cause = {**CAUSE, "options": options, "code": code}
    change(run / "diagnosis.json", causes={"z[1]": cause}, faults={}, summary=f"a\n  {code}")
    page = Page(html_report(run))
    assert "Large beta" in page.headings
    assert not any("evil" in line or code in line for line in page.typed)
    assert len(page.typed) == 2  # the same training again, and the gaps


@pytest.mark.parametrize(("beta", "more"), [(1.0, ""), (20.0, " --objective.beta 1")])
def test_a_poor_guide_has_a_command_that_works(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, beta: float, more: str
) -> None:
    monkeypatch.chdir(run.parent)
    pair = load_run(run)
    x = torch.randint(0, 17, (40, 1, 8, 8)).float()
    found = evaluate(pair.model, pair.guide, x, num_samples=100, method="guide", seed=0)
    found = replace(found, rung=torch.ones(40, dtype=torch.long))  # all of them refined
    diagnosis = diagnose(pair.model, pair.guide, x, evaluation=found, beta=beta, seed=0)
    told = replace(diagnosis, run="run")
    typed = f"ppl-vae refit run --run_dir run-again --guide FullCovariance{more}"
    assert f"\n  {typed}" in told.summary()
    assert "--guide" not in diagnosis.summary()
    (run / "diagnosis.json").write_text(json.dumps(told.to_dict()))
    page = Page(html_report("run"))
    assert typed in page.typed
    if more:  # typed literally, but for what makes it quick
        quick = ["--max_epochs=1", "--num_samples=20", "--posterior=never", "--report=false"]
        with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
            assert main([*typed.split()[1:], *quick, "--quiet"]) == 0
        again = load_run("run-again")
        assert type(again.guide) is FullCovariance
        assert again.config["objective"]["init_args"]["beta"] == 1
    options = {"poor guide": ["refit", "--guide", "evil.Guide"]}
    change(run / "diagnosis.json", fault_options=options)
    assert not any("evil" in line for line in Page(html_report("run")).typed)


def test_other_guides_have_no_command_for_a_richer_one() -> None:
    x = torch.randn(30, 3)
    for guide, richer in (
        (MeanField((3,), 2), "FullCovariance"),
        (FullCovariance((3,), 2), "NeuralSpline"),
    ):
        found = what_to_type_against({"poor guide": "it"}, guide, 1.0)
        assert found == {"poor guide": ("refit", "--guide", richer)}
    assert what_to_type_against({"poor guide": "it"}, lambda x: None, 1.0) == {}
    assert what_to_type_against({"overfit": "it"}, MeanField((3,), 2), 1.0) == {}
    model = VAE((3,), 4, likelihood=Gaussian(1.0), prior=AutoregressivePrior(0.9))
    guide = MeanField((3,), 4)
    evaluation = replace(
        evaluate(model, guide, x, num_samples=100, method="guide", seed=0),
        rung=torch.ones(30, dtype=torch.long),
    )
    diagnosis = diagnose(model, guide, x, evaluation=evaluation, seed=0)
    assert "poor guide" in diagnosis.faults
    assert diagnosis.fault_options == {}


# -- what is not there ---------------------------------------------------------------------------------------


def test_an_unfinished_run_says_so_and_how_to_go_on(run: Path) -> None:
    for name in ("weights.safetensors", "evaluation.json", "diagnosis.json"):
        (run / name).unlink()
    shutil.rmtree(run / "plots")
    page = Page(html_report(run))
    assert "This run is not finished: it has no weights." in page.text
    assert f"ppl-vae train --resume {run}" in page.typed
    assert "3 epochs" in page.text
    assert page.pictures == []


def test_what_is_missing_comes_with_its_command(run: Path) -> None:
    (run / "diagnosis.json").unlink()
    (run / "evaluation.json").write_text('{"elbo": ')
    (run / "plots" / "khat.png").write_bytes((run / "plots" / "khat.png").read_bytes()[:500])
    (run / "plots" / "codes.png").write_text("no picture")
    assert main(["report", str(run), "--overwrite"]) == 0
    page = Page((run / "report.html").read_text())
    assert f"ppl-vae diagnose {run}" in page.typed
    assert f"ppl-vae evaluate {run} --overwrite" in page.typed
    for name in ("evaluation.json", "khat.png", "codes.png"):
        assert f"Not shown: {run}" in page.text
        assert f"{name}: this is not a" in page.text
    assert len(page.pictures) == len(PICTURES) - 2


def test_results_of_other_weights_are_left_out(run: Path) -> None:
    change(run / "diagnosis.json", weights_sha256="0" * 64, names=["of the past"])
    page = Page(html_report(run))
    assert "of the past" not in page.text
    assert "diagnosis.json belongs to the weights before" in page.text
    assert f"ppl-vae diagnose {run} --overwrite" in page.typed


def test_a_report_of_other_weights_is_told(run: Path) -> None:
    page = run / "report.html"
    more = ["--max_epochs=4", "--posterior=never", "--report=false", "--quiet"]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main(["train", "--resume", str(run), *more]) == 0
    digest = json.loads((run / "evaluation.json").read_text())["weights_sha256"]
    assert digest not in page.read_text()
    assert main(["report", str(run), "--overwrite"]) == 0
    assert f'content="{digest}"' in page.read_text()


def test_without_a_dark_variant_a_picture_stays_white(run: Path) -> None:
    (run / "plots_dark" / "khat.png").unlink()
    page = html_report(run)
    assert Page(page).tags["source"] == len(PICTURES) - 1
    assert page.count('<figure class="white">') == 1


def test_a_run_saved_from_python(tmp_path: Path) -> None:
    save_run(tmp_path / "mine", VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2))
    page = Page(html_report(tmp_path / "mine"))
    assert "VAE with MeanField" in page.text
    assert f"ppl-vae diagnose {tmp_path / 'mine'}" in page.typed


def test_a_run_of_em(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(80, 2)))
    options = ["--data=x.npy", "--model.components=2", "--max_iterations=3", "--run_dir=em"]
    assert main(["em", *options, "--quiet"]) == 0
    assert f"report:     {Path('em') / 'report.html'}" in capsys.readouterr().out
    page = Page(Path("em/report.html").read_text())
    assert "GaussianMixture with Exact on x.npy" in page.text
    assert "Learning curve" in page.headings
    assert "iterations" in page.text
    assert page.tags["source"] == len(page.pictures) > 2
    assert "What the model is worth, exactly." in page.text
    assert "ways to log p(x) exact It is a sum over all values" in page.text
    assert "samples of the guide" not in page.text
    assert page.text.count(" no exact") == 10  # in the table of the worst rows
    assert "are exact" in page.text
    assert "effective samples" not in page.text
    assert main(["gaps", "em", "--max_rows=5", "--quiet"]) == 0
    both = Page(html_report("em"))
    assert "Where the bound is lost" in both.headings
    assert both.tags["source"] == len(both.pictures) == len(page.pictures) + 1
    assert both.text.count("are exact") == 1
    assert "Of 5 rows." in both.text


@pytest.mark.slow
def test_the_warnings_of_em_come_first_and_its_diagnosis_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Ten full covariances for 64 rows of eight numbers: the model overfits, and is at its floor."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(90, 8)))
    options = ["--data=x.npy", "--model.components=10", "--max_iterations=20", "--run_dir=em"]
    assert main(["em", *options, "--quiet"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith(("note: ", "warning: "))]
    warning = next(line for line in lines if "the model overfits" in line)
    remedies = warning.partition("What helps: ")[2]
    assert "fewer components (--model.components 5)" in remedies
    assert any("were raised to it" in line for line in lines)
    assert main(["evaluate", "em", "--num_samples=8", "--overwrite", "--quiet"]) == 0
    capsys.readouterr()
    stored = json.loads(Path("em/fit.json").read_text())
    kept = [f"note: {n}" for n in stored["notes"]] + [f"warning: {w}" for w in stored["warnings"]]
    of_evaluation = json.loads(Path("em/evaluation.json").read_text())["notes"]
    assert len(kept) >= 2
    assert sorted(lines) == sorted([*kept, *(f"note: {note}" for note in of_evaluation)])
    page = Page(html_report("em"))
    assert page.headings[1] == "Warnings and notes"
    for line in lines:
        assert page.text.count(line.partition(": ")[2]) == 1, line
    assert main(["diagnose", "em", "--quiet"]) == 0
    found = json.loads(Path("em/diagnosis.json").read_text())["faults"]["overfit decoder"]
    assert found.startswith("The model overfits: ")
    assert found.endswith(f"; try {remedies}.")
    assert "network" not in found
    assert "patience" not in found
    card = Page(html_report("em"))
    assert f"What to do: try {remedies}." in card.text


JUNK = (None, True, "x", [None], {"mean": "x"})


@pytest.mark.parametrize(
    "name", ["evaluation.json", pytest.param("diagnosis.json", marks=pytest.mark.slow)]
)
def test_entries_of_another_kind_are_left_out(run: Path, name: str) -> None:
    """The file may be of another version, or somebody's own: that is no reason for a traceback."""
    for folder in ("plots", "plots_dark"):
        shutil.rmtree(run / folder)
    (run / "metrics.csv").unlink()
    (run / "config.yaml").write_text("data: digits")  # which takes the most time to read
    found = json.loads((run / name).read_text())
    for entry in (*found, "causes", "faults"):
        for junk in JUNK:
            (run / name).write_text(json.dumps({**found, entry: junk}))
            Page(html_report(run))
    (run / name).write_text("{}")
    assert "What is not shown" in Page(html_report(run)).headings


# -- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["absent"], 1, "there is no run folder absent"),
        (["config.yaml"], 1, "is a file: give the folder of a run"),
        (["empty"], 1, "empty is not a run: it holds no config.yaml"),
        ([], 2, "RUN is missing: give the folder of a run, or of a sweep"),
        (["run"], 1, "is there already: choose another --output, or pass --overwrite"),
        (["run", "-o", "page.png"], 2, "--output page.png: expected a name that ends with .html"),
        (["run", "-o", "absent/a.html"], 1, "there is no folder absent"),
        (["run", "-o", "other/report.html"], 2, "belongs to a run, and would be lost"),
        (["broken"], 1, "config.yaml: this is not YAML that can be read"),
        (["swept"], 1, "there is no part 'grit' of a sweep (did you mean grid?)"),
        (["run", "--widht", "3"], 2, "unrecognized arguments"),
    ],
)
def test_wrong_input(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(run.parent)
    shutil.copytree(run, "other")
    for name in ("empty", "broken", "swept"):
        Path(name).mkdir()
    Path("config.yaml").write_text("data: digits")
    Path("broken/config.yaml").write_text("a: [")
    Path("swept/sweep.yaml").write_text("grit: {seed: [0]}")
    before = (run / "report.html").read_bytes()
    assert main(["report", *arguments]) == code
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) <= 2
    assert (run / "report.html").read_bytes() == before


def test_a_page_goes_where_it_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.parent / "page.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text().startswith("<!doctype html>\n<html lang=")


@pytest.mark.parametrize(("given", "error"), [(3, TypeError), ("", ValueError)])
def test_html_report_takes_a_path(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"path of a folder, got 3|path of the run is empty"):
        html_report(given)


# -- sweeps --------------------------------------------------------------------------------------------------


def test_the_page_of_a_sweep(of_sweep: str) -> None:
    page = Page(of_sweep)
    assert page.headings[:2] == ["beta", "What was found"]
    assert "6 of 6 runs have ended well, at 3 of 3 points." in page.text
    assert "The highest ELBO is -100.50 ± 0.00 nats, at beta 0.5" in page.text
    assert "unused dimensions: large beta (2 of 2 runs)" in page.text
    assert "poor guide (2 of 2 runs)" in page.text
    assert "18.50 ± 0.50" in page.text  # the rate at beta 0.5
    assert len(page.pictures) == page.tags["source"] == 2
    assert all(url.startswith("data:") for url in page.loads)
    assert len(of_sweep) < 4e6


def chart_in(page: str) -> dict[str, Any]:
    """What the script of a sweep's page draws."""
    data = page.split('id="plane-data">')[1].split("</script>")[0]
    chart: dict[str, Any] = json.loads(data)
    return chart


def layers_of(chart: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    return [layer for layer in chart["layer"] if layer["mark"]["type"] == mark]


def test_the_plane_has_lines_of_equal_elbo_and_labels_have_room(of_sweep: str) -> None:
    chart = chart_in(of_sweep)
    dotted = next(la for la in layers_of(chart, "line") if la["mark"].get("strokeDash") == [2, 4])
    (left, right), (low, high) = (dotted["encoding"][n]["scale"]["domain"] for n in "xy")
    ends = dotted["data"]["values"]
    assert len(ends) >= 8
    for end in ends:
        assert end["D"] + end["R"] == pytest.approx(-float(end["elbo"].replace("−", "-")))
        assert left - 1e-9 <= end["D"] <= right + 1e-9
        assert low <= end["R"] <= high
    named = [
        v["elbo"] for la in layers_of(chart, "text") for v in la.get("data", {}).get("values", [])
    ]
    assert sorted(named) == sorted({end["elbo"] for end in ends})
    for point in chart["data"]["values"]:
        assert left < point["D"] < right
        assert low <= point["R"] < high
    # A label is on the side of its point where the plane is wider.
    sides = {la["mark"]["align"]: la for la in chart["layer"] if "transform" in la}
    middle = (left + right) / 2
    assert sides["left"]["transform"] == [{"filter": f"datum.D <= {middle!r}"}]
    assert sides["right"]["transform"] == [{"filter": f"datum.D > {middle!r}"}]
    text = Page(of_sweep).text
    assert "On each dotted line the ELBO is the same" in text
    assert "Along a line from the upper left" not in text
    assert text.count("small points are single") == 2


def test_single_runs_are_not_called_means(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    page = html_report(sweep_in(tmp_path / "sweep", seeds=1))
    assert "small points" not in page
    assert "standard errors over seeds" not in Page(page).text
    assert "Each point is one run." in page
    assert len(layers_of(chart_in(page), "point")) == 1


@pytest.mark.slow
def test_the_planes_of_a_sweep_have_the_entropy_and_curves(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    sweep = sweep_in(tmp_path / "sweep")
    with (sweep / "sweep.yaml").open("a") as file:
        file.write('picture: {entropy: 95, frozen: "beta=1,seed=0"}\n')
    write_curves(sweep, "it", {"decoder <b>": [CurvePlace(80.0, 21.0), CurvePlace(90.0, 9.0)]})
    page = html_report(sweep)
    lines = [la["data"]["values"] for la in layers_of(chart_in(page), "line") if "data" in la]
    assert any({"D": 80.0, "R": 21.0, "curve": "decoder <b>"} in line for line in lines)
    border = next(line for line in lines if {"D": 95.0, "R": 0.0} in line)
    assert all(end["D"] + end["R"] == pytest.approx(95.0) for end in border)
    assert "No pair is below the gray line H − D" in page
    (sweep / "curves.json").write_text("{")  # costs the curves alone
    assert "decoder" not in json.dumps(chart_in(html_report(sweep)))


def test_a_sweep_with_failed_and_missing_runs(swept: Path, tmp_path: Path) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / "sweep"))
    shutil.rmtree(sweep / "beta=1,seed=0")
    failed = sweep / "beta=4,seed=1"
    options = json.loads((failed / "sweep.json").read_text())["options"]
    write_record(failed, options, "failed", 1.0)
    (failed / "error.txt").write_text("it <b>broke</b>\n")
    page = Page(html_report(sweep))
    assert "4 of 6 runs have ended well" in page.text
    assert "beta=4,seed=1 failed: it <b>broke</b>" in page.text
    assert "Not done: beta=1,seed=0 (missing)." in page.text
    again = f"ppl-vae sweep {sweep / 'sweep.yaml'} --sweep_dir {sweep}"
    assert f"{again} --retry_failed" in page.typed


def test_a_sweep_without_results(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    sweep = sweep_in(tmp_path / "sweep")
    for run in SweepFolder(sweep, read_spec(sweep / "sweep.yaml").runs()).folders.values():
        shutil.rmtree(run)
    page = Page(html_report(sweep))
    assert "0 of 6 runs have ended well, at 0 of 3 points." in page.text
    assert page.pictures == []
    assert page.tags["script"] == 0


def test_without_the_extra_the_page_of_a_sweep_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    sweep = sweep_in(tmp_path / "sweep")
    with pytest.raises(ReportExtraError, match=r"pip install 'ppl_vae\[sweep\]'"):
        html_report(sweep)
    assert main(["report", str(sweep)]) == 1
    said = capsys.readouterr().err
    assert "pip install 'ppl_vae[sweep]'" in said
    assert len(said.splitlines()) == 1
    assert not (sweep / "report.html").exists()


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.mark.slow(but=("1280-light", "400-dark"))
@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_a_run_in_a_browser(
    trained: Path, browser: Browser, width: int, dark: bool
) -> None:
    address = (trained / "report.html").as_uri()
    assert faults(browser, address, width, dark) == []
    assert browser.value("document.images.length") == len(PICTURES)
    color = browser.value("getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)")
    shown = browser.value("[...document.images].map(i => i.currentSrc)")
    lights = browser.value("[...document.images].map(i => i.src)")
    assert [s == light for s, light in zip(shown, lights, strict=True)] == [not dark] * len(shown)
    sizes = browser.value("[...document.images].map(i => i.getBoundingClientRect().width)")
    assert min(sizes) > 200
    hidden = "document.querySelector('.beside .scroll')"
    if width == 1280:  # the table of the epochs stands beside the curves, and all of it is seen
        assert browser.value(f"{hidden}.scrollWidth - {hidden}.clientWidth") <= 0
        tops = browser.value(
            "[...document.querySelector('.beside').children].map(c => c.offsetTop)"
        )
        assert len({*tops}) == 1


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_a_sweep_in_a_browser(
    of_sweep: str, tmp_path: Path, browser: Browser, width: int, dark: bool
) -> None:
    page = tmp_path / "<b>&.html"
    page.write_text(of_sweep)
    assert faults(browser, page.as_uri(), width, dark) == []
    points = "[...document.querySelectorAll('#plane svg .mark-symbol path')]"
    assert browser.value(f"{points}.length") == 3 + 6  # means and runs
    at = browser.value(
        f"""(() => {{ const point = {points}.pop()
            point.scrollIntoView({{block: 'center'}})
            const r = point.getBoundingClientRect()
            return [r.x + r.width / 2, r.y + r.height / 2] }})()"""
    )
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    told = browser.value(
        """new Promise(found => { let left = 100; (function look() {
            const tip = document.querySelector('#vg-tooltip-element.visible')
            tip || !left-- ? found(tip ? tip.innerText : '') : setTimeout(look, 20) })() })"""
    )
    assert "beta 4" in told
    assert "-104.00 ± 0.00" in told
    assert browser.complaints() == []
    assert browser.too_wide() == []
