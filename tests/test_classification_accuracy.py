"""Classification accuracy scores: against the Bayes accuracy of class-conditional normals, and their errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from torch import Tensor

from ppl_vae import classification_accuracy_score, refit_prior, sample
from ppl_vae.guides import DeltaEncoder, MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import Autoencoder, ConditionalVAE, FullNormal, SemiSupervisedVAE
from ppl_vae.networks import MLP, Convolutional, Labels
from ppl_vae.stats import CrossedEstimate, Result, standard_error
from ppl_vae.tasks import (
    ClassificationAccuracy,
    NetworkClassifier,
    class_conditional,
    model_per_class,
    prior_per_class,
)

Labeled = tuple[Tensor, Tensor]


class Normals:
    """x ~ N(mean_y, scale_y^2) in one dimension: a generator, and data of it."""

    def __init__(self, means: list[float], scales: list[float] | None = None) -> None:
        self.means = torch.tensor(means)
        self.scales = torch.ones(len(means)) if scales is None else torch.tensor(scales)

    def __call__(self, y: Tensor) -> Tensor:
        return (self.means[y] + self.scales[y] * torch.randn(len(y)))[:, None]

    def data(self, n: int) -> Labeled:
        """n rows, as many of each class."""
        y = torch.arange(n) % len(self.means)
        return self(y), y

    def bayes(self) -> float:
        """The best accuracy of any classifier, the integral of max_y p(y) p(x | y)."""
        each = [norm(float(m), float(s)) for m, s in zip(self.means, self.scales, strict=True)]
        best = quad(lambda x: max(p.pdf(x) for p in each), -30, 30, limit=500)[0]
        return float(best) / len(each)


def score(
    generator: Any, train: Any, test: Any, classifier: Any = None, **how: Any
) -> ClassificationAccuracy:
    options: dict[str, Any] = {"seeds": 1, "progress": False, "device": "cpu"} | how
    return classification_accuracy_score(generator, train, test, classifier=classifier, **options)


def near(estimate: CrossedEstimate, truth: float, errors: float = 3.0) -> bool:
    return abs(estimate.mean - truth) < errors * estimate.standard_error


# -- the exact oracle ------------------------------------------------------------------------------------


def test_the_bayes_accuracy_of_two_normals_is_known() -> None:
    assert Normals([0.0, 3.0]).bayes() == pytest.approx(norm.cdf(1.5), abs=1e-6)
    three = (2 * norm.cdf(1.0) + 2 * norm.cdf(1.0) - 1) / 3
    assert Normals([-2.0, 0.0, 2.0]).bayes() == pytest.approx(three, abs=1e-6)


@pytest.mark.parametrize(
    ("normals", "classifier"),
    [
        (Normals([0.0, 1.0]), LogisticRegression()),
        (Normals([0.0, 3.0]), LinearDiscriminantAnalysis()),
        pytest.param(Normals([-2.0, 0.0, 2.0]), LogisticRegression(), marks=pytest.mark.slow),
        (Normals([0.0, 0.0], [1.0, 3.0]), QuadraticDiscriminantAnalysis()),
        (Normals([0.0, 2.0]), NetworkClassifier(MLP(hidden=()), num_steps=300, learning_rate=0.05)),
        pytest.param(
            Normals([0.0, 0.0], [1.0, 3.0]),
            NetworkClassifier(num_steps=200),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["d=1", "d=3", "three", "scales", "linear network", "default network"],
)
def test_the_exact_generator_reaches_the_bayes_accuracy(normals: Normals, classifier: Any) -> None:
    found = score(normals, normals.data(6000), normals.data(3000), classifier)
    assert near(found.accuracy, normals.bayes())
    assert near(found.real_accuracy, normals.bayes())
    assert found.accuracy.standard_error == pytest.approx(
        math.sqrt(normals.bayes() * (1 - normals.bayes()) / 3000), rel=0.1
    )
    # The two classifiers are nearly one, so that their difference is far better known than either.
    assert abs(found.difference.mean) < 0.02
    assert found.difference.standard_error < 0.6 * found.accuracy.standard_error


def test_rows_without_anything_of_their_label_teach_chance() -> None:
    """Which side of a line gets which label is then a matter of the draw: on average, half are right."""
    normals = Normals([0.0, 3.0])
    train, test = normals.data(200), normals.data(400)
    blind = lambda y: normals(torch.randint(2, (len(y),)))  # noqa: E731
    lda, first = LinearDiscriminantAnalysis(), None
    scores = []
    for seed in range(60):
        first = score(blind, train, test, lda, seed=seed)
        scores.append(first.accuracy.mean)
        assert first.real_accuracy.mean > 0.9
    of_draws = torch.tensor(scores)
    assert abs(of_draws.mean() - 0.5) < 3 * standard_error(of_draws)
    assert (
        of_draws.std() > 0.2
    )  # so the note says that draws of the training rows are not in the error


def test_shuffled_labels_teach_chance() -> None:
    """The nearest of ten classes is a new matter of chance for each test row."""
    normals = Normals([10.0 * c for c in range(10)])
    (x, y), test = normals.data(5000), normals.data(2000)
    found = score((x, y[torch.randperm(5000)]), (x, y), test, KNeighborsClassifier(1))
    assert near(found.accuracy, 0.1)
    assert found.real_accuracy.mean > 0.99
    assert near(found.difference, 0.1 - found.real_accuracy.mean)


def test_a_mode_that_is_left_out_costs_what_it_holds() -> None:
    """Class 0 is half at -4 and half at 4, class 1 at 0; the generator does not draw at -4."""
    mode = Normals([4.0, 0.0])

    def both(y: Tensor) -> Tensor:
        side = torch.where(torch.rand(len(y), 1) < 0.5, -1.0, 1.0)
        return torch.where(y[:, None] == 0, side, 1.0) * mode(y)

    y = torch.arange(6000) % 2
    train, test = (both(y), y), (both(y[:4000]), y[:4000])
    found = score(mode, train, test, QuadraticDiscriminantAnalysis())
    # A normal for each class: between 4 and 0, the boundary is 2; what lies below -2 counts as class 1.
    assert near(found.accuracy, 0.75 * norm.cdf(2) + 0.25 * norm.cdf(-6))
    # Real rows of class 0 have the mean 0 and the variance 17: |x| against b.
    b = math.sqrt(math.log(17) / (1 - 1 / 17))
    of_both = norm.cdf(b - 4) - norm.cdf(-b - 4)
    assert near(found.real_accuracy, (1 - of_both + norm.cdf(b) - norm.cdf(-b)) / 2)
    assert found.difference.mean < -10 * found.difference.standard_error
    zero, one = found.of_class(0), found.of_class(1)
    assert near(zero[0], 0.5 * norm.cdf(2))
    assert near(one[0], norm.cdf(2))


# -- the standard error ----------------------------------------------------------------------------------


def test_the_variance_over_rows_and_repeats_is_unbiased() -> None:
    """v_si = a_s + b_i + e_si, of known variances; taken for independent, the error would be a third of it."""
    repeats, n, of_repeats, of_rows, rest = 5, 100, 0.01, 1.0, 1.0
    truth = of_repeats / repeats + of_rows / n + rest / (repeats * n)
    squares, means, naive = [], [], []
    for _ in range(1500):
        values = math.sqrt(of_repeats) * torch.randn(repeats, 1) + torch.randn(n)
        values = values + math.sqrt(rest) * torch.randn(repeats, n)
        estimate = CrossedEstimate(values)
        squares.append(estimate.standard_error**2)
        means.append(estimate.mean)
        naive.append(float(values.var()) / values.numel())
    found = torch.tensor(squares)
    # What is cut off at 0 makes it a little too large.
    assert -3 * standard_error(found) < found.mean() - truth < 0.05 * truth
    assert torch.tensor(means).var() == pytest.approx(truth, rel=0.12)
    assert torch.tensor(naive).mean() < 0.4 * truth
    covered = (torch.tensor(means).abs() < 2 * found.sqrt()).double().mean()
    assert 0.92 < covered < 0.97


def test_a_single_repeat_or_row() -> None:
    values = torch.rand(1, 50)
    assert CrossedEstimate(values).standard_error == pytest.approx(
        float(standard_error(values[0])), rel=1e-5
    )
    # Repeats that are all the same say nothing new.
    again = CrossedEstimate(values.expand(4, 50))
    assert again.standard_error == pytest.approx(CrossedEstimate(values).standard_error)
    assert math.isnan(CrossedEstimate(torch.rand(3, 1)).standard_error)
    assert "±" not in str(CrossedEstimate(torch.rand(3, 1)))
    assert (
        CrossedEstimate(torch.ones(3, 8)).numbers() == "1.00"
    )  # all right: the error is not known to be 0


class FewRows:
    """A boundary between the means of a few rows, which the seed chooses."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def fit(self, x: Any, y: Any) -> None:
        centers = [self.random.choice(x[y == c, 0], 12).mean() for c in (0, 1)]
        self.boundary = sum(centers) / 2

    def predict(self, x: Any) -> Any:
        return (x[:, 0] > self.boundary).astype(int)


