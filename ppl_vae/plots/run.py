"""Pictures of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro.poutine as poutine
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.checks import opened
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.evaluation import Evaluation, PriorGuide
from ppl_vae.pairs import (
    Batch,
    ImproperStandIns,
    PairError,
    Program,
    as_args,
    innermost,
    kind_of,
    num_rows,
    take_rows,
    tensors_of,
)
from ppl_vae.plots.curves import khat_histogram, learning_curves
from ppl_vae.plots.drawing import MEDIUM, some_rows
from ppl_vae.plots.files import Draw, draw_into
from ppl_vae.plots.latents import (
    aggregate_posterior,
    codes,
    kl_per_dimension,
    use_of_codes,
    worth_of_units,
)
from ppl_vae.plots.samples import (
    MOST_PATHS,
    MOST_RECONSTRUCTED,
    MOST_WORST,
    interpolations,
    manifold,
    prior_samples,
    reconstructions,
    traversals,
    worst_reconstructions,
)
from ppl_vae.runtime import own_folder
from ppl_vae.tasks import (
    NoMeanError,
    Outliers,
    discrete_latents,
    encode,
    interpolate,
    partners,
    reconstruct,
    sample,
    traverse,
    without_observed,
)

_DRAWS = 2000
"""Draws from the prior, in the picture of the aggregate posterior."""

_MOST_NUMBERS = 2**26
"""Numbers of all drawn rows together above which there are fewer draws: each comes with a whole row."""

_MOST_CODES = 1000
"""Rows whose codes are drawn."""

_MOST_SHOWN = 2**20
"""Most codes of a codebook that are shown also where they are not used."""

_SAMPLES = 24

_PAIRS = 5
"""Pairs of rows between which there are paths."""

_MOST_PAIRED = 200
"""Rows among which such pairs are looked for."""


def draw_run(
    folder: Path,
    model: Program,
    guide: Program,
    x: Batch,
    history: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    labels: Tensor | None = None,
    weights: str | None = None,
    seed: int = 0,
    dark: Path | None = None,
) -> list[str]:
    """Draws a run's pictures into a folder.

    A picture that has no meaning for a pair (such as paths between the values of a discrete latent) is left
    out, and what is returned says so.

    Args:
        folder: The folder; it is made if it is not there. Pictures of the same names are replaced.
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows that were evaluated: a tensor, or several (rows and their labels). Those in the pictures are
            chosen at random.
        history: One mapping per epoch.
        evaluation: What `evaluate` returned for these rows.
        diagnosis: What `diagnose` returned.
        labels: The labels of the rows, if there are any.
        weights: The digest of the pair's weights, which is written into each picture.
        seed: Seed of the choice, and of all draws.
        dark: Another folder, for the same pictures in light colors on dark paper; None: they are not drawn.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    try:
        own_folder(folder)
    except OSError as error:  # a full disk, or a file of this name
        return [f"no pictures were drawn: {error}"]
    if labels is not None and (labels.dim() > 1 or labels.is_floating_point()):  # attributes
        labels = None
    pictures = _Pictures(model, guide, x, evaluation, diagnosis, labels, seed)
    plane = "manifold" if len(diagnosis.kl) == 2 and pictures.single else "traversals"
    draws: dict[str, Callable[[], Draw]] = {
        "learning_curves": lambda: lambda: learning_curves(history),
        "reconstructions": pictures.reconstructions,
        "worst_reconstructions": pictures.worst,
        "prior_samples": pictures.samples,
        plane: pictures.manifold if plane == "manifold" else pictures.traversals,
        "interpolations": pictures.interpolations,
        "kl_per_dimension": lambda: lambda: kl_per_dimension(diagnosis.kl, diagnosis.mean_variance),
        "aggregate_posterior": pictures.aggregate_posterior,
        "codes": pictures.codes,
        "khat": lambda: (
            lambda: khat_histogram(
                evaluation.khat,
                evaluation.num_samples,
                [name == "annealed" for name in evaluation.method],
            )
        ),
    }
    if evaluation.certain or diagnosis.of_points:
        del draws["khat"]  # nothing was sampled
    if diagnosis.of_points:  # without a KL
        del draws["kl_per_dimension"]
        draws["worth_of_units"] = lambda: lambda: worth_of_units(pictures.sizes, diagnosis.active)
    if evaluation.elbo.missing:  # without a density of the codes
        del draws["prior_samples"], draws["aggregate_posterior"]
    if diagnosis.of_codes:  # whose numbers are names: there are no paths between them, and no means
        names = (plane, "interpolations", "kl_per_dimension", "aggregate_posterior", "codes")
        draws = {name: draw for name, draw in draws.items() if name not in names}
        draws["use_of_codes"] = pictures.use_of_codes
    elif diagnosis.of_sentences is not None:  # words are no numbers: neither of z nor of x
        draws = {name: draws[name] for name in ("learning_curves", "khat") if name in draws}
    elif (
        len(diagnosis.kl) < 3 and not evaluation.elbo.missing
    ):  # then the aggregate posterior shows them all
        del draws["codes"]
    return draw_into(folder, draws, weights, dark)


