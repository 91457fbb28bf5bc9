"""A run on disk: what is loaded evaluates as what was saved, and nothing is lost or destroyed silently."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.diagnosis import diagnose
from ppl_vae.evaluation import evaluate, to_arviz
from ppl_vae.guides import MeanField, Translator
from ppl_vae.models import VAE, LatentTranslation
from ppl_vae.networks import MLP, EncoderDecoder
from ppl_vae.pairs import Pair, Program
from ppl_vae.runs import Comparison, Run, build, load_run, save_run
from ppl_vae.runtime import CorruptFileError
from ppl_vae.training import fit

SHAPE = (1, 5, 4)
CONVOLUTIONAL = {
    "class_path": "ppl_vae.networks.Convolutional",
    "init_args": {"channels": [4], "hidden": 8},
}


def spec(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"ppl_vae.{name}", "init_args": {"data_shape": list(SHAPE), **arguments}}


CONFIGS = {
    "mean field": {
        "model": spec("models.VAE", latent_dim=2),
        "guide": spec("guides.MeanField", latent_dim=2),
    },
    "full covariance, batch norm": {
        "model": spec(
            "models.VAE",
            latent_dim=3,
            network=CONVOLUTIONAL,
            likelihood={"class_path": "ppl_vae.likelihoods.OptimalGaussian"},
        ),
        "guide": spec("guides.FullCovariance", latent_dim=3, network=CONVOLUTIONAL),
    },
    "exact": {
        "model": spec("models.ProbabilisticPCA", latent_dim=2),
        "guide": {"class_path": "ppl_vae.guides.Exact", "init_args": {}},
    },
}


def rows(n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, *SHAPE, generator=generator) > 0.5).float()


def same_numbers(
    saved: tuple[Program, Program], loaded: tuple[Program, Program], x: Tensor
) -> bool:
    first, second = (evaluate(*pair, x, num_samples=7, seed=3) for pair in (saved, loaded))
    return torch.equal(first.elbo.values, second.elbo.values) and torch.equal(
        first.log_likelihood.values, second.log_likelihood.values
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config = CONFIGS["mean field"]
    model, _ = build(config["model"])
    guide, _ = build(config["guide"], model)
    save_run(tmp_path / "run", model, guide, config=config)
    return tmp_path / "run"


# -- there and back --------------------------------------------------------------------------------------


@pytest.mark.slow(only=("mean field",))
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_of_classes_evaluates_identically(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model, _ = build(config["model"])
    guide, _ = build(config["guide"], model)
    x = rows()
    fitted = fit(model, guide, x, max_epochs=2, batch_size=20, seed=0, progress=False)
    evaluation = evaluate(model, guide, x, num_samples=5, seed=0)
    diagnosis = diagnose(model, guide, x, seed=0)
    save_run(
        tmp_path / "run",
        model,
        guide,
        config=config | {"seed": 0},
        fit=fitted,
        evaluation=evaluation,
        diagnosis=diagnosis,
        arviz=to_arviz(model, guide, x, evaluation=evaluation, num_draws=2, seed=0),
    )
    state = torch.get_rng_state()
    run = load_run(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state), "loading must not move the global generator"
    assert same_numbers((model, guide), (run.model, run.guide), x)
    assert run.history == fitted.history
    assert run.evaluation == json.loads(json.dumps(evaluation.to_dict()))
    assert run.diagnosis == json.loads(json.dumps(diagnosis.to_dict()))
    assert run.config["seed"] == 0
    assert set(run.config["versions"]) == {"ppl_vae", "python", "torch", "pyro"}
    assert (tmp_path / "run" / "posterior.nc").stat().st_size > 0
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def tutorial_pair() -> tuple[Program, Program]:
    """A pair as Pyro's tutorials write it: functions that register modules by name."""
    decoder, encoder = nn.Linear(2, 20), nn.Linear(20, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("batch", len(x)):
            loc, scale = encoder(x.flatten(1)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide


def parameter_pair() -> tuple[Program, Program]:
    """A pair whose parameters are all of them `pyro.param` statements, with constraints of every kind."""

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        share = pyro.param("share", torch.ones(3) / 3, constraint=constraints.simplex)
        bounded = pyro.param("bounded", torch.tensor(0.0), constraint=constraints.interval(-2, 3))
        tril = pyro.param("tril", torch.eye(3), constraint=constraints.lower_cholesky)
        real = pyro.param("real", torch.zeros(3), event_dim=1)
        vector = pyro.param(
            "v", torch.ones(3), constraint=constraints.independent(constraints.positive, 1)
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(real, scale_tril=tril))
            pyro.sample("x", dist.Normal(bounded + z * share, scale * vector).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        width = pyro.param(
            "width", torch.tensor(0.5), constraint=dist.constraints.softplus_positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, width).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    ("make", "x"),
    [(tutorial_pair, rows()), (parameter_pair, torch.randn(30, 3))],
    ids=["modules", "pyro.param"],
)
def test_a_run_of_functions_evaluates_identically(
    make: Callable[[], tuple[Program, Program]], x: Tensor, tmp_path: Path
) -> None:
    model, guide = make()
    fitted = fit(model, guide, x, max_epochs=5, learning_rate=0.05, seed=0, progress=False)
    save_run(tmp_path / "run", fitted.model, fitted.guide, fit=fitted)
    new = make()
    before = evaluate(*new, x, num_samples=7, seed=3)
    run = load_run(tmp_path / "run", *new)
    assert same_numbers((model, guide), (run.model, run.guide), x)
    assert not torch.equal(
        before.elbo.values, evaluate(*new, x, num_samples=7, seed=3).elbo.values
    ), "the test would not have noticed missing weights"


def test_loaded_parameters_can_be_saved_and_trained_again(tmp_path: Path) -> None:
    model, guide = parameter_pair()
    x = torch.randn(30, 3)
    fit(model, guide, x, max_epochs=3, learning_rate=0.05, seed=0, progress=False)
    save_run(tmp_path / "a", model, guide)
    loaded = load_run(tmp_path / "a", *parameter_pair())
    save_run(tmp_path / "b", loaded.model, loaded.guide)
    again = load_run(tmp_path / "b", *parameter_pair())
    assert same_numbers((model, guide), (again.model, again.guide), x)
    assert set(Pair.of(again.model, again.guide).store["params"]) == {
        *("scale", "share", "bounded", "tril", "real", "v", "width")
    }


def test_an_autoguide_has_to_run_before_it_can_be_loaded(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.randn(20)
    guide = AutoNormal(model)
    fit(model, guide, x, max_epochs=3, learning_rate=0.1, seed=0, progress=False)
    save_run(tmp_path / "run", model, guide)
    new = AutoNormal(model)
    with pytest.raises(ValueError, match=r"call guide\(x\) once"):
        load_run(tmp_path / "run", model, new)
    with pyro.get_param_store().scope():
        new(x)
    load_run(tmp_path / "run", model, new)
    assert float(new.median()["loc"].detach()) == float(guide.median()["loc"].detach())


# -- errors ----------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run folder .*nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a run: it holds no config\.yaml"):
        load_run(tmp_path)
    (saved / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights.safetensors: save or train"):
        load_run(saved)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.99])
def test_truncated_weights_are_named(kept: float, saved: Path) -> None:
    file = saved / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CorruptFileError, match=f"{re.escape(str(file))}: .*train the run again"):
        load_run(saved)


@pytest.mark.parametrize("place", [0.5, 0.9, 0.999])
def test_a_single_changed_bit_is_found(place: float, saved: Path) -> None:
    file = saved / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptFileError, match="checksum"):
        load_run(saved)


