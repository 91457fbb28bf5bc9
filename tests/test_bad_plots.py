"""Pictures of something else than was expected: each answer names the argument and what it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bad_inputs import Case, pair, refused

from ppl_vae import plots, save_run
from ppl_vae.tasks import Outliers

ROW = {"iteration": 1, "bound": 1.0, "log_likelihood": 1.0}
Z = torch.rand(5, 2)
TYPE, VALUE = TypeError, ValueError

# mypy: disable-error-code="arg-type,list-item,dict-item,return-value"
PLOTS: dict[str, Case] = {
    "a number as history": (
        lambda: plots.learning_curves(3),
        TYPE,
        ["history must be a list of mappings, such as the history of a fit, got 3"],
    ),
    "one epoch as history": (
        lambda: plots.learning_curves({"epoch": 1}),
        TYPE,
        ["history must be a list of mappings", "got an object of dict"],
    ),
    "the path of a history": (
        lambda: plots.learning_curves("metrics.csv"),
        TYPE,
        ["got the string 'metrics.csv'"],
    ),
    "numbers as epochs": (
        lambda: plots.learning_curves([1, 2]),
        TYPE,
        ["history[0] must be a mapping, got 1"],
    ),
    "epochs without a number": (
        lambda: plots.learning_curves([{"elbo": 1.0}]),
        VALUE,
        ["history[0] has no 'epoch', only elbo"],
    ),
    "texts as numbers": (
        lambda: plots.learning_curves([{"epoch": 1, "elbo": "-3"}]),
        TYPE,
        ["history[0]['elbo'] must be a number, got '-3'"],
    ),
    "no k-hat": (
        lambda: plots.khat_histogram([], 10),
        VALUE,
        ["khat must have the shape (n,), without a 0, got (0,)"],
    ),
    "None as k-hat": (
        lambda: plots.khat_histogram(None, 10),
        TYPE,
        ["khat must be an array of numbers, got None"],
    ),
    "k-hat of no samples": (
        lambda: plots.khat_histogram([0.1], 0),
        VALUE,
        ["num_samples must be at least 1, got 0"],
    ),
    "one fit for several": (
        lambda: plots.bound_curves([ROW]),
        TYPE,
        ["histories must be a dict of the histories of fits, by name, got an object of list"],
    ),
    "a number for a fit": (
        lambda: plots.bound_curves({"a": 3}),
        TYPE,
        ["histories['a'] must be a list of mappings"],
    ),
    "a history without bounds": (
        lambda: plots.bound_curves({"a": [{"iteration": 1}]}),
        VALUE,
        ["histories['a'][0] has no 'bound', only iteration"],
    ),
    "an unknown quantity": (
        lambda: plots.bound_curves({"a": [ROW]}, against=["time"]),
        VALUE,
        ["histories['a'][0] has no 'time'"],
    ),
    "one quantity for a list": (
        lambda: plots.bound_curves({"a": [ROW]}, against="iteration"),
        VALUE,
        ["against must be a list of names, such as ['iteration'], got 'iteration'"],
    ),
    "bounds of NaN": (
        lambda: plots.bound_curves({"a": [ROW | {"bound": np.nan, "log_likelihood": np.nan}]}),
        VALUE,
        ["bound_curves needs a bound that is finite"],
    ),
    "no means": (
        lambda: plots.components(None, None),
        TYPE,
        ["means must be an array of numbers, got None"],
    ),
    "no components": (
        lambda: plots.components(torch.rand(0, 3), torch.rand(0)),
        VALUE,
        ["means must have the shape (K, *event), without a 0, got (0, 3)"],
    ),
    "no grid": (
        lambda: plots.posterior_contours(None, {}),
        TYPE,
        ["grid must be what posterior_grid has returned, got None"],
    ),
    "a list of gaps": (
        lambda: plots.gaps_plot([1]),
        TYPE,
        ["gaps must be a dict of gaps by the name of the guide, got an object of list"],
    ),
    "a number for gaps": (
        lambda: plots.gaps_plot({"a": 3}),
        TYPE,
        ["gaps['a'] must be what inference_gaps has returned, got 3"],
    ),
    "runs for a comparison": (
        lambda: plots.comparison_plot(["a", "b"]),
        TYPE,
        ["comparison must be what Comparison.of has returned, got an object of list"],
    ),
    "other dimensions": (
        lambda: plots.kl_per_dimension([1.0, 2.0], [1.0]),
        VALUE,
        ["kl has 2 latent dimensions, and mean_variance 1"],
    ),
    "KL of each row": (
        lambda: plots.kl_per_dimension(Z, Z),
        VALUE,
        ["kl must have the shape (latent_dim,), without a 0, got (5, 2)"],
    ),
    "a word as threshold": (
        lambda: plots.kl_per_dimension([1.0], [1.0], "low"),
        TYPE,
        ["threshold must be a number, got the string 'low'"],
    ),
    "a prior of other dimensions": (
        lambda: plots.aggregate_posterior(Z, torch.rand(9, 3), [1.0, 2.0]),
        VALUE,
        ["z has 2 latent dimensions, prior 3, and kl 2"],
    ),
    "labels of other rows": (
        lambda: plots.aggregate_posterior(Z, Z, [1.0, 2.0], labels=[1, 2]),
        VALUE,
        ["labels must hold one class for each of the 5 rows, got (2,)"],
    ),
    "draws of NaN": (
        lambda: plots.aggregate_posterior(Z * torch.nan, Z, [1.0, 2.0]),
        VALUE,
        ["z holds NaN or infinite numbers"],
    ),
    "no rows": (
        lambda: plots.reconstructions(torch.rand(0, 4), torch.rand(0, 4)),
        VALUE,
        ["x must have the shape (n, *event), without a 0, got (0, 4)"],
    ),
    "a name as samples": (
        lambda: plots.prior_samples("x"),
        TYPE,
        ["draws must be an array of numbers, got the string 'x'"],
    ),
    "no samples": (
        lambda: plots.prior_samples(data=Z),
        VALUE,
        ["prior_samples needs draws, means or both"],
    ),
    "samples of several shapes": (
        lambda: plots.prior_samples(Z, means=torch.rand(5, 3)),
        VALUE,
        ["prior_samples needs rows of one shape, got draws of x: (2,), means of p(x | z): (3,)"],
    ),
    "a function for paths": (
        lambda: plots.traversals(lambda z: z, [1.0]),
        TYPE,
        ["paths must be an array of numbers, got"],
    ),
    "more paths than names": (
        lambda: plots.traversals(torch.rand(2, 9, 3), [1.0, 2.0], names=["z"]),
        VALUE,
        ["traversals needs one KL and one name for each path, got 2 paths, 2 KLs and 1 names"],
    ),
    "another row": (
        lambda: plots.traversals(torch.rand(1, 9, 4, 4), [1.0], row=torch.rand(5, 5)),
        VALUE,
        ["row has shape (5, 5), and those of the paths (4, 4)"],
    ),
    "ends of other paths": (
        lambda: plots.interpolations(torch.rand(3, 5, 4, 4), b=torch.rand(2, 4, 4)),
        VALUE,
        ["b has shape (2, 4, 4), and paths (3, 5, 4, 4): expected (3, 4, 4)"],
    ),
    "rows for outliers": (
        lambda: plots.worst_reconstructions(Z, Z, [0, 1]),
        TYPE,
        ["worst must be what outliers has returned, got an object of list"],
    ),
    "a number for an evaluation": (
        lambda: Outliers.of(3),
        TYPE,
        ["evaluation must be what evaluate has returned, got 3"],
    ),
    "codes of one dimension": (
        lambda: plots.codes(Z[:, :1]),
        VALUE,
        ["codes needs at least two rows and two dimensions, got (5, 1)"],
    ),
    "an unknown map of codes": (
        lambda: plots.codes(Z, method="tsne"),
        VALUE,
        ["method must be 'pca' or 'umap', got 'tsne'"],
    ),
    "a number as decoder": (
        lambda: plots.manifold(3),
        TYPE,
        ["decode_mean must be a function from latents to means of p(x | z), got 3"],
    ),
    "half a tile": (
        lambda: plots.manifold(lambda z: z, size=2.5),
        TYPE,
        ["size must be a whole number, got 2.5"],
    ),
    "a decoder of nothing": (
        lambda: plots.manifold(lambda z: None, size=2),
        TYPE,
        ["what decode_mean returns must be an array of numbers, got None"],
    ),
    "a decoder of fewer rows": (
        lambda: plots.manifold(lambda z: z[:3], size=2),
        VALUE,
        ["decode_mean returned 3 rows for 4 latents"],
    ),
    "a name for ArviZ": (
        lambda: save_run("never_made", *pair(), arviz="posterior.nc"),
        TYPE,
        ["arviz must be what to_arviz has returned, got the string 'posterior.nc'"],
    ),
}


@pytest.mark.parametrize("case", PLOTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = PLOTS[case]
    refused(call, kind, *words)
