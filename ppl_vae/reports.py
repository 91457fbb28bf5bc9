"""What is printed and drawn of a trained pair: tables, a run's pictures, the comparison of runs.

Nothing here needs a class of ours. Samples from the prior come from the model with its observations taken
away; reconstructions are means of the observed site's distribution given the guide's latents; arbitrary
latents are decoded by putting them into the model's latent sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import pyro.poutine as poutine
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae import plots
from ppl_vae._drawing import BLUE, GREY, MEDIUM, annotate
from ppl_vae.ais import Annealed
from ppl_vae.data import Data, Dequantization
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.evaluation import Estimate, Evaluation, evaluating
from ppl_vae.handlers import PairError, Substitute
from ppl_vae.layout import survey
from ppl_vae.pairs import Pair, Program
from ppl_vae.rows import sample_rows
from ppl_vae.runs import Run

_DRAWS = 2000  # of the prior, in the picture of the aggregate posterior
_AT_ONCE = 64  # rows that the model generates at once, which bounds the memory


# -- generating with any pair ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Generator:
    """Draws data from any pair. All rows of latents are flat: ``(m, dimensions of all latent sites)``.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Some rows of data, ``(n, *event)``: programs are called with data of their own shape.
        seed: Seed of all draws.
    """

    model: Program
    guide: Program
    x: Tensor
    seed: int = 0

    def reconstruct(self) -> tuple[Tensor, Tensor]:
        """Draws z ~ q(z | x): the latents ``(n, d)`` and the means of p(x | z), ``(n, *event)``."""
        pair = Pair.of(self.model, self.guide)
        with evaluating(pair, self.seed):
            layout = survey(pair, self.x)
            rows = sample_rows(pair, layout, self.x, 1)
            z = torch.cat([rows.latents[name][0].flatten(1) for name in layout.latents], 1)
            return z, _mean(rows.model_trace.nodes[self._site(rows.model_trace, layout.observed)])

    def from_prior(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws z ~ p(z), ``(num, d)``: these, the means of p(x | z), and draws of x, ``(num, *event)``."""
        pair = Pair.of(self.model, self.guide)
        with evaluating(pair, self.seed):
            layout = survey(pair, self.x)
            parts = []
            for some in self._rows(num).split(_AT_ONCE):
                # The data are there for their shape; unconditioned, the model draws all of its sites.
                trace = poutine.trace(poutine.uncondition(pair.model)).get_trace(some)
                values: list[Any] = [trace.nodes[name]["value"] for name in layout.latents]
                if not values or any(v.shape[:1] != some.shape[:1] for v in values):
                    raise PairError("the rows are not the first dimension of the model's latents")
                z = torch.cat([value.flatten(1) for value in values], 1)
                site: Any = trace.nodes[self._site(trace, layout.observed)]
                parts.append((z, _mean(site), site["value"]))
            z, means, x = (torch.cat(part) for part in zip(*parts, strict=True))
            return z, means, x

    def decode(self, z: Tensor) -> Tensor:
        """The means of p(x | z) for latents ``(m, d)``: ``(m, *event)``."""
        pair = Pair.of(self.model, self.guide)
        with evaluating(pair, self.seed):
            layout = survey(pair, self.x)
            probe: Any = poutine.trace(pair.model).get_trace(self.x)
            values, start = {}, 0
            for name in layout.latents:
                shape = probe.nodes[name]["value"].shape[1:]
                size = math.prod(shape)
                values[name] = z[:, start : start + size].reshape(len(z), *shape)
                start += size
            model = Substitute(values)(pair.model)
            trace = poutine.trace(model).get_trace(self._rows(len(z)))
            return _mean(trace.nodes[self._site(trace, layout.observed)])

    def _rows(self, num: int) -> Tensor:
        return self.x[torch.arange(num) % len(self.x)]

    def _site(self, trace: Any, observed: Sequence[str]) -> str:
        """The observed site that holds the data."""
        for name in observed:
            if trace.nodes[name]["value"].shape[1:] == self.x.shape[1:]:
                return name
        names = ", ".join(f"'{name}'" for name in observed)
        raise PairError(f"none of the observed sites {names} has the shape of the data")


def _mean(site: Mapping[str, Any]) -> Tensor:
    """The mean of a site's distribution; a draw from it if it has none (a categorical, say)."""
    try:
        mean: Tensor = site["fn"].mean
    except NotImplementedError:
        mean = torch.tensor(torch.nan)
    return mean if torch.isfinite(mean).all() else torch.as_tensor(site["value"])


# -- pictures of one run ---------------------------------------------------------------------------------


