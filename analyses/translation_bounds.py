"""How the bound on log p(x) of back_translation.py rises with the draws of z, beside a language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from progress import Table
from torch import Tensor
from translation_pairs import Sizes, Training, trained
from translation_texts import Texts

from ppl_vae import bidirectional_monte_carlo, evaluate
from ppl_vae.runtime import lengths_of, replacing
from ppl_vae.stats import Estimate

COLUMNS = (
    *("trained on", "draws", "log p(x)", "difference from the language model", "ESS"),
    *("of its own sentences, from", "to"),
)


@dataclass(frozen=True)
class Bounds:
    """The bounds of some test sentences.

    Attributes:
        runs: Folder of the trained pairs, which also keeps the bounds.
        texts: The texts.
        sizes: Network and training.
        seeds: Of the trainings: numbers of a sentence are means over them.
        rows: The test sentences, `(n, T)`.
        of_language: log p(x) under the language model of each seed, nats, `(n,)` each.
    """

    runs: Path
    texts: Texts
    sizes: Sizes
    seeds: Sequence[int]
    rows: Tensor
    of_language: Sequence[Tensor]

    def show(self, ways: Sequence[Training], draws: Sequence[int], table: Table) -> None:
        """Prints a table, a line for each way and number of draws.

        Args:
            ways: How pairs are trained.
            draws: Numbers of draws of z.
            table: Whose steps these are.
        """
        lengths = lengths_of(self.rows).double()
        print()
        lines = Table(COLUMNS, 0)
        lines.head()
        for way in ways:
            for count in draws:
                log_p, less, ess, own = [], [], [], []
                for seed, language in zip(self.seeds, self.of_language, strict=True):
                    of_rows, ess_of_rows = self._found(way, seed, count)
                    log_p.append(of_rows)
                    less.append(of_rows - language)
                    ess.append(ess_of_rows)
                    own.append(self._own(way, seed, count))
                    table.step(f"{way}, seed {seed}, {count} draws")
                cells = [str(way), str(count)]
                cells += [_per_token(torch.stack(each).mean(0), lengths) for each in (log_p, less)]
                cells.append(f"{float(torch.stack(ess).mean()):.1f}")
                lower, upper, tokens = torch.cat(own, 1)
                lines.row([*cells, _per_token(lower, tokens), _per_token(upper, tokens)])
        print(
            f"\nLower bounds on log p(x) by so many draws of z, nats per token, of {len(self.rows)} sentences, "
            "means over seeds with standard errors over sentences: those of a difference are of differences "
            "sentence by sentence. ESS: so many draws of equal weight would say as much. The last two columns "
            "show how far below log p(x) such a bound may be: of as many sentences that the model itself "
            "writes, the same bound, and an upper one by as many draws, from one of which it was written."
        )

    def _found(self, way: Training, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """The bound of each row by `count` draws, and their effective sample size."""
        folder = self.sizes.folder(self.runs, way.name, self.texts, seed)
        of = hashlib.sha256(repr(self.rows.tolist()).encode()).hexdigest()[:10]
        file = folder.parent / f"{folder.name},{of},draws={count}.json"
        if not file.exists():
            pair = trained(self.runs, self.texts, way, self.sizes, seed)
            found = evaluate(*pair, self.rows, num_samples=count, seed=seed)
            _keep(file, found.log_likelihood.values, found.ess)
        log_p, ess = torch.tensor(json.loads(file.read_text()), dtype=torch.float64)
        return log_p, ess

    def _own(self, way: Training, seed: int, count: int) -> Tensor:
        """Lower and upper bound of sentences that the model writes, and their tokens, `(3, n)`."""
        folder = self.sizes.folder(self.runs, way.name, self.texts, seed)
        file = folder.parent / f"{folder.name},own={len(self.rows)},draws={count}.json"
        if not file.exists():
            pair = trained(self.runs, self.texts, way, self.sizes, seed)
            found = bidirectional_monte_carlo(
                *pair, self.rows, num_chains=count, num_steps=1, seed=seed
            )
            assert isinstance(found.data, Tensor)
            _keep(file, found.lower.values, found.upper.values, lengths_of(found.data))
        return torch.tensor(json.loads(file.read_text()), dtype=torch.float64)


def _per_token(nats: Tensor, tokens: Tensor) -> str:
    """All nats over all tokens; the error is that of a ratio."""
    return Estimate(nats / tokens, weights=tokens).numbers()


def _keep(file: Path, *numbers: Tensor) -> None:
    with replacing(file) as temporary:
        Path(temporary).write_text(json.dumps([each.tolist() for each in numbers]))
