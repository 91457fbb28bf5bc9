"""Labels of other dtypes, texts, and labels out of range: they work, or are refused with what to type."""

from __future__ import annotations

import re
from typing import Any

import numpy
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyro
import pyro.distributions as dist
import pytest
import torch
from labelled import CLASSES, LINEAR, D, linear_conditional, rows, semi_supervised
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae import encode, evaluate, fit, sample
from ppl_vae.distributions import Revealed
from ppl_vae.guides import MeanField
from ppl_vae.networks import Attributes, Labels
from ppl_vae.pairs import PairError


def pair(kind: str) -> tuple[Any, Any]:
    if kind == "semi-supervised":
        return semi_supervised()
    context = Labels(CLASSES)
    return linear_conditional(context), MeanField((D,), 2, LINEAR, context=context)


def elbo(programs: tuple[Any, Any], x: Any) -> Tensor:
    return evaluate(*programs, x, num_samples=5, seed=0, method="guide").elbo.values


UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.filterwarnings("ignore:the 30 of 30 rows with a label do not train the classifier")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(
            *(kind, dtype),
            marks=pytest.mark.slow if kind == "semi-supervised" and dtype in UNSIGNED[1:] else (),
        )
        for kind in ("conditional", "semi-supervised")
        for dtype in (*UNSIGNED, torch.int8, torch.float32)
    ],
    ids=str,
)
def test_labels_of_any_dtype_are_those_of_int64(dtype: torch.dtype, kind: str) -> None:
    x, y = rows()
    wanted = elbo(pair(kind), (x, y))
    torch.testing.assert_close(elbo(pair(kind), (x, y.to(dtype))), wanted)
    as_numpy = y.numpy().astype(str(dtype).removeprefix("torch."))
    torch.testing.assert_close(elbo(pair(kind), (x.numpy(), as_numpy)), wanted)
    fit(*pair(kind), (x, y.to(dtype)), max_epochs=1, batch_size=16)
    batches = DataLoader(TensorDataset(x, y.to(dtype)), batch_size=16)
    torch.testing.assert_close(elbo(pair(kind), batches), wanted, atol=3.0, rtol=0)


def test_labels_of_uint8_are_revealed_as_others_are() -> None:
    revealed = Revealed(torch.tensor([0, 1, 255]), 256)
    labels = torch.tensor([0, 2, 255], dtype=torch.uint8)
    assert revealed.log_prob(labels).tolist() == [0.0, -torch.inf, 0.0]
    assert bool(revealed.support.check(labels).all())
    assert Revealed(torch.tensor([0, 1, 2]), 3).log_prob(labels).tolist() == [
        0.0,
        -torch.inf,
        -torch.inf,
    ]


def test_hidden_labels_of_uint8_are_refused_with_what_to_type() -> None:
    """-1 is 255 there. What the message says to type is typed here."""
    x, y = rows()
    y[::2] = -1
    labels: Any = y.to(torch.uint8)
    with pytest.raises(PairError, match=r"argument 'labels'.* a hidden label is -1") as raised:
        elbo(semi_supervised(), (x, labels))
    of_torch, of_numpy = re.findall(r"pass (.*?), or in numpy (.*)$", str(raised.value))[0]
    assert torch.equal(eval(of_torch, {}, {"labels": labels}), y)
    found = eval(of_numpy, {"numpy": numpy}, {"labels": labels.numpy()})
    torch.testing.assert_close(
        elbo(semi_supervised(), (x, torch.as_tensor(found))), elbo(semi_supervised(), (x, y))
    )
    with pytest.raises(PairError, match="a hidden label is -1"):
        fit(*semi_supervised(), (x, labels), max_epochs=1)


def test_data_of_a_dtype_without_arithmetic_are_refused() -> None:
    x = torch.ones(4, 2, dtype=torch.uint16)
    with pytest.raises(
        TypeError, match=r"x\[0\] is a tensor of dtype torch.uint16, .* pass x\[0\].float\(\)"
    ):
        elbo(pair("conditional"), (x, torch.zeros(4)))


TEXTS: list[Any] = [
    np.array(["dog", "cat", "emu"] * 10),
    np.array(["dog", "cat", "emu"] * 10, dtype=object),
    pd.Series(["dog", "cat", "emu"] * 10),
    ["dog", "cat", "emu"] * 10,
    np.array(["2", "0", "1"] * 10),
]


@pytest.mark.parametrize("texts", TEXTS, ids=["<U3", "object", "pandas", "list", "digits"])
def test_what_is_said_of_texts_can_be_typed(texts: Any) -> None:
    """As labels of animals, `astype('float32')` was the advice, which fails."""
    data = rows()[0].numpy()
    x = (data, texts)
    with pytest.raises(TypeError, match=r"numbers of it|labels are numbers") as raised:
        elbo(pair("conditional"), x)
    typed = re.search(r"as in (torch\.as_tensor\(.*\))(?:, which|$)", str(raised.value))
    assert typed is not None, str(raised.value)
    labels = eval(typed[1], {"torch": torch, "numpy": numpy}, {"x": x})
    names = {"dog": 1, "cat": 0, "emu": 2}
    assert labels.tolist() == [names.get(text) or int(names.get(text, text)) for text in texts]
    assert len(elbo(pair("conditional"), (data, labels))) == 30


