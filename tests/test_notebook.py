"""What a notebook shows of results, and progress bars there."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_vae
from ppl_vae import checks, data, diagnosis, em, evaluation, runs, stats, tasks, training
from ppl_vae.codes import VectorQuantizer
from ppl_vae.guides import MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, VQVAE, PixelCNNPrior, ProbabilisticPCA
from ppl_vae.networks import MLP, Slots
from ppl_vae.runtime import in_notebook
from ppl_vae.runtime.notebook import html_table

BAD = "<script>alert('z')</script>"
"""The name of a latent, and of a folder."""


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample(BAD, dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample(BAD, dist.Normal(x / 2, scale).to_event(1))


X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def run_folder(place: Path) -> runs.Run:
    torch.manual_seed(0)
    pair = ProbabilisticPCA((2,), 1), MeanField((2,), 1, MLP((4,)))
    found = ppl_vae.evaluate(*pair, X, num_samples=20, seed=0)
    told = ppl_vae.diagnose(*pair, X, evaluation=found, seed=0)
    folder = place / BAD.replace("/", "")
    options = {"evaluation": found, "diagnosis": told, "rows": X}
    ppl_vae.save_run(folder, *pair, config={"data": BAD}, **options)  # type: ignore[arg-type]
    return ppl_vae.load_run(folder)


def read_data(place: Path) -> data.Data[Any]:
    torch.save({"x": X, "y": torch.arange(40) % 3}, place / f"{BAD.replace('/', '')}.pt")
    return ppl_vae.load_data(place / f"{BAD.replace('/', '')}.pt")


def prior_fit(_: Path) -> training.PriorFit:
    torch.manual_seed(0)
    network = Slots(2, MLP((4,)))
    codes = VQVAE((2,), VectorQuantizer(3, 2), network, Gaussian(0.5))
    refitted = ppl_vae.refit_prior(
        codes, QuantizingEncoder(codes, network), X, PixelCNNPrior(2, 1), max_epochs=1, seed=0
    )
    found = refitted.prior.fitted
    assert isinstance(found, training.PriorFit)
    return found


def accuracy(_: Path) -> tasks.ClassificationAccuracy:
    labeled = X, torch.arange(40) % 2
    return ppl_vae.classification_accuracy_score(
        labeled, labeled, labeled, classifier=tasks.NetworkClassifier(num_steps=2), seeds=2
    )


def fitted(place: Path) -> training.Fit:
    return ppl_vae.fit(
        model, guide, X, validation=X, max_epochs=2, seed=0, run_dir=place / BAD.replace("/", "")
    )


QUICK: dict[str, Any] = {"num_chains": 4, "num_steps": 4, "seed": 0}
LABELLED = X, torch.arange(len(X)) % 2

SHOWN: dict[type, Callable[[Path], Any]] = {
    stats.Estimate: lambda _: stats.Estimate(X[:, 0], unit=BAD),
    data.Data: read_data,
    checks.Report: lambda _: ppl_vae.check(model, lambda x: None, X),
    training.Fit: fitted,
    em.EMFit: lambda _: ppl_vae.fit_em(ProbabilisticPCA((2,), 1), X, max_iterations=2, seed=0),
    evaluation.Evaluation: lambda _: ppl_vae.evaluate(model, guide, X, num_samples=20, seed=0),
    evaluation.Annealed: lambda _: ppl_vae.annealed_importance_sampling(model, guide, X, **QUICK),
    evaluation.Sandwich: lambda _: ppl_vae.bidirectional_monte_carlo(model, guide, X, **QUICK),
    diagnosis.Diagnosis: lambda _: ppl_vae.diagnose(model, guide, X, seed=0),
    diagnosis.Gaps: lambda _: ppl_vae.inference_gaps(
        model, guide, X, num_samples=20, max_steps=5, seed=0
    ),
    diagnosis.PosteriorGrid: lambda _: diagnosis.posterior_grid(model, guide, X[:2]),
    runs.Run: run_folder,
    runs.Comparison: lambda place: runs.Comparison.of([run_folder(place)] * 2),
    tasks.ClassificationAccuracy: accuracy,
    training.PriorFit: prior_fit,
    training.LevelsFit: lambda place: training.LevelsFit({"z1": prior_fit(place)}),
    tasks.Probe: lambda _: ppl_vae.probe(model, guide, LABELLED, LABELLED),
    tasks.FineTuned: lambda _: ppl_vae.fine_tune(
        VAE((2,), 1, likelihood=Gaussian()), MeanField((2,), 1), LABELLED, LABELLED, num_steps=1
    ),
    tasks.LabelAccuracy: lambda _: tasks.LabelAccuracy(
        LABELLED[1][None], LABELLED[1], 2, "by hand", (0,), ""
    ),
    tasks.Outliers: lambda _: ppl_vae.outliers(model, guide, X, num=3, seed=0),
}
"""Each class of results, with an object of it: with names that are code wherever they are the user's."""

