"""Why latent dimensions are not used: the causes, what shows them, and what to type."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Text(NamedTuple):
    """What a cause means, and its remedy, in words."""

    meaning: str
    remedy: str


CAUSES = {
    "none": Text("no cause", "nothing to do"),
    "identical rows": Text(
        "the rows given are all the same, so there is nothing to distinguish",
        "diagnose with rows that differ",
    ),
    "constant posterior": Text(
        "the guide ignores x: all rows have the same posterior, which is not the prior",
        "train for longer; if that does not help, check that the guide's network is given x and gets "
        "gradients",
    ),
    "dead encoder": Text(
        "the encoder is dead: all rows have the same posterior, and no gradient can change that",
        "check that the guide uses x; if it does, its units are inactive on all rows: train again from other "
        "weights, with an activation that does not die (GELU in place of ReLU), rescaled data or a smaller "
        "learning_rate",
    ),
    "dead units under a penalty": Text(
        "these numbers of the code are the same in all rows, and get no gradient from there: the penalty "
        "-log p(z) may have pulled them there before the decoder had a use for them, or large steps or their "
        "first weights did",
        "train again with new weights and a penalty that grows from 0 (a beta that warms up); if they are dead "
        "then, too, a smaller penalty, a smaller learning_rate, or a larger top_k",
    ),
    "dead units": Text(
        "these numbers of the code are the same in all rows, and get no gradient from there",
        "train again with new weights and a smaller learning_rate, a larger top_k, or without nonnegative=True",
    ),
    "units without worth": Text(
        "the decoder does as well with the mean of each of these numbers",
        "nothing is lost: a smaller latent_dim is enough; if more was hoped for, train for longer or enlarge "
        "the networks",
    ),
    "still training": Text("the training had not ended", "train for longer"),
    "small means": Text(
        "their posterior means vary little, yet the posterior depends on x",
        "nothing has to be done: judge them by the mutual information, as the measure of active units is meant "
        "for posteriors that differ in their means",
    ),
    "lagging guide": Text(
        "the guide lags behind the model, whose own posterior does use them",
        "train the guide for longer (more steps for it than for the model), enlarge its network, or warm beta "
        "up more slowly",
    ),
    "not judged": Text(
        "why they are not used shows once the guide has caught up",
        "diagnose again then",
    ),
    "strong decoder": Text(
        "the decoder models the data without them: given z, the numbers of x depend on each other",
        "hold the rate (TargetRate), set free_bits, or let the decoder see less of x: of AutoregressiveDecoder "
        "a smaller window, or a pixel_dropout, which hides pixels, or words of sequences, in training",
    ),
    "large beta": Text(
        "beta is {beta:.4g}, so that their KL costs {beta:.4g} times what it costs in the ELBO",
        "lower beta to use more of them: new weights, and a beta that warms up from 0 to 1; if few dimensions "
        "are what this beta is for, nothing is wrong",
    ),
    "decoder noise": Text(
        "the decoder's noise is larger than what they could explain",
        "learn the noise (LearnedGaussian or OptimalGaussian; of other likelihoods the scale), for longer if "
        "it is learned already, or make it smaller to use them",
    ),
    "surplus dimensions": Text(
        "what is left of the data is no larger than the decoder's noise and chance explain",
        "nothing is lost, and nothing has to be done; a smaller latent_dim is enough, if a smaller pair is "
        "wanted",
    ),
    "copied sentence": Text(
        "z repeats the words of x, and is no sentence of the latents' language",
        "begin again with the words of each language, model.count_words(x, latents); train by "
        "SentenceDenoising, which shows the network what sentences look like, and then by both together, "
        "Together([BackTranslation(latents), SentenceDenoising(latents, learn_prior=False, ...)]); some known "
        "pairs (KnownLatents) help most",
    ),
    "sentence of the prior": Text(
        "z is a draw of p(z), whatever x is",
        "train by both together, Together([BackTranslation(latents), SentenceDenoising(latents, "
        "learn_prior=False, ...)]), after denoising alone; some known pairs (KnownLatents) help most",
    ),
    "ignored sentence": Text(
        "the decoder writes x without looking at z: it is a language model of x",
        "train by both together, Together([BackTranslation(latents), SentenceDenoising(latents, "
        "learn_prior=False, ...)]), after denoising alone, so that the decoder has learned to look at what it "
        "is given; some known pairs (KnownLatents) help most",
    ),
    "local optimum": Text(
        "the decoder does not use them, although the data would pay for them: the training has not left its "
        "start, or has fallen back to it",
        "train again with new weights and a beta that warms up from 0, or with free_bits",
    ),
    "ignored latent": Text(
        "the decoder does not use them",
        "if a smaller latent_dim reaches the same ELBO, nothing is lost; otherwise warm beta up from 0, set "
        "free_bits, or weaken the decoder",
    ),
}
"""For each cause: what it means, with the beta of the training, and the remedy."""


@dataclass(frozen=True)
class Cause:
    """Why a latent dimension is not used.

    Attributes:
        name: One of the causes that `diagnose` lists.
        meaning: What that means.
        evidence: The numbers that show it, in words; empty if it needs none.
        remedy: What to do, in words.
        code: The same as a line of Python, in which `model`, `guide` and `x` are the pair and its training
            rows; empty if there is nothing to type.
        options: The same as options of the command line, after its subcommand: `train`, `refit`, `resume`, or
            `colors` for `colorize train`.

    Example:
        >>> options = ("train", "--model.latent_dim", "2", "--guide.latent_dim", "2")
        >>> cause = Cause("surplus dimensions", "nothing would pay", "", "fewer", options=options)
        >>> cause.command("a")
        'ppl-vae train --config a/config.yaml --run_dir a-again --model.latent_dim 2 --guide.latent_dim 2'
    """

    name: str
    meaning: str
    evidence: str
    remedy: str
    code: str = ""
    options: tuple[str, ...] = ()

    def command(self, run: str) -> str:
        """What to type for a run in this folder; empty if there is nothing to type."""
        return command(self.options, run)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "name": self.name,
            "meaning": self.meaning,
            "evidence": self.evidence,
            "remedy": self.remedy,
            "code": self.code,
            "options": list(self.options),
        }


def command(options: Sequence[str], run: str) -> str:
    """What to type for a run, of options behind a subcommand; empty if there is nothing to type.

    Args:
        options: The subcommand, `train`, `refit`, `resume` or `colors` (`colorize train`), and its options.
        run: The folder of the run.

    Example:
        >>> command(["refit", "--guide", "FullCovariance"], "runs/a")
        'ppl-vae refit runs/a --run_dir runs/a-again --guide FullCovariance'
    """
    if not options:
        return ""
    kind, *more = options
    run = run.rstrip("/")
    again = ["--run_dir", f"{run}-again"]
    words = {
        "train": ["train", "--config", f"{run}/config.yaml", *again],
        "refit": ["refit", run, *again],
        "resume": ["train", "--resume", run],
        "colors": ["colorize", "train", "--config", f"{run}/config.yaml", *again],
    }[kind]
    return shlex.join(["ppl-vae", *words, *more])


NONE = Cause("none", CAUSES["none"].meaning, "", CAUSES["none"].remedy)
"""No cause: all dimensions are used."""


def main_cause(causes: Mapping[str, Cause]) -> Cause:
    """The cause of most dimensions, the first one of several; `NONE` if there is none.

    Args:
        causes: The cause of each dimension that is not used.
    """
    counts = Counter(causes.values())
    return max(counts, key=lambda cause: counts[cause], default=NONE)


def in_lines(causes: Mapping[str, Cause], run: str = "") -> list[str]:
    """Each cause with its evidence, its remedy, and what to type; with names, if there are several causes."""
    lines = []
    for cause in dict.fromkeys(causes.values()):
        names = [name for name, of in causes.items() if of == cause]
        of = "" if len(names) == len(causes) else f" of {listed(names)}"
        evidence = f" ({cause.evidence})" if cause.evidence else ""
        lines += [f"Cause{of}: {cause.meaning}{evidence}.", f"Remedy: {cause.remedy}."]
        typed = cause.command(run) if run else cause.code
        lines += [f"  {typed}"] if typed else []
    return lines


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b, c and 3 more`."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