def test_texts_are_not_dropped_without_a_word() -> None:
    """In a list they are parts that no pair needs, such as names of rows, but they may be labels."""
    x = rows()[0]
    with pytest.warns(
        UserWarning, match=r"x\[1\] is a list of texts .* argument 'labels' gets nothing"
    ):
        elbo(semi_supervised(), (x, ["a", "b", "c"] * 10))
    with pytest.raises(
        TypeError, match=r"x\['labels'\] is a list of texts, .*numpy.unique\(x\['labels'\]"
    ):
        elbo(semi_supervised(), {"x": x, "labels": ["a", "b", "c"] * 10})


class Means(nn.Module):
    """p(x | label) of a user: rows of a table, or of an embedding, selected by labels."""

    def __init__(self, embedded: bool = False) -> None:
        super().__init__()
        self.embedded = embedded
        self.table = nn.Embedding(CLASSES, D)

    def forward(self, x: Tensor, labels: Tensor) -> None:
        loc = self.table(labels) if self.embedded else self.table.weight[labels]
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 2)

    def forward(self, x: Tensor, labels: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x), 1.0).to_event(1))


@pytest.mark.parametrize("row", [5, 250])
@pytest.mark.parametrize("embedded", [False, True], ids=["index", "embedding"])
def test_a_label_that_selects_nothing_is_named(embedded: bool, row: int) -> None:
    """In a pair without any class of ours; on the first rows and on later ones."""
    model, guide = Means(embedded), Encoder()
    x, labels = torch.randn(300, D), torch.arange(300) % CLASSES
    wrong = labels.clone()
    wrong[row] = 7
    said = (
        r"argument 'labels' reaches from 0 to 7 \(7 in row {}, counted from 0\), .* from fewer"
        if embedded
        else r"argument 'labels' is 7 in row {} \(counted from 0\), .* from 3: expected 0 to 2"
    )
    in_row = said.format(row)
    with pytest.raises(PairError, match=in_row):
        evaluate(model, guide, (x, wrong), num_samples=2)
    with pytest.raises(PairError, match=in_row):
        encode(model, guide, (x, wrong))
    anywhere = said.format(r"\d+")
    with pytest.raises(PairError, match=anywhere):
        fit(model, guide, (x, wrong), max_epochs=1)
    with pytest.raises(PairError, match=f"validation: .*{anywhere}"):
        fit(model, guide, (x, labels), validation=(x, wrong), max_epochs=1)
    loader = DataLoader(TensorDataset(x, wrong), batch_size=50)
    with pytest.raises(PairError, match=anywhere):
        evaluate(model, guide, loader, num_samples=2)
    with pytest.raises(PairError, match=anywhere):
        fit(model, guide, loader, max_epochs=1)
    some = torch.tensor([1, 9])
    with pytest.raises(
        PairError, match=anywhere.replace("7", "9").replace("from 0 to 9", "from 1 to 9")
    ):
        sample(model, 2, like=(x, labels), given={"labels": some})


def test_other_errors_of_indices_are_as_they_were() -> None:
    class Broken(Means):
        def forward(self, x: Tensor, labels: Tensor) -> None:
            self.table.weight[torch.tensor([11])]

    x, labels = torch.randn(5, D), torch.zeros(5, dtype=torch.long)
    with pytest.raises(PairError, match=r"index 11 is out of bounds .* size 3$"):
        evaluate(Broken(), Encoder(), (x, labels), num_samples=2)


def test_what_was_given_is_named_and_not_the_site() -> None:
    x, y = rows()
    model = linear_conditional(Labels(CLASSES))
    for like in ((x, y), None):
        with pytest.raises(
            PairError, match=r"(given\['c'\] holds 12|argument 'c').*integers from 0 to 2"
        ):
            sample(model, 2, like=like, given={"c": torch.tensor([12, 1])})
    with pytest.raises(PairError, match=r"given\['y'\] holds 12: expected integers from 0 to 2"):
        sample(semi_supervised()[0], 2, given={"y": torch.tensor([12, 1])})
    with pytest.raises(TypeError, match=r"numpy\.unique\(given\['c'\], return_inverse=True\)"):
        sample(model, 2, given={"c": ["a", "b"]})
    y[3] = -1
    with pytest.raises(PairError, match=r"argument 'c'.* needs the label of every row: leave out"):
        elbo(pair("conditional"), (x, y))
    c = torch.full((30, 2), torch.nan)
    real = linear_conditional(Attributes(2)), MeanField((D,), 2, LINEAR, context=Attributes(2))
    with pytest.raises(PairError, match="the values of argument 'c' are NaN"):
        elbo(real, (x, c))