def few_rows(seed: int) -> FewRows:
    return FewRows(seed)


def test_the_stated_errors_are_those_of_other_tests_and_seeds() -> None:
    """Two standard errors cover the truth of these two training sets in about 95 % of simulated evaluations."""
    normals, off = Normals([0.0, 2.0]), Normals([0.4, 2.4])
    train, made = normals.data(400), off.data(400)

    def truth(x: Tensor, y: Tensor) -> float:
        shares = []
        for seed in range(10_000, 11_000):
            few = FewRows(seed)
            few.fit(x.numpy(), y.numpy())
            shares.append((norm.cdf(few.boundary) + norm.cdf(2 - few.boundary)) / 2)
        return float(np.mean(shares))

    truths = truth(*made), truth(*train)
    inside = []
    for i in range(200):
        found = score(made, train, normals.data(300), few_rows, seeds=5, seed=5 * i)
        inside.append(
            [
                near(found.accuracy, truths[0], 2),
                near(found.real_accuracy, truths[1], 2),
                near(found.difference, truths[0] - truths[1], 2),
            ]
        )
    covered = torch.tensor(inside).double().mean(0)
    assert bool((covered > 0.91).all()), covered
    assert bool((covered < 0.99).all()), covered


# -- how it is done --------------------------------------------------------------------------------------

