"""The options of each command, described once: `light.py` and `parser.py` make parsers from it.

Nothing here imports torch. Options that are parameters of a function are named by the function alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ppl_vae.cli.known import (
    BY_EM,
    DEFAULTS,
    DEFAULTS_OF_COLORS,
    DEFAULTS_OF_PRIORS,
    OF_COLORS,
    OF_ROWS,
)
from ppl_vae.cli.source import function, parameters

COMMANDS = {
    "train": "train a model/guide pair, evaluate and diagnose it, draw pictures",
    "em": "fit a model with closed forms by EM: a mixture, factor analysis, ...",
    "refit": "train a new guide for the model of a run, which stays as it is",
    "refit-prior": "fit a new prior to the codes or latents of a run, whose pair stays as it is",
    "sweep": "train for many options and seeds, on all cores or a cluster: table and pictures",
    "evaluate": "ELBO, rate, distortion and log p(x) of a run's test rows",
    "gaps": "where a run's bound is lost: approximation gap and amortization gap",
    "diagnose": "which latent dimensions a run uses, and why not the others",
    "probe": "what a run's encoder is worth: classes learned from a few labels",
    "sample": "draw from a run's model",
    "compare": "differences between runs, row by row",
    "export": "export a run as netCDF for ArviZ",
    "report": "one page of HTML about a run or a sweep, to look at or to send",
    "compress": "write photos of any size as the codes of a VQVAE or VQVAE2, at the bits of their prior",
    "decompress": "read what `compress` wrote",
    "translate": "translate a text file, one sentence a line, by a run whose latents are sentences",
    "colorize": "color gray photos through a latent segmentation: train, evaluate, apply",
}

ACTIONS = {
    "colorize train": "train a model of the colors of photos, with a latent segmentation; measure it, draw "
    "pictures",
    "colorize evaluate": "measure a run on its test photos or others: bits per pixel, colorings, segments",
    "colorize apply": "color photos of any size by a run: colorings, segments and a contact sheet",
}
"""The commands of two words."""


def actions_of(command: str) -> list[str]:
    """The second words of a command that has some.

    Example:
        >>> actions_of("colorize"), actions_of("train")
        (['train', 'evaluate', 'apply'], [])
    """
    return [name.partition(" ")[2] for name in ACTIONS if name.partition(" ")[0] == command]


RUN_OR_SWEEP = "RUN|SWEEP"
"""How an argument is called that is the folder of a run, or of a sweep."""

_PHOTOS = (
    "skimage (the color photos that scikit-image contains), or folder:PATH; if that holds train/, and test/ or "
    "val/ beside it, they are the split"
)

COMMON = {
    "colorize train": (
        *("data", "longest", "patch_size", "patches", "model", "guide", "objective", "max_epochs"),
        *(
            "batch_size",
            "learning_rate",
            "precision",
            "device",
            "run_dir",
            "resume",
            "seed",
            "quiet",
        ),
    ),
    "train": (
        *("data", "binarize", "labels", "model", "guide", "objective", "max_epochs", "batch_size"),
        *("learning_rate", "device", "run_dir", "resume", "seed", "quiet"),
    ),
    "em": (
        *("data", "binarize", "model", "max_iterations", "restarts", "device"),
        *("run_dir", "resume", "seed", "quiet"),
    ),
    "refit": (
        *("guide", "objective", "fit_noise", "max_epochs", "batch_size", "learning_rate"),
        *("device", "run_dir", "resume", "seed", "quiet"),
    ),
    "refit-prior": (
        *("prior", "max_epochs", "patience", "batch_size", "learning_rate", "device"),
        *("run_dir", "resume", "seed", "quiet"),
    ),
}
"""Of the commands with many options, those that `--help` shows; `--help-all` shows the others, too."""

EXAMPLES = {
    "colorize train": (
        "ppl-vae colorize train --data folder:photos --run_dir runs/colors",
        "ppl-vae colorize train --model.segments 16 --model.colors LumaColors",
        "ppl-vae colorize apply gray.jpg --run runs/colors --out colored",
    ),
    "train": (
        "ppl-vae train --model.latent_dim 2 --objective.beta 4",
        "ppl-vae train --labels 100 --model SemiSupervisedVAE --max_epochs 50",
        "ppl-vae train --model.network Convolutional --model.network.channels [32,64]",
    ),
    "em": (
        "ppl-vae em --model.components 20 --model.covariance tied",
        "ppl-vae em --model BernoulliMixture --binarize threshold --restarts 5",
        "ppl-vae em --model FactorAnalysis --model.latent_dim 8 --data rows.npy",
    ),
    "refit": (
        "ppl-vae refit RUN --guide FullCovariance",
        "ppl-vae refit RUN --guide NeuralSpline --guide.bins 8 --run_dir runs/spline",
        "ppl-vae refit RUN --guide.network MLP --guide.network.hidden [512,512]",
        "ppl-vae refit RUN --fit_noise --max_epochs 50",
    ),
    "refit-prior": (
        "ppl-vae refit-prior RUN --prior PixelCNNPrior --prior.channels 128",
        "ppl-vae refit-prior RUN --prior TransformerPrior --max_epochs 50",
        "ppl-vae refit-prior RUN --prior MixturePrior --prior.components 50",
        "ppl-vae refit-prior --resume RUN",
    ),
}
"""Examples in the help of those commands."""


# -- options that are parameters of functions ------------------------------------------------------------


class Function(NamedTuple):
    """A function whose parameters are options.

    Attributes:
        path: Its full name.
        skip: Parameters that are no options.
        title: The title of its options in the help.
        elsewhere: Titles of single options that stand below another one.
    """

    path: str
    skip: tuple[str, ...]
    title: str
    elsewhere: Mapping[str, str] = MappingProxyType({})

    def options(self) -> list[str]:
        """The names of its options."""
        names = [parameter.name for parameter in parameters(function(self.path))]
        return [name for name in names if name not in self.skip]


_OF_DATA, _OF_DEVICES = "Data", "Devices"
"""Titles of options that are described in several places."""

PATCHES = (Function("ppl_vae.data.load_patches", skip=("name", "seed"), title=_OF_DATA),)

DATA = (Function("ppl_vae.data.load_data", skip=("name", "seed"), title=_OF_DATA),)

TRAINING = (
    Function(
        "ppl_vae.training.fit",
        skip=(
            *("model", "guide", "x", "objective", "validation", "transform"),
            *("seed", "fabric", "run_dir", "resume", "progress"),
        ),
        title="Training",
        elsewhere={"device": _OF_DEVICES},
    ),
    Function(
        "ppl_vae.runtime.make_fabric", skip=("device",), title=_OF_DEVICES
    ),  # which `fit` has as well
)

PRIOR = (
    Function(
        "ppl_vae.training.refit_prior",
        skip=(
            *("model", "guide", "x", "prior", "validation"),
            *("seed", "run_dir", "resume", "progress"),
        ),
        title="Fit of the prior",
    ),
)

FABRIC = ("device", *TRAINING[1].options())
"""The options that go to `make_fabric`."""

EM = (
    Function(
        "ppl_vae.em.fit_em",
        skip=(
            *("model", "x", "guide", "online", "m_step", "initialize"),
            *("seed", "run_dir", "resume", "progress"),
        ),
        title="Expectation maximization",
        elsewhere={"device": _OF_DEVICES},
    ),
)


def names(functions: Iterable[Function]) -> list[str]:
    """The names of the options of several functions."""
    return [name for f in functions for name in f.options()]


# -- the commands ----------------------------------------------------------------------------------------


class Options(Protocol):
    """A parser, as the descriptions below use it."""

    def add_argument(self, *names: str, **how: Any) -> Any:
        """Adds one option, as argparse does."""

    def add_function(self, function: Function) -> None:
        """Adds the parameters of a function."""

    def add_role(self, role: str, default: str, kind: str = OF_ROWS) -> None:
        """Adds an object that is given by the name of its class; `kind`: what it is for."""

    def set_defaults(self, **defaults: Any) -> None:
        """Replaces defaults."""


def describe(command: str, options: Options) -> None:
    """Adds the options of a command to a parser."""
    _DESCRIPTIONS[command](options)
    _add_flag(options, "--quiet", "neither progress nor what takes how long")
    _add_flag(options, "--debug", "tracebacks of errors")
    what = "all options, with the arguments of classes"
    options.add_argument(
        "--help-all", action="help_all", help=what if command in COMMON else argparse.SUPPRESS
    )


def _train(options: Options) -> None:
    _add_config(options)
    _add_resume(options, "train", "max_epochs")
    what = "run whose trained weights the new pair starts from; it is built from the options here"
    options.add_argument("--start_from", type=str, metavar="RUN", help=what)
    what = (
        "only these parts of both programs start from there, such as model.discriminator or "
        "guide.encoder,model.decoder (default: all of both programs)"
    )
    options.add_argument("--start_parts", type=str, metavar="A,B", help=what)
    _add_run_dir(options)
    _add_num_samples(options, "importance samples per test row, for log p(x)")
    _add_posterior(options)
    _add_report(options)
    for role, default in DEFAULTS.items():
        options.add_role(role, default)
    _add_data(options)
    options.add_argument(
        "--labelled_share",
        type=float,
        default=0.0,
        help="repeat training rows with a label until they make up this share of the rows, where few of many "
        "have one: 0.1, say (0: as they are)",
        group=_OF_DATA,
    )
    _add_training(options)
    _add_versions(options)


def _colorize(options: Options) -> None:
    listed = "; ".join(f"{name.partition(' ')[2]}: {what}" for name, what in ACTIONS.items())
    what = f"{listed}. `ppl-vae colorize ACTION --help` lists the options"
    options.add_argument("action", type=str, metavar="ACTION", help=what)


def _colorize_train(options: Options) -> None:
    _add_config(options)
    _add_resume(options, "colorize train", "max_epochs")
    _add_run_dir(options)
    what = (
        "importance samples per patch, where log P(y | x) is not known; at most 10 where the ELBO can be "
        "summed, which stands for it on photos"
    )
    _add_num_samples(options, what, 100)
    _add_report(options)
    for role, default in DEFAULTS_OF_COLORS.items():
        options.add_role(role, default, kind=OF_COLORS)
    options.add_argument("--data", type=str, default="skimage", help=_PHOTOS, group=_OF_DATA)
    add_functions(options, PATCHES)
    add_functions(options, TRAINING)
    options.set_defaults(max_epochs=10, batch_size=8, learning_rate=1e-3)
    _add_versions(options)


def _colorize_evaluate(options: Options) -> None:
    options.add_argument("run", type=str, metavar="RUN", help="folder of a run of `colorize train`")
    _add_trust(options)
    what = "other photos to measure on, folder:PATH: all that are there (default: the run's test photos)"
    options.add_argument("--data", type=str, help=what)
    what = "longest side of a photo in pixels, 0 for any (default: the run's)"
    options.add_argument("--longest", type=int, help=what)
    what = "importance samples per photo, where neither log P(y | x) nor the ELBO can be summed"
    _add_num_samples(options, what, 100)
    _add_seed_of_draws(options)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace the run's colors.json and its pictures")


def _colorize_apply(options: Options) -> None:
    what = (
        "files to color; one that cannot be read is named and left out: the exit status is then 1"
    )
    options.add_argument("photos", nargs="+", type=str, metavar="PHOTO", help=what)
    what = "folder of a run of `colorize train`"
    options.add_argument("--run", type=str, help=what)
    _add_trust(options)
    options.add_argument("--out", type=str, help="folder to write into; it is made")
    what = (
        "the size at which colors are found, the longest side in pixels: they are enlarged to the photo, whose "
        "own luma is kept. 0 takes each photo as it is, tile by tile (default: the run's)"
    )
    options.add_argument("--longest", type=int, help=what)
    what = "further colorings, each drawn with segments of its own"
    options.add_argument("--draws", type=int, default=0, help=what)
    _add_seed_of_draws(options)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace files of these names")


def _translate(options: Options) -> None:
    what = "text in UTF-8, one sentence a line; - is standard input"
    options.add_argument("file", nargs="?", type=str, metavar="FILE", help=what)
    what = "folder of a run of LatentTranslation and Translator, saved with its vocabulary"
    options.add_argument("--run", type=str, metavar="RUN", help=what)
    _add_trust(options)
    what = "FILE is in the language of the latents, which become rows, p(x | z) (default: rows become latents)"
    _add_flag(options, "--back", what)
    what = (
        "translations of each sentence, at most 1000; of several, each has the number of its line"
    )
    options.add_argument("--num", type=int, default=1, help=what)
    what = (
        "beginnings of each sentence that the search for the likeliest keeps, at least --num and at most 1000: "
        "less than --num counts as --num"
    )
    options.add_argument("--beams", type=int, default=5, help=what)
    what = (
        "the search compares log p / tokens^length_penalty, and the best come first: with 0 short ones are "
        "preferred"
    )
    options.add_argument("--length_penalty", type=float, default=1.0, help=what)
    _add_flag(options, "--draws", "draw translations, in place of the likeliest ones")
    options.add_argument("--seed", type=int, default=0, help="random seed of --draws")
    what = (
        "print number of the line, log p of the translation in nats, log p per token, and translation, with "
        "tabs between them"
    )
    _add_flag(options, "--scores", what)
    _add_too_long(options)
    _add_device(options)
    _add_output(options, "file to write into", "standard output")


def _compress(options: Options) -> None:
    what = "photos; one that cannot be read is named and left out: the exit status is then 1"
    options.add_argument("photos", nargs="+", type=str, metavar="PHOTO", help=what)
    _add_files_of_a_run(options, "whose codes are written; `decompress` needs it, too")
    what = (
        "share of a block of codes that it has in common with the next one, where the prior reads codes: more "
        "of it takes more time"
    )
    options.add_argument("--overlap", type=float, default=0.25, help=what)


def _decompress(options: Options) -> None:
    what = "files of `compress`; one that cannot be decoded is named and left out: the exit status is then 1"
    options.add_argument("files", nargs="+", type=str, metavar="FILE", help=what)
    _add_files_of_a_run(options, "with which the files were written")
    what = (
        "most numbers of a photo, height x width x channels, that are accepted: a file may say that it has "
        "more than the memory has room for"
    )
    options.add_argument("--most_numbers", type=int, default=2**29, help=what)


def _add_files_of_a_run(options: Options, which: str) -> None:
    what = f"folder of the run of a VQVAE or VQVAE2 of pictures {which}"
    options.add_argument("--run", type=str, help=what)
    _add_trust(options)
    options.add_argument("--out", type=str, help="folder to write into; it is made")
    _add_device(options)
    _add_flag(options, "--overwrite", "replace files of these names")


def _em(options: Options) -> None:
    _add_config(options)
    _add_resume(options, "em", "max_iterations")
    _add_run_dir(options)
    _add_report(options)
    options.add_role("model", "ppl_vae.models.GaussianMixture", kind=BY_EM)
    _add_data(options)
    add_functions(options, EM)
    _add_versions(options)


def _refit(options: Options) -> None:
    what = "folder of the run whose model is kept (not with --resume)"
    options.add_argument("run", nargs="?", type=str, metavar="RUN", help=what)
    _add_resume(options, "refit", "max_epochs")
    _add_run_dir(options)
    _add_num_samples(options, "importance samples per test row, for log p(x)")
    _add_posterior(options)
    _add_report(options)
    for role in ("guide", "objective"):
        options.add_role(role, DEFAULTS[role])
    what = "find the noise of the model's likelihood, too, as a GAN needs it: nothing else of the model changes"
    _add_flag(options, "--fit_noise", what)
    _add_training(options)


def _refit_prior(options: Options) -> None:
    what = "folder of the run whose encoder and decoder are kept (not with --resume)"
    options.add_argument("run", nargs="?", type=str, metavar="RUN", help=what)
    _add_resume(options, "refit-prior", "max_epochs and patience")
    _add_run_dir(options)
    _add_num_samples(options, "importance samples per test row, for log p(x)")
    _add_posterior(options)
    _add_report(options)
    for role, default in DEFAULTS_OF_PRIORS.items():
        options.add_role(role, default)
    add_functions(options, PRIOR)
    what = "where torchvision's files are now, if they have moved"
    options.add_argument("--data_dir", type=str, help=what)
    _add_device(options)


def _sweep(options: Options) -> None:
    what = (
        "YAML file: `base` has options of `ppl-vae train` that all runs share, `grid` lists of values, "
        "`list` single points; docs/sweep.md explains it"
    )
    options.add_argument("spec", type=str, metavar="SPEC", help=what)
    what = (
        "folder of the sweep, in which each run has its own (default: runs/, with the name of SPEC)"
    )
    options.add_argument("--sweep_dir", type=str, metavar="DIR", help=what)
    what = "run on a cluster of dask.distributed that is there, tcp://HOST:PORT (default: on this machine)"
    options.add_argument("--scheduler", type=str, metavar="ADDRESS", help=what)
    what = "runs at a time on this machine (default: so many that each core is used once)"
    options.add_argument("--workers", type=int, metavar="N", help=what)
    what = (
        "threads of torch in each run (default: cores / workers; on a cluster, those of its worker)"
    )
    options.add_argument("--threads", type=int, metavar="N", help=what)
    _add_flag(options, "--dry_run", "print the runs and their commands, and stop")
    _add_flag(options, "--retry_failed", "run again what has failed")


def _evaluate(options: Options) -> None:
    _add_run(options)
    _add_text(options)
    _add_estimator(
        options,
        "--method",
        ("auto", "annealed", "importance", "ais"),
        "log p(x) by importance sampling from the guide (importance), with better proposals for rows that it "
        "does not reach, which are annealed if few are left then (auto), or all that are left (annealed); or "
        "by annealed importance sampling alone (ais): slower",
    )
    _add_flag(options, "--from_prior", "chains start at the prior, not at the guide")
    _add_max_rows(options, None)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace the run's evaluation.json or annealed.json")


def _gaps(options: Options) -> None:
    _add_run(options)
    _add_estimator(
        options,
        "--truth",
        ("auto", "ais"),
        "where log p(x) comes from, if the model does not know it: importance sampling from each row's "
        "best q, or from better proposals where that is not enough; or annealed importance sampling",
    )
    _add_max_rows(options, 100)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace gaps.json and its picture")


def _diagnose(options: Options) -> None:
    _add_run(options)
    _add_text(options)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace the run's diagnosis.json")


def _probe(options: Options) -> None:
    _add_run(options)
    what = "labels to learn from, as many of each class as of any other, chosen at random"
    options.add_argument("--labels", type=int, default=100, help=what)
    what = "how often they are chosen; the first time with --seed, then with the next seeds"
    options.add_argument("--draws", type=int, default=10, help=what)
    what = "also train a copy of the encoder and a linear layer together, for each draw"
    _add_flag(options, "--fine_tune", what)
    what = "steps of that training"
    options.add_argument("--num_steps", type=int, default=300, help=what)
    what = "other data with labels, as of `ppl-vae train` (default: the run's)"
    options.add_argument("--data", type=str, help=what)
    _add_max_rows(options, None)
    _add_device(options)
    _add_flag(options, "--overwrite", "replace the run's probe.json")


def _sample(options: Options) -> None:
    _add_run(options)
    options.add_argument("--num", type=int, default=64, help="number of samples")
    what = (
        "labels of the samples, in turn, at most --num (default: those of the test rows, or drawn)"
    )
    options.add_argument("--label", type=str, metavar="N,N", help=what)
    what = "draws of x, the means of p(x | z), which look smoother, or both, for the same z"
    options.add_argument("--what", choices=("both", "draws", "means"), default="both", help=what)
    what = (
        "a picture (.png, .pdf, .svg) or arrays z, x (draws), mean and label (.npz); of a model of sentences, "
        "which was saved with its vocabulary, a text"
    )
    _add_output(options, what, "RUN/samples.png; of sentences, standard output")


def _compare(options: Options) -> None:
    what = "folders of two runs or more; the others are compared with the first"
    options.add_argument("runs", nargs="+", type=str, metavar="RUN", help=what)
    _add_trust(options)
    _add_output(options, "the picture", "comparison.png")


def _export(options: Options) -> None:
    _add_run(options)
    _add_text(options)
    _add_num_samples(options, "importance samples per row")
    _add_output(options, "netCDF file for ArviZ", "RUN/posterior.nc")


def _report(options: Options) -> None:
    what = "folder of a run, or of a sweep"
    options.add_argument("folder", type=str, metavar=RUN_OR_SWEEP, help=what)
    _add_output(options, "the page", "RUN/report.html")


_DESCRIPTIONS: dict[str, Callable[[Options], None]] = {
    "train": _train,
    "em": _em,
    "refit": _refit,
    "refit-prior": _refit_prior,
    "sweep": _sweep,
    "evaluate": _evaluate,
    "gaps": _gaps,
    "diagnose": _diagnose,
    "probe": _probe,
    "sample": _sample,
    "compare": _compare,
    "export": _export,
    "report": _report,
    "compress": _compress,
    "decompress": _decompress,
    "translate": _translate,
    "colorize": _colorize,
    "colorize train": _colorize_train,
    "colorize evaluate": _colorize_evaluate,
    "colorize apply": _colorize_apply,
}


# -- options that several commands share -------------------------------------------------------------------


def add_functions(options: Options, functions: Iterable[Function]) -> None:
    """Adds the options of several functions."""
    for each in functions:
        options.add_function(each)


def _add_flag(options: Options, name: str, what: str) -> None:
    options.add_argument(name, action="store_true", help=what)


def _add_run(options: Options) -> None:
    options.add_argument("run", type=str, metavar="RUN", help="folder of a run")
    _add_trust(options)
    what = "where torchvision's files are now, if they have moved"
    options.add_argument("--data_dir", type=str, help=what)
    _add_seed_of_draws(options)


def _add_seed_of_draws(options: Options) -> None:
    options.add_argument("--seed", type=int, default=0, help="random seed of all draws")


def _add_trust(options: Options) -> None:
    """See docs/security.md."""
    _add_flag(options, "--trust", "import and run all that RUN's config.yaml names")
    what = "import what RUN's config.yaml names of these packages or modules"
    options.add_argument("--trust_packages", type=str, metavar="A,B", help=what)


def _add_config(options: Options) -> None:
    options.add_argument("--config", action="config", help="YAML file with any of these options")
    _add_flag(options, "--print_config", "print all options as YAML for --config, and stop")


def _add_resume(options: Options, command: str, length: str) -> None:
    what = f"continue an interrupted run of `ppl-vae {command}`; {length} may be raised"
    options.add_argument("--resume", type=str, metavar="RUN", help=what)
    _add_trust(options)


def _add_run_dir(options: Options) -> None:
    what = "run folder (default: a new one in runs/)"
    options.add_argument("--run_dir", type=str, help=what)
    _add_flag(options, "--overwrite", "replace the run in run_dir")
    options.add_argument("--seed", type=int, default=0, help="seed of weights, batches and draws")


def _add_num_samples(options: Options, what: str, default: int = 1000) -> None:
    options.add_argument("--num_samples", type=int, default=default, help=what)


def _add_posterior(options: Options) -> None:
    options.add_argument(
        "--posterior",
        choices=("auto", "always", "never"),
        default="auto",
        help="write posterior.nc for ArviZ: always, never, or if it has less than 10 MB (auto); `ppl-vae "
        "export RUN` writes it later",
    )


def _add_report(options: Options) -> None:
    what = "write report.html, one page about the run with all its pictures"
    options.add_argument("--report", type=bool, default=True, help=what)


def _add_data(options: Options) -> None:
    options.add_argument(
        "--data",
        type=str,
        default="digits",
        help="digits, MNIST, FashionMNIST, KMNIST, EMNIST, CIFAR10, SVHN, folder:PATH, or an array file "
        "PATH.npy, PATH.npz, PATH.pt",
        group=_OF_DATA,
    )
    add_functions(options, DATA)


def _add_training(options: Options) -> None:
    add_functions(options, TRAINING)
    options.set_defaults(max_epochs=200, patience=30)


def _add_versions(options: Options) -> None:
    """A run's config.yaml has more than the options, and may be given as --config."""
    options.add_argument("--versions", type=dict, help=argparse.SUPPRESS)
    options.add_argument("--made_by", type=str, help=argparse.SUPPRESS)