def draw_run(
    folder: Path,
    generator: Generator,
    history: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    labels: Tensor | None = None,
) -> list[str]:
    """Draws a run's pictures into a folder.

    A picture that a pair has no meaning for (a model whose rows are not pictures of the data's shape, say) is
    left out.

    Returns:
        A line for each picture that could not be drawn, and why.
    """

    def aggregate() -> Figure:
        z, _ = generator.reconstruct()
        prior, _, _ = generator.from_prior(_DRAWS)
        return plots.aggregate_posterior(z, prior, diagnosis.kl, labels=labels)

    def latent_space() -> Figure:
        if len(diagnosis.kl) == 2:
            return plots.manifold(generator.decode)
        return plots.traversals(generator.decode, diagnosis.kl)

    pictures: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: plots.learning_curves(history),
        "reconstructions": lambda: plots.reconstructions(generator.x, generator.reconstruct()[1]),
        "prior_samples": lambda: plots.prior_samples(generator.from_prior(64)[1]),
        "manifold" if len(diagnosis.kl) == 2 else "traversals": latent_space,
        "kl_per_dimension": lambda: plots.kl_per_dimension(diagnosis.kl, diagnosis.mean_variance),
        "aggregate_posterior": aggregate,
        "khat": lambda: plots.khat_histogram(evaluation.khat, evaluation.num_samples),
    }
    folder.mkdir(exist_ok=True)
    failed = []
    for name, draw in pictures.items():
        try:
            draw().savefig(folder / f"{name}.png")
        except Exception as error:  # a stranger's programs may raise anything; the results are safe
            failed.append(f"{name}.png was not drawn: {error}")
    return failed