NORMALS = Normals([0.0, 3.0])


@pytest.fixture
def sets() -> tuple[Labeled, Labeled]:
    return NORMALS.data(120), NORMALS.data(80)


def test_rows_are_generated_once_for_the_labels_of_train(sets: tuple[Labeled, Labeled]) -> None:
    train, test = sets
    calls = []

    def generator(y: Tensor) -> Tensor:
        calls.append(y)
        return NORMALS(y)

    found = score(generator, train, test, LinearDiscriminantAnalysis(), seeds=3)
    assert len(calls) == 1
    assert torch.equal(calls[0], train[1])
    assert found.counts.tolist() == [60, 60]
    assert "all seeds gave the same" in found.notes[-1]


def test_a_seed_says_it_all(sets: tuple[Labeled, Labeled]) -> None:
    small = NetworkClassifier(MLP(hidden=(4,)), num_steps=5)
    before = torch.get_rng_state()
    found, again, other = (score(NORMALS, *sets, small, seeds=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found.correct, again.correct)
    assert torch.equal(found.real_correct, again.real_correct)
    assert not torch.equal(found.correct, other.correct)
    # The seeds that two results share have the same classifiers of the real rows.
    assert torch.equal(found.real_correct[1:], other.real_correct[:2])
    assert not torch.equal(found.real_correct[0], found.real_correct[1])


def test_generated_rows_are_not_the_data_of_the_same_seed() -> None:
    torch.manual_seed(3)
    train = NORMALS.data(50)
    rows = []

    def generator(y: Tensor) -> Tensor:
        rows.append(NORMALS(y))
        return rows[0]

    score(generator, train, train, few_rows, seed=3)
    assert not torch.equal(rows[0], train[0])


def test_test_rows_are_for_nothing_but_the_accuracy(sets: tuple[Labeled, Labeled]) -> None:
    train, (x, y) = sets
    small = NetworkClassifier(MLP(hidden=(4,)), num_steps=5)
    found = score(NORMALS, train, (x, y), small, seeds=2)
    fewer = score(NORMALS, train, (x[:11], y[:11]), small, seeds=2)
    assert torch.equal(found.correct[:, :11], fewer.correct)
    assert torch.equal(found.real_correct[:, :11], fewer.real_correct)


def test_pictures_get_convolutions_and_the_length_is_stated() -> None:
    y = torch.arange(60) % 3
    x = torch.rand(60, 1, 8, 8) + y[:, None, None, None]
    found = score((x, y), (x, y), (x, y), NetworkClassifier(num_steps=30, batch_size=16))
    assert found.classifier == (
        "Convolutional(channels=(32, 64, 128), hidden=256), 30 steps of 16 rows (10 epochs)"
    )
    assert ("classifier", found.classifier) in found.lines()
    assert found.accuracy.mean == 1
    assert "all test rows are right, which leaves no spread: of other rows, up to 5.0%" in str(
        found
    )
    assert found.difference.mean == 0  # the same rows
    small = Convolutional((4,), hidden=8, batch_norm=False)
    network = NetworkClassifier(small, num_steps=1)
    assert (
        "hidden=8, batch_norm=False), 1 steps of 60 rows (1 epochs)"
        in score((x, y), (x, y), (x, y), network).classifier
    )


def test_any_numbers_are_taken() -> None:
    """Bytes, half precision, numpy and lists, as models and files have them."""
    y = np.arange(40) % 2
    x = np.random.default_rng(0).integers(0, 100, (40, 2)) + 100 * y[:, None]
    small = NetworkClassifier(MLP(hidden=()), num_steps=60, learning_rate=0.1)
    for rows in (x.astype("uint8"), torch.as_tensor(x).half(), x.tolist(), x / 7):
        found = score((rows, y), (rows, y.tolist()), (rows, y.astype("float64")), small)
        assert found.accuracy.mean > 0.9
        assert found.difference.mean == 0
    assert score((x, y), (x, y), (x, y), LogisticRegression()).accuracy.mean > 0.9


def test_estimators_are_copied_and_get_the_seed(sets: tuple[Labeled, Labeled]) -> None:
    forest = RandomForestClassifier(n_estimators=2, max_depth=1, random_state=3)
    found = score(NORMALS, *sets, forest, seeds=3)
    again = score(NORMALS, *sets, forest, seeds=3)
    assert torch.equal(found.correct, again.correct)
    assert not torch.equal(found.correct[0], found.correct[1])
    assert not hasattr(forest, "estimators_")
    assert found.classifier == "RandomForestClassifier(max_depth=1, n_estimators=2, random_state=3)"
    y = torch.arange(40) % 2
    x = torch.randn(40, 1, 5, 5) + 3 * y[:, None, None, None]  # read as rows of 25 numbers
    chain = make_pipeline(PCA(2, svd_solver="randomized"), LogisticRegression())
    assert score((x, y), (x, y), (x, y), chain).accuracy.mean > 0.9


def test_the_reference_is_not_trained_again(sets: tuple[Labeled, Labeled]) -> None:
    train, test = sets
    trained = []

    def counted(seed: int) -> FewRows:
        trained.append(seed)
        return FewRows(seed)

    first = score(NORMALS, train, test, counted, seeds=2, seed=7)
    assert trained == [7, 8, 7, 8]
    mirrored = (-train[0], train[1])
    second = score(mirrored, train, test, counted, seeds=2, seed=7, reference=first)
    assert trained[4:] == [7, 8]
    assert torch.equal(second.real_correct, first.real_correct)
    assert second.accuracy.mean < 0.7 < second.real_accuracy.mean
    with pytest.raises(
        ValueError, match=r"^reference is a result of other settings \(\(7, 8\) .*here \(8, 9"
    ):
        score(NORMALS, train, test, counted, seeds=2, seed=8, reference=first)
    with pytest.raises(
        ValueError, match=r"^reference is a result of other data: give one with the same"
    ):
        score(NORMALS, test, test, counted, seeds=2, seed=7, reference=first)


def test_it_prints_itself_and_is_written_as_json(sets: tuple[Labeled, Labeled]) -> None:
    found = score(NORMALS, *sets, few_rows, seeds=3)
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["num_rows"] == 80 == found.num_rows
    assert numbers["num_training_rows"] == 120
    assert numbers["accuracy"]["mean"] == pytest.approx(np.mean(numbers["by_seed"]))
    of_classes = [each["mean"] for each in numbers["by_class"]]
    assert numbers["accuracy"]["mean"] == pytest.approx(np.mean(of_classes))
    difference = numbers["accuracy"]["mean"] - numbers["real_accuracy"]["mean"]
    assert numbers["difference"]["mean"] == pytest.approx(difference)
    assert numbers["notes"][0].startswith("the errors are over test rows and seeds")
    rows = found.rows()
    assert {name: each.shape for name, each in rows.items()} == dict.fromkeys(
        ("label", "accuracy", "real_accuracy"), (80,)
    )
    assert rows["accuracy"].mean() == pytest.approx(numbers["accuracy"]["mean"])
    printed = str(found)
    assert f"accuracy                  {100 * found.accuracy.mean:.2f} ± " in printed
    assert printed.splitlines()[0].split() == [
        "class",
        "test",
        "rows",
        "generated,",
        "%",
        "real,",
        "%",
        "difference",
    ]
    assert "<table" in found._repr_html_()
    for method in ("__str__", "_repr_html_", "footnotes", "warnings", "to_dict"):
        assert getattr(ClassificationAccuracy, method) is getattr(Result, method), method
    assert repr(found).startswith("ClassificationAccuracy(accuracy: ")


def test_many_classes_print_those_that_lose_most() -> None:
    normals = Normals([5.0 * c for c in range(30)])
    train, (x, y) = normals.data(300), normals.data(300)

    def swapped(labels: Tensor) -> Tensor:
        return normals(torch.where(labels == 17, 18, labels))

    found = score(swapped, train, (x, y), KNeighborsClassifier(1))
    table = found.table()
    assert len(table) == 21
    assert table[1][0] == "17"
    without = score(swapped, train, (x[y != 4], y[y != 4]), KNeighborsClassifier(1))
    assert "No test row is of class 4." in str(without)
    assert without.to_dict()["by_class"][4] is None
    with pytest.raises(
        ValueError, match=r"^no test row is of class 4: expected one of 0, 1, 2, 3, 5"
    ):
        without.of_class(4)


# -- generators of pairs ---------------------------------------------------------------------------------


def planted(model: Any) -> Any:
    """Class c has the mean c in each number, whatever z is."""
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        layer = model.decoder.net[-1]
        layer.weight[:, -3:] = torch.arange(3.0)  # the last inputs are the one-hot label
    return model


def test_a_pair_that_is_given_labels_draws_rows_of_each() -> None:
    linear: dict[str, Any] = {"network": MLP(hidden=()), "likelihood": Gaussian(0.1)}
    model = planted(ConditionalVAE((4,), 2, context=Labels(3), **linear))
    guide = MeanField((4,), 2, MLP(hidden=()), context=Labels(3))
    y = torch.arange(90) % 3
    real = y[:, None] + 0.1 * torch.randn(90, 4)
    for generator in ((model, guide), class_conditional(model)):
        found = score(generator, (real, y), (real, y), LinearDiscriminantAnalysis())
        assert found.accuracy.mean == 1
    torch.manual_seed(0)
    draws = class_conditional(model)(y)
    torch.manual_seed(0)
    assert torch.equal(draws, sample(model, 90, given={"c": y}))
    assert (class_conditional(model, means=True)(y) - y[:, None]).abs().max() < 1e-5
    half = planted(SemiSupervisedVAE((4,), 2, classes=3, **linear))
    assert (class_conditional(half, name="y", means=True)(y) - y[:, None]).abs().max() < 1e-5
    with pytest.raises(TypeError, match=r"takes labels, which may be left out, .*, name='y'\)"):
        score((half, guide), (real, y), (real, y))


def test_a_pair_of_functions_is_called_with_rows_of_train() -> None:
    def model(x: Tensor, kind: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Normal((5.0 * kind + z)[:, None], 0.1).to_event(1), obs=x)

    def guide(x: Tensor, kind: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0.0, 0.1))

    y = torch.arange(40) % 2
    real = 5.0 * y[:, None] + torch.randn(40, 1)
    assert score((model, guide), (real, y), (real, y), LogisticRegression()).accuracy.mean == 1


