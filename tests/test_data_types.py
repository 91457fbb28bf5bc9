"""Data as people have them: every kind is taken as the tensor that it means, or refused with what to do."""

from __future__ import annotations

import functools
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
import xarray
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from trainings import Guide, Model, train

import ppl_vae
from ppl_vae.diagnosis import guide_on_grid, posterior_grid
from ppl_vae.em import StepSize
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, DiagonalNormal, GaussianMixture, ProbabilisticPCA
from ppl_vae.pairs import Batch, Batches, Pair, PairError, as_args

FLOAT64 = np.random.default_rng(0).normal(size=(12, 3))
X = torch.tensor(FLOAT64, dtype=torch.float32)
LABELS = torch.arange(12)


def of_one(x: Tensor) -> None: ...


def of_two(x: Tensor, y: Tensor) -> None: ...


def with_labels(x: Tensor, y: Tensor | None = None) -> None: ...


def with_two_more(x: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> None: ...


def of_any(*args: Tensor) -> None: ...


def batches(x: Any, model: Any = of_one) -> Batches:
    return Batches(x, Pair(model, model))


def rows(x: Any, model: Any = of_one) -> Batch:
    """All rows, whether in memory or not."""
    found = batches(x, model)
    if found.in_memory:
        return found.rows
    parts = zip(*(as_args(batch) for batch in found.ordered(99)), strict=True)
    joined = tuple(torch.cat(part) for part in parts)
    return joined[0] if len(joined) == 1 else joined


def equal(found: Batch, *expected: Tensor) -> bool:
    pairs = zip(as_args(found), expected, strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


# -- arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        FLOAT64,
        FLOAT64.astype(">f8"),
        FLOAT64.astype(np.longdouble),
        np.asfortranarray(FLOAT64),
        FLOAT64[::-1][::-1],
        xarray.DataArray(FLOAT64),
        FLOAT64.tolist(),
        list(FLOAT64),
        [list(row) for row in FLOAT64],  # of numpy's numbers
        tuple(map(tuple, FLOAT64.tolist())),
        [*X.split(5)],
        [FLOAT64[:5], FLOAT64[5:]],
        {"x": FLOAT64, "name": ["a"] * 12},
        {"x": FLOAT64.tolist()},
        (FLOAT64, ["a"] * 12),
        (FLOAT64, LABELS.tolist()),
        TensorDataset(X, LABELS),
        DataLoader(FLOAT64, batch_size=5, collate_fn=np.stack),  # type: ignore[arg-type]
        DataLoader([{"x": row, "name": "a"} for row in X], batch_size=5),  # type: ignore[arg-type]
        DataLoader([(row, i, "a") for i, row in enumerate(X)], batch_size=5),  # type: ignore[arg-type]
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_means_the_same_rows_gives_them(x: Any) -> None:
    assert equal(rows(x), X)


def test_read_only_arrays_are_copied() -> None:
    x = FLOAT64.astype("float32")
    x.flags.writeable = False
    assert equal(rows(x), X)  # torch.from_numpy alone would warn


def test_tables() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(FLOAT64, columns=["a", "b", "c"])
    assert equal(rows(table), X)
    assert equal(rows(table["a"]), X[:, 0])
    assert equal(rows({"x": table, "y": table["a"]}, of_two), X, X[:, 0])
    mixed = pandas.DataFrame({"a": [0.5, 1.5], "b": [True, False], "c": [1, 2]})
    assert equal(rows(mixed), torch.tensor([[0.5, 1.0, 1.0], [1.5, 0.0, 2.0]]))
    missing = mixed.assign(c=pandas.array([1, None], dtype="Int64"))
    found = rows(missing)
    assert isinstance(found, Tensor)
    assert found.isnan().nonzero().tolist() == [[1, 2]]
    words = mixed.assign(kind=["u", "v"], color=["red", "blue"])
    with pytest.raises(
        TypeError,
        match=r"columns of a dtype that is not of numbers \('kind': \w+, 'color': \w+\)",
    ):
        batches(words)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int8", "int16", "int32", "int64"])
def test_integers_and_booleans_keep_their_dtype(kind: str) -> None:
    found = rows(np.ones((4, 2), dtype=kind))
    assert isinstance(found, Tensor)
    assert found.dtype == getattr(torch, kind)


def test_floating_point_numbers_get_the_dtype_of_the_pair() -> None:
    double = ProbabilisticPCA((3,)).double()
    assert equal(rows(FLOAT64.astype("float32"), double), X.double())
    assert equal(rows(FLOAT64, double), torch.tensor(FLOAT64))
    assert equal(rows(X, double), X)  # a tensor is as it was meant
    assert equal(rows(X.double()), X.double())
    torch.set_default_dtype(torch.float64)
    try:
        assert equal(rows(FLOAT64), torch.tensor(FLOAT64))
    finally:
        torch.set_default_dtype(torch.float32)


def test_lazy_layers_have_a_dtype_too() -> None:
    lazy = nn.LazyLinear(2, dtype=torch.float64)
    assert equal(rows(FLOAT64, lazy), torch.tensor(FLOAT64))


def test_integers_for_a_linear_layer_are_told_the_remedy() -> None:
    with pytest.raises(PairError, match=r"x\.float\(\) \(numpy, pandas: x\.astype\('float32'\)\)"):
        ppl_vae.evaluate(Model(), Guide(), np.ones((4, 3), dtype=int))


# -- several arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        {"y": LABELS, "x": X, "index": LABELS},
        (FLOAT64, LABELS.numpy()),
        (X, LABELS.tolist()),
        TensorDataset(X, LABELS),
        DataLoader(TensorDataset(X, LABELS), batch_size=5),
        DataLoader([{"y": i, "x": row} for i, row in enumerate(X)], batch_size=5),  # type: ignore[arg-type]
        [{"y": LABELS[:5], "x": X[:5]}, {"y": LABELS[5:], "x": X[5:]}],
        DataLoader([(row, i, "a") for i, row in enumerate(X)], batch_size=5),  # type: ignore[arg-type]
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("model", [of_two, with_labels])
def test_several_arguments(x: Any, model: Any) -> None:
    assert equal(rows(x, model), X, LABELS)


def test_what_the_model_does_not_need_may_be_missing() -> None:
    for x in (X, {"x": X}, {"x": X, "name": ["a"] * 12}):
        assert equal(rows(x, with_labels), X)
    with pytest.warns(UserWarning, match=r"x\[1\] is a list of texts .* if they are names of rows"):
        assert equal(rows((X, ["a"] * 12), with_labels), X)
    assert equal(rows((X, ["a"] * 12), of_one), X)


NAMED: Any = [{"index": 3 * i, "x": row, "name": "a", "y": i} for i, row in enumerate(X)]


@pytest.mark.parametrize("model", [of_one, with_labels, with_two_more, of_two])
def test_keys_that_name_no_argument_are_left_out(model: Any) -> None:
    """Where an argument then gets nothing, that is told: labels may have another name."""
    expected = (X,) if model is of_one else (X, LABELS)
    whole = {"index": 3 * LABELS, "x": X, "name": ["a"] * 12, "y": LABELS, 0: LABELS}
    assert equal(rows(DataLoader(NAMED, batch_size=5), model), *expected)
    assert equal(rows(whole, model), *expected)
    if model is not of_two:
        fewer = {key: part for key, part in whole.items() if key != "y"}
        loader: Any = DataLoader([{"x": row, "idx": i} for i, row in enumerate(X)], batch_size=5)  # type: ignore[arg-type]
        for data, key in ((fewer, "index"), (loader, "idx")):
            told: Any = (
                nullcontext()
                if model is of_one
                else pytest.warns(UserWarning, match=f"keys '{key}'")
            )
            with told:
                assert equal(rows(data, model), X)


def with_a_scale(x: Tensor, scale: float = 1.0, y: Tensor | None = None) -> None: ...


def with_a_keyword(x: Tensor, *, y: Tensor | None = None) -> None: ...


def with_masks(x: Tensor, mask_x: Any = None, mask_y: Any = None, labels: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("extra", "model", "words"),
    [
        ({"Y": LABELS}, with_labels, "if 'Y' is meant for 'y', rename it; if not, leave it out"),
        ({"label": LABELS}, with_masks, "if 'label' is meant for 'labels'"),
        ({"scale": LABELS}, with_a_scale, "'scale' is an option of the model and takes no data"),
        ({"y": LABELS}, with_a_scale, "'y' is an option"),
        (
            {"y": LABELS},
            with_a_keyword,
            r"'y' by keyword alone .* write model\(x, y\) without the \*",
        ),
    ],
)
def test_keys_that_may_be_meant_for_an_argument(extra: Any, model: Any, words: str) -> None:
    for x in ({"x": X} | extra, [{"x": X} | extra]):
        with pytest.raises(TypeError, match=words):
            batches(x, model).first(5)


def test_a_key_that_is_given_is_not_taken_for_one_that_is_missing() -> None:
    assert equal(rows({"x": X, "mask_x": LABELS, "scale": ["a"] * 12}, with_masks), X, LABELS)
    assert equal(rows({"x": X, "scale": ["a"] * 12}, with_a_scale), X)


def needs_a_keyword(x: Tensor, *, y: Tensor) -> None: ...


def of_keywords(**batch: Tensor) -> None: ...


@pytest.mark.parametrize(
    "x",
    [X, (X, LABELS), {"x": X, "y": LABELS}, [(X, LABELS)], DataLoader(TensorDataset(X, LABELS))],
)
def test_arguments_that_cannot_be_given_by_position(x: Any) -> None:
    with pytest.raises(TypeError, match=r"'y' by keyword alone .* write model\(x, y\) without"):
        batches(x, needs_a_keyword)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: [x]])