NAMED = {
    *(stats.Estimate, data.Data, checks.Report, training.Fit, diagnosis.Diagnosis),
    *(diagnosis.PosteriorGrid, runs.Run, runs.Comparison),
}
"""Those that show such a name."""


def returned(function: Any) -> type | None:
    """The class of this package that a function returns, if it is public and no program."""
    try:
        kind = get_type_hints(function).get("return")
        kind = get_origin(kind) or kind  # of Data[Any]
    except (NameError, TypeError):
        return None
    if not inspect.isclass(kind) or issubclass(kind, torch.nn.Module):
        return None
    return kind if kind.__module__.startswith("ppl_vae.") else None


def public_results() -> set[type]:
    """What the functions of `ppl_vae` return, and all classes of results that a room offers."""
    found = {returned(getattr(ppl_vae, name)) for name in dir(ppl_vae)}
    for room in (checks, data, diagnosis, em, evaluation, runs, stats, tasks, training):
        for name in dir(room):
            kind = getattr(room, name)
            if inspect.isclass(kind) and issubclass(kind, stats.Result):
                found.add(kind)
    return {kind for kind in found if kind is not None and not inspect.isabstract(kind)}


def test_all_results_are_shown_below() -> None:
    assert public_results() - SHOWN.keys() == set()
    assert {training.Fit, data.Data, runs.Run, diagnosis.Gaps} <= public_results()


class Page(HTMLParser):
    """Requires that each tag is closed, in order, and collects them and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.styles: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.styles |= {value or "" for _, value in attributes}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.filterwarnings("ignore::ppl_vae.checks.PairWarning")
@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__name__)
def test_a_result_is_short_as_text_and_a_table_in_a_notebook(kind: type, tmp_path: Path) -> None:
    result: Any = SHOWN[kind](tmp_path)
    short, page = repr(result), Page(result._repr_html_())
    assert type(result) is kind
    assert short.isprintable()  # one line
    assert 10 < len(short) < 300
    assert "tensor(" not in short
    assert page.tags <= {"table", "tr", "th", "td", "p"}
    assert page.styles <= {"text-align:left"}  # no color of its own, on a light or a dark page
    assert len(page.text) > 10
    assert ("<script>" in page.text) == (kind in NAMED)


def test_a_table_escapes_what_is_not_its_own() -> None:
    page = html_table([["<b>", 'a & "b"']], header=True)
    assert "<b>" not in page
    assert Page(page).text == '<b>a & "b"'


# -- progress bars -----------------------------------------------------------------------------------------

KERNEL = """
import sys, types, warnings
warnings.simplefilter("always")
ipython = types.ModuleType("IPython")
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
ipython.get_ipython = lambda: shell
ipython.display = types.ModuleType("IPython.display")
sys.modules["IPython"], sys.modules["IPython.display"] = ipython, ipython.display
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
for name in ("ipywidgets", "IPython.html.widgets"):
    sys.modules[name] = None
from ppl_vae.runtime import progress_bar
with progress_bar(3, "rows", "row", None) as bar:
    bar.update(2)
    bar.set_postfix(loss=1.0)
"""


def test_a_notebook_without_widgets_has_bars_of_text_and_no_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], capture_output=True, text=True, check=True
    )
    assert "rows" in done.stderr
    assert "IProgress" not in done.stderr
    assert "Warning" not in done.stderr


def test_in_a_notebook_is_in_its_kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not in_notebook()
    configs: list[dict[str, object]] = [{}, {"IPKernelApp": {}}]
    for config in configs:
        shell = types.SimpleNamespace(config=config)
        fake = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        assert in_notebook() is bool(config)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()