def test_a_model_for_each_class_draws_its_rows() -> None:
    def of(center: float) -> Callable[[Tensor], None]:
        def model(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 0.01))
                pyro.sample("x", dist.Normal((center + z)[:, None], 0.01).to_event(1), obs=x)

        return model

    generator = model_per_class([of(0.0), of(5.0), of(9.0)], like=torch.zeros(2, 1))
    y = torch.tensor([2, 0, 2, 1, 0])
    assert (generator(y)[:, 0] - torch.tensor([9.0, 0.0, 9.0, 5.0, 0.0])).abs().max() < 0.2
    with pytest.raises(
        ValueError, match="models has one for each label from 0 to 2, but label 3 is wanted"
    ):
        generator(torch.tensor([3]))
    with pytest.raises(
        ValueError, match="models must hold one model for each of two classes or more, got 1"
    ):
        model_per_class([of(0.0)])
    with pytest.raises(
        TypeError, match=r"takes rows and labels, model\(x, y\), but the function model .* takes x"
    ):
        class_conditional(of(0.0))


def plane(classes: int) -> tuple[Labeled, Tensor, Tensor]:
    """Rows in the plane whose classes have exactly these means and covariances."""
    generator = torch.Generator().manual_seed(0)
    n = 1500
    y = torch.arange(classes * n) % classes
    x = torch.empty(len(y), 2, dtype=torch.float64)
    means = 3.0 * torch.arange(classes).double()[:, None].expand(classes, 2)
    root = torch.tensor([[1.5, 0.0], [1.2, 0.4]], dtype=torch.float64)
    for k in range(classes):
        white = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        white = white - white.mean(0)
        spread = torch.linalg.cholesky(torch.cov(white.T, correction=0))
        x[y == k] = means[k] + white @ torch.linalg.inv(spread).T @ root.T
    return (x.float(), y), means, root @ root.T