def test_a_program_of_keywords_alone(make: Any) -> None:
    with pytest.raises(TypeError, match=r"called by position, .*: write model\(x, \.\.\.\)"):
        batches(make({"x": X, "y": LABELS}), of_keywords).first(5)


@pytest.mark.parametrize(
    ("x", "model", "words"),
    [
        (
            ((X, X), LABELS),
            of_two,
            r"x is a nested tuple \(a tuple, a torch.Tensor\): pass one flat",
        ),
        (((X, X), LABELS), of_any, "x is a nested tuple .*: pass one flat tuple"),
        (({"x": X}, LABELS), of_two, r"a nested tuple \(a dict, a torch.Tensor\)"),
        (([X, X], None), of_one, "a nested tuple"),
        ((X, (X, X)), of_two, r"x\[1\] is a tuple, but the model needs a tensor"),
        ((X, (X, X)), with_labels, r"x\[1\] is a tuple, but the model needs a tensor"),
        ((X, {"y": X}), with_labels, r"x\[1\] is a dict, but the model needs a tensor"),
        ((X, [X, X]), of_any, r"x\[1\] is a list, but the model needs a tensor"),
        ((None, X), of_two, r"x\[0\] is a NoneType"),
        ({"x": {"a": X}}, of_one, r"x\['x'\] is a dict"),
        ({"x": X, "y": {"a": X}}, with_labels, r"x\['y'\] is a dict"),
        ({"x": (X, X)}, of_one, r"x\['x'\] is a tuple"),
        ([((X, X), LABELS)], of_two, r"part 0 of a batch of x is a tuple"),
        ([(X, (X, X))], with_labels, r"part 1 of a batch of x is a tuple"),
        ([{"x": X, "y": [X]}], with_labels, r"part 'y' of a batch of x is a list"),
    ],
)
def test_nested_data_are_not_lost(x: Any, model: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        batches(x, model).first(5)


def test_none_where_the_model_has_a_default() -> None:
    assert equal(rows((X, None), with_labels), X)
    assert equal(rows([(X, None)], with_labels), X)
    assert equal(rows((X, LABELS, None), with_two_more), X, LABELS)
    for between in ((X, None, LABELS), {"x": X, "w": LABELS}):
        first, nothing, last = as_args(rows(between, with_two_more))
        assert nothing is None
        assert equal((first, last), X, LABELS)


@pytest.mark.parametrize(
    ("x", "model", "words"),
    [
        ({"data": X}, of_one, "the keys 'data'; the model's arguments are 'x'"),
        ({"x": X, "Y": LABELS}, with_labels, "the keys 'x', 'Y'; .* 'x', 'y'"),
        ({"y": LABELS}, with_labels, "use these names as keys"),
        ({"x": X}, of_any, r"\*args.*a tuple of tensors"),
        ({}, of_one, "keys none"),
        ({"x": "digits"}, of_one, r"x\['x'\] is a str, .*torch\.as_tensor"),
        ((X, ["a"] * 12), of_two, r"x\[1\] is a list of texts, but .* torch\.as_tensor"),
        ((X, 3), of_two, r"x\[1\] is an int"),
    ],
)
def test_arguments_that_are_not_given(x: Any, model: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        batches(x, model)


def test_names_where_the_model_needs_a_tensor() -> None:
    loader: Any = DataLoader([(row, "a") for row in X], batch_size=5)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"part 1 of a batch of x is a tuple of texts, .*collate_fn"
    ):
        batches(loader, of_two).first(1)


# -- what is refused ---------------------------------------------------------------------------------------


class Rows(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from X


class AnnData:
    """What a stand-in for the class of this name needs."""

    X, obs_names = FLOAT64, ("a",)


MASKED = np.ma.masked_array(FLOAT64, mask=FLOAT64 > 1)
SPARSE = scipy.sparse.csr_matrix(np.eye(4))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "x is a NoneType; expected a tensor .* DataLoader"),
        ("digits", r"x is a str: pass rows, such as load_data\('digits'\)\.train"),
        (Path("x.npy"), r"PosixPath: pass rows, such as load_data\('x\.npy'\)"),
        (["a", "b"], "x is a list of str; expected a tensor"),
        ([None], "x is a list of NoneType"),
        (object, "x is a type; expected"),
        (AnnData(), r"AnnData: pass its matrix, torch\.as_tensor\(x\.X\)"),
        (Subset(TensorDataset(X), [0]), r"torch\.Subset, .* DataLoader\(x, batch_size=128\)"),
        (Rows(), r"DataLoader\(x, batch_size=128\), or with batch_size=None"),
        (torch.eye(3).to_sparse(), r"sparse tensor \(torch\.sparse_coo\): .*\.to_dense\(\)"),
        (SPARSE, r"a scipy\.csr_matrix, .*\.toarray\(\)"),
        (scipy.sparse.coo_array(np.eye(4)), r"a scipy\.coo_array, .*toarray"),
        (np.ones((3, 2), "uint16"), "dtype uint16, .*astype"),
        (np.ones((3, 2), complex), "dtype complex128"),
        (np.array([["a"]]), "numpy.ndarray of dtype <U1"),
        (np.array([{}]), "dtype object"),
        (np.array(["2020-01-01"], "datetime64[D]"), "dtype datetime64"),
        ([(X[0], 1, "a")], r"single rows \(Tensor, int, str\), not batches: pass DataLoader"),
        ([(torch.ones(1, 4, 4), 7)], r"single rows \(Tensor, int\)"),
        ([{"x": X[0], "y": 3}], "single rows"),
        (tuple(X), r"12 arrays like the first one, of shape \(3,\), .* torch\.stack"),
        (X.split(5), r"3 arrays like the first one, of shape \(5, 3\), .* torch\.cat"),
        (tuple(FLOAT64), r"numpy\.stack; if they are batches, with numpy\.concatenate"),
    ],
)
def test_what_is_no_data_is_told_what_to_do(x: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        batches(x)
    with pytest.raises(TypeError, match=words):
        ppl_vae.evaluate(Model(), Guide(), x)


def test_held_out_data_are_called_by_their_name() -> None:
    for x, words in (("digits", "validation is a str"), ([X[:0]], "validation has no rows")):
        with pytest.raises((TypeError, ValueError), match=words):
            ppl_vae.fit(Model(), Guide(), X, validation=x)


def test_sparse_and_nested_tensors_of_other_kinds() -> None:
    with pytest.warns(UserWarning, match="beta state"):
        csr = torch.eye(3).to_sparse_csr()
    with pytest.raises(TypeError, match=r"torch\.sparse_csr\): .*\.to_dense"):
        batches(csr)
    nested = torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged)
    with pytest.raises(TypeError, match="to_padded_tensor"):
        batches(nested)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([[1.0, 2.0], [3.0]], "differ in length.*pad_sequence"),
        (MASKED, "masked values.*poutine.mask"),
        (np.array([[1e300]]), r"1e\+300, beyond the range of torch.float32"),
        (np.zeros((0, 3)), "no rows"),
        (np.array(1.0), "no rows"),
        ((FLOAT64, FLOAT64[:5]), "different numbers of rows: 12, 5"),
    ],
)
def test_values_that_cannot_be_used(x: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(x, with_labels)


def test_infinite_values_stay_and_are_found_by_the_check() -> None:
    x = FLOAT64.copy()
    x[2, 1] = math.inf
    with pytest.raises(PairError, match="infinite in 1 of the 12 rows"):
        ppl_vae.evaluate(Model(), Guide(), x)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ("a", "x gives batches of type str; expected tensors"),
        (3.0, "x gives batches of type float"),
        (torch.eye(3).to_sparse(), r"a batch of x is a sparse tensor .*to_dense"),
        (SPARSE, r"a batch of x is a scipy\.csr_matrix"),
        ((X[0], 3, "a"), "x gives single rows"),
        ({"data": X}, "a batch of x is a dict with the keys 'data'"),
        ([*X], "a batch of x is a list of 12 arrays like the first one"),
        ([[1.0, 2.0], [3.0, 4.0]], "part 0 of a batch of x is a list"),
    ],
)
def test_wrong_batches_are_told_what_to_do(batch: Any, words: str) -> None:
    class Loader:
        def __iter__(self) -> Iterator[Any]:
            yield batch

    with pytest.raises(TypeError, match=words):
        batches(Loader()).first(4)


