"""CTC against torch's loss, against the sum over all alignments, and against itself as a Pyro program."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from ppl_vae import check, evaluate, fit
from ppl_vae.guides import Exact
from ppl_vae.models.sequences.ctc import BLANK, CTC, collapse
from ppl_vae.pairs import Program

FRAMES, SYMBOLS = 5, 3


def model_and_frames(n: int = 1, num_frames: int = FRAMES) -> tuple[CTC, Tensor]:
    """Frames are the logits themselves: peaked enough that no alignment is like another."""
    return CTC(nn.Identity()).double(), 1.5 * torch.randn(n, num_frames, SYMBOLS).double()


def by_hand(z: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(z) if symbol != BLANK)


ALL = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=FRAMES)))


def padded(labels: tuple[int, ...], width: int = FRAMES) -> Tensor:
    return torch.tensor([[*labels, *[BLANK] * (width - len(labels))]])


def enumerate_labels(frames: Tensor) -> dict[tuple[int, ...], Tensor]:
    """The log probabilities of all alignments, by the labels that they mean."""
    log_probs = frames[0].log_softmax(-1)
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for z in ALL.tolist():
        log_p = torch.stack([log_probs[t, symbol] for t, symbol in enumerate(z)]).sum()
        found.setdefault(by_hand(tuple(z)), []).append(log_p)
    return {labels: torch.stack(terms) for labels, terms in found.items()}


def test_collapse_merges_repeats_then_drops_blanks() -> None:
    got = collapse(ALL.reshape(3, -1, FRAMES)).reshape(-1, FRAMES)
    for z, labels in zip(ALL.tolist(), got.tolist(), strict=True):
        expected = by_hand(tuple(z))
        assert labels == [*expected, *[BLANK] * (FRAMES - len(expected))]


def test_evidence_is_the_sum_over_all_alignments() -> None:
    model, frames = model_and_frames()
    found = enumerate_labels(frames)
    x = torch.cat([padded(labels) for labels in found])
    log_p = model.log_evidence(x, frames.expand(len(x), -1, -1))
    expected = torch.stack([terms.logsumexp(0) for terms in found.values()])
    assert torch.allclose(log_p, expected, rtol=1e-12, atol=1e-12)
    assert log_p.exp().sum() == pytest.approx(1.0, abs=1e-12)
    # Whatever is wider or narrower than the frames, down to no column for no label.
    narrow = model.log_evidence(x[:1, :0], frames)
    assert torch.equal(narrow, log_p[:1])
    assert torch.equal(
        model.log_evidence(padded((1,), 9), frames), log_p[list(found).index((1,))][None]
    )


def ragged() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of 0 to 6 labels, with repeats, and 7 to 20 frames: `x, counts, frames, lengths`."""
    x = torch.randint(1, 5, (32, 6))
    counts = torch.randint(0, 7, (32,))
    x[torch.arange(6) >= counts[:, None]] = BLANK
    lengths = torch.randint(12, 21, (32,))
    return x, counts, torch.randn(32, 20, 5).double(), lengths


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_are_those_of_ctc_loss(dtype: torch.dtype, digits: float) -> None:
    x, counts, frames, lengths = ragged()
    ours, theirs = (frames.to(dtype).requires_grad_() for _ in range(2))
    log_p = CTC(nn.Identity()).log_evidence(x, ours, lengths)
    assert log_p.dtype == dtype
    log_probs = theirs.log_softmax(-1).transpose(0, 1)
    loss = ctc_loss(log_probs, x, lengths, counts, blank=BLANK, reduction="none")
    assert torch.allclose(-log_p, loss, rtol=digits, atol=digits)
    weights = torch.rand(len(x), dtype=dtype)
    (gradient,) = torch.autograd.grad(log_p @ weights, [ours])
    (expected,) = torch.autograd.grad(-loss @ weights, [theirs])
    assert torch.allclose(gradient, expected, atol=10 * digits)
    behind = torch.arange(20) >= lengths[:, None]
    assert behind.any()
    assert (gradient[behind] == 0).all()


def test_labels_that_do_not_fit_have_no_probability_and_no_gradient() -> None:
    model, frames = model_and_frames(3, num_frames=3)
    x = torch.tensor([[1, 1, 1], [1, 2, 1], [1, 1, 0]])  # five frames would be needed for the first
    log_p = model.log_evidence(x, frames.requires_grad_())
    assert torch.isinf(log_p).tolist() == [True, False, False]
    assert log_p[2].item() == pytest.approx(enumerate_three(frames[2], (1, 1)), abs=1e-12)
    (gradient,) = torch.autograd.grad(log_p[1:].sum(), [frames], retain_graph=True)
    (all_rows,) = torch.autograd.grad(log_p.sum(), [frames])
    assert torch.isfinite(all_rows).all()
    assert torch.equal(all_rows, gradient)
    with pytest.raises(ValueError, match=r"row 0 \(counted from 0; of 1 such rows\) have no align"):
        model.posterior(x, frames)


def enumerate_three(frames: Tensor, labels: tuple[int, ...]) -> float:
    p = frames.detach().softmax(-1)
    paths = [z for z in itertools.product(range(SYMBOLS), repeat=3) if by_hand(z) == labels]
    return math.log(sum(math.prod(float(p[t, s]) for t, s in enumerate(z)) for z in paths))


