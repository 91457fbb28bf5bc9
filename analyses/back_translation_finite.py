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


def finite(
    sentences: int = 50,
    rows: int = 2000,
    max_epochs: int = 300,
    num_seeds: int = 5,
    seed: int = 0,
) -> None:
    """Log p(x), the ELBO and the right translations of three objectives, from the same starts.

    z has as many values as x, with shares that fall from one to the next, and x is a permutation of z. p(z) is
    known. So log p(x) is at most -H(x), which the right table reaches, and it alone.

    Args:
        sentences: Of each language.
        rows: Draws of x, and as many real z that are not paired with them.
        max_epochs: Epochs of a training, of 10 steps each.
        num_seeds: Starts.
        seed: Of all random numbers.
    """
    ways: dict[str, Any] = {
        "ELBO, summed over z": lambda z: EnumELBO(),
        "ELBO, beta = 0.5, summed over z": lambda z: EnumELBO(beta=0.5),
        "ELBO, beta = 0.5, score function": lambda z: ScoreFunctionELBO(beta=0.5, num_particles=4),
        "back-translation": BackTranslation,
        "back-translation, from the ELBO's": BackTranslation,
    }
    columns = [
        "objective",
        "translated rightly",
        "log p(x)",
        "ELBO",
        "KL(q, p)",
        "- E log p(z), z from q",
    ]
    table = Table(columns, steps=num_seeds * len(ways))
    table.head()
    found: dict[str, list[Sequence[float]]] = {name: [] for name in ways}
    entropy = 0.0
    for each in range(seed, seed + num_seeds):
        torch.manual_seed(each)
        shares = (-(torch.arange(sentences).double() + 1).log()).softmax(0)
        truth = torch.randperm(sentences)
        x, z = (torch.multinomial(shares, rows, replacement=True) for _ in range(2))
        x, entropy = truth[x], float(-(shares * shares.log()).sum())
        start = torch.randn(2, sentences, sentences).double()
        last: Any = None
        for name, objective in ways.items():
            again = "from" in name
            tables = last if again else start
            last_pair = trained(shares, tables, objective(z), (x, z), name, max_epochs, each)
            if name.startswith("ELBO, beta = 0.5, summed"):
                last = torch.stack([part.table.detach() for part in last_pair])
            found[name].append(_measured(*last_pair, shares, truth))
            table.step(f"{name}, seed {each}")
    for name, values in found.items():
        columns_of = torch.tensor(values, dtype=torch.float64).T
        forms = (".1f", ".3f", ".3f", ".3f", ".3f")
        table.row([name, *(_told(v, form) for v, form in zip(columns_of, forms, strict=True))])
    print(
        f"\n{sentences} sentences of each language, {rows} draws of each, not paired; nats per row, over the "
        f"shares of x; means and standard errors over {num_seeds} starts. -H(x) = {-entropy:.3f}."
    )


def trained(
    shares: Tensor,
    tables: Tensor,
    objective: Objective,
    data: Any,
    name: str,
    epochs: int,
    seed: int,
) -> tuple[Translated, Reader]:
    """A pair that is trained from given tables."""
    x, _ = data
    model = Translated(shares, tables[0].clone())
    guide = Reader(tables[1].clone(), summed="summed" in name)
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
def _measured(
    model: Translated, guide: Reader, shares: Tensor, truth: Tensor
) -> tuple[float, float, float, float, float]:
    """By sums over all z and x: percent of rows translated rightly, log p(x), ELBO, KL, -E log p(z)."""
    of_x = torch.empty_like(shares)
    of_x[truth] = shares
    log_joint, log_q = model.log_joint(), guide.table.log_softmax(1)
    log_p, q = log_joint.logsumexp(0), log_q.exp()
    elbo = (q * (log_joint.T - log_q)).sum(1)
    right = (q.argmax(1) == truth.argsort()).double()
    unlikely = -(q * shares.log()).sum(1)
    each = (100 * right, log_p, elbo, log_p - elbo, unlikely)
    return tuple(float((of_x * values).sum()) for values in each)  # type: ignore[return-value]


def _told(values: Tensor, form: str) -> str:
    return Estimate(values).numbers(form) if len(values) > 1 else format(float(values[0]), form)
