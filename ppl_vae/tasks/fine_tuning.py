"""fine_tune(): a copy of a guide's encoder and a linear layer, trained together on a few labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppl_vae.checks import opened
from ppl_vae.pairs import Batch, Pair, PairError, Program, move, num_rows, parts_of, take_rows
from ppl_vae.runtime import (
    apart_from_data,
    preserve_random_state,
    progress_bar,
    require_count,
    require_flags,
    require_number,
    require_progress,
    require_seed,
)
from ppl_vae.tasks.features import GuideFeatures
from ppl_vae.tasks.few_labels_results import FineTuned
from ppl_vae.tasks.labelled_rows import LabelledRows, cautions
from ppl_vae.tasks.observed import tell
from ppl_vae.tasks.probing import CS, LogisticProbe, require_encoder

_AT_ONCE = 512
"""Rows that are classified at once."""

_LOOKS = 20
"""How often held-out rows are looked at."""


def fine_tune(
    model: Program,
    guide: Program,
    train: Any,
    test: Any = None,
    *,
    labels: int | None = None,
    draws: int = 1,
    num_steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    encoder_rate: float | None = None,
    weight_decay: float = 0.01,
    held_out: float = 0.0,
    scale_each: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> FineTuned:
    """Trains a copy of a guide and a linear layer on top together, on a few labels; tested on other rows.

    The layer reads what `probe` reads, with gradients: each latent's mean, of categories their probabilities,
    of codes of a quantizer the encoder's vectors before they are codes. Where latents depend on others, these
    are at their means; where a distribution states no mean, as a flow, it is that of 16 draws. The layer starts
    as the logistic regression of `probe`: otherwise its first gradients would change what the encoder has
    learned before the layer can use it ("Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution", arXiv:2202.10054).

    Adam with weight decay (arXiv:1711.05101), whose steps shrink to 0 along a cosine. The length is fixed
    before. The given pair stays as it is. With a guide that is not trained, the same call is training from
    scratch.

    Args:
        model: Pyro program of p(x, z). It is not trained; it says which latents are those of rows.
        guide: Pyro program of q(z | x), trained or new.
        train: Rows and their labels, `(x, y)`, as for `probe`.
        test: Rows and labels for the accuracy; None: there is none.
        labels: How many of the labels to learn from, as for `probe`; None: all that are not hidden.
        draws: How often they are chosen; a classifier for each.
        num_steps: Steps of the optimizer.
        batch_size: Rows per step; fewer if there are fewer.
        learning_rate: Size of the first steps of the layer.
        encoder_rate: The same of the encoder; None: `learning_rate`.
        weight_decay: Share of the weights, times the rate, that a step takes away.
        held_out: Share of the labelled rows that are kept apart, at least one of each class: the weights are
            those at which their cross entropy was least, at one of 20 looks. Each class needs two labelled
            rows.
        scale_each: Whether each number that the layer reads has a scale of its own, as in `probe`.
        seed: Seed of the first draw, of the order of the rows and of the noise; those that follow have the next
            seeds.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The classifiers: `found.classifier(x)` gives logits; and predictions and the accuracy, if there are
        test rows.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There are not as many labels, or they are all of one class; a number is out of its range; or
            too few labels are there to hold some out.
        PairError: The guide needs the labels, draws no latents, keeps parameters for each row, or what it makes
            of a row has no gradient; or the training has diverged.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> from ppl_vae.networks import MLP
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> y = torch.arange(40) % 2
        >>> x = (torch.randn(40, 3) + 4.0 * y[:, None]).sigmoid().round()
        >>> pair = VAE((3,), 2, MLP(hidden=(8,))), MeanField((3,), 2, MLP(hidden=(8,)))
        >>> found = fine_tune(*pair, (x, y), labels=10, num_steps=5)
        >>> found.classifier(x).shape
        torch.Size([40, 2])
    """
    require_seed(seed)
    require_progress(progress)
    require_flags(scale_each=scale_each)
    settings = _Settings(
        *(num_steps, batch_size, learning_rate),
        learning_rate if encoder_rate is None else encoder_rate,
        *(weight_decay, held_out),
    )
    pair = Pair.of(model, guide)
    rows = LabelledRows.of("train", train, pair)
    held = None if test is None else LabelledRows.of("test", test, pair)
    chosen = rows.draws(labels, draws, seed)
    used = torch.cat(chosen).unique()
    with opened(model, guide, rows.rows(used), seed=seed, progress=False) as session:
        require_encoder(session)
        session.sample(session.first, 1)  # which makes the `pyro.param` values of a new pair
        device, pair, layout = session.device, session.pair, session.layout
        for _ in session.chunks(_AT_ONCE):
            pass  # each is looked at
    tell(session)
    classes = rows.classes
    classifiers, predicted, losses, steps = [], [], [], []
    with (
        progress_bar(draws * num_steps, "fine-tune", "step", progress) as bar,
        preserve_random_state(),
    ):
        for i, which in enumerate(chosen):
            torch.manual_seed(apart_from_data(seed + i))
            x, y = move(rows.rows(which), device), rows.labels[which]
            classifier = FineTunedClassifier(
                GuideFeatures(pair, layout), x, y, classes, seed + i, scale_each
            )
            loss, step = _train(classifier, x, y.to(device), settings, bar)
            classifiers.append(classifier)
            losses.append(loss)
            steps.append(step)
            if held is not None:
                predicted.append(classifier.labels_of(held.x, device))
    none = torch.zeros(draws, 0, dtype=torch.long)
    return FineTuned(
        predicted=none if held is None else torch.stack(predicted),
        labels=none[0] if held is None else held.labels,
        num_labels=len(chosen[0]),
        method=(
            f"the encoder and a linear layer on {classifiers[0].features_in} numbers, trained together, "
            f"{num_steps} steps of {min(batch_size, len(chosen[0]))} rows"
        ),
        seeds=tuple(seed + i for i in range(draws)),
        compared_with=rows.key(chosen, held),
        classifiers=tuple(classifiers),
        losses=tuple(losses),
        steps=tuple(steps),
        cautions=tuple(cautions(rows, chosen, held)),
    )


@dataclass(frozen=True)
class _Settings:
    """How a classifier is trained; see `fine_tune`."""

    num_steps: int
    batch_size: int
    learning_rate: float
    encoder_rate: float
    weight_decay: float
    held_out: float

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps, least=0)
        require_count("batch_size", self.batch_size)
        for name in ("learning_rate", "encoder_rate", "weight_decay", "held_out"):
            value = getattr(self, name)
            require_number(name, value)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if self.held_out >= 1:
            raise ValueError(
                f"held_out is a share of the labelled rows below 1, got {self.held_out}"
            )


class FineTunedClassifier(nn.Module):
    """A guide's copy, standardization, and a linear layer: maps rows to logits.

    Args:
        features: The copy.
        x: The labelled rows, on its device.
        y: Their labels, `(n,)`.
        classes: Number of classes.
        seed: Of the folds that choose the layer's first weights.
        scale_each: See `fine_tune`.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        features: GuideFeatures,
        x: Batch,
        y: Tensor,
        classes: int,
        seed: int,
        scale_each: bool,
    ) -> None:
        super().__init__()
        self.features = features
        self.eval()
        with torch.no_grad():
            z = self._in_parts(x)
        rng = np.random.default_rng(abs(seed))
        probe = LogisticProbe.fit(z.cpu().double().numpy(), y.numpy(), CS, rng, scale_each)
        self.features_in = z.shape[1]
        self.register_buffer("center", torch.from_numpy(probe.center).to(z))
        self.register_buffer("scale", torch.from_numpy(probe.scale).to(z))
        self.layer = nn.Linear(self.features_in, classes, device=z.device, dtype=z.dtype)
        with torch.no_grad():
            at = torch.from_numpy(probe.classes).to(z.device)
            # A class without labelled rows begins where it is never chosen.
            self.layer.weight.zero_()
            self.layer.bias.fill_(float(probe.bias.min()) - 10.0)
            self.layer.weight[at] = torch.from_numpy(probe.weight).to(z)
            self.layer.bias[at] = torch.from_numpy(probe.bias).to(z)

    def forward(self, *x: Tensor) -> Tensor:
        """Logits of rows `(n, *shape)`, `(n, classes)`; of a pair with several arguments, all of them."""
        batch = x[0] if len(x) == 1 else x
        logits: Tensor = self.layer((self.features(batch) - self.center) / self.scale)
        return logits

    def labels_of(self, x: Batch, device: torch.device) -> Tensor:
        """The most probable class of each row, `(n,)`, on the CPU."""
        with torch.no_grad():
            parts = [
                self._logits(move(take_rows(x, part), device)).argmax(-1).cpu()
                for part in parts_of(num_rows(x), _AT_ONCE)
            ]
        return torch.cat(parts)

    def _logits(self, batch: Batch) -> Tensor:
        found: Tensor = self(batch) if isinstance(batch, Tensor) else self(*batch)
        return found

    def _in_parts(self, x: Batch) -> Tensor:
        parts = parts_of(num_rows(x), _AT_ONCE)
        return torch.cat([self.features(take_rows(x, part)) for part in parts])


