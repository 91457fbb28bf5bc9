"""Parsers without torch, which takes seconds to import: they find mistakes, print help and complete words.

They read the same description as the full parser (`parser.py`), which alone converts values. Of the arguments
of classes (`--model.latent_dim`) only the names are checked here, as far as the source of the class is read.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ppl_vae.cli.known import FILLED_IN, OF_ROWS, face, find_known, known, role_help, unknown_name
from ppl_vae.cli.mistakes import UsageError, did_you_mean, wrong_value
from ppl_vae.cli.options import (
    ACTIONS,
    COMMANDS,
    COMMON,
    EXAMPLES,
    RUN_OR_SWEEP,
    Function,
    describe,
)
from ppl_vae.cli.source import (
    Definition,
    Parameter,
    Type,
    find_by_path,
    find_subclass,
    function,
    offered,
    parameters,
    subclasses,
    takes_any_name,
)
from ppl_vae.runs import config_file
from ppl_vae.runtime import MOST_YAML, load_yaml, read_text
from ppl_vae.sweeps import SPEC

_FIRST = 2
"""Arguments of each default class in the help with the common options."""

_EXPONENT = r"\d+(?:\.\d+)?[eE]\+?\d{1,2}"
"""A number such as 1e6."""


class _Formatter(argparse.HelpFormatter):
    """Says the type and the default of each option."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, expected = action.help or "", getattr(action, "expected", None)
        said = []
        if expected is not None and (expected.bases or not action.choices):
            said.append(f"type: {_named(expected)}")
        if action.option_strings and (expected or (action.choices and action.default)):
            said.append(f"default: {_shown(action.default)}")
        if said and "(default: " not in text:
            text = f"{text} ({', '.join(said)})"
        return text.replace("%", "%%")


_LONG = 100
"""Characters of a text that is shortened for the help with the common options."""


class _ShortFormatter(argparse.HelpFormatter):
    """Says of each option its first sentence, its values and its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, _, said = (action.help or "").partition(" (default: ")
        default = "" if action.default in (None, argparse.SUPPRESS) else _shown(action.default)
        default = said.removesuffix(")") or ("" if action.nargs == 0 else default)
        text = re.sub(r" \([^()]*\)", "", text)
        text = re.split(r"\.(?= [A-Z\"]|$)", text)[0]
        listed = ", ".join(action.choices or ()) if _takes_class(action) else ""
        if listed and not hasattr(action, "expected"):  # a role: its text is about its classes
            text = listed
        elif listed:
            text = f"{text.partition(';')[0]}: {listed}"
        elif len(f"{text} (default: {default})") > _LONG // 2 + 12 * (not default):
            text = text.partition(";")[0]
            text = text.partition(": ")[0] if len(text) > _LONG else text
        if default:
            text += f" (default: {default.removesuffix('()')})"
        return text.replace("%", "%%")

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        expected: Type | None = getattr(action, "expected", None)
        kinds = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
        names = [kinds[kind] for kind in (expected.kinds if expected else ()) if kind in kinds]
        return names[0] if names else "VALUE"


class _HelpAll(argparse.Action):
    """Prints the help with all options."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.default = argparse.SUPPRESS

    def __call__(self, parser: Any, *_: object) -> None:
        parser._print_message(parser.format_help_all(), sys.stdout)
        parser.exit()


BOOL = Type(values=("true", "false"))
"""What an option takes that is true or false."""