def exact_codes() -> tuple[Any, Any]:
    """A pair that knows no labels, and loses nothing: z is x in other coordinates."""
    turn = torch.tensor([[2.0, 1.0], [0.0, -0.5]])
    model: Any = Autoencoder((2,), 2, linear=True)
    guide = DeltaEncoder((2,), 2, linear=True)
    with torch.no_grad():
        guide.head.weight.copy_(turn)
        model.decoder.net[0].weight.copy_(torch.linalg.inv(turn))
        guide.head.bias.zero_()
        model.decoder.net[0].bias.zero_()
    return model, guide


@pytest.mark.slow
def test_a_density_of_codes_for_each_class_draws_the_normals_of_the_classes() -> None:
    train, means, covariance = plane(3)
    y = torch.arange(30_000) % 3
    for of_means in (True, False):
        generator = prior_per_class(*exact_codes(), train, FullNormal(), means=of_means, seed=0)
        torch.manual_seed(1)
        drawn = generator(y).double()
        wanted = covariance + (0.0 if of_means else 1.0) * torch.eye(2)
        for k in range(3):
            own = drawn[y == k]
            # Of 10,000 draws: five standard errors of means, and of variances, 5 * sqrt(2 / n).
            error = (wanted.diag() / len(own)).sqrt()
            assert bool(((own.mean(0) - means[k]).abs() < 5 * error).all())
            torch.testing.assert_close(torch.cov(own.T), wanted, rtol=0.071, atol=0)


