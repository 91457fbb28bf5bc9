"""The exact ELBO of discrete latents with many elements, in programs of strangers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import check, evaluate, fit
from ppl_vae.checks import PairWarning
from ppl_vae.guides import Exact
from ppl_vae.models import ScanLineSegments
from ppl_vae.networks import UNet
from ppl_vae.objectives import (
    ELBO,
    ElementwiseELBO,
    EnumELBO,
    GumbelSoftmaxELBO,
    Objective,
    ScoreFunctionELBO,
    StraightThroughELBO,
    TraceELBO,
)
from ppl_vae.pairs import (
    Pair,
    PairError,
    elements_of,
    expected_value,
    find_layout,
    kl_between,
    shared,
    sharing_work,
)

N, M = 4, 5  # rows, elements of a row
LEVELS = torch.tensor([-1.0, 0.5, 2.0]).double()


class Stranger(nn.Module):
    """A latent of M elements, and what a subclass says of the data."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.logits = nn.Parameter(torch.randn(M, 3).double())
        self.noise = nn.Parameter(torch.tensor(0.3).double())

    def latent(self) -> Any:
        if self.kind == "Bernoulli":
            return dist.Bernoulli(logits=self.logits[:, 0]).to_event(1)
        return dist.Categorical(logits=self.logits).to_event(1)

    def level(self, z: Tensor) -> Tensor:
        return z.double() if self.kind == "Bernoulli" else LEVELS[z.long()]

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", self.latent())
            of_data = dist.Normal(self.level(z).unsqueeze(-1), self.noise.exp())
            pyro.sample("values", of_data.expand([*z.shape, 2]).to_event(2), obs=x)


class Together(Stranger):
    """The data depend on the sum of the elements: no element can be taken alone."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", self.latent())
            total = self.level(z).sum(-1)[..., None, None]
            of_data = dist.Normal(total, self.noise.exp())
            pyro.sample("values", of_data.expand([*z.shape, 2]).to_event(2), obs=x)


class Neighbors(Stranger):
    """Each number of the data depends on its own element and on the one before."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", self.latent())
            level = self.level(z)
            mean = (level + level.roll(1, -1)).unsqueeze(-1).expand(*z.shape, 2)
            pyro.sample("values", dist.Normal(mean, self.noise.exp()).to_event(2), obs=x)


class Masked(Stranger):
    """Some elements are left out."""

    def forward(self, x: Tensor) -> None:
        seen: Any = torch.arange(len(x)) > 0
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=seen):
            z = pyro.sample("code", self.latent())
            of_data = dist.Normal(self.level(z).unsqueeze(-1), self.noise.exp())
            pyro.sample("values", of_data.expand([*z.shape, 2]).to_event(2), obs=x)


class Encoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.net = nn.Linear(2, 3).double()

    def q(self, x: Tensor) -> Any:
        logits = self.net(x)
        if self.kind == "Bernoulli":
            return dist.Bernoulli(logits=logits[..., 0]).to_event(1)
        return dist.Categorical(logits=logits).to_event(1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("code", self.q(x))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(N, M, 2, generator=torch.Generator().manual_seed(3)).double()


def resolved(model: nn.Module, guide: nn.Module, x: Tensor) -> tuple[Pair, Objective]:
    pair = Pair(model, guide)
    with pair.scope():
        return pair, ELBO().resolve(pair, x)


@pytest.mark.parametrize(
    ("program", "summed"), [(Stranger, True), (Together, False), (Neighbors, False)]
)
def test_check_says_where_elements_are_drawn_that_could_be_summed(
    program: type[Stranger], summed: bool, x: Tensor
) -> None:
    """The gradient of draws is several times as long as it should be; the objective named has it exactly."""
    pair = program("Categorical"), Encoder("Categorical")
    for objective in (None, ELBO(num_particles=3)):
        report = check(*pair, x, objective=objective)
        drawn = [each for each in report.problems if "ElementwiseELBO" in each.message]
        assert [(each.severity, each.site) for each in drawn] == [("warning", "code")] * summed
    if summed:
        assert f"the {M} discrete elements" in drawn[0].message
        with pytest.warns(PairWarning, match="elements of 'code' are drawn"):
            fit(*pair, x, max_epochs=1)
    for chosen in (ElementwiseELBO(), TraceELBO()):  # somebody has chosen
        assert not [
            e for e in check(*pair, x, objective=chosen).problems if "drawn, and" in e.message
        ]


@pytest.mark.parametrize("kind", ["Categorical", "Bernoulli"])
def test_a_strangers_latent_is_summed_element_by_element(kind: str, x: Tensor) -> None:
    model, guide = Stranger(kind), Encoder(kind)
    pair, chosen = resolved(model, guide, x)
    assert isinstance(chosen, TraceELBO), "nothing is summed unasked"
    objective = ElementwiseELBO()
    with pair.scope():
        loss = objective(pair, find_layout(pair, x), x, 0.7)
    count = 2 if kind == "Bernoulli" else 3
    every = torch.tensor(list(itertools.product(range(count), repeat=M))).double()
    z = every.unsqueeze(1).expand(-1, N, M)
    log_q = guide.q(x).log_prob(z)
    log_p = model.latent().log_prob(z)
    log_x = dist.Normal(model.level(z).unsqueeze(-1), model.noise.exp()).log_prob(x).sum((-2, -1))
    exact = -(log_q.exp() * (log_x + 0.7 * (log_p - log_q))).sum(0).mean()
    assert torch.allclose(loss.loss, exact, atol=1e-10)
    parameters = [*model.parameters(), *guide.parameters()]
    pairs = (torch.autograd.grad(of, parameters, retain_graph=True) for of in (loss.loss, exact))
    for one, other in zip(*pairs, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("make", [Together, Neighbors, Masked])
def test_what_cannot_be_taken_apart_is_drawn(make: Callable[[str], Stranger], x: Tensor) -> None:
    model, guide = make("Categorical"), Encoder("Categorical")
    pair, objective = resolved(model, guide, x)
    assert isinstance(objective, TraceELBO)
    with pair.scope(), pytest.raises(PairError, match="takes one element at a time"):
        ElementwiseELBO()(pair, find_layout(pair, x), x)


def test_latents_in_plates_are_left_to_pyro(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("elements", M, dim=-1):
            z = pyro.sample("code", dist.Categorical(torch.ones(3).double()))
            pyro.sample(
                "values",
                dist.Normal(LEVELS[z].unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1),
                obs=x,
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("elements", M, dim=-1):
            probs = torch.ones(len(x), M, 3).double()
            pyro.sample("code", dist.Categorical(probs), infer={"enumerate": "parallel"})

    pair = Pair(model, guide)
    with pair.scope():
        assert isinstance(ELBO().resolve(pair, x), EnumELBO)


def test_it_trains(x: Tensor) -> None:
    """To the evidence: the family holds the posterior."""
    model, guide = Stranger("Categorical"), Encoder("Categorical")
    data = LEVELS[torch.randint(3, (200, M))].unsqueeze(-1) + 0.1 * torch.randn(200, M, 2).double()
    options: dict[str, Any] = {"max_epochs": 150, "learning_rate": 0.1, "progress": False}
    found = fit(model, guide, data, objective=ElementwiseELBO(), seed=0, **options)
    weights = model.logits.log_softmax(-1)
    each = dist.Normal(LEVELS[:, None], model.noise.exp()).log_prob(data.unsqueeze(-2)).sum(-1)
    log_p = (weights + each).logsumexp(-1).sum(-1).mean().item()
    assert found.history[-1]["elbo"] == pytest.approx(log_p, abs=1.5)
    assert float(model.noise.detach().exp()) == pytest.approx(0.1, abs=0.03)


def test_nothing_of_a_stranger_is_summed_unasked(x: Tensor) -> None:
    """A dense decoder looks as if it took one element at a time where the guide draws one value everywhere."""
    guide = Encoder("Categorical")
    for model in (Stranger("Categorical"), Together("Categorical")):
        found = evaluate(model, guide, x, num_samples=3, seed=0, progress=False)
        assert not any("element by element" in note for note in found.notes)


class Weighted(Stranger):
    """The latent has another weight."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            with pyro.poutine.scale(scale=0.1):
                z = pyro.sample("code", self.latent())
            of_data = dist.Normal(self.level(z).unsqueeze(-1), self.noise.exp())
            pyro.sample("values", of_data.expand([*z.shape, 2]).to_event(2), obs=x)


class PriorMasked(Stranger):
    """The prior is left out."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            with pyro.poutine.mask(mask=False):
                z = pyro.sample("code", self.latent())
            of_data = dist.Normal(self.level(z).unsqueeze(-1), self.noise.exp())
            pyro.sample("values", of_data.expand([*z.shape, 2]).to_event(2), obs=x)


class FewerNumbers(Stranger):
    """The data have fewer numbers than the latent."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", self.latent())
            mean = self.level(z)[..., :2, None].expand(*z.shape[:-1], 2, 2)
            pyro.sample("values", dist.Normal(mean, 1.0).to_event(2), obs=x[:, :2])


@pytest.mark.parametrize("make", [Weighted, PriorMasked, FewerNumbers])
def test_weights_and_masks_of_the_latent_are_not_dropped(
    make: Callable[[str], Stranger], x: Tensor
) -> None:
    pair, _ = resolved(make("Categorical"), Encoder("Categorical"), x)
    with pair.scope(), pytest.raises(PairError, match="takes one element at a time"):
        ElementwiseELBO()(pair, find_layout(pair, x), x)


def test_the_kl_of_categories_that_are_all_but_impossible() -> None:
    """Torch takes it from probabilities, which are 0 in float32 below 1e-45."""
    q = dist.Categorical(logits=torch.zeros(2, 3, 2)).to_event(2)
    p = dist.Categorical(logits=torch.tensor([0.0, -200.0]).expand(2, 3, 2)).to_event(2)
    expected = 6 * (0.5 * 200.0 - torch.tensor(2.0).log())
    assert kl_between(q, p) == pytest.approx(float(expected), rel=1e-5)
    assert bool(torch.distributions.kl_divergence(q, p).isinf())
    zero = dist.Categorical(probs=torch.tensor([1.0, 0.0]))
    assert kl_between(zero, zero).item() == pytest.approx(0.0, abs=1e-6)


def test_shared_work_is_done_once_and_with_a_gradient_where_one_is_needed() -> None:
    weight, x, calls = nn.Parameter(torch.ones(())), torch.ones(2), []

    def compute() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return weight * x

    def get(of: Tensor = x) -> Tensor:
        return shared(weight, "product", (of,), compute)

    get()
    get()
    assert calls == [True, True]  # outside, always
    with sharing_work():
        with torch.no_grad():
            assert not get().requires_grad
        assert get().requires_grad
        with torch.no_grad():
            get()
        assert calls == [True, True, False, True]
        get(torch.ones(2))  # another tensor of the same values
        x.add_(1)  # the same tensor with other values
        assert torch.equal(get().detach(), x)
    assert calls == [True, True, False, True, True, True]


def losses_and_gradients(
    objective: Any, kind: str, x: Tensor, times: int
) -> list[tuple[Any, list[Tensor]]]:
    """With the random state going on: the programs seed it when they are made."""
    state = torch.get_rng_state()
    model, guide = Stranger(kind), Encoder(kind)
    torch.set_rng_state(state)
    pair = Pair(model, guide)
    leaves = [*model.parameters(), *guide.parameters()]
    found = []
    with pair.scope():
        layout = find_layout(pair, x)
        for _ in range(times):
            loss = objective(pair, layout, x, 0.7)
            found.append((loss, list(torch.autograd.grad(loss.loss, leaves))))
    return found


def loss_and_gradient(objective: Any, kind: str, x: Tensor) -> tuple[Any, list[Tensor]]:
    return losses_and_gradients(objective, kind, x, 1)[0]


@pytest.mark.parametrize(
    ("kind", "particles"),
    [("Categorical", 2), pytest.param("Bernoulli", 5, marks=pytest.mark.slow)],
)
def test_the_score_function_is_unbiased(kind: str, particles: int, x: Tensor) -> None:
    exact, slopes = loss_and_gradient(ElementwiseELBO(), kind, x)
    torch.manual_seed(0)
    objective = ScoreFunctionELBO(num_particles=particles)
    losses, found = [], []
    for loss, of_draws in losses_and_gradients(objective, kind, x, 200):
        losses.append(loss.loss.detach())
        found.append(torch.cat([slope.flatten() for slope in of_draws]))
        assert torch.allclose(loss.elbo, exact.elbo, atol=1e-10)
    for each, expected in (
        (torch.stack(found), torch.cat([slope.flatten() for slope in slopes])),
        (torch.stack(losses).unsqueeze(1), exact.loss.detach().unsqueeze(0)),
    ):
        error = each.std(0) / len(each) ** 0.5
        assert bool(((each.mean(0) - expected).abs() < 4.5 * error + 1e-9).all())


def test_the_baseline_of_other_draws_reduces_the_noise(x: Tensor) -> None:
    """Against Pyro's score function, which gives each element the reward of all."""
    noise = {}
    for name, objective in (
        ("ours", ScoreFunctionELBO(num_particles=2)),
        ("Pyro's", TraceELBO(num_particles=2)),
    ):
        torch.manual_seed(0)
        each = [slopes for _, slopes in losses_and_gradients(objective, "Categorical", x, 100)]
        of_guide = torch.stack([torch.cat([s.flatten() for s in slopes[2:]]) for slopes in each])
        noise[name] = of_guide.var(0).sum().item()
    assert noise["ours"] < 0.05 * noise["Pyro's"]


@pytest.mark.parametrize("kind", ["Categorical", "Bernoulli"])
def test_gumbel_softmax_of_elements(kind: str, x: Tensor) -> None:
    """The loss and the model's gradient are unbiased, the guide's nearly so at a low temperature."""
    exact, slopes = loss_and_gradient(ElementwiseELBO(), kind, x)
    torch.manual_seed(0)
    objective = GumbelSoftmaxELBO(temperature=0.1, num_particles=400)
    found = losses_and_gradients(objective, kind, x, 40)
    losses = torch.stack([loss.loss.detach() for loss, _ in found])
    error = losses.std() / len(losses) ** 0.5
    assert losses.mean().item() == pytest.approx(exact.loss.item(), abs=4 * error.item())
    for i, expected in enumerate(slopes):
        each = torch.stack([of[i] for _, of in found])
        error = each.std(0) / len(each) ** 0.5
        bias = 0.0 if i < 2 else 0.05 * float(expected.abs().max())
        assert bool(((each.mean(0) - expected).abs() < 4.5 * error + bias + 1e-9).all())


@pytest.mark.parametrize("kind", ["Categorical", "Bernoulli"])
def test_hard_assignments_have_the_bound_of_a_guide_that_is_sure(kind: str, x: Tensor) -> None:
    found, _ = loss_and_gradient(StraightThroughELBO(), kind, x)
    model, guide = Stranger(kind), Encoder(kind)
    logits = guide.net(x)
    z = (logits[..., 0] > 0).double() if kind == "Bernoulli" else logits.argmax(-1)
    log_x = dist.Normal(model.level(z).unsqueeze(-1), model.noise.exp()).log_prob(x).sum((-2, -1))
    log_p = model.latent().log_prob(z)
    assert found.loss.item() == pytest.approx(-(log_x + 0.7 * log_p).mean().item(), abs=1e-10)
    assert found.elbo.item() == pytest.approx((log_x + log_p).mean().item(), abs=1e-10)
    parameters = [*model.parameters()]
    slopes = torch.autograd.grad(-(log_x + 0.7 * log_p).mean(), parameters)
    _, of = loss_and_gradient(StraightThroughELBO(), kind, x)
    for one, other in zip(of[: len(parameters)], slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_objectives_of_elements_say_what_they_need() -> None:
    with pytest.raises(ValueError, match="num_particles must be at least 2"):
        ScoreFunctionELBO(num_particles=1)
    model = ScanLineSegments(3, network=UNet((4,)))
    y, x = torch.zeros(2, 4, 4, 2), torch.full((2, 4, 4), 128.0)
    pair = Pair(model, Exact(model))
    guide = "independent under the guide: use a guide with independent elements, such as Segm"
    for objective, told in (
        (GumbelSoftmaxELBO(), guide),
        (StraightThroughELBO(), "independent under the prior: use ELBO"),
    ):
        with pair.scope(), pytest.raises(PairError, match=told):
            objective(pair, find_layout(pair, (y, x)), (y, x))


def test_shared_work_in_inference_mode() -> None:
    calls: list[int] = []

    def compute() -> Tensor:
        calls.append(1)
        return torch.ones(2)

    with torch.inference_mode(), sharing_work():
        x = torch.zeros(2)
        for _ in range(2):
            shared(calls, "ones", (x,), compute)
    assert len(calls) == 1


class Dense(nn.Module):
    """Bits, and a linear decoder of all of them together."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(M, 2 * M).double()
        with torch.no_grad():
            self.decoder.weight.mul_(weight)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", dist.Bernoulli(torch.full((M,), 0.5).double()).to_event(1))
            mean = self.decoder(z).unflatten(-1, (M, 2))
            pyro.sample("values", dist.Normal(mean, 1.0).to_event(2), obs=x)


@pytest.mark.parametrize("weight", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("rows", [1, N])
@pytest.mark.parametrize("is_sure", [False, True])
def test_a_dense_decoder_is_found_out(weight: float, rows: int, is_sure: bool, x: Tensor) -> None:
    """Also where its last layer is zero, and where the guide draws the same value everywhere."""
    model, guide = Dense(weight), Encoder("Bernoulli")
    if is_sure:
        with torch.no_grad():
            guide.net.weight.zero_()
            guide.net.bias.fill_(-15.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    pair = Pair(model, guide)
    with pair.scope():
        layout = find_layout(pair, x[:rows])
        assert elements_of(pair, layout, x[:rows]) is None
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_values_have_a_loss_and_a_gradient() -> None:
    q = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    log_p = torch.tensor([-1.0, -3.0, -torch.inf], requires_grad=True)
    found = expected_value(q, log_p, 0)
    assert found.item() == -2.0
    for slope in torch.autograd.grad(found, (q, log_p)):
        assert bool(slope.isfinite().all())


class Normed(nn.Module):
    """Bits, and a decoder of one at a time, with batch norm before it or within it."""

    def __init__(self, within: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(1, 3).double(), nn.Linear(3, 2).double()
        self.norm = nn.BatchNorm1d(3 * M if within else M).double()
        self.within = within

    def forward(self, x: Tensor) -> None:
        prior = torch.full((len(x), M), 0.0).double()
        if not self.within:
            prior = self.norm(x[..., 0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", dist.Bernoulli(logits=prior).to_event(1))
            h = self.first(z.unsqueeze(-1)).tanh()
            if self.within:
                h = self.norm(h.flatten(0, -3).flatten(-2)).reshape(h.shape)
            pyro.sample("values", dist.Normal(self.last(h), 1.0).to_event(2), obs=x)


def test_batch_norm_in_a_decoder_is_refused(x: Tensor) -> None:
    """Its statistics would be those of one value everywhere. Where the prior has it, it does no harm."""
    model = Normed(within=True)
    pair = Pair(model, Encoder("Bernoulli"))
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pair.scope(), pytest.raises(PairError, match="Batch norm in a decoder"):
        ElementwiseELBO().resolve(pair, x)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    other = Pair(Normed(within=False), Encoder("Bernoulli"))
    with other.scope():
        assert ElementwiseELBO().resolve(other, x) == ElementwiseELBO()