# -- comparing runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Runs that were evaluated on the same rows, and their differences from the first of them.

    Args:
        names: What the runs are called.
        evaluations: The content of their evaluation.json.
        active_units: Active units of each, None where it was not diagnosed.
    """

    names: tuple[str, ...]
    evaluations: tuple[Mapping[str, Any], ...]
    active_units: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Comparison:
        """Checks that the runs can be compared.

        Raises:
            ValueError: A run was not evaluated, or on other rows than the first.
        """
        evaluations = []
        for run in runs:
            evaluation = run.evaluation
            if evaluation is None or "rows" not in evaluation:
                lack = "holds no evaluation" if evaluation is None else "does not say its rows"
                raise ValueError(
                    f"{run.path} {lack}, so that it can not be compared: " + _remedy(run)
                )
            evaluations.append(evaluation)
        for run, evaluation in zip(runs, evaluations, strict=True):
            own, first = evaluation["rows"], evaluations[0]["rows"]
            if own != first:
                raise ValueError(
                    f"{run.path} was evaluated on other rows than {runs[0].path} ({own['num']} of "
                    f"{own['name']} against {first['num']} of {first['name']}; the content differs): only runs "
                    "on the same data, with the same binarisation, can be compared row by row"
                )
        return cls(
            tuple(_short_names([run.path for run in runs])),
            tuple(evaluations),
            tuple(
                "-" if run.diagnosis is None else str(run.diagnosis["active_units"]) for run in runs
            ),
        )

    def difference(self, quantity: str, run: int) -> Estimate:
        """A run's quantity minus the first run's, row by row: the error is that of paired rows."""
        own, first = (
            torch.tensor(self.evaluations[i][quantity]["values"], dtype=torch.float64)
            for i in (run, 0)
        )
        return Estimate(own - first)

    def to_dict(self) -> dict[str, Any]:
        """Means, differences and standard errors, for JSON."""
        result: dict[str, Any] = {}
        for i, name in enumerate(self.names):
            result[name] = {}
            for quantity in ("elbo", "rate", "distortion", "log_likelihood"):
                difference = self.difference(quantity, i)
                result[name][quantity] = {
                    "mean": self.evaluations[i][quantity]["mean"],
                    "standard_error": self.evaluations[i][quantity]["standard_error"],
                    "difference": difference.mean,
                    "difference_standard_error": difference.standard_error,
                }
        return result

    def __str__(self) -> str:
        head = ["run", "ELBO", "rate", "distortion", "log p(x)", "bits/dim", "active"]
        head += ["Δ ELBO", "Δ log p(x)"]
        lines = [head]
        for i, (name, e) in enumerate(zip(self.names, self.evaluations, strict=True)):
            line = [name]
            line += [
                f"{e[q]['mean']:.2f}" for q in ("elbo", "rate", "distortion", "log_likelihood")
            ]
            line += [f"{e['bits_per_dim']['mean']:.4f}", self.active_units[i]]
            for quantity in ("elbo", "log_likelihood"):
                d = self.difference(quantity, i)
                line.append("-" if i == 0 else f"{d.mean:+.2f} ± {d.standard_error:.2f}")
            lines.append(line)
        n = len(self.evaluations[0]["elbo"]["values"])
        samples = sorted({e["num_samples"] for e in self.evaluations})
        text = table(lines)
        return (
            f"{text}\n\nnats a row, {n} rows, log p(x) by importance sampling with "
            f"{' / '.join(map(str, samples))} samples; Δ: difference from {self.names[0]} and its standard "
            "error from paired rows"
        )

    def figure(self) -> Figure:
        """The differences from the first run, with two standard errors to each side."""
        others = range(1, len(self.names))
        figure = Figure(figsize=(7, 2.3 + 0.6 * len(others)), dpi=150, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (quantity, label) in zip(
            panels, (("elbo", "ELBO"), ("log_likelihood", "log p(x)")), strict=True
        ):
            for i in others:
                d = self.difference(quantity, i)
                axes.errorbar(
                    d.mean, i, xerr=2 * d.standard_error, color=BLUE, marker="o", capsize=4, lw=2
                )
            axes.axvline(0, color=GREY, ls="--", lw=2)
            axes.set_ylim(len(self.names) - 0.4, 0.4)
            axes.locator_params(axis="x", nbins=5)
            annotate(axes, title=label, x="difference\n(nats a row)")
        labels = [fill(self.names[i], 22) for i in others]
        panels[0].set_yticks(list(others), labels, fontsize=MEDIUM)
        title = fill(f"minus {self.names[0]}", 50) + "\nbars: ± 2 standard errors"
        figure.suptitle(title, fontsize=MEDIUM)
        return figure


def _remedy(run: Run) -> str:
    """How to come by an evaluation that says its rows."""
    if "data" in run.config:  # ppl-vae train made it
        return f"run `ppl-vae evaluate {run.path} --overwrite`"
    return (
        "it was saved from Python and its config.yaml names no data; evaluate both pairs in Python on the "
        "same rows, and take the difference of the per-row values"
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or the whole paths where two of those are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


# -- tables ----------------------------------------------------------------------------------------------


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, the others to the right.

    Example:
        >>> print(table([["run", "ELBO"], ["a", "-3.5"]]))
        run  ELBO
        a    -3.5
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )


def result_table(evaluation: Evaluation, diagnosis: Diagnosis) -> str:
    """The numbers of a trained pair: one a line, with its error and unit."""
    lines = str(evaluation).splitlines()
    numbers = [line for line in lines if not line.startswith("warning: ")]
    width = len(numbers[0]) - len(numbers[0].split("  ", 1)[1].lstrip())
    active = f"{diagnosis.active_units} of {len(diagnosis.kl)}"
    numbers.append(f"{'active units':<{width}}{active}")
    numbers.append(f"{'mutual information':<{width}}{information(diagnosis)}")
    return "\n".join([*numbers, *lines[len(numbers) - 2 :]])


def dequantization_note(evaluation: Evaluation | Annealed, data: Data) -> str:
    """What the bits per dimension of dequantised data leave out; empty for other data.

    For D values a row and L levels a density p of the dequantised values bounds the discrete ones'
    probability: -log2 P / D <= -log2 p / D + log2 L ("A note on the evaluation of generative models",
    arXiv:1511.01844).
    """
    if not isinstance(data.transform, Dequantization):
        return ""
    levels, bits = data.transform.levels, evaluation.bits_per_dim.mean
    return (
        f"\nnote: the data are dequantised, log p(x) is a density on [0, 1): the {levels} levels themselves "
        f"take at most {bits:.4f} + log2({levels}) = {bits + math.log2(levels):.4f} bits per dimension"
    )


def information(diagnosis: Diagnosis) -> str:
    """The mutual information; only a bound, and no error, where the rows are too few to show it."""
    estimate = diagnosis.mutual_information
    if diagnosis.saturated:
        return f"≥ {estimate.mean:.2f} {estimate.unit}"
    return str(estimate)


def dimensions_table(diagnosis: Diagnosis) -> str:
    """The latent dimensions, that of the largest KL first."""
    lines = [["latent", "KL (nats)", "variance of means", ""]]
    for i in torch.argsort(diagnosis.kl, descending=True).tolist():
        state = "collapsed" if diagnosis.collapsed[i] else "active" if diagnosis.active[i] else ""
        kl, variance = float(diagnosis.kl[i]), float(diagnosis.mean_variance[i])
        lines.append([diagnosis.names[i], f"{kl:.3f}", f"{variance:.4f}", state])
    return table(lines)