def test_draws_of_a_density_for_each_class_reach_the_bayes_accuracy() -> None:
    """Phi of half the distance of two normals with one covariance, in its metric; chance for one density."""
    train, means, covariance = plane(2)
    apart = means[1] - means[0]
    truth = float(norm.cdf(float((apart @ torch.linalg.solve(covariance, apart)).sqrt()) / 2))
    y = torch.arange(3000) % 2
    white = torch.randn(3000, 2, generator=torch.Generator().manual_seed(5)).double()
    test = (means[y] + white @ torch.linalg.cholesky(covariance).T).float(), y
    classifier = LinearDiscriminantAnalysis()
    generator = prior_per_class(*exact_codes(), train, FullNormal(), means=True, seed=0)
    found = score(generator, train, test, classifier)
    assert near(found.accuracy, truth)
    assert abs(found.difference.mean) < 0.02
    one = refit_prior(*exact_codes(), train[0], FullNormal(), seed=0)
    alike = score(model_per_class([one, one], means=True), train, test, classifier)
    assert alike.accuracy.mean < truth - 0.1


def test_a_class_without_rows_has_no_density() -> None:
    (x, y), _, _ = plane(3)
    with pytest.raises(ValueError, match="no row is of class 1, but labels reach to 2"):
        prior_per_class(*exact_codes(), (x[y != 1], y[y != 1]), FullNormal())
    with pytest.raises(TypeError, match="train must be rows and their labels"):
        prior_per_class(*exact_codes(), x, FullNormal())
    # Rows whose label is hidden do not count.
    hidden = prior_per_class(*exact_codes(), (x, y.where(y < 2, -1)), FullNormal(), means=True)
    with pytest.raises(ValueError, match="models has one for each label from 0 to 1"):
        hidden(torch.tensor([2]))