def test_damaged_weights_point_to_the_checkpoints(saved: Path) -> None:
    (saved / "checkpoints").mkdir()
    (saved / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"ppl-vae train --resume"):
        load_run(saved)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "model: [", "not YAML"),
        ("config.yaml", "nothing", "not the configuration"),
        ("evaluation.json", '{"elbo": ', "read as JSON"),
        ("diagnosis.json", "", "read as JSON"),
        ("metrics.csv", "epoch,elbo\n1,oops\n", "not made of numbers"),
    ],
)
def test_other_damaged_files_are_named(file: str, content: str, message: str, saved: Path) -> None:
    (saved / file).write_text(content)
    with pytest.raises(CorruptFileError, match=f"{file}: .*{message}"):
        load_run(saved)


def change(path: Path, role: str, value: Any) -> None:
    config = yaml.safe_load((path / "config.yaml").read_text())
    config[role] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class_path": "no_such_package.Guide", "init_args": {}}, "no module 'no_such_package'"),
        (
            {"class_path": "ppl_vae.guides.Nothing", "init_args": {}},
            "no class or function 'Nothing'",
        ),
        ({"class_path": "Guide", "init_args": {}}, "not a full name"),
        (spec("guides.MeanField", depth=3), "depth"),
        (spec("guides.MeanField", latent_dim="two"), "latent_dim"),
        ({"class_path": "ppl_vae.guides.MeanField", "init_args": {}}, "data_shape"),
        ({"class_path": "ppl_vae.guides.MeanField"}, r"load_run\(path, model, guide\)"),
        (None, "was built: build it as before"),
    ],
)
def test_a_guide_that_cannot_be_built(value: Any, message: str, saved: Path) -> None:
    change(saved, "guide", value)
    with pytest.raises(ValueError, match=f"(?s)config.yaml.*guide.*{message}"):
        load_run(saved, trust=["no_such_package"])


def test_a_function_pair_has_to_be_given(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *tutorial_pair())
    with pytest.raises(
        ValueError, match=r"it was .*test_runs.*model\).*load_run\(path, model, guide\)"
    ):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("how", ["another model", "a tied layer"])
