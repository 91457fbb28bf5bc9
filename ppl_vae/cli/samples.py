"""What `ppl-vae sample` draws from a run's model: arrays by name."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace

from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import as_line, warn
from ppl_vae.cli.setup import of_photos
from ppl_vae.colors import possible_chroma, to_rgb
from ppl_vae.networks import Labels
from ppl_vae.pairs import Batch, DataArguments, Pair, PairError, num_rows, tensors_of
from ppl_vae.runs import Run
from ppl_vae.tasks import discrete_latents, sample as sample_pair


def sampled(run: Run, like: Batch, options: Namespace) -> tuple[dict[str, Any], str]:
    """Arrays z, x or mean or both, of one z, and label, if there are any; and what they are, in words."""
    classes = discrete_latents(run.model, run.guide, like, categorical=True)
    given = _wanted(run, like, classes, options)
    draw = partial(sample_pair, run.model, options.num, like=like, given=given, seed=options.seed)
    draw = partial(draw, progress=False if options.quiet else None)
    arrays: dict[str, Any] = {}
    told = []
    if options.what != "means":
        arrays["x"], latents = draw(return_latents=True)
        told.append("draws of x")
    if options.what != "draws":
        try:
            arrays["mean"], latents = draw(means=True, return_latents=True)  # the same z: one seed
            told.append("means of p(x | z)")
        except PairError as error:
            if options.what == "means":
                raise
            warn(f"{error}. Written are draws alone")
    numbers = [name for name in latents if name not in classes] or [*latents]
    arrays["z"] = torch.cat([latents[name].reshape(options.num, -1) for name in numbers], 1)
    if given:
        (arrays["label"],) = given.values()
    elif len(tensors_of(like)) > 1:  # those of the rows, in turn
        arrays["label"] = tensors_of(like)[1][torch.arange(options.num) % num_rows(like)]
    elif len(beside := [name for name in latents if name not in numbers]) == 1:
        arrays["label"] = latents[beside[0]]
    same = " of the same z" if len(told) > 1 else ""
    words = f"{' and '.join(told)}{same}{_of_labels(options, like, bool(given))}"
    return {name: value.numpy() for name, value in arrays.items()}, words


def sampled_sentences(run: Run, options: Namespace) -> list[str]:
    """Draws of x of a run that has a vocabulary, a line each.

    Raises:
        UsageError: An option asks for what sentences do not have.
    """
    name, words = type(run.model).__name__, run.vocabulary
    assert words is not None
    if options.label is not None:
        raise UsageError(
            f"--label {options.label:.60}: {name} writes sentences, which have no labels"
        )
    if options.what == "means":
        raise UsageError(f"--what means: {name} writes sentences, which have no means")
    progress = False if options.quiet else None
    rows = sample_pair(run.model, options.num, seed=options.seed, progress=progress)
    return [as_line(text) for text in words.sentences(rows)]


def as_pictures(arrays: dict[str, Any], run: Run) -> dict[str, Any]:
    """What is drawn of samples: chroma as photos, red, green and blue from 0 to 1; all others as they are.

    Args:
        arrays: From `sampled`.
        run: Its run.
    """
    if not of_photos(run.config):
        return arrays
    luma = torch.as_tensor(arrays["label"])
    found: dict[str, Any] = {}
    for name in ("x", "mean"):
        if name in arrays:
            chroma = possible_chroma(luma, torch.as_tensor(arrays[name]))
            found[name] = to_rgb(luma, chroma).movedim(-1, 1).numpy() / 255
    return found


def _of_labels(options: Namespace, like: Batch, asked: bool) -> str:
    """Which labels the samples have, in words: those that were asked for, in turn, or those of the rows."""
    if asked:
        several = "," in options.label
        return f", of {'labels' if several else 'label'} {options.label}{', in turn' if several else ''}"
    return ", with what the test rows come with, in turn" if len(tensors_of(like)) > 1 else ""


def _wanted(
    run: Run, like: Batch, classes: Collection[str], options: Namespace
) -> dict[str, torch.Tensor]:
    """The labels that are asked for, by the name of the model's argument or of its class.

    Raises:
        UsageError: They are no whole numbers, or more than samples, or the model does not have them.
    """
    if options.label is None:
        return {}
    try:
        labels = torch.tensor([int(word) for word in options.label.split(",")])
    except ValueError as error:
        raise UsageError(
            f"--label {options.label:.60}: expected a label, such as 3, or several: 0,1,2"
        ) from error
    wanted = len(labels.unique())
    if len(labels[: options.num].unique()) < wanted:
        raise UsageError(
            f"--label {options.label:.60} names {wanted} labels, and --num {options.num} samples cannot be of "
            f"all of them: --num {len(labels)} or more, which take them in turn, or fewer labels"
        )
    model, name = run.model, type(run.model).__name__
    context = getattr(model, "context", None)
    last = context.classes - 1 if isinstance(context, Labels) else None
    if last is not None and not bool(((labels >= 0) & (labels <= last)).all()):
        raise UsageError(f"--label {options.label:.60}: the labels of this {name} are 0 to {last}")
    takes = DataArguments.of(Pair.of(model, run.guide))
    if takes.names is not None and takes.required == 2 and tensors_of(like)[1].dim() == 1:
        argument = takes.names[1]
    elif len(classes) == 1:
        (argument,) = classes
    elif takes.names is not None and takes.required > 1:
        others = ", ".join(takes.names[1 : takes.required])
        given = ", ".join(f"'{each}': ..." for each in takes.names[1 : takes.required])
        raise UsageError(
            f"--label {options.label:.60}: {name} was trained with {others} of the rows, and these are no "
            "labels (whole numbers, one for each row). In Python, ppl_vae.sample(model, n, like=x, "
            f"given={{{given}}}) draws rows of them; without --label, those of the test rows are taken"
        )
    else:
        raise UsageError(
            f"--label {options.label:.60}: {name} has no labels. Leave it out, or train a ConditionalVAE or a "
            "SemiSupervisedVAE"
        )
    return {argument: labels[torch.arange(options.num) % len(labels)]}