def _add_estimator(options: Options, name: str, choices: tuple[str, ...], what: str) -> None:
    options.add_argument(name, choices=choices, default="auto", help=what)
    _add_num_samples(options, "importance samples per row")
    options.add_argument("--num_chains", type=int, default=16, help="chains per row, for ais")
    options.add_argument("--num_steps", type=int, default=200, help="temperatures, for ais")


def _add_device(options: Options) -> None:
    options.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, ...")


def _add_max_rows(options: Options, default: int | None) -> None:
    what = f"use only the first so many test rows (default: {default or 'all'})"
    options.add_argument("--max_rows", type=int, default=default, help=what)


def _add_text(options: Options) -> None:
    what = (
        "sentences, one a line, in place of the run's test rows; - is standard input. For runs of models of "
        "sentences, which were saved with their vocabulary"
    )
    options.add_argument("--text", type=str, metavar="FILE", help=what)
    _add_too_long(options)


def _add_too_long(options: Options) -> None:
    what = (
        "what happens to sentences with more numbers than the model reads, and to lines of more than 64 KiB: "
        "an error, or the end is left out"
    )
    options.add_argument("--too_long", choices=("error", "cut"), default="error", help=what)


def _add_output(options: Options, what: str, default: str) -> None:
    what = f"{what} (default: {default})"
    options.add_argument("-o", "--output", type=str, metavar="FILE", help=what)
    _add_flag(options, "--overwrite", "replace FILE")