def test_a_guide_that_shares_other_numbers_has_to_be_given(how: str, tmp_path: Path) -> None:
    """What its class would build is no guide like it: the numbers that it shares with the model are others."""
    torch.manual_seed(0)
    model: Any
    guide: Any
    if how == "another model":
        network = EncoderDecoder(width=8, layers=1, heads=2)
        model, other = (LatentTranslation((3,), 6, network) for _ in range(2))
        guide = Translator(other)
    else:
        model, guide = VAE((3,), 2, MLP((4,))), MeanField((3,), 2, MLP((4,)))
        guide.encoder.net[0].bias = model.decoder.net[0].bias
    save_run(tmp_path / "run", model, guide)
    with pytest.raises(
        ValueError, match=r"how the guide was built .*load_run\(path, model, guide\)"
    ):
        load_run(tmp_path / "run")
    x = torch.tensor([[4, 5, 1]]) if how == "another model" else torch.zeros(1, 3)
    torch.manual_seed(1)
    expected = evaluate(model, guide, x, num_samples=2, seed=0, progress=False)
    for number in {*model.parameters(), *guide.parameters()}:
        number.data.add_(1.0)
    found = load_run(tmp_path / "run", model, guide)
    again = evaluate(found.model, found.guide, x, num_samples=2, seed=0, progress=False)
    assert again.elbo.values.equal(expected.elbo.values)


def test_weights_of_another_pair(saved: Path) -> None:
    change(saved, "guide", spec("guides.FullCovariance", latent_dim=2))
    with pytest.raises(ValueError, match=r"guide.head.weight.*not the weights of this pair"):
        load_run(saved)
    change(saved, "guide", spec("guides.MeanField", latent_dim=2, network=CONVOLUTIONAL))
    with pytest.raises(ValueError, match=r"no values for 'guide.encoder.*another pair"):
        load_run(saved)
    change(saved, "guide", {"class_path": "ppl_vae.guides.Exact", "init_args": {}})
    with pytest.raises(TypeError, match="posterior"):
        load_run(saved)


def test_a_constraint_that_cannot_be_written(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        limit = constraints.greater_than(torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=limit)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

    fit(model, guide, torch.randn(8, 2), max_epochs=1, seed=0, progress=False)
    with pytest.raises(TypeError, match=r"pyro.param 'scale' cannot be saved.*Tensor"):
        save_run(tmp_path / "run", model, guide)


# -- what is there is not destroyed ----------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_replaced_only_when_told_to(saved: Path) -> None:
    run = load_run(saved)
    (saved / "evaluation.json").write_text("{}")
    (saved / "notes.txt").write_text("mine")
    before = contents(saved)
    with pytest.raises(FileExistsError, match="already"):
        save_run(saved, run.model, run.guide)
    assert contents(saved) == before
    save_run(saved, run.model, run.guide, config=run.config, overwrite=True)
    after = contents(saved)
    assert "evaluation.json" not in after, "the evaluation was that of the weights before"
    assert after["notes.txt"] == b"mine"
    assert isinstance(load_run(saved), Run)


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, saved: Path) -> None:
    run = load_run(saved)
    other = tmp_path / "thesis"
    (other / "plots").mkdir(parents=True)
    (other / "plots" / "figure.png").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a run folder"):
        save_run(other, run.model, run.guide, overwrite=True)
    assert contents(other) == {"plots/figure.png": b"precious"}
    with pytest.raises(NotADirectoryError, match="is a file"):
        save_run(saved / "config.yaml", run.model, run.guide, overwrite=True)


def test_a_run_may_hold_nothing_but_a_pair(saved: Path) -> None:
    run = load_run(saved)
    assert run.evaluation is None
    assert run.diagnosis is None
    assert run.history == []


def test_a_comparison_says_where_log_p_is_not_defined() -> None:
    """A mean over some of the rows is not comparable with one over all; the evaluation says why."""
    nan, why = math.nan, "the guide gives a point for 'z' on 1 of 3 rows"

    def evaluation(log_p: float, warnings: list[str]) -> dict[str, Any]:
        means = {"elbo": -2.0, "rate": 1.0, "distortion": 1.0, "log_likelihood": log_p}
        found = {name: {"mean": mean, "standard_error": 0.1} for name, mean in means.items()}
        bits = {"bits_per_dim": {"mean": log_p / 2, "standard_error": 0.1}}
        return {**found, **bits, "num_samples": 10, "warnings": warnings}

    rows = {name: [-1.0, -2.0, -3.0] for name in ("elbo", "rate", "distortion")}
    comparison = Comparison(
        ("a", "b"),
        (evaluation(-1.5, ["k-hat of a"]), evaluation(nan, [why])),
        ({**rows, "log_likelihood": [-1.0, -1.0, -2.5]}, {**rows, "log_likelihood": [-1, nan, -2]}),
        ("-", "-"),
    )
    head, first, second = comparison.table()
    assert dict(zip(head, first, strict=True))["log p(x)"] == "-1.50"
    of_second = dict(zip(head, second, strict=True))
    for column in ("log p(x)", "bits/dim", "Δ log p(x)"):
        assert of_second[column] == "not defined"
    assert of_second["Δ ELBO"] == "+0.00 ± 0.00"
    assert comparison.warnings == (f"b: {why}",)
    assert math.isnan(comparison.to_dict()["runs"]["b"]["log_likelihood"]["difference"])