def draw_rows(
    folder: Path,
    model: Program,
    guide: Program,
    x: Batch,
    evaluation: Evaluation,
    others: Mapping[str, Callable[[], Figure]] | None = None,
    weights: str | None = None,
    seed: int = 0,
    dark: Path | None = None,
) -> list[str]:
    """Draws what a pair makes of rows: those of the pictures of `draw_run` that need no diagnosis.

    They are `reconstructions`, `worst_reconstructions`, `prior_samples` and `interpolations`. The last are left
    out without a word where latents are discrete, between whose values there is no path, or summed out.

    Args:
        folder: The folder; it is made if it is not there. Pictures of the same names are replaced.
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows that were evaluated: a tensor, or several.
        evaluation: What `evaluate` returned for these rows.
        others: Functions that make more pictures, by name; these are drawn first.
        weights: The digest of the pair's weights, which is written into each picture.
        seed: Seed of the choice of rows, and of all draws.
        dark: Another folder, for the same pictures in light colors on dark paper; None: they are not drawn.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    given = {name: _drawn_by(draw) for name, draw in (others or {}).items()}
    failed = draw_into(folder, given, weights, dark)
    pictures = _Pictures(model, guide, x, evaluation, None, None, seed)
    draws: dict[str, Callable[[], Draw]] = {
        "reconstructions": pictures.reconstructions,
        "worst_reconstructions": pictures.worst,
        "prior_samples": pictures.samples,
        "interpolations": pictures.interpolations,
    }
    try:
        own_folder(folder)
        with opened(model, guide, x, seed=0, progress=False) as session:
            layout = session.layout
    except Exception as error:  # the user's programs may raise anything; the results are safe
        return [*failed, f"no pictures of rows were drawn: {error}"]
    if layout.enumerated or layout.discrete:
        del draws["interpolations"]
    return [*failed, *draw_into(folder, draws, weights, dark)]


def _drawn_by(draw: Draw) -> Callable[[], Draw]:
    """The form that `draw_into` takes, of a function that draws what is known already."""
    return lambda: draw


class _Pictures:
    """The pictures of a pair on some rows; see `draw_run`.

    Each is computed once, and returned as a function that draws it, in the style of the moment.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        x: Batch,
        evaluation: Evaluation,
        diagnosis: Diagnosis | None,
        labels: Tensor | None,
        seed: int,
    ) -> None:
        self.model, self.guide, self.x, self.seed = model, guide, x, seed
        self.evaluation, self.labels = evaluation, labels
        self._diagnosis = diagnosis

    @property
    def diagnosis(self) -> Diagnosis:
        if self._diagnosis is None:
            raise ValueError("this picture needs a diagnosis")
        return self._diagnosis

    def reconstructions(self) -> Draw:
        x = self._some(MOST_RECONSTRUCTED)
        means = self._means(x)
        return lambda: self._told(reconstructions(_rows(x), means))

    def worst(self) -> Draw:
        found = Outliers.of(self.evaluation, num=MOST_WORST)
        if found.out_of != num_rows(self.x):
            raise ValueError(
                f"{found.out_of} rows were evaluated, and {num_rows(self.x)} are given"
            )
        x = take_rows(self.x, found.index)
        means = self._means(x)
        return lambda: self._told(worst_reconstructions(_rows(x), means, found))

    def samples(self) -> Draw:
        draws = self._sample(_SAMPLES)
        means = self._sample(_SAMPLES, means=True) if self._states_means else None
        data = _rows(self._some(_SAMPLES))
        return lambda: prior_samples(draws, means=means, data=data)

    def manifold(self) -> Draw:
        name = self._places()[0][0]
        shape = self._latents(take_rows(self.x, slice(1)), None)[name].shape[1:]
        if len({site for site, _ in self._places()}) > 1:
            raise PairError("the two numbers of a row are two latents")
        row = take_rows(self.x, self._chosen(1).repeat(2))  # of one context, if there is any

        known: dict[int, Tensor] = {}  # by the number of points, which are always the same
        center, spread = torch.zeros(()), torch.ones(())
        if self.evaluation.elbo.missing:  # codes without a prior: as far as those of the rows go
            codes = self._latents(self._some(_MOST_CODES), None)[name].reshape(-1, 2)
            center, spread = codes.mean(0), codes.std(0)

        def decoded(z: Tensor) -> Tensor:
            z = center + spread * z
            if len(z) not in known:
                known[len(z)] = self._sample(
                    len(z), row, means=self._states_means, given={name: z.reshape(len(z), *shape)}
                )
            return known[len(z)]

        return lambda: self._told(manifold(decoded))

    @property
    def sizes(self) -> Tensor:
        """By how much each dimension counts: its KL, or what it is worth where there is none; nats, `(d,)`."""
        points = self.diagnosis.of_points
        return torch.tensor([use.worth for use in points]) if points else self.diagnosis.kl

    def traversals(self) -> Draw:
        # Of codes without a prior, the rows say how far a number goes.
        row = self._some(_MOST_PAIRED if self.evaluation.elbo.missing else 1)
        kl, places = self.sizes, self._places()
        discrete = discrete_latents(self.model, self.guide, row)
        moving = [i for i in kl.argsort(descending=True).tolist() if places[i][0] not in discrete]
        if not moving:
            raise PairError(f"'{places[0][0]}' is discrete: there is no path between values")
        order = moving[:MOST_PATHS]
        paths: dict[int, Tensor] = {}
        for site in dict.fromkeys(places[i][0] for i in order):
            of_site = [i for i in order if places[i][0] == site]
            numbers = [places[i][1] for i in of_site]
            moved = traverse(
                self.model,
                self.guide,
                row,
                numbers,
                latent=site,
                seed=self.seed,
                means=self._states_means,
            )
            paths |= zip(of_site, moved[0], strict=True)
        names = [self.diagnosis.names[i] for i in order]
        together = torch.stack([paths[i] for i in order])
        points = bool(self.diagnosis.of_points)
        return lambda: self._told(
            traversals(together, kl[order], names=names, row=_rows(row)[0], points=points)
        )

    def interpolations(self) -> Draw:
        x = self._some(_MOST_PAIRED)
        ends = partners(self.model, self.guide, x, _PAIRS, seed=self.seed)
        a, b = (take_rows(x, rows) for rows in ends)
        paths = interpolate(
            self.model, self.guide, a, b, steps=7, seed=self.seed, means=self._states_means
        )
        return lambda: self._told(interpolations(paths, a=_rows(a), b=_rows(b)))

    def aggregate_posterior(self) -> Draw:
        chosen = self._chosen(_MOST_CODES)
        of_sites = self._latents(take_rows(self.x, chosen), 1)
        z = _side_by_side([value[0] for value in of_sites.values()])
        prior = None
        if not is_standard_normal(self.model, self.x):
            most = _MOST_NUMBERS // max(1, _rows(self.x)[:1].numel())
            _, drawn = self._sample(max(64, min(_DRAWS, most)), return_latents=True)
            prior = _side_by_side([drawn[name] for name in of_sites])
        labels = None if self.labels is None else self.labels[chosen]
        return lambda: aggregate_posterior(z, prior, self.sizes, labels=labels)

    def codes(self) -> Draw:
        chosen = self._chosen(_MOST_CODES)
        z = _side_by_side(list(self._latents(take_rows(self.x, chosen), None).values()))
        labels = None if self.labels is None else self.labels[chosen]
        return lambda: codes(z, labels=labels)

    def use_of_codes(self) -> Draw:
        of_codes = self.diagnosis.of_codes
        found = encode(
            self.model, self.guide, self.x, num_samples=1, seed=self.seed, progress=False
        )
        uses: dict[str, Tensor] = {}
        for site, z in found.items():
            levels = [use for use in of_codes if use.name.partition(", level ")[0] == site]
            codes = z[0].long().reshape(-1, len(levels)).unbind(-1)
            for use, code in zip(levels, codes, strict=True):
                if use.values > _MOST_SHOWN:
                    uses[use.name] = code.unique(return_counts=True)[1]
                else:
                    uses[use.name] = code.bincount(minlength=use.values)
        return lambda: use_of_codes(uses)

    def _chosen(self, most: int) -> Tensor:
        return torch.as_tensor(some_rows(num_rows(self.x), most, self.seed))

    def _some(self, most: int) -> Batch:
        return take_rows(self.x, self._chosen(most))

    def _means(self, x: Batch) -> Tensor:
        how: dict[str, Any] = {} if self._states_means else {"means": False, "num_samples": 1}
        found: Tensor = reconstruct(
            self.model, self.guide, x, seed=self.seed, progress=False, **how
        )
        return found

    @cached_property
    def _states_means(self) -> bool:
        """Whether p(x | z) states its mean; pictures show draws of it if not."""
        try:
            self._sample(1, means=True)
        except NoMeanError:
            return False
        except Exception:  # the pictures will say what is wrong
            return True
        return True

    def _told(self, figure: Figure) -> Figure:
        """A figure of means; where there are none, of draws, and it says so."""
        if self._states_means:
            return figure
        of_means = "mean of p(x | z)"
        titles = [axes.get_title() for axes in figure.axes]
        for axes, title in zip(figure.axes, titles, strict=True):
            axes.set_title(
                title.replace(of_means, "draws of x"), fontsize=axes.title.get_fontsize()
            )
        if not any(of_means in title for title in titles):
            told = ", ".join(filter(None, (figure.get_suptitle(), "each a draw of p(x | z)")))
            figure.suptitle(told, fontsize=MEDIUM)
        return figure

    def _sample(self, num: int, like: Batch | None = None, **options: Any) -> Any:
        like = without_observed(self.model, self._some(_SAMPLES) if like is None else like)
        return sample(self.model, num, like=like, seed=self.seed, progress=False, **options)

    @property
    def single(self) -> bool:
        """Whether a row has one latent site alone."""
        try:
            with opened(self.model, self.guide, self.x, seed=0, progress=False) as session:
                return len(session.layout.latents) == 1
        except Exception:  # the pictures will say what is wrong
            return True

    def _latents(self, x: Batch, num_samples: int | None) -> dict[str, Tensor]:
        """The latents that have dimensions: no classes beside others."""
        found = encode(
            self.model, self.guide, x, num_samples=num_samples, seed=self.seed, progress=False
        )
        sites = {site for site, _ in self._places()}
        return {name: value for name, value in found.items() if name in sites}

    def _places(self) -> list[tuple[str, int]]:
        """The site of each latent dimension, and its number in it."""
        sites = [name.partition("[")[0] for name in self.diagnosis.names]
        return [(site, sites[:i].count(site)) for i, site in enumerate(sites)]