@pytest.mark.parametrize("labels", [(), (2,), (1, 1), (1, 2), (2, 1, 2)])
def test_posterior_is_exact(labels: tuple[int, ...]) -> None:
    model, frames = model_and_frames()
    x = padded(labels, 4)
    q = model.posterior(x, frames)
    assert (q.batch_shape, q.event_shape) == ((1,), (FRAMES,))
    mine = torch.tensor([by_hand(tuple(z)) == labels for z in ALL.tolist()])
    log_joint = model.prior(frames).log_prob(ALL[:, None])[:, 0]
    expected = (log_joint[mine] - log_joint[mine].logsumexp(0)).exp()
    log_q = q.log_prob(ALL[:, None])[:, 0]
    assert torch.allclose(log_q[mine].exp(), expected, atol=1e-12)
    assert (log_q[~mine] == -torch.inf).all()

    draws = q.sample((20_000,))
    assert draws.shape == (20_000, 1, FRAMES)
    code = SYMBOLS ** torch.arange(FRAMES - 1, -1, -1)
    counts = (draws[:, 0] @ code).bincount(minlength=len(ALL))
    assert counts[~mine].sum() == 0
    often = expected > 5 / 20_000
    seen = torch.cat([counts[mine][often], counts[mine][~often].sum()[None]])
    means = 20_000 * torch.cat([expected[often], expected[~often].sum()[None]])
    keep = means > 0
    if keep.sum() > 1:
        assert chisquare(seen[keep], means[keep]).pvalue > 1e-3


def test_rows_do_not_mix() -> None:
    """A row of a ragged batch has the evidence, the posterior and the draws of the row alone."""
    x, _, frames, lengths = ragged()
    model = CTC(nn.Identity())
    z = model.posterior(x, frames, lengths).sample((3,))
    assert z.shape == (3, 32, 20)
    assert torch.equal(collapse(z)[..., :6], x.expand(3, -1, -1))
    assert (z[:, torch.arange(20) >= lengths[:, None]] == BLANK).all()
    log_q = model.posterior(x, frames, lengths).log_prob(z)
    log_p = model.log_evidence(x, frames, lengths)
    for row in range(0, 32, 5):
        num_frames, cut = int(lengths[row]), slice(row, row + 1)
        one = (x[cut], frames[cut, :num_frames])
        assert model.log_evidence(*one)[0].item() == pytest.approx(log_p[row].item(), abs=1e-10)
        alone = model.posterior(*one).log_prob(z[:, cut, :num_frames])
        assert torch.allclose(alone[:, 0], log_q[:, row], atol=1e-10)


def test_it_is_a_pyro_program_whose_exact_guide_loses_nothing() -> None:
    torch.manual_seed(1)
    x, _, frames, lengths = ragged()
    model = CTC(nn.Linear(5, 5)).double()
    guide = Exact(model)
    batch = (x, frames, lengths)
    assert check(model, guide, batch).ok
    log_p = model.log_evidence(*batch)
    found = evaluate(model, guide, batch, num_samples=20, progress=False)
    assert torch.allclose(found.log_likelihood.values.double(), log_p, atol=1e-6)
    assert torch.allclose(found.elbo.values.double(), log_p, atol=1e-6)
    # p(x | z) is 1 or 0: any other label, or one more than x has room for, is impossible.
    z = model.posterior(*batch).sample()
    given = poutine.condition(model, data={"z": z})
    trace = poutine.trace(given).get_trace(*batch)
    trace.compute_log_prob()
    assert (trace.nodes["x"]["log_prob"] == 0).all()
    counts = (x != BLANK).sum(-1)
    narrow = (x[counts > 3, :3], frames[counts > 3], lengths[counts > 3])
    given = poutine.condition(model, data={"z": z[counts > 3]})
    trace = poutine.trace(given).get_trace(*narrow)
    trace.compute_log_prob()
    assert (trace.nodes["x"]["log_prob"] == -torch.inf).all()


def sampled(model: CTC) -> tuple[Program, Program]:
    return model, Exact(model)


def summed_out(model: CTC) -> tuple[Program, Program]:
    def program(x: Tensor, frames: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.factor("x", model.log_evidence(x, frames))

    return program, lambda *batch: None


@pytest.mark.parametrize(
    ("pair", "max_epochs"),
    [
        pytest.param(sampled, 300, id="sampled", marks=pytest.mark.slow),
        pytest.param(summed_out, 100, id="summed-out"),
    ],
)
def test_fit_reaches_the_optimum(
    pair: Callable[[CTC], tuple[Program, Program]], max_epochs: int
) -> None:
    """Frames that say nothing: the best network knows the frequencies of the labels alone."""
    x = torch.tensor([[1], [1], [1], [2]]).repeat(16, 1)
    frames = torch.ones(64, 1, 1)
    model = CTC(nn.Linear(1, 3))
    fit(
        *pair(model),
        (x, frames),
        max_epochs=max_epochs,
        batch_size=32,
        learning_rate=0.05,
        seed=0,
        progress=False,
    )
    p = model.log_evidence(torch.tensor([[0], [1], [2]]), torch.ones(3, 1, 1)).exp()
    assert torch.allclose(p, torch.tensor([0.0, 0.75, 0.25]), atol=0.03)


def test_wrong_labels_are_refused() -> None:
    model, frames = model_and_frames()
    with pytest.raises(ValueError, match=r"in row 0 \(counted from 0\) a label comes after a zero"):
        model.log_evidence(torch.tensor([[0, 1]]), frames)
    with pytest.raises(ValueError, match=r"labels are 1 to 2, but x holds 3"):
        model.log_evidence(torch.tensor([[1, 3]]), frames)
