"""Back-translation beside the ELBO on a language of few sentences, of which all sums are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from progress import Table
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn

from ppl_vae import fit
from ppl_vae.objectives import BackTranslation, EnumELBO, Objective, ScoreFunctionELBO
from ppl_vae.runtime import require_count
from ppl_vae.stats import Estimate


class Translated(nn.Module):
    """p(z), which is known, and a table p(x | z).

    Args:
        shares: p(z).
        table: Logits of p(x | z).
    """

    shares: Tensor

    def __init__(self, shares: Tensor, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("shares", shares)
        self.table = nn.Parameter(table)

    def forward(self, x: Tensor) -> None:
        """Runs the model on numbers of sentences, `(n,)`."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(self.shares))
            pyro.sample("x", dist.Categorical(logits=self.table[z]), obs=x)

    def log_joint(self) -> Tensor:
        """log p(z, x) of all, `(z, x)`."""
        return self.shares.log()[:, None] + self.table.log_softmax(1)


class Reader(nn.Module):
    """A table q(z | x).

    Args:
        table: Its logits.
        summed: Whether the objective is to sum over z.
    """

    def __init__(self, table: Tensor, summed: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.infer: InferDict = {"enumerate": "parallel"} if summed else {}

    def forward(self, x: Tensor) -> None:
        """Runs the guide on numbers of sentences, `(n,)`."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.table[x]), infer=self.infer)


BETA = 0.5
"""The weight of the KL that makes z worth while: with 1, an x that ignores its z has as good an ELBO."""

COLUMNS = (
    *("what", "correct", "log p(x)", "ELBO", "KL(q, p)", "rate", f"loss with beta = {BETA}"),
    "loss of back-translation",
)


def finite(
    sentences: int = 50,
    rows: int = 2000,
    max_epochs: int = 100,
    num_seeds: int = 5,
    seed: int = 0,
) -> None:
    """The ELBO and back-translation on languages of few sentences, by sums over all of them.

    x is a permutation of z, and p(z), which is known, has the shares 1, 1/2, 1/3, ... up to a constant. The
    first two lines are keys: tables with one z for each x. The others are trained, from the same starts.

    Args:
        sentences: Of each language.
        rows: Draws of x, and as many real z that are not paired with them.
        max_epochs: Epochs of a training, of 10 steps each.
        num_seeds: Starts.
        seed: Of all random numbers.

    Raises:
        ValueError: A number is out of its range.
    """
    require_count("--sentences", sentences)
    require_count("--rows", rows)
    require_count("--max_epochs", max_epochs)
    require_count("--num_seeds", num_seeds)
    ways: dict[str, Any] = {
        "ELBO": lambda z: EnumELBO(),
        f"ELBO with beta = {BETA}": lambda z: EnumELBO(beta=BETA),
        "the same, score function": lambda z: ScoreFunctionELBO(beta=BETA, num_particles=4),
        "back-translation": BackTranslation,
        f"ELBO with beta = {BETA}, then back-translation": BackTranslation,
    }
    table = Table(COLUMNS, steps=num_seeds * len(ways))
    table.head()
    found: dict[str, list[Sequence[float]]] = {"the right key": [], "another key": []}
    found |= {name: [] for name in ways}
    shares = (1.0 / torch.arange(1, sentences + 1).double()).log().softmax(0)
    for each in range(seed, seed + num_seeds):
        torch.manual_seed(each)
        truth, other = torch.randperm(sentences), torch.randperm(sentences)
        for name, key in (("the right key", truth), ("another key", other)):
            found[name].append(_measured(*_keyed(shares, key), shares, truth))
        x, z = (torch.multinomial(shares, rows, replacement=True) for _ in range(2))
        x = truth[x]
        first = torch.randn(2, sentences, sentences).double()
        second = first
        for name, objective in ways.items():
            tables = second if name.endswith("then back-translation") else first
            pair = trained(shares, tables, objective(z), x, max_epochs, each)
            if name == f"ELBO with beta = {BETA}":
                second = torch.stack([part.table.detach() for part in pair])
            found[name].append(_measured(*pair, shares, truth))
            table.step(f"{name}, seed {each}")
    for name, values in found.items():
        columns = torch.tensor(values, dtype=torch.float64).T
        forms = (".1f", *[".3f"] * 6)
        table.row([name, *(_told(v, form) for v, form in zip(columns, forms, strict=True))])
    entropy = -float((shares * shares.log()).sum())
    print(
        f"\n{sentences} sentences of each language, {rows} draws of each, not paired; percent of x, nats per "
        f"x; means and standard errors over {num_seeds} starts. -H(x) = {-entropy:.3f}."
    )


def _keyed(shares: Tensor, key: Tensor) -> tuple[Translated, Reader]:
    """The pair in which x = key[z], both ways."""
    certain = torch.full((len(key), len(key)), -1000.0).double()
    certain[torch.arange(len(key)), key] = 0.0
    return Translated(shares, certain), Reader(certain.T.clone(), summed=False)


def trained(
    shares: Tensor, tables: Tensor, objective: Objective, x: Tensor, epochs: int, seed: int
) -> tuple[Translated, Reader]:
    """A pair that is trained from given tables."""
    model = Translated(shares, tables[0].clone())
    guide = Reader(tables[1].clone(), summed=isinstance(objective, EnumELBO))
    fit(
        *(model, guide, x),
        objective=objective,
        batch_size=max(2, len(x) // 10),
        max_epochs=epochs,
        learning_rate=0.1,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
        seed=seed,
        progress=False,
    )
    return model, guide


@torch.no_grad()
def _measured(model: Translated, guide: Reader, shares: Tensor, truth: Tensor) -> list[float]:
    """By sums over all z and x: the columns of the table."""
    of_x = torch.empty_like(shares)
    of_x[truth] = shares
    log_x, log_q = model.table.log_softmax(1), guide.table.log_softmax(1)
    log_joint, q, p = model.log_joint(), log_q.exp(), log_x.exp()
    distortion = -(q * log_x.T).sum(1)
    rate = (q * (log_q - shares.log())).sum(1)
    right = 100 * (q.argmax(1) == truth.argsort()).double()
    back = -(p * log_q.T).sum(1)  # of each z
    log_p, elbo = log_joint.logsumexp(0), -distortion - rate
    each = (right, log_p, elbo, log_p - elbo, rate, distortion + BETA * rate)
    means = [float((of_x * values).sum()) for values in each]
    return [*means, float((of_x * distortion).sum() + (shares * back).sum())]


def _told(values: Tensor, form: str) -> str:
    return Estimate(values).numbers(form) if len(values) > 1 else format(float(values[0]), form)