def _rows(x: Batch) -> Tensor:
    """What is pictured of some rows: the data, without labels."""
    return tensors_of(x)[0]


def _side_by_side(values: Sequence[Tensor]) -> Tensor:
    """The numbers of all latents of each row, `(n, latent_dim)`."""
    return torch.cat([value.reshape(len(value), -1) for value in values], 1)


def is_standard_normal(model: Program, x: Batch) -> bool:
    """Whether p(z) is N(0, I), exactly, for all latents of a model.

    Example:
        >>> from ppl_vae.models import VAE, MixturePrior
        >>> x = torch.zeros(2, 3)
        >>> is_standard_normal(VAE((3,), 2), x), is_standard_normal(VAE((3,), 2, prior=MixturePrior(2)), x)
        (True, False)
    """
    with opened(model, PriorGuide(model), x, seed=0, progress=False) as session:
        trace = poutine.trace(ImproperStandIns(session.pair.model)(session.pair.model)).get_trace(
            *as_args(session.first)
        )
        return all(_is_standard(trace.nodes[name]["fn"]) for name in session.layout.latents)


def _is_standard(fn: Any) -> bool:
    inner = innermost(fn)
    if kind_of(fn) == "Normal":
        return bool((inner.loc == 0).all() and (inner.scale == 1).all())
    if kind_of(fn) == "MultivariateNormal":
        of_all = torch.eye(inner.scale_tril.shape[-1]).to(inner.scale_tril)
        return bool((inner.loc == 0).all() and (inner.scale_tril == of_all).all())
    return False
