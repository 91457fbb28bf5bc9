"""What is answered without torch, which takes seconds to import: in the same words as with it."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ppl_vae import guides, models, objectives
from ppl_vae.cli import ACTIONS, COMMANDS, source
from ppl_vae.cli.known import find_known, known
from ppl_vae.cli.light import command_parser
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.parser import make_parser
from ppl_vae.models.colorization import Colors, SegmentedColors
from ppl_vae.models.priors import CodePrior, Prior
from ppl_vae.objectives.elementwise import OfElements

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "pyro", "jsonargparse", "numpy", "matplotlib")
RUN = "from ppl_vae.cli import main; sys.exit(main(sys.argv[1:]) or 0)"
LIGHT = [
    (["--help"], 0, "ppl-vae COMMAND --help"),
    (["--version"], 0, "ppl-vae "),
    (["--print_completion", "bash"], 0, "complete -o bashdefault -F _shtab_ppl_vae ppl-vae"),
    (["--print_completion", "zsh"], 0, "#compdef ppl-vae"),
    (["trian"], 2, "invalid choice: 'trian'"),
    (["trian"], 2, "did you mean train?"),
    (["--versoin"], 2, "did you mean --version?"),
    ([], 2, "COMMAND"),
    *(([name, "--quite"], 2, "--quite (did you mean --quiet?)") for name in COMMANDS),
    *(([name, "--help"], 0, what) for name, what in COMMANDS.items()),
    *(([*name.split(), "--quite"], 2, "--quite (did you mean --quiet?)") for name in ACTIONS),
    *(([*name.split(), "--help"], 0, what) for name, what in ACTIONS.items()),
    (["colorize", "trian"], 2, "invalid ACTION 'trian': choose from train, evaluate, apply"),
    (["colorize", "--quiet", "train"], 2, "write the action first"),
    (["train", "--max_epoch", "3"], 2, "--max_epoch 3 (did you mean --max_epochs?)"),
    (
        ["train", "--model.latent_dim", "3", "--sed=1"],
        2,
        "arguments: --sed=1 (did you mean --seed?)",
    ),
    (
        ["train", "--model.latent_dm", "3"],
        2,
        "--model.latent_dm (did you mean --model.latent_dim?)",
    ),
    (["train", "--model.depth", "3"], 2, "--model: option 'depth' is not accepted (--model.help"),
    (["train", "--objective.betta=2"], 2, "(did you mean --objective.beta?)"),
    (["train", "--optimizer", "SGD", "--optimizer.momentun", "0.9"], 2, "--optimizer.momentum?)"),
    (
        ["train", "--optimizer.xyz", "3"],
        2,
        "--optimizer: option 'xyz' is not accepted (--optimizer.",
    ),
    (["evaluate"], 2, "RUN is missing: give the folder of a run"),
    (["sample", "nowhere"], 1, "ppl-vae: error: there is no run folder nowhere: check the path"),
    (["train", "--max_epochs", "many"], 2, "--max_epochs: expected int, got many"),
    (["train", "--learning_rate", "low"], 2, "--learning_rate: expected float, got low"),
    (["train", "--binarize", "no"], 2, "one of 'threshold', 'static', 'dynamic', got no"),
    (["train", "--guide", "MeanFeild"], 2, "(did you mean MeanField?); known are BottomUp, "),
    (["evaluate", "RUN", "--method", "magic"], 2, "invalid choice: 'magic'"),
    (["evaluate", "RUN", "--seed"], 2, "--seed: expected one argument"),
]


@functools.cache  # the completion for bash takes seconds, and two tests read it
def python(
    code: str, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A run of Python, and which of the heavy modules it had loaded when it ended."""
    at_exit = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", *[n for n in {HEAVY} if n in sys.modules], file=sys.stderr))