class LightParser(argparse.ArgumentParser):
    """A parser of one command, or of the whole command line."""

    def __init__(self, **how: Any) -> None:
        how = {"formatter_class": _Formatter, "allow_abbrev": False, "exit_on_error": False, **how}
        super().__init__(**how)
        self.register("action", "help_all", _HelpAll)
        self.roles: dict[str, argparse.Action] = {}
        self.objects: dict[str, Type] = {}
        self._positionals.title, self._optionals.title = "Arguments", "Options"
        self.kind = OF_ROWS
        self._of_roles: argparse._ArgumentGroup | None = None

    # -- the description ---------------------------------------------------------------------------------

    def add_argument(self, *names: str, group: str | None = None, **how: Any) -> argparse.Action:
        """Adds one option, below a title or among the others; its value stays text."""
        kind = how.pop("type", None)
        if kind is bool:
            how["choices"] = BOOL.values
        if how.get("action") == "config":  # known to the full parser alone
            del how["action"]
        if group is None:
            action = super().add_argument(*names, **how)
        else:
            action = self._group(group).add_argument(*names, **how)
        if kind is not None:
            _expect(action, BOOL if kind is bool else Type((kind.__name__,)))
        return action

    def add_function(self, function_: Function) -> None:
        """Adds the parameters of a function, read from its source."""
        for parameter in parameters(function(function_.path)):
            if parameter.name in function_.skip:
                continue
            group = self._group(function_.elsewhere.get(parameter.name, function_.title))
            name, expected = f"--{parameter.name}", parameter.type
            if expected.bases:
                self.objects[name] = expected
                self._add_help_of(group, name)
            action = group.add_argument(
                name,
                default=parameter.default,
                help=parameter.help,
                choices=None if expected.kinds else expected.values or None,
                metavar="CLASS" if expected.bases else None,
            )
            _expect(action, expected)

    def add_role(self, role: str, default: str, kind: str = OF_ROWS) -> None:
        """Adds an option that takes the name of a class; `spell_out` adds the names."""
        self.kind = kind if kind != OF_ROWS else self.kind
        group = self._of_roles = self._of_roles or self.add_argument_group()
        self._add_help_of(group, f"--{role}")
        self.roles[role] = group.add_argument(f"--{role}", metavar="CLASS", default=default)
        *others, last = self.roles
        group.title = (f"{', '.join(others)} and {last}" if others else last).capitalize()

    def _group(self, title: str) -> argparse._ArgumentGroup:
        """The options below a title."""
        found = next((group for group in self._action_groups if group.title == title), None)
        return found or self.add_argument_group(title)

    @staticmethod
    def _add_help_of(group: Any, name: str) -> None:
        group.add_argument(
            f"{name}.help", nargs="?", metavar="CLASS", help="list CLASS's arguments"
        )

    # -- mistakes ----------------------------------------------------------------------------------------

    def with_whole_numbers(self, arguments: Sequence[str], below: bool = False) -> list[str]:
        """The arguments, with whole numbers such as 1e6 written out where an option takes no others.

        Args:
            arguments: The arguments.
            below: Also in the arguments of classes (`--model.latent_dim`), whose types only the full parser
                knows.
        """
        whole = {
            name
            for action in self._actions
            for name in action.option_strings
            if getattr(action, "expected", Type()).kinds == ("int",)
        }
        found = []
        for before, word in zip(["", *arguments], arguments, strict=False):
            option, equals, value = word.partition("=")
            if equals and (option in whole or (below and self._is_below_another(option))):
                found.append(f"{option}={_written_out(value)}")
            else:
                there = before in whole or (below and self._is_below_another(before))
                found.append(_written_out(word) if there else word)
        return found

    def check(self, arguments: Sequence[str]) -> None:
        """Raises an error for what is wrong at first sight.

        Raises:
            UsageError: There is no such option, or its value is of a wrong type; or RUN is missing.
            argparse.ArgumentError: Likewise; or a value is missing.
            FileNotFoundError: A run does not exist.
        """
        for argument in arguments:
            name = argument.partition("=")[0]
            if self._is_below_another(name) and name not in self._option_string_actions:
                self._check_argument_of_class(name, arguments)
                self.add_argument(name, nargs="?")  # the full parser knows what it takes
        for name, values in _values(arguments).items():
            self._check_description(name, values)
        for action in self._actions:
            action.required = False  # so that what is wrong is reported before what is missing
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            options = [name for name in self._option_string_actions if "." not in name]
            wrong = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
            hint = self._instead_of(wrong) or did_you_mean(wrong, options)
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        for file in _values(arguments).get("--config", []):
            self._check_config(Path(file))
        for action in self._actions:
            if action.metavar not in ("RUN", RUN_OR_SWEEP):
                continue
            value = getattr(given, action.dest)
            runs = value if isinstance(value, list) else [value] if value else []
            if not runs and not action.option_strings and not getattr(given, "resume", None):
                raise UsageError(f"RUN is missing: give the {action.help}")
            if len(runs) == 1 and action.nargs == "+":
                raise UsageError("give two runs or more")
            for run in map(Path, runs):
                if action.metavar == "RUN" or not (run / SPEC).is_file():
                    config_file(run)

    def _instead_of(self, wrong: str) -> str:
        """What to write for an option of another kind or of another command; empty if it is none."""
        negated = re.fullmatch(r"--no[-_](.+)", wrong)
        right = f"--{negated[1].replace('-', '_')}" if negated else wrong.replace("-", "_")
        right = f"--{right.lstrip('-_')}"
        action = self._option_string_actions.get(right)
        if negated and action is not None:
            is_value = "false" in getattr(action, "expected", Type()).values
            return f" (write {right} false)" if is_value else f" (leave out {right})"
        if action is not None and right != wrong:
            return f" (did you mean {right}?)"
        top = right.partition(".")[0]
        name, every = self._command, {**COMMANDS, **ACTIONS}
        if name not in every or top == "--no":
            return ""
        others = [c for c in every if top in command_parser(c)._option_string_actions]
        if not others:
            return ""
        if name == "em" and top in ("--guide", "--objective"):
            return " (em takes none: the model knows p(z | x); ppl-vae train takes a guide and an objective)"
        which = ", ".join(f"ppl-vae {c}" for c in others)
        return f" (that is an option of {which}, and not of ppl-vae {name})"

    def _check_config(self, file: Path) -> None:
        """Raises an error for a configuration file that is none, or names options that there are not.

        Text in place of a file, and a file that is absent, are left to the full parser.
        """
        if os.path.exists(file) and not os.path.isfile(file):
            raise UsageError(
                f"--config {file}: this is no file that can be read, but a folder or a pipe"
            )
        if not os.path.exists(file):  # unlike Path.exists, False for a name that is too long
            return
        try:
            content = load_yaml(read_text(file, MOST_YAML))
        except UnicodeDecodeError as error:
            raise UsageError(f"--config {file}: this is not text in UTF-8") from error
        except ValueError as error:
            why = " ".join(str(error).split())
            raise UsageError(
                f"--config {file}: this is not YAML that can be read ({why})"
            ) from error
        if not isinstance(content, dict):
            raise UsageError(f"--config {file}: expected lines `option: value`, such as `seed: 1`")
        options = [action.dest for action in self._actions]
        for name in map(str, content):
            if name.partition(".")[0] not in options:
                hint = did_you_mean(name, options)
                raise UsageError(f"--config {file}: there is no option '{name}'{hint}")

    def _check_argument_of_class(self, name: str, arguments: Sequence[str]) -> None:
        """Raises an error for an argument that the chosen classes do not take.

        Classes of the user's own, and those in a configuration file, are left to the full parser.
        """
        given = _values(arguments)
        above, *words = _plain_name(name).split(".")
        if "--config" in given or {"help", "dict_kwargs"} & set(words):
            return
        expected = self.objects.get(above, Type())
        action = self._option_string_actions.get(above)
        default = None if action is None else action.default
        classes: list[Definition] | None = []
        for word in words:
            values = given.get(above, [])
            classes = self._chosen(above, expected, values)
            if classes is None or any(map(takes_any_name, classes)):
                return
            types = _arguments(classes, expected.called)
            if word not in types:
                raise self._not_accepted(above, word, types)
            if not values and not isinstance(default, str):  # no object whose argument it could be
                raise _class_missing(above, word, expected)
            default = _default_of(word, classes)
            above, expected = f"{above}.{word}", types[word]
        _require_kind(above, given.get(above, []), expected, classes or [])

    def with_documented(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, with the class that is taken if none is named, where an argument of it is given.

        So `--model.quantizer.codes 64` is one of `VectorQuantizer`, if the model says that it takes that. What
        the data decide on is left open.
        """
        given, found = _values(arguments), list[str]()
        if "--config" in given:
            return list(arguments)
        for argument in arguments:
            name = _plain_name(argument.partition("=")[0])
            above, *words = name.split(".")
            expected = self.objects.get(above, Type())
            for word, next_word in pairwise(words):
                classes = self._chosen(above, expected, given.get(above, [])) or []
                above, expected = f"{above}.{word}", _arguments(classes).get(word, Type())
                kind = _documented(word, classes)
                taken = None if kind is None else _classes(expected).get(kind)
                if not given.get(above) and taken and next_word in _arguments([taken]):
                    given[above] = [str(kind)]
                    found += [above, str(kind)]
            found.append(argument)
        return found

    def _check_description(self, name: str, values: Iterable[str]) -> None:
        """Raises an error for a text that begins as a description in YAML and is none."""
        role = name.removeprefix("--") in self.roles
        if not (role or name in self.objects or self._is_below_another(name)):
            return
        for value in values:
            if value[:1] not in ("{", "["):
                continue
            try:
                load_yaml(value)
            except ValueError as error:
                instead = f"; write the name of a class, and its arguments as {name}.NAME VALUE"
                raise UsageError(
                    f"{name} {value:.60}: this is not YAML that can be read"
                    f"{instead if role or name in self.objects else ''}"
                ) from error

    def _chosen(
        self, option: str, expected: Type, values: Sequence[str]
    ) -> list[Definition] | None:
        """The classes that an option names; all that it may name if it is not given. None: not known here."""
        found: list[Definition | None]
        if option.removeprefix("--") in self.roles:
            role = option.removeprefix("--")
            values = values or [str(self.roles[role].default)]
            found = [find_known(role, value, self.kind) or find_by_path(value) for value in values]
        elif not values:
            found = [*_classes(expected).values()]
        else:
            bases = expected.bases
            found = [
                next(filter(None, (find_subclass(base, value) for base in bases)), None)
                or find_by_path(value)
                for value in values
            ]
        classes = [definition for definition in found if definition is not None]
        return classes if classes and len(classes) == len(found) else None

    def _not_accepted(self, above: str, word: str, words: Iterable[str]) -> UsageError:
        if hint := did_you_mean(word, words, f"{above}."):
            return UsageError(f"unrecognized arguments: {above}.{word}{hint}")
        top = above.partition(".")[0]
        helped = f"{top}.help CLASS lists what it takes"
        return UsageError(f"{above}: option '{word}' is not accepted ({helped})")

    def _is_below_another(self, name: str) -> bool:
        above, dot, _ = name.partition(".")
        return bool(dot) and above in self._option_string_actions

    def _get_value(self, action: argparse.Action, arg_string: str) -> str:
        return arg_string

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        expected: Type | None = getattr(action, "expected", None)
        role = action.dest.removesuffix(".help")
        if role in self.roles:
            if not value:
                raise UsageError(
                    f"--{action.dest}: expected the name of a class, got an empty text"
                )
            named = value.isidentifier() and not Path(value).is_file()
            if named and find_known(role, value, self.kind) is None:
                raise unknown_name(role, value, self.kind)
        elif isinstance(action, argparse._SubParsersAction) and value not in COMMANDS:
            hint = did_you_mean(value, COMMANDS)
            listed = ", ".join(map(repr, COMMANDS))
            raise UsageError(
                f"argument COMMAND: invalid choice: {value!r} (choose from {listed}){hint}"
            )
        elif expected is None:
            super()._check_value(action, value)
        elif (wrong := wrong_value(expected, value)) and action.option_strings:
            raise UsageError(f"{action.option_strings[-1]}: {wrong}")

    def error(self, message: str) -> Any:
        """Raises an error, rather than printing one."""
        raise UsageError(message)

    # -- help -------------------------------------------------------------------------------------------

    def format_help(self) -> str:
        """The help, for which the names of classes are looked up; of many options the common ones."""
        self.spell_out()
        return self._help(common=True) if self._command in COMMON else super().format_help()

    def format_help_all(self) -> str:
        """The help with all options, and the arguments of the classes that are taken by default."""
        self.spell_out()
        return self._help(common=False) if self._command in COMMON else super().format_help()

    @property
    def _command(self) -> str:
        return self.prog.removeprefix("ppl-vae ")

    def _help(self, common: bool) -> str:
        """The help of a command with many options: the common ones, or all."""
        shown = {*COMMON[self._command], "help"}
        nested = self._arguments_of_defaults(most=_FIRST if common else None)
        formatter: argparse.HelpFormatter = (
            _ShortFormatter(self.prog) if common else _Formatter(self.prog)
        )
        runs = [a for a in self._actions if not a.option_strings]
        words = " ".join(f"[{a.metavar}]" if a.nargs == "?" else str(a.metavar) for a in runs)
        formatter.add_usage(f"%(prog)s {words} [OPTIONS]".replace("  ", " "), (), ())
        formatter.add_text(self.description)
        first, *titled = self._action_groups[1:]  # the others have titles of their own
        for group in (self._positionals, *titled, first):
            formatter.start_section(group.title)
            if group is self._of_roles:
                formatter.add_text(_how_reached(next(iter(self.roles))))
            listed = [
                action
                for action in group._group_actions
                if not common or action.dest in shown or action.option_strings == ["--help-all"]
            ]
            formatter.add_arguments([*listed, *(nested if group is self._of_roles else ())])
            formatter.end_section()
        examples = "".join(f"  {example}\n" for example in EXAMPLES[self._command])
        return f"{formatter.format_help()}\nExamples:\n{examples}"

    def _arguments_of_defaults(self, most: int | None) -> list[argparse.Action]:
        """The arguments of the classes that the roles have by default, as options that are only shown.

        Args:
            most: How many of each class: the first ones matter most. None: all, and those of classes below.
        """
        shown = LightParser(add_help=False)
        for role, action in self.roles.items():
            chosen = find_by_path(str(action.default))
            filled_in = (*FILLED_IN, "model") if role == "guide" else ("data_shape",)
            listed = [] if chosen is None else parameters(chosen)
            for parameter in [p for p in listed if p.name not in filled_in][:most]:
                shown._show(f"--{role}.{parameter.name}", parameter, deep=most is None)
        return shown._actions

    def _show(
        self, name: str, parameter: Parameter, deep: bool, above: tuple[str, ...] = ()
    ) -> None:
        """Adds the argument of a class for the help.

        Args:
            name: The option.
            parameter: The argument.
            deep: Also those of the classes that it takes.
            above: The classes of the objects that hold it, if others have other arguments in its place: its own
                class is the last one.
        """
        of = f"of {above[-1]}" if above else ""
        expected, classes = parameter.type, _classes(parameter.type)
        text = ": ".join(filter(None, (of, parameter.help.rstrip("."))))
        if parameter.name == "likelihood":
            text += " (default: what suits the data)"
        listed = [*classes] or (None if expected.kinds else expected.values) or None
        action = self._option_string_actions.get(name)
        if action is not None:  # of another class, too
            action.help = f"{action.help}; {text}"
            vars(action).pop("expected", None)  # the types and the defaults differ
            return
        action = self.add_argument(
            name,
            default=parameter.default,
            help=text,
            choices=listed,
            metavar="CLASS" if classes else parameter.name.upper() if deep and not listed else None,
        )
        _expect(action, expected)
        for kind, found in classes.items() if deep else ():
            if kind in above:  # an object may hold one of its own kind
                continue
            for below in parameters(found)[1 if expected.called else 0 :]:
                self._show(f"{name}.{below.name}", below, deep, (*above, kind))

    def spell_out(self) -> None:
        """Looks up the class names that the options accept."""
        for role, action in self.roles.items():
            action.help = role_help(role, str(action.default), self.kind)
            self._set_choices(role, known(role, self.kind))
        for name, expected in self.objects.items():
            null = ["null"] if "null" in expected.values else []
            self._set_choices(name[2:], [*_classes(expected), *null])

    def _set_choices(self, name: str, choices: list[str]) -> None:
        self._option_string_actions[f"--{name}"].choices = choices
        self._option_string_actions[f"--{name}.help"].choices = [c for c in choices if c != "null"]

    def add_options_below(self) -> None:
        """Adds the arguments of all classes that may be given, for completion."""
        for role in self.roles:
            classes = offered(face(role))
            self._add_below(f"--{role}", {n: classes[n] for n in known(role, self.kind)}, ())
        for name, expected in self.objects.items():
            self._add_objects_below(name, expected, ())

    def _add_below(
        self,
        name: str,
        classes: dict[str, Definition],
        above: tuple[str, ...],
        called: bool = False,
    ) -> None:
        for argument, expected in _arguments(classes.values(), called).items():
            below = f"{name}.{argument}"
            if below == "--guide.model" or below in self._option_string_actions:
                continue
            action = self.add_argument(below, choices=[*_classes(expected), *expected.values])
            _expect(action, expected)
            holders = [n for n, found in classes.items() if argument in _arguments([found], called)]
            self._add_objects_below(below, expected, (*above, *holders))

    def _add_objects_below(self, name: str, expected: Type, above: tuple[str, ...]) -> None:
        # An object may hold one of its own kind.
        classes = {n: found for n, found in _classes(expected).items() if n not in above}
        self._add_below(name, classes, above, expected.called)


def command_parser(command: str) -> LightParser:
    """The parser of a command."""
    parser = LightParser(prog=f"ppl-vae {command}", description={**COMMANDS, **ACTIONS}[command])
    describe(command, parser)
    return parser


def _values(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values of the options that are given, as text."""
    found: dict[str, list[str]] = {}
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            following = "".join(arguments[i + 1 : i + 2])
            found.setdefault(_plain_name(option), []).append(value if equals else following)
    return found


def _plain_name(option: str) -> str:
    """An option as it is usually written: `--guide.class_path LowRank` is `--guide LowRank`.

    Example:
        >>> _plain_name("--model.init_args.network.class_path"), _plain_name("--network.hidden+")
        ('--model.network', '--network.hidden')
    """
    words = option.removesuffix("+").split(".")
    return ".".join(word for word in words if word not in ("class_path", "init_args"))


def _arguments(classes: Iterable[Definition], called: bool = False) -> dict[str, Type]:
    """The arguments that one of the classes takes, without the first one if other code passes it."""
    types: dict[str, Type] = {}
    for found in classes:
        for parameter in parameters(found)[1 if called else 0 :]:
            types[parameter.name] = types.get(parameter.name, Type()) | parameter.type
    return types


def _default_of(word: str, classes: Iterable[Definition]) -> Any:
    """The default of an argument; a text if it is an object."""
    found = (p.default for kind in classes for p in parameters(kind) if p.name == word)
    return next((default for default in found if isinstance(default, str)), None)


def _documented(word: str, classes: Iterable[Definition]) -> str | None:
    """The class that is taken for an argument if none is given, as its description says; else None."""
    if word in FILLED_IN:
        return None
    described = (p.help for kind in classes for p in parameters(kind) if p.name == word)
    named = (re.search(r"(\w+)\(\) if none is given", text) for text in described)
    return next((found[1] for found in named if found), None)


def _require_kind(
    option: str, values: Iterable[str], expected: Type, holders: Iterable[Definition]
) -> None:
    """Raises an error for the name of a class of another kind than an argument takes, with those that it takes.

    Full names, and texts that are no names, are left to the full parser.
    """
    if expected.kinds or not expected.bases:
        return
    known = _classes(expected)
    for value in values:
        plain = value.isidentifier() and value not in expected.values and not os.path.exists(value)
        if not plain or value in known:
            continue
        takers = ", ".join(getattr(holder.node, "name", "") for holder in holders)
        base = getattr(expected.bases[0].node, "name", "")
        if known:
            listed = ", ".join(known)
            raise UsageError(
                f"{option}: expected the name of a known class, of which {takers} takes {listed}, or a full "
                f"name such as package.module.Class, got {value}"
            )
        raise UsageError(
            f"{option}: {takers} takes {base} alone, so that no class is named, but its arguments: "
            f"{option}.NAME VALUE; got {value}"
        )


def _class_missing(option: str, word: str, expected: Type) -> UsageError:
    """The error for an argument of an object whose class is not named."""
    takers = [
        name
        for name, found in _classes(expected).items()
        if word in _arguments([found], expected.called)
    ]
    takers.sort(key=lambda name: name != "Adam")  # of many, the usual one
    named = f"{option} {takers[0]}" if takers else f"{option} CLASS"
    others = f" (or {', '.join(takers[1:5])})" if takers[1:] else ""
    return UsageError(
        f"{option}: the class is missing, of which {word} is an argument: write {named}{others}, too"
    )


def _how_reached(role: str) -> str:
    """How the help says that classes have arguments."""
    deeper = "" if role == "prior" else f" and --{role}.network.NAME"
    return (
        f"--{role}.NAME{deeper} are arguments of the classes; --{role}.help "
        "CLASS lists them. Your own class: package.module.Class."
    )


def _takes_class(action: argparse.Action) -> bool:
    """Whether an option takes the name of a class."""
    expected: Type | None = getattr(action, "expected", None)
    return action.metavar == "CLASS" and (expected is None or bool(expected.bases))


def _expect(action: argparse.Action, expected: Type) -> None:
    """Notes the type of an option at the option; argparse would convert to its own `type`."""
    vars(action)["expected"] = expected


def _classes(expected: Type) -> dict[str, Definition]:
    """The classes that may be given by their names."""
    return {n: found for base in expected.bases for n, found in subclasses(base).items()}


def _named(expected: Type) -> str:
    """A type in words."""
    values = [] if expected.bases or not expected.kinds else list(expected.values)
    return " or ".join([*expected.kinds, *values, *(["a class"] if expected.bases else [])])


def _shown(default: Any) -> str:
    """A default, written as on the command line."""
    if default is None:
        return "null"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _written_out(value: str) -> str:
    """A text with its whole numbers written out; it is one number, or a list of them."""
    if not re.fullmatch(rf"\[?[\s,]*({_EXPONENT}|\d+)([\s,]+({_EXPONENT}|\d+))*[\s,]*\]?", value):
        return value
    return re.sub(_EXPONENT, _whole, value)


def _whole(found: re.Match[str]) -> str:
    number = float(found[0])
    return str(int(number)) if number.is_integer() else found[0]