# -- lists that may mean rows or batches -------------------------------------------------------------------


scalar = programs.normal


class ScalarGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 1.0))


class Pictures(nn.Module):
    """Rows are `(4, 4)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(16), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=self.layer(x.flatten(1)))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x.flatten(1)), 1.0).to_event(1))


def test_a_list_of_numbers_or_of_other_vectors_is_a_list_of_rows() -> None:
    assert ppl_vae.evaluate(Model(), Guide(), list(FLOAT64), num_samples=2).num_rows == 12
    assert equal(rows(list(LABELS)), LABELS)
    dicts = [{"x": row, "name": f"row {i}"} for i, row in enumerate(FLOAT64)]
    assert ppl_vae.evaluate(Model(), Guide(), dicts, num_samples=2).num_rows == 12
    assert equal(rows(dicts), *as_args(rows(list(FLOAT64))))
    both = [{"y": label, "x": row} for row, label in zip(FLOAT64, FLOAT64[:, :2], strict=True)]
    assert equal(rows(both, of_two), *as_args(rows((FLOAT64, FLOAT64[:, :2]), of_two)))


class RowByRow:
    def __iter__(self) -> Iterator[Tensor]:
        yield from X


CASES = [ppl_vae.fit, ppl_vae.evaluate, ppl_vae.check]


def refusal(call: Callable[..., Any], model: Any, guide: Any, x: Any) -> str:
    if call is ppl_vae.check:
        return str(ppl_vae.check(model, guide, x))
    with pytest.raises(PairError) as caught:
        call(model, guide, x)
    return str(caught.value)


@pytest.mark.slow(only=("evaluate",))
@pytest.mark.parametrize("call", CASES)
def test_rows_are_not_read_as_batches_of_numbers(call: Callable[..., Any]) -> None:
    """A linear layer takes a vector, and its output is broadcast over the plate: nothing would fail."""
    batches_of_numbers = list(X.flatten().split(4))
    assert call(scalar, ScalarGuide(), batches_of_numbers)
    said = refusal(call, Model(), Guide(), list(X))
    assert "site 'x': its value, of shape (3,), has no dimension of rows" in said
    assert "each taken as a batch of 3 rows: if each is a row, pass torch.stack(x)" in said
    others: list[Any] = [RowByRow(), X[0], DataLoader(X, batch_size=None)]  # type: ignore[arg-type]
    for x in others:
        said = refusal(call, Model(), Guide(), x)
        assert "it is the whole batch, which should be of shape (rows, ...)" in said


@pytest.mark.parametrize("call", CASES)
def test_a_list_read_the_other_way_is_told_how_it_was_read(call: Callable[..., Any]) -> None:
    pictures, x = Pictures(), torch.ones(9, 4, 4)
    for data, stack in ((list(x), "torch.stack"), (list(x.numpy()), "numpy.stack")):
        said = refusal(call, pictures.model, pictures.guide, data)
        assert f"each taken as a batch of 4 rows: if each is a row, pass {stack}(x)" in said
    said = refusal(call, scalar, ScalarGuide(), list(FLOAT64))
    assert "taken as 12 rows: if they are batches, pass numpy.concatenate(x)" in said
    said = refusal(call, scalar, ScalarGuide(), [{"x": row} for row in FLOAT64])
    assert "pass {k: numpy.concatenate([d[k] for d in x]) for k in x[0]}" in said
    said = refusal(call, Model(), Guide(), [{"x": row} for row in X])
    assert "each taken as a batch of 3 rows: if each is a row, pass {k: torch.stack(" in said


def test_fit_em_says_it_too() -> None:
    with pytest.raises(PairError, match=r"if each is a row, pass torch\.stack\(x\)"):
        ppl_vae.fit_em(ProbabilisticPCA((2, 3)), list(torch.ones(9, 2, 3)))


# -- every function that takes x ---------------------------------------------------------------------------

PCA = ProbabilisticPCA((3,), latent_dim=2)
QUICK: dict[str, Any] = {"seed": 0, "progress": False}


def results(found: Any) -> list[Any]:
    """All numbers of a result, row by row."""
    per_row = {name: values.tolist() for name, values in found.rows().items()}
    return [found.to_dict(), per_row]


def trained(*modules: nn.Module) -> list[Any]:
    return [tensor.tolist() for module in modules for tensor in module.state_dict().values()]


def _fit(x: Any) -> Any:
    fitted, found = train(x, validation=x, batch_size=5, max_epochs=2)
    held_out = [row["validation_elbo"] for row in fitted.history]
    return held_out, [tensor.tolist() for tensor in found.values()]


def _fit_em(x: Any) -> Any:
    models = [GaussianMixture((3,), 2) for _ in range(3)]
    for model, online, size in zip(models, (None, None, StepSize()), (None, 5, 5), strict=True):
        options: dict[str, Any] = {"online": online, "batch_size": size, **QUICK}
        ppl_vae.fit_em(model, x, max_iterations=2, **options)
    return trained(*models)


def _refit_guide(x: Any) -> Any:
    guide = Guide()
    ppl_vae.refit_guide(Model(), guide, x, max_epochs=2, **QUICK)
    return trained(guide)


def _refit_prior(x: Any) -> Any:
    torch.manual_seed(0)
    model, guide = VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2)
    return trained(ppl_vae.refit_prior(model, guide, 1.0 * (x > 0), DiagonalNormal(), **QUICK))


def _grid(x: Any) -> Any:
    grid = posterior_grid(PCA, Exact(PCA), x, size=33)
    of_guide = guide_on_grid(PCA, Exact(PCA), x, grid)
    return grid.log_density.tolist(), of_guide.tolist()


def _sample(x: Any) -> Any:
    drawn, latents = ppl_vae.sample(PCA, 20, like=x, return_latents=True, **QUICK)
    means = ppl_vae.sample(PCA, 4, like=x, given={"z": torch.ones(4, 2)}, means=True, **QUICK)
    return [values.tolist() for values in (drawn, latents["z"], means)]


def _to_arviz(x: Any) -> Any:
    data = ppl_vae.to_arviz(PCA, Exact(PCA), x, num_samples=3, num_draws=2, seed=0)
    groups = [data[group] for group in ("posterior", "observed_data")]
    return [{name: group[name].values.tolist() for name in group.data_vars} for group in groups]


def _save_run(x: Any) -> Any:
    evaluation = ppl_vae.evaluate(PCA, Exact(PCA), x, num_samples=3, **QUICK)
    with tempfile.TemporaryDirectory() as folder:
        ppl_vae.save_run(f"{folder}/run", PCA, Exact(PCA), evaluation=evaluation, rows=x)
        return ppl_vae.load_run(f"{folder}/run", PCA, Exact(PCA)).evaluation


CALLS: dict[str, Callable[[Any], Any]] = {
    "annealed_importance_sampling": lambda x: results(
        ppl_vae.annealed_importance_sampling(PCA, Exact(PCA), x, num_chains=2, num_steps=3, **QUICK)
    ),
    "bidirectional_monte_carlo": lambda x: results(
        ppl_vae.bidirectional_monte_carlo(PCA, Exact(PCA), x, num_chains=2, num_steps=3, **QUICK)
    ),
    "check": lambda x: str(ppl_vae.check(Model(), Guide(), x)),
    "diagnose": lambda x: ppl_vae.diagnose(Model(), Guide(), x, **QUICK).to_dict(),
    "evaluate": lambda x: results(ppl_vae.evaluate(Model(), Guide(), x, num_samples=3, **QUICK)),
    "fit": _fit,
    "fit_em": _fit_em,
    "inference_gaps": lambda x: results(
        ppl_vae.inference_gaps(Model(), Guide(), x, num_samples=10, max_steps=20, **QUICK)
    ),
    "refit_guide": _refit_guide,
    "refit_prior": _refit_prior,
    "to_arviz": _to_arviz,
    "save_run": _save_run,
    "posterior_grid": _grid,
    "sample": _sample,
    "encode": lambda x: _lists(ppl_vae.encode(Model(), Guide(), x, **QUICK)["z"]),
    "outliers": lambda x: ppl_vae.outliers(Model(), Guide(), x, num_samples=3, **QUICK).to_dict(),
    "reconstruct": lambda x: _lists(ppl_vae.reconstruct(Model(), Guide(), x, **QUICK)),
    "traverse": lambda x: _lists(ppl_vae.traverse(Model(), Guide(), x, 0, seed=0)),
}


@functools.cache
def of_a_tensor(name: str) -> tuple[str, bool]:
    """What a function gives for a tensor that could get a gradient, and whether it got one."""
    pyro.set_rng_seed(0)
    x = X.clone().requires_grad_()
    found = repr(CALLS[name](x))
    return found, x.grad is not None


def _lists(found: Any) -> Any:
    """An array of either library."""
    return found.tolist()


@pytest.mark.slow(only=("annealed_importance_sampling", "bidirectional_monte_carlo"))
@pytest.mark.parametrize("name", CALLS)
def test_numpy_gives_what_the_tensor_gives(name: str) -> None:
    expected, _ = of_a_tensor(name)
    pyro.set_rng_seed(0)
    assert repr(CALLS[name](FLOAT64)) == expected  # NaN equals NaN


@pytest.mark.parametrize("name", CALLS)
def test_data_get_no_gradient(name: str) -> None:
    _, got_one = of_a_tensor(name)
    assert not got_one


@pytest.mark.parametrize("made", [lambda x: DataLoader(TensorDataset(x), 5), lambda x: [x, x]])
@pytest.mark.parametrize("call", [_fit, _fit_em])
def test_data_of_a_loader_get_no_gradient(call: Any, made: Any) -> None:
    x = X.clone().requires_grad_()
    call(made(x))
    assert x.grad is None


CLASSES: list[tuple[Any, Any, str]] = [
    (
        Model(),
        AutoNormal,
        r"guide is the class AutoNormal: make an object of it, AutoNormal\(model\)",
    ),
    (Model, Guide(), r"model is the class Model: make an object of it, Model\(\.\.\.\)"),
    (Model(), "auto", "guide is a str: pass a Pyro program"),
]


@pytest.mark.parametrize(("model", "guide", "words"), CLASSES)
@pytest.mark.parametrize(
    "call",
    [
        ppl_vae.annealed_importance_sampling,
        ppl_vae.bidirectional_monte_carlo,
        ppl_vae.check,
        ppl_vae.diagnose,
        ppl_vae.evaluate,
        ppl_vae.fit,
        ppl_vae.inference_gaps,
        ppl_vae.refit_guide,
        ppl_vae.to_arviz,
        ppl_vae.reconstruct,
        lambda model, guide, x: ppl_vae.fit_em(model, x, guide=guide),
        lambda model, guide, x: ppl_vae.refit_prior(model, guide, x, DiagonalNormal()),
        lambda model, guide, x: posterior_grid(model, guide, x, size=33),
        lambda model, guide, x: ppl_vae.save_run("run", model, guide),
    ],
)
def test_programs_that_are_none(
    call: Any, model: Any, guide: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class in place of an object, above all."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=words):
        call(model, guide, X)


def test_every_public_function_of_data_is_among_them() -> None:
    public = [getattr(ppl_vae, name) for name in dir(ppl_vae)]
    functions = [f for f in public if inspect.isfunction(f)]
    taking = {f.__name__ for f in functions if "x" in inspect.signature(f).parameters}
    assert taking <= CALLS.keys()
    assert len(taking) > 8