"""
    done = subprocess.run(
        [sys.executable, "-c", at_exit + code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, done.stderr.rpartition("loaded:")[2].split()


@pytest.mark.parametrize("module", ["ppl_vae", "ppl_vae.cli", "ppl_vae.cli.entry"])
def test_an_import_is_light(module: str) -> None:
    done, loaded = python(f"import {module}\nassert dir({module})")
    assert done.returncode == 0, done.stderr
    assert loaded == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model.network", "mine.Network", "--model.network.hiden", "3"),
        ("--model", "mine.Model", "--model.latent_dm", "3"),
        ("--optimizer", "mine.Optimizer", "--optimizer.xyz", "3"),
        ("--optimizer.lr", "3", "--optimizer", "null"),
        ("--model", "mine.yaml", "--model.xyz", "3"),
        ("--model.hidden.xyz", "3", "--model", "torch.nn.Linear"),
        ("--config", "mine.yaml", "--model.latent_dm", "3"),
        ("--objective.beta.help", "LinearWarmup"),
        ("--optimizer.class_path", "mine.Optimizer", "--optimizer.xyz", "3"),
        ("--model.init_args.network", "mine.Network", "--model.network.xyz", "3"),
    ],
    ids=" ".join,
)
def test_arguments_of_unknown_classes_are_left_to_the_full_parser(
    arguments: tuple[str, ...],
) -> None:
    command_parser("train").check(arguments)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --optimizer Adam --optimizer.momentum 1", "option 'momentum' is not accepted"),
        ("train --lr_scheduler.xyz 3", "--lr_scheduler: option 'xyz' is not accepted"),
        ("train --model.network.xyz 3", "--model.network: option 'xyz' is not accepted"),
        (
            "train --model.init_args.latent_dm 3",
            r"--model.latent_dm \(did you mean --model.latent_dim",
        ),
        ("train --model.xyz.abc 3", "--model: option 'xyz' is not accepted"),
        (
            "train --guide.network=MLP --guide.network.chanels+=3",
            "option 'chanels' is not accepted",
        ),
        ("train --guide.class_path LowRank --guide.flows 3", "--guide: option 'flows' is not acc"),
        ("train --model=ppl_vae.models.VAE --model.prior.xyz=3", "--model.prior: option 'xyz'"),
        ("refit", "RUN is missing: give the folder of the run whose model is kept"),
        *((name, "RUN is missing: give the folder of a run") for name in ("gaps", "export")),
        ("compare", "RUN is missing: give the folders of two runs or more"),
        ("compare . .", ". is not a run: it holds no config.yaml"),
        ("compare {run}", "give two runs or more"),
        ("compare {run} nowhere", "there is no run folder nowhere"),
        ("train --resume nowhere", "there is no run folder nowhere"),
        ("evaluate nowhere --xyz", "unrecognized arguments: --xyz"),
    ],
)
def test_a_mistake_is_found_by_the_light_parser(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    command, *arguments = line.format(run=tmp_path).split()
    with pytest.raises((UsageError, FileNotFoundError), match=words):
        command_parser(command).check(arguments)


VALID = [
    "--guide LowRank --guide.rank 3",
    "--guide.rank 3 --guide LowRank",
    "--guide=ppl_vae.guides.LowRank --guide.rank=3",
    "--guide.class_path LowRank --guide.rank 3",
    "--guide.class_path ppl_vae.guides.LowRank --guide.init_args.rank 3",
    "--model GaussianMixture --model.components 3",
    "--model.class_path GaussianMixture --model.components 3",
    "--model.network Convolutional --model.network.channels+=3",
    "--model.network=MLP --model.network.hidden=[3,4]",
    "--model.prior VampPrior --model.prior.components 3",
    "--model.prior=null",
    "--objective.beta LinearWarmup --objective.beta.epochs 3",
    "--objective.beta.class_path ppl_vae.objectives.LinearWarmup --objective.beta.epochs 3",
    "--objective.beta 0.5 --objective ImportanceWeightedELBO --objective.num_particles 3",
    "--optimizer SGD --optimizer.momentum 0.9 --optimizer.lr=0.1",
    "--optimizer.class_path torch.optim.SGD --optimizer.momentum 0.9",
    '--optimizer={"class_path":"torch.optim.SGD","init_args":{"momentum":0.9}}',
    "--lr_scheduler StepLR --lr_scheduler.step_size 3 --max_epochs 2 --max_epochs 3",
    "--binarize null --compile null --quiet --seed=0",
]


@pytest.mark.parametrize("line", VALID)
def test_what_the_full_parser_takes_the_light_parser_takes(line: str) -> None:
    make_parser("train", line.split()).parse_args(line.split(), defaults=False)
    command_parser("train").check(line.split())


@pytest.mark.slow(only=("colorize train --help-train a mode",))
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [  # that for zsh takes seconds, as that for bash does
        pytest.param(
            *(arguments, code, words),
            id=f"{' '.join(arguments)}-{words[:12]}",
            marks=pytest.mark.slow if {"bash", "zsh"} & {*arguments} else (),
        )
        for arguments, code, words in LIGHT
    ],
)
def test_an_answer_is_light(arguments: list[str], code: int, words: str) -> None:
    done, loaded = python(RUN, *arguments)
    assert done.returncode == code, done.stderr
    assert words in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    if code == 2:
        name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
        name = " ".join(arguments[:2]) if " ".join(arguments[:2]) in ACTIONS else name
        assert f"Try `{f'ppl-vae {name}'.strip()} --help`." in done.stderr
    assert loaded == []


@pytest.mark.slow
def test_argcomplete_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "argcomplete.py").write_text(
        "def autocomplete(parser):\n"
        "    (commands,) = [a.choices for a in parser._actions if a.choices and 'train' in a.choices]\n"
        "    print(*commands['train']._option_string_actions)\n"
    )
    path = os.pathsep.join(map(str, (ROOT, tmp_path)))
    done, loaded = python(RUN, _ARGCOMPLETE="1", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert {"--max_epochs", "--model.latent_dim", "--optimizer.lr"} <= set(done.stdout.split())
    assert loaded == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", {"train", "translate"}),
        ("train --guide Mean", {"MeanField"}),
        (
            "train --model.network ",  # those of all models
            {
                *("MLP", "Convolutional", "AutoregressiveDecoder", "ConvolutionalGrid", "Slots"),
                *("Denoising", "UnitNorm"),
            },
        ),
        ("train --model.network.base.hi", {"--model.network.base.hidden"}),
        ("train --max_", {"--max_epochs", "--max_rows"}),
        ("train --objective.beta.ep", {"--objective.beta.epochs"}),
        ("train --binarize th", {"threshold"}),
        ("evaluate RUN --method a", {"ais", "annealed", "auto"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], completion: Path) -> None:
    script = (
        f'source "{completion}"; line="$1"; COMP_WORDS=(ppl-vae $line); '
        '[[ "$line" == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        '_shtab_ppl_vae; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", line], capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "ppl-vae.bash"
    file.write_text(python(RUN, "--print_completion", "bash")[0].stdout)
    return file


# -- the light description and the full parser agree -----------------------------------------------------

CLASSES: dict[str, Collection[str]] = {
    "prior": [
        *("DiagonalNormal", "FlowPrior", "FullNormal", "IndependentCodes", "MixturePrior"),
        *("PixelCNNPrior", "TransformerPrior"),
    ],
    "model": [
        name
        for name, found in ((n, getattr(models, n)) for n in dir(models))
        if inspect.isclass(found)
        and not issubclass(found, (CodePrior, Prior, Colors, SegmentedColors))
    ],
    "guide": [
        name
        for name in dir(guides)
        if "guide" not in inspect.signature(getattr(guides, name)).parameters
        and not inspect.isabstract(getattr(guides, name))
        and name not in ("SegmentationEncoder", "StructuredMeanField", "WithinPicture")
    ],
    "objective": [
        name
        for name, found in ((n, getattr(objectives, n)) for n in dir(objectives))
        if inspect.isclass(found)
        and issubclass(found, objectives.Objective)
        and not inspect.isabstract(found)
        and not issubclass(found, OfElements)
    ],
}


def values_of(hint: Any) -> set[str] | None:
    """The values that a type lists; None for a type with others."""
    if hint is bool:
        return {"true", "false"}
    if hint is type(None):
        return {"null"}
    if typing.get_origin(hint) is Literal:
        return set(typing.get_args(hint))
    found = [values_of(part) for part in typing.get_args(hint)]
    return None if not found or None in found else set().union(*(f for f in found if f))


@pytest.mark.parametrize("role", CLASSES)
def test_the_known_classes_are_those_of_the_package(role: str) -> None:
    assert known(role) == sorted(CLASSES[role])


@pytest.mark.parametrize("name", [*COMMANDS, *ACTIONS])
def test_light_and_full_parser_have_the_same_options(name: str) -> None:
    light, full = command_parser(name), make_parser(name)
    light.spell_out()
    assert set(light._option_string_actions) == set(full._option_string_actions)
    positionals = ([a.dest for a in p._actions if not a.option_strings] for p in (light, full))
    assert next(positionals) == next(positionals)
    for option, action in full._option_string_actions.items():
        here = light._option_string_actions[option]
        hint = getattr(action, "_typehint", None)
        role = option.removeprefix("--").removesuffix(".help")
        if role in CLASSES:
            kinds = {"em": "em", "colorize train": "colors"}
            expected: Any = known(role, kind=kinds.get(name, "rows"))
        elif role in ("optimizer", "lr_scheduler"):
            continue  # classes of torch: those of the installed version
        else:
            expected = action.choices if hint is None else values_of(hint)
        assert set(here.choices or ()) == set(expected or ()), option
        if role not in CLASSES and action.default != argparse.SUPPRESS:
            assert here.default == action.default, option


@pytest.mark.parametrize("role", CLASSES)
def test_constructors_are_read_as_they_are(role: str) -> None:
    package = {"model": models, "guide": guides, "prior": models, "objective": objectives}[role]
    compared = set()
    for name, definition in source.offered(package.__name__).items():
        found = getattr(package, name)
        if inspect.isclass(found) and not inspect.isabstract(found):
            expected = list(inspect.signature(found).parameters)
            assert [parameter.name for parameter in source.parameters(definition)] == expected
            assert not source.takes_any_name(definition)
            compared.add(name)
    assert compared >= {*CLASSES[role]}


def test_the_constructors_of_torch_are_read_as_they_are() -> None:
    compared = set()
    for module in (torch.optim, torch.optim.lr_scheduler):
        for name, definition in source.offered(module.__name__).items():
            found = getattr(module, name)
            if inspect.isclass(found) and not source.takes_any_name(definition):
                listed = [parameter.name for parameter in source.parameters(definition)]
                assert listed == list(inspect.signature(found).parameters), name
                compared.add(name)
    assert compared >= {"Adam", "AdamW", "SGD", "StepLR", "CosineAnnealingLR", "ReduceLROnPlateau"}


@pytest.mark.parametrize(("last", "any_name"), [("**others", True), ("*others", False)])
def test_a_constructor_with_keywords_of_any_name(last: str, any_name: bool) -> None:
    (function,) = ast.parse(f"def make(a, {last}): pass").body
    (class_,) = ast.parse(f"class Made:\n    def __init__(self, a, {last}): pass").body
    for node in (function, class_):
        assert source.takes_any_name(source.Definition("ppl_vae", node)) is any_name


@pytest.mark.slow(but=("guide",))
@pytest.mark.parametrize("role", CLASSES)
def test_every_argument_of_every_class_is_accepted(role: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    command, run = ("refit-prior", [str(tmp_path)]) if role == "prior" else ("train", [])
    for name in CLASSES[role]:
        definition = find_known(role, name)
        assert definition is not None
        for parameter in source.parameters(definition):
            option = f"--{role}.{parameter.name}"
            command_parser(command).check((*run, f"--{role}", name, option, "3"))
            with pytest.raises(UsageError):
                command_parser(command).check((*run, f"--{role}", name, f"{option}q=3"))


def test_a_folder_is_a_run_if_it_has_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a run: it holds no config\.yaml"):
        command_parser("evaluate").check([str(tmp_path)])
    (tmp_path / "config.yaml").touch()
    command_parser("evaluate").check([str(tmp_path)])
