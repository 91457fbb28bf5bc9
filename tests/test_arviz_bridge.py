"""What ArviZ is given: the right draws under the right names, and log p(x) of each row."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae import _version, stats
from ppl_vae.evaluation import arviz as arviz_bridge, evaluate, netcdf_size, to_arviz
from ppl_vae.guides import Exact, MeanField
from ppl_vae.likelihoods import Binomial
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.runs import as_netcdf

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

GROUPS = {
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
}


def groups(data: Any) -> set[str]:
    names = data.children if isinstance(data, xr.DataTree) else data.groups()
    return {name.strip("/") for name in names}


def values(data: Any, group: str, name: str) -> NDArray[Any]:
    return np.asarray(data[group][name].values)


def pca(n: int = 40) -> tuple[ProbabilisticPCA, Tensor]:
    x = torch.randn(n, 4) @ torch.randn(4, 4)
    return ProbabilisticPCA((4,), latent_dim=2).maximum_likelihood(x), x


def elpd(loo: Any) -> tuple[float, float]:
    """Expected log predictive density and effective number of parameters, in both ArviZ lines."""
    new = hasattr(loo, "elpd")
    return float(loo.elpd if new else loo.elpd_loo), float(loo.p if new else loo.p_loo)


def test_draws_are_those_of_the_posterior_the_prior_and_their_predictives() -> None:
    model, x = pca(n=20)
    data = to_arviz(model, Exact(model), x, num_samples=4, num_draws=500, seed=1)
    assert groups(data) == GROUPS
    assert dict(data["posterior"]["z"].sizes) == {"chain": 1, "draw": 500, "row": 20, "z_dim_0": 2}
    assert data["prior"]["z"].dims == data["posterior"]["z"].dims
    with torch.no_grad():
        exact = model.posterior(x)
        mean, stddev = exact.mean.numpy(), exact.stddev.numpy()
        covariance = exact.covariance_matrix[0].numpy()  # the same for all rows
        weight, offset, sigma = (
            model.weight.numpy(),
            model.mean.numpy(),
            model.log_sigma.exp().item(),
        )
    draws = values(data, "posterior", "z")[0]
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 4.5 * stddev / np.sqrt(500))
    pooled = (draws - mean).reshape(-1, 2)
    np.testing.assert_allclose(np.cov(pooled.T), covariance, atol=0.06 * covariance.max())
    prior = values(data, "prior", "z")[0]
    np.testing.assert_array_less(np.abs(prior.mean(0)), 4.5 / np.sqrt(500))
    np.testing.assert_allclose(np.cov(prior.reshape(-1, 2).T), np.eye(2), atol=0.06)

    # x' = W z + mu + sigma eps, with z from the posterior of its row, or from the prior.
    for group, latents in (("posterior_predictive", draws), ("prior_predictive", prior)):
        assert data[group]["x"].dims == ("chain", "draw", "row", "x_dim_0")
        noise = values(data, group, "x")[0] - (latents @ weight.T + offset)
        np.testing.assert_allclose(noise.mean(0), 0, atol=4.5 * sigma / np.sqrt(500))
        np.testing.assert_allclose(noise.std((0, 1)), sigma, rtol=0.04)
    np.testing.assert_array_equal(values(data, "observed_data", "x"), x)


def test_rows_keep_their_order_over_chunks() -> None:
    model, _ = pca()
    x = torch.randn(2500, 4)
    data = to_arviz(model, Exact(model), x, num_samples=2, num_draws=30)
    np.testing.assert_array_equal(values(data, "observed_data", "x"), x)
    means = values(data, "posterior", "z")[0].mean(0)
    exact = model.posterior(x)
    away = np.abs(means - exact.mean.detach().numpy()) / exact.stddev.detach().numpy()
    assert away.max() < 6 / np.sqrt(30)
    np.testing.assert_array_equal(data["posterior"]["row"], np.arange(2500))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_loo_is_the_sum_of_log_p_of_the_rows() -> None:
    model, x = pca()
    data = to_arviz(model, Exact(model), x)
    log_evidence = float(model.log_evidence(x).detach().double().sum())
    score, parameters = elpd(az.loo(data))
    assert score == pytest.approx(log_evidence, abs=1e-3)  # float32 densities
    assert parameters == pytest.approx(0, abs=1e-9)

    # And of the importance-sampling estimates, to far more digits, where the guide is not exact.
    guide = MeanField((4,), latent_dim=2, network=MLP(hidden=(8,)))
    evaluation = evaluate(model, guide, x, num_samples=50)
    data = to_arviz(model, guide, x, evaluation=evaluation)
    expected = evaluation.log_likelihood.values.double()
    pointwise = az.loo(data, pointwise=True)
    score, parameters = elpd(pointwise)
    assert score == pytest.approx(float(expected.sum()), abs=1e-9)
    assert parameters == pytest.approx(0, abs=1e-9)
    rows = pointwise.elpd_i if hasattr(pointwise, "elpd_i") else pointwise.loo_i
    np.testing.assert_allclose(np.asarray(rows), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "num_draws",
    [30, pytest.param(100, marks=pytest.mark.slow), pytest.param(400, marks=pytest.mark.slow)],
)
def test_loo_does_not_warn(num_draws: int) -> None:
    model, x = pca(n=10)
    data = to_arviz(model, Exact(model), 100 * x, num_samples=2, num_draws=num_draws)
    loo = az.loo(data, pointwise=True)  # warnings are errors
    assert not loo.warning
    assert (np.asarray(loo.pareto_k) < 0.1).all()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
@pytest.mark.parametrize("num_draws", [30, 100, pytest.param(400, marks=pytest.mark.slow)])
def test_loo_does_not_praise_unreliable_rows(num_draws: int) -> None:
    """All draws of a row are equal, which is the best k-hat there could be."""
    model, x = pca(n=40)

    def narrow(x: torch.Tensor) -> None:
        q = model.posterior(x)
        # Half of the rows get the posterior, the others a guide that misses it.
        shift = 4.0 * (torch.arange(len(x)) % 2)[:, None]
        with pyro.plate("data", len(x)):
            z = dist.MultivariateNormal(q.mean + shift, q.covariance_matrix)
            pyro.sample("z", z)

    evaluation = evaluate(model, narrow, x, num_samples=1000, method="guide", seed=0)
    bad = evaluation.unreliable.numpy()
    assert bad.tolist() == [False, True] * 20
    for factor in (1.0, 1e4):  # of log p(x), which may be large
        values = stats.Estimate(factor * evaluation.log_likelihood.values)
        data = to_arviz(
            model,
            narrow,
            x,
            evaluation=dataclasses.replace(evaluation, log_likelihood=values),
            num_draws=num_draws,
        )
        loo = az.loo(data, pointwise=True)
        khat = np.asarray(loo.pareto_k)
        assert (khat[bad] > 0.8).all()
        assert (khat[~bad] < 0.1).all()
        assert loo.warning
        expected = float(values.values.double().sum())
        assert elpd(loo)[0] == pytest.approx(expected, abs=1e-9, rel=1e-12)
    np.testing.assert_array_equal(data["sample_stats"]["unreliable"], bad)


# pandas deprecates what ArviZ 0.23 does when it sorts its table.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")
def test_compare_ranks_by_log_p_with_the_paired_standard_error() -> None:
    model, x = pca()
    worse = ProbabilisticPCA((4,), latent_dim=1).maximum_likelihood(x)
    table = az.compare(
        {
            "one": to_arviz(worse, Exact(worse), x, num_samples=2),
            "two": to_arviz(model, Exact(model), x, num_samples=2),
        }
    )
    assert list(table.index) == ["two", "one"]
    difference = (model.log_evidence(x) - worse.log_evidence(x)).detach().double().numpy()
    # ArviZ 1.x rounds the table that it returns.
    gap = float(table.loc["one", "elpd_diff"])
    assert abs(gap) == pytest.approx(difference.sum(), rel=0.03)
    assert float(table.loc["one", "dse"]) == pytest.approx(
        difference.std() * np.sqrt(len(difference)), rel=0.06
    )


def test_diagnostics_are_those_of_the_evaluation() -> None:
    model, x = pca()
    guide = MeanField((4,), latent_dim=2, network=MLP(hidden=(8,)))
    evaluation = evaluate(model, guide, x, num_samples=200)
    data = to_arviz(model, guide, x, evaluation=evaluation, num_draws=30)
    found = data["sample_stats"]
    np.testing.assert_array_equal(found["ess"], evaluation.ess)
    np.testing.assert_array_equal(found["khat"], evaluation.khat)
    np.testing.assert_array_equal(found["elbo"], evaluation.elbo.values)
    np.testing.assert_allclose(found["elbo"], -(found["rate"] + found["distortion"]), rtol=1e-6)
    assert found["ess"].dims == ("row",)
    assert found["elbo"].attrs["unit"] == data["log_likelihood"]["x"].attrs["unit"] == "nats"
    assert data.attrs["inference_library"] == "ppl_vae"
    assert data.attrs["inference_library_version"] == _version.__version__
    assert data.attrs["importance_samples"] == 200


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_netcdf_brings_everything_back(tmp_path: Path) -> None:
    model = VAE((3, 3), latent_dim=2, network=MLP(hidden=(8,)), likelihood=Binomial(16))
    guide = MeanField((3, 3), latent_dim=2, network=MLP(hidden=(8,)))
    x = torch.randint(0, 17, (6, 3, 3)).float()
    data = to_arviz(model, guide, x, num_samples=20, num_draws=30)
    assert data["posterior_predictive"]["x"].dims[2:] == ("row", "x_dim_0", "x_dim_1")
    counts = values(data, "posterior_predictive", "x")
    assert set(np.unique(counts)) <= set(range(17))

    data.to_netcdf(str(tmp_path / "posterior.nc"))
    back = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert groups(back) == GROUPS
    for group in sorted(GROUPS):
        before, after = data[group], back[group]
        for name in before.data_vars:
            np.testing.assert_array_equal(after[name].values, before[name].values)
            assert after[name].dims == before[name].dims
    assert back.attrs["inference_library"] == "ppl_vae"
    assert elpd(az.loo(back)) == pytest.approx(elpd(az.loo(data)))


def test_a_seed_gives_the_same_draws() -> None:
    model, x = pca(n=10)
    first, second, third = (
        to_arviz(model, Exact(model), x, num_samples=2, num_draws=5, seed=seed)
        for seed in (1, 1, 2)
    )
    for group, name in (("posterior", "z"), ("prior_predictive", "x")):
        np.testing.assert_array_equal(values(first, group, name), values(second, group, name))
        assert (values(first, group, name) != values(third, group, name)).any()


def test_large_groups_keep_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.evaluation.arviz._LARGEST_GROUP", 4 * 1100 * 7)
    model, _ = pca()
    x = torch.randn(1100, 4)
    data = to_arviz(model, Exact(model), x, num_samples=2, num_draws=30)
    # Seven draws of 1100 rows of four numbers; twice as many of the two latents.
    draws = {group: data[group].sizes["draw"] for group in GROUPS if "draw" in data[group].sizes}
    assert draws == {
        "posterior": 14,
        "prior": 14,
        "posterior_predictive": 7,
        "prior_predictive": 7,
        "log_likelihood": 30,
    }
    log_evidence = float(model.log_evidence(x).detach().double().sum())
    assert elpd(az.loo(data))[0] == pytest.approx(log_evidence, rel=1e-6)


# -- pairs of other people -----------------------------------------------------------------------


def hierarchy() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Global and local latents, a site name with a slash, a second plate, a factor, odd names."""

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        parts = pyro.plate("parts", 3, dim=-1)
        with pyro.plate("people", len(y), dim=-2):
            a = pyro.sample("top/a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with parts:
                b = pyro.sample("b", dist.Normal(a[..., 0], scale))
                pyro.sample("y", dist.Normal(b, 1.0), obs=y)
            pyro.factor("nothing", torch.zeros(len(y), 1))

    def guide(y: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("people", len(y), dim=-2):
            pyro.sample("top/a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("parts", 3, dim=-1):
                pyro.sample("b", dist.Normal(y, 0.1))

    return model, guide


def test_any_sites_and_plates(tmp_path: Path) -> None:
    model, guide = hierarchy()
    y = 10 * torch.randn(1500, 3)
    data = to_arviz(model, guide, y, num_samples=3, num_draws=4)
    posterior = data["posterior"]
    assert {name: posterior[name].dims[2:] for name in posterior.data_vars} == {
        "scale": (),
        "top_a": ("row", "top_a_dim_0"),
        "b": ("row", "b_dim_0"),
    }
    assert posterior["b"].shape == (1, 4, 1500, 3)
    np.testing.assert_allclose(posterior["b"].values[0, 0], y, atol=0.6)
    np.testing.assert_array_equal(values(data, "observed_data", "y"), y)
    assert list(data["log_likelihood"].data_vars) == ["y"]
    # The scale of a draw from the prior is one for all chunks of rows: b - a has it in each.
    prior = data["prior"]
    deviation = (prior["b"] - prior["top_a"][..., 0]).values[0]
    scale = prior["scale"].values[0]
    for rows in (slice(0, 1024), slice(1024, None)):
        np.testing.assert_allclose(deviation[:, rows].std((1, 2)), scale, rtol=0.06)
    data.to_netcdf(str(tmp_path / "any.nc"))


def test_sites_that_the_model_enumerates_are_drawn_from_their_posterior() -> None:
    weights, places = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 1.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(places[c] + 0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([-0.5, 0.0, 0.8]).repeat(100)
    data = to_arviz(model, guide, x, num_samples=2, num_draws=40)
    joint = weights * dist.Normal(places, 1.0).log_prob(x[:, None]).exp()
    expected = (joint[:, 1] / joint.sum(1)).numpy()
    # 4000 draws for each of the three values of x.
    share = values(data, "posterior", "c").reshape(4000, 3).mean(0)
    np.testing.assert_allclose(share, expected[:3], atol=4.5 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(values(data, "prior", "c").mean(), 0.7, atol=0.03)
    predictive = values(data, "posterior_predictive", "x").reshape(4000, 3).mean(0)
    np.testing.assert_allclose(predictive, 2 * expected[:3] - 1, atol=4.5 * 1.5 / np.sqrt(4000))
    log_evidence = joint.sum(1).log()
    np.testing.assert_allclose(
        values(data, "log_likelihood", "x").mean((0, 1)), log_evidence, atol=1e-5
    )


def test_errors_say_what_to_do() -> None:
    model, x = pca(n=5)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        to_arviz(model, Exact(model), x, num_draws=0)
    evaluation = evaluate(model, Exact(model), x[:3], num_samples=2)
    with pytest.raises(ValueError, match="evaluation has 3 rows, x has 5: pass an evaluation of"):
        to_arviz(model, Exact(model), x, evaluation=evaluation, num_draws=2)


@pytest.mark.parametrize("rows", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_the_size_of_the_file_is_estimated(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = VAE((1, 8, 8), 3), MeanField((1, 8, 8), 3)
    x = (torch.rand(rows, 1, 8, 8) < 0.3).float()
    if rows == 300:  # not all draws of the data are kept
        monkeypatch.setattr(arviz_bridge, "_LARGEST_GROUP", 10 * 300 * 64)
    estimate = netcdf_size(model, guide, x, seed=0)
    size = len(as_netcdf(to_arviz(model, guide, x, num_samples=5, seed=0)))
    assert 0.75 < estimate / size < 1.25