def _train(
    classifier: FineTunedClassifier, x: Batch, y: Tensor, settings: _Settings, bar: Any
) -> tuple[float, int]:
    """Trains a classifier; the cross entropy of all labelled rows at the end, and the step of its weights.

    Raises:
        PairError: No gradient reaches the guide, or the loss is not finite.
    """
    inside, outside = _apart(y, settings.held_out)
    encoder = [p for p in classifier.features.parameters() if p.requires_grad]
    _require_gradient(classifier, take_rows(x, inside[:2]), encoder)
    optimizer = torch.optim.AdamW(
        [
            {"params": encoder, "lr": settings.encoder_rate},
            {"params": [*classifier.layer.parameters()], "lr": settings.learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.num_steps))
    size, order = min(settings.batch_size, len(inside)), inside[:0]
    every = max(1, settings.num_steps // _LOOKS)
    best = (math.inf, 0, None) if len(outside) else None
    for step in range(settings.num_steps):
        if best is not None and step % every == 0:
            best = _better(best, classifier, x, y, outside, step)
        if len(order) < size:  # an epoch has whole batches only
            order = inside[torch.randperm(len(inside)).to(inside.device)]
        batch, order = order[:size], order[size:]
        classifier.train()
        loss = cross_entropy(classifier._logits(take_rows(x, batch)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update(1)
    classifier.eval()
    step = settings.num_steps
    if best is not None:
        best = _better(best, classifier, x, y, outside, step)
        _, step, weights = best
        if weights is not None:
            classifier.load_state_dict(weights)
    found = _loss(classifier, x, y)
    if not math.isfinite(found):
        raise PairError(
            f"the fine-tuning has diverged, its cross entropy is {found}: choose a smaller learning_rate"
        )
    return found, step


def _better(
    best: tuple[float, int, Any],
    classifier: FineTunedClassifier,
    x: Batch,
    y: Tensor,
    rows: Tensor,
    step: int,
) -> tuple[float, int, Any]:
    """The best cross entropy of held-out rows so far, its step and weights."""
    found = _loss(classifier, take_rows(x, rows), y[rows])
    if not found < best[0]:
        return best
    return found, step, copy.deepcopy(classifier.state_dict())


def _loss(classifier: FineTunedClassifier, x: Batch, y: Tensor) -> float:
    """Cross entropy of rows, in nats per row."""
    classifier.eval()
    with torch.no_grad():
        parts = [
            cross_entropy(classifier._logits(take_rows(x, part)), y[part], reduction="sum")
            for part in parts_of(len(y), _AT_ONCE)
        ]
    return float(torch.stack(parts).sum()) / len(y)


def _apart(y: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The numbers of the rows to train on, and of those to be held out: a share of each class, at least one.

    Raises:
        ValueError: A class has one row only.
    """
    every = torch.arange(len(y), device=y.device)
    if not share:
        return every, every[:0]
    outside = torch.zeros_like(y, dtype=torch.bool)
    for label in y.unique().tolist():
        of_class = (y == label).nonzero().flatten()
        if len(of_class) < 2:
            raise ValueError(
                f"held_out={share}: class {label} has one labelled row, of which none can be held out: "
                "set held_out=0, or give more labels"
            )
        count = min(len(of_class) - 1, max(1, round(share * len(of_class))))
        mixed = of_class[torch.randperm(len(of_class)).to(of_class.device)]
        outside[mixed[:count]] = True
    return every[~outside], every[outside]


def _require_gradient(classifier: FineTunedClassifier, x: Batch, weights: Sequence[Tensor]) -> None:
    """Refuses a guide that is not trained by what it makes of rows.

    Raises:
        PairError: No gradient reaches its weights.
    """
    with torch.backends.cudnn.flags(
        enabled=False
    ):  # of which recurrent layers have none in this mode
        found = classifier.features(x)
        if found.requires_grad and weights:
            reached = torch.autograd.grad(found.sum(), list(weights), allow_unused=True)
            if any(gradient is not None for gradient in reached):
                return
    raise PairError(
        "no gradient reaches the guide from what it makes of a row, so that it cannot be fine-tuned: it has no "
        "trainable parameters of its own, or draws latents without a mean and without a gradient (codes are "
        "marked by infer={'quantizes': ...}). probe learns from it as it is"
    )