# -- doubts and errors -----------------------------------------------------------------------------------


def test_what_is_doubtful_is_said(sets: tuple[Labeled, Labeled]) -> None:
    (x, y), test = sets
    found = score((255 * x, y), (x, y), test, LinearDiscriminantAnalysis())
    assert found.warnings[0].startswith("the numbers of generated rows reach to ")
    assert found.warnings[1].startswith("with one seed, nothing is known of how much the training")
    blind = (torch.randn(120, 1), y)
    weak = score(NORMALS, blind, test, LinearDiscriminantAnalysis(), seeds=2)
    assert "that is too little for a score" in weak.warnings[0]
    good = score(NORMALS, (x, y), test, LinearDiscriminantAnalysis(), seeds=2)
    assert good.warnings == ()


X, Y = torch.randn(20, 3), torch.arange(20) % 2
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no generator": (
        lambda: score(3, (X, Y), (X, Y)),
        TypeError,
        "generator must be a function of labels, a trained pair (model, guide) of rows and labels, or "
        "generated (rows, labels), got 3",
    ),
    "no labels": (
        lambda: score(NORMALS, X, (X, Y)),
        TypeError,
        "train must be rows and their labels, (x, y), got an object of Tensor: with load_data, ask for "
        "labels=True",
    ),
    "labels of other rows": (
        lambda: score(NORMALS, (X, Y), (X, Y[:4])),
        ValueError,
        "test: 20 rows came with labels of shape (4,), expected one label for each row, (20,)",
    ),
    "one-hot labels": (
        lambda: score(NORMALS, (X, torch.eye(2)[Y]), (X, Y)),
        ValueError,
        "write y.argmax(-1) for one-hot vectors",
    ),
    "half labels": (
        lambda: score(NORMALS, (X, Y + 0.5), (X, Y)),
        ValueError,
        "train: labels must be whole numbers, but one is 0.5: number the labels anew",
    ),
    "hidden labels": (
        lambda: score(NORMALS, (X, Y - 1), (X, Y)),
        ValueError,
        "train: 10 labels are hidden (-1): leave such rows out, as in x[y >= 0], y[y >= 0]",
    ),
    "negative labels": (
        lambda: score(NORMALS, (X, Y - 4), (X, Y)),
        ValueError,
        "train: a label is -4: leave",
    ),
    "texts": (
        lambda: score(NORMALS, (X, np.array(["a", "b"] * 10)), (X, Y)),
        TypeError,
        "numpy.unique(train[1], return_inverse=True)",
    ),
    "a class is missing": (
        lambda: score(NORMALS, (X, 2 * Y), (X, Y)),
        ValueError,
        "train: no row is of class 1, but labels reach to 2: give rows of each class, or number the labels "
        "anew",
    ),
    "one class": (
        lambda: score(NORMALS, (X, 0 * Y), (X, Y)),
        ValueError,
        "train: all rows are of class 0, so that there is nothing to tell apart",
    ),
    "a class of the test alone": (
        lambda: score(NORMALS, (X, Y), (X, Y + 1)),
        ValueError,
        "test: a row has the label 2, but those of train are 0 to 1",
    ),
    "other rows in the test": (
        lambda: score(NORMALS, (X, Y), (X[:, :2], Y)),
        ValueError,
        "test: rows have the shape (2,), expected (3,), that of a row of train",
    ),
    "NaN in train": (
        lambda: score(NORMALS, (X.clone().fill_(math.nan), Y), (X, Y)),
        ValueError,
        "train: 20 of 20 rows hold NaN or infinite numbers, the first of them row 0, of label 0",
    ),
    "no rows": (
        lambda: score(NORMALS, (X, Y), (X[:0], Y[:0])),
        ValueError,
        "test: expected rows of shape (n, numbers)",
    ),
    "numbers, no rows": (
        lambda: score(NORMALS, (X[:, 0], Y), (X, Y)),
        ValueError,
        "write x[:, None] for one number per row",
    ),
    "NaN in generated rows": (
        lambda: score(lambda y: X.masked_fill(Y[:, None] == 1, math.inf), (X, Y), (X, Y)),
        ValueError,
        "generator: 10 of 20 rows hold NaN or infinite numbers, the first of them row 1, of label 1: a model "
        "that has diverged draws such rows",
    ),
    "generated rows are flat": (
        lambda: score(lambda y: X, (X.reshape(20, 1, 1, 3), Y), (X.reshape(20, 1, 1, 3), Y)),
        ValueError,
        "generator: generated rows have the shape (3,), expected (1, 1, 3), that of a row of train: write "
        "x.reshape(-1, 1, 1, 3)",
    ),
    "too few generated rows": (
        lambda: score(lambda y: X[:5], (X, Y), (X, Y)),
        ValueError,
        "generator: 20 labels were given, and 5 rows came: expected one row for each label, (20, 3)",
    ),
    "nothing generated": (
        lambda: score(lambda y: None, (X, Y), (X, Y)),
        TypeError,
        "generator",
    ),
    "a class is not generated": (
        lambda: score((X, 0 * Y), (X, Y), (X, Y)),
        ValueError,
        "generator: no generated row is of class 1: the sets that are compared have the same number of rows of "
        "each class, so generate a row for each label of train, generator=(rows, train[1])",
    ),
    "other class counts": (
        lambda: score((X[:18], Y[:18]), (X, Y), (X, Y)),
        ValueError,
        "generator: 9 generated rows are of class 0, where train has 10: the sets",
    ),
    "another class is generated": (
        lambda: score((X, 2 * Y), (X, Y), (X, Y)),
        ValueError,
        "generator: a generated row has the label 2, but those of train are 0 to 1",
    ),
    "a class of classifiers": (
        lambda: score(NORMALS, (X, Y), (X, Y), LogisticRegression),
        TypeError,
        "classifier is the class LogisticRegression: give a NetworkClassifier, an estimator",
    ),
    "no classifier": (
        lambda: score(NORMALS, (X, Y), (X, Y), "cnn"),
        TypeError,
        "classifier must be a NetworkClassifier, an estimator with fit and predict such as "
        "LogisticRegression(), or a function of a seed that makes one, got the string 'cnn'",
    ),
    "a function of no classifier": (
        lambda: score((X, Y), (X, Y), (X, Y), lambda seed: seed),
        TypeError,
        "classifier: the function made 0, which has no fit and predict",
    ),
    "probabilities": (
        lambda: score((X, Y), (X, Y), (X, Y), lambda seed: Probabilities()),
        ValueError,
        "classifier: predict gave an array of shape (20, 2), expected one label for each row, (20,): predict "
        "must give labels, as argmax(-1) of probabilities",
    ),
    "no seeds": (
        lambda: score(NORMALS, (X, Y), (X, Y), seeds=0),
        ValueError,
        "seeds must be at least 1",
    ),
    "no seed": (
        lambda: score(NORMALS, (X, Y), (X, Y), seed=None),
        TypeError,
        "seed must be a whole number, got None",
    ),
    "no device": (
        lambda: score(NORMALS, (X, Y), (X, Y), device="tpu"),
        ValueError,
        "device='tpu': expected",
    ),
    "no reference": (
        lambda: score(NORMALS, (X, Y), (X, Y), reference=0.9),
        TypeError,
        "reference must be what classification_accuracy_score has returned, got 0.9",
    ),
    "no network": (
        lambda: NetworkClassifier("mlp"),  # type: ignore[arg-type]
        TypeError,
        "NetworkClassifier.network must be a network such as MLP(), got the string 'mlp'",
    ),
    "no steps": (
        lambda: NetworkClassifier(num_steps=0),
        ValueError,
        "NetworkClassifier.num_steps must be at least 1, got 0",
    ),
    "a negative rate": (
        lambda: NetworkClassifier(learning_rate=-1.0),
        ValueError,
        "NetworkClassifier.learning_rate must be finite and at least 0, got -1.0",
    ),
}


class Probabilities:
    def fit(self, x: Any, y: Any) -> None:
        pass

    def predict(self, x: Any) -> Any:
        return np.full((len(x), 2), 0.5)


@pytest.mark.parametrize("case", BAD)
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = BAD[case]
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
