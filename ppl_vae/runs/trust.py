"""What a folder may name: a config.yaml of a stranger must not choose the code that runs.

Every name that comes from a file of a run goes through `Trust`, before anything is imported. Without the user's
word a folder may name the classes of this package's models, guides and their parts, torch's modules, optimizers
and schedules, and the constraints of torch and Pyro. See docs/security.md.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from ppl_vae._moved import MODULES, OF_PACKAGES
from ppl_vae.runs.contents import CONFIG
from ppl_vae.runs.names import import_by_name, public_name
from ppl_vae.runtime import described, load_yaml, printable


class UntrustedError(ValueError):
    """A folder names code that it may not name; nothing was imported or run."""


class _Role(NamedTuple):
    """What an entry of config.yaml may be.

    Attributes:
        places: The packages of the classes that any folder may name.
        base: What such a class derives from.
        what: The same in words.
    """

    places: tuple[str, ...]
    base: str
    what: str


_PARTS = tuple(
    f"ppl_vae.{room}"
    for room in (
        *("models", "guides", "networks", "likelihoods", "objectives", "distributions"),
        "codes",
    )
)
_MODULE = "torch.nn.modules"
_ROLES = {
    "model": _Role(("ppl_vae.models", _MODULE), "torch.nn.Module", "a model"),
    "guide": _Role(("ppl_vae.guides", _MODULE), "torch.nn.Module", "a guide"),
    "model_guide": _Role(("ppl_vae.guides", _MODULE), "torch.nn.Module", "a guide"),
    "prior": _Role(("ppl_vae.models",), "builtins.object", "a prior"),
    "objective": _Role(
        ("ppl_vae.objectives",), "ppl_vae.objectives.Objective", "a subclass of Objective"
    ),
    "optimizer": _Role(("torch.optim",), "torch.optim.Optimizer", "an optimizer of torch"),
    "lr_scheduler": _Role(
        ("torch.optim",), "torch.optim.lr_scheduler.LRScheduler", "a schedule of torch"
    ),
    "constraint": _Role(
        ("torch.distributions", "pyro.distributions"),
        "torch.distributions.constraints.Constraint",
        "a constraint",
    ),
    "part": _Role((*_PARTS, _MODULE), "builtins.object", "a part of a model or a guide"),
}
ROLES = tuple(name for name in _ROLES if name not in ("constraint", "part"))
"""The entries of config.yaml that name classes."""

_PACKAGES = {place for role in _ROLES.values() for place in role.places}
_OLD = {f"ppl_vae.{module}" for module in MODULES} | OF_PACKAGES.keys()
_LONGEST = 10_000
_LONGEST_SHOWN = 200
_MOST = 2_000_000
_OF_A_NAME = 10_000
"""So much of `_MOST` does the name of a part take: jsonargparse takes the square of the number of parts."""
_DEEPEST = 3
_MOST_PARTS = 6
"""Most descriptions inside of each other: jsonargparse takes twice as long for each further one."""


@dataclass(frozen=True)
class Trust:
    """What may be imported for the sake of one folder.

    Attributes:
        folder: The folder; None for what the user has typed.
        everything: Whether the user trusts all that it names.
        packages: Packages and modules that the user trusts.
    """

    folder: Path | None
    everything: bool
    packages: tuple[str, ...] = ()

    @classmethod
    def of(cls, trust: bool | Collection[str] | Trust, folder: str | Path) -> Trust:
        """What a user says of a folder: True, False, or the names of packages.

        Raises:
            TypeError: It is something else.
            ValueError: One of them is no name.

        Example:
            >>> Trust.of(["my_package"], "runs/a").packages
            ('my_package',)
        """
        if isinstance(trust, Trust):
            return trust
        if isinstance(trust, bool):
            return cls(Path(folder), trust)
        if isinstance(trust, Mapping) or not isinstance(trust, Collection):
            raise TypeError(
                "trust must be True, False, or the names of packages and modules, such as ['my_package'], got "
                f"{described(trust)}"
            )
        packages = (trust,) if isinstance(trust, str) else tuple(trust)
        for name in packages:
            if not (isinstance(name, str) and _is_name(name)):
                raise ValueError(f"trust: expected names of packages or modules, got {name!r}")
        return cls(Path(folder), False, packages)

    def check(self, config: Mapping[str, Any], roles: Collection[str] = ROLES) -> None:
        """Raises an error if a configuration names what it may not name; before that, nothing is imported.

        Args:
            config: The content of config.yaml.
            roles: The entries that will be used.

        Raises:
            UntrustedError: A name is outside of what is trusted.
            ValueError: An entry is not a description, or its class is of another kind.
        """
        for role in roles:
            _require_description(config.get(role), role, self._file)
        if self.everything:
            return
        named = [name for role in roles for name in names_in(config.get(role), role, self._file)]
        self._require([(place, name) for place, _, name in named])
        for place, role, name in named:
            try:
                self.resolve(name, role)
            except UntrustedError:
                raise
            except ValueError as error:
                raise ValueError(f"{self._file}, {place}: {error}") from error

    def check_constraints(self, file: Path, names: Collection[str]) -> None:
        """Raises an error if a file of weights names what it may not name; before that, nothing is imported."""
        if not self.everything:
            self._require([("constraint", name) for name in names], file=str(file))

    def resolve(self, name: str, role: str) -> Any:
        """The class or the function of a name that the folder gives to a role.

        Raises:
            UntrustedError: The name is outside of what is trusted, or leads there.
            ValueError: There is no such class, or it is of another kind.
        """
        if not self.everything and "." in name:  # import_by_name imports no others
            self._require([(role, name)])
        found = import_by_name(name)
        if not self.everything:
            module = _home(found)
            if not (self._is_users(module) or _is_within(module, _PACKAGES)):
                self._require([(role, name)], module)
        known = _ROLES[role]
        if self.everything or self._is_users(_home(found)):
            fits = _fits_when_trusted(found, role)
        else:
            fits = (
                inspect.isclass(found)
                and issubclass(found, import_by_name(known.base))
                and _is_within(_home(found), known.places)
                and (not _home(found).startswith("ppl_vae.") or _is_offered(found))
            )
        if not fits:
            raise ValueError(f"{name} is not {known.what}")
        return found

    def check_parsed(self, value: Any, role: str = "part") -> None:
        """Raises an error for a value that contains, now that it is read, what the folder may not name.

        Args:
            value: Arguments, or the object of a role.
            role: What the value itself describes; what it contains are parts.
        """
        if self.everything:
            return
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, Mapping):
            for key, entry in value.items():
                if key == "class_path" and isinstance(entry, str):
                    self.resolve(entry, role)
                else:
                    self.check_parsed(entry)
        elif isinstance(value, list | tuple | set | frozenset):
            for entry in value:
                self.check_parsed(entry)
        elif callable(value) and not _is_within(
            _home(value), ("jsonargparse",)
        ):  # one of its paths
            named = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
            self.resolve(public_name(named), role)

    def names_of(self, config: Mapping[str, Any]) -> list[str]:
        """All names in a configuration that could be imported."""
        return [name for role in ROLES for *_, name in names_in(config.get(role), role, self._file)]

    @property
    def _file(self) -> str:
        return "the options" if self.folder is None else str(self.folder / CONFIG)

    def _is_users(self, name: str) -> bool:
        return _is_within(name, self.packages)

    def _allows(self, name: str) -> bool:
        module = name.rpartition(".")[0]
        return (
            self._is_users(name)
            or _is_within(module, _PACKAGES)
            or module in _OLD
            or module == "torch.nn"
        )

    def _require(self, named: Collection[tuple[str, str]], home: str = "", file: str = "") -> None:
        """Raises an error that lists the names outside of what is trusted; all of them with `home`."""
        outside = [(place, name) for place, name in named if home or not self._allows(name)]
        if not outside:
            return
        listed = [
            f"{_shown(place)}: {_shown(name)} (module {_shown(home or name.rpartition('.')[0] or name)})"
            for place, name in dict.fromkeys(outside)
        ]
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        packages = sorted({(home or name).partition(".")[0] for _, name in outside})
        what = (
            "it was imported from where it may be, but not used" if home else "nothing was imported"
        )
        raise UntrustedError(
            f"{file or self._file} names code from outside of ppl_vae, torch and Pyro: "
            f"{'; '.join(listed[:5])}{more}\n"
            f"A class or function of this folder could do anything to your files; {what}.\n"
            f"If you trust the folder: --trust_packages {','.join(packages)} or --trust (all that it names); "
            f"in Python load_run(path, trust={packages}) or trust=True."
        )


TYPED = Trust(None, everything=True)
"""The trust in what the user has typed or written in Python."""


def names_in(value: Any, role: str, file: str) -> Iterator[tuple[str, str, str]]:
    """Each name in an entry of a configuration, with its place and its role.

    These are the class paths, and all texts that `jsonargparse` could take for a class path or for YAML.

    Args:
        value: The entry.
        role: Its name.
        file: Where it is, for the message.

    Raises:
        ValueError: A `class_path` is not a name, `init_args` are no mapping, a text is too long, or all texts
            together are.
    """
    left = [_MOST]
    own = value.get("class_path") if isinstance(value, Mapping) else value
    for place, name in _names(value, role, file, 0, 0, left):
        yield place, role if name == own and place == role else "part", name


def _names(
    value: Any, place: str, file: str, depth: int, parts: int, left: list[int]
) -> Iterator[tuple[str, str]]:
    left[0] -= 10 + (len(value) if isinstance(value, str) else 0)
    if isinstance(value, list | tuple | set):
        left[0] -= len(value) ** 2 // 10  # it takes the square of a list's length, too
    elif _may_be_built(value):
        left[0] -= _OF_A_NAME
    if left[0] < 0:
        raise ValueError(f"{file}, {place}: it stands for too much to be an argument")
    if isinstance(value, Mapping):
        _require_description(value, place, file)
        parts += "class_path" in value or "init_args" in value
        if parts > _MOST_PARTS:
            raise ValueError(
                f"{file}, {place}: it is a part of a part, more than {_MOST_PARTS} times"
            )
        for key, entry in value.items():
            yield from _names(key, place, file, depth, parts, left)
            inside = key in ("class_path", "init_args")
            where = place if inside else f"{place}.{key}"
            yield from _names(entry, where, file, depth, parts, left)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from _names(entry, place, file, depth, parts, left)
    elif isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST or depth > _DEEPEST:
            raise ValueError(
                f"{file}, {place}: a text of {len(text)} characters is not an argument"
            )
        if _is_name(text):
            if "." in text:
                yield place, text
            return
        if re.search(r"[|\[]", text):  # a type, such as `list[package.Class]`
            for name in _dotted(text):
                yield place, name
        try:
            read = _read(text)
        except ValueError as error:  # jsonargparse, whose rules differ, might read it
            raise ValueError(f"{file}, {place}: this is not a plain value ({error})") from None
        if read != value:
            yield from _names(read, place, file, depth + 1, parts, left)


def _may_be_built(value: Any) -> bool:
    """Whether it may be a description of a part, by its name or by arguments alone."""
    if isinstance(value, Mapping):
        return "init_args" in value and "class_path" not in value
    return isinstance(value, str) and "." in value and _is_name(value.strip())


_WITH_DOTS = re.compile(r"(?<!\w)\w++(?:\s*+\.\s*+\w++)++")
"""Words with dots between them. Each character is looked at once: one long word would take seconds."""


def _dotted(text: str) -> Iterator[str]:
    """The dotted names in a text that is more than a name."""
    for found in _WITH_DOTS.findall(text):
        name: list[str] = []
        for word in re.split(r"\s*+\.\s*+", found):
            # A name ends ahead of a number; what follows the digits may be the beginning of another.
            first = re.sub(r"^\d+", "", word)
            if first != word:
                if len(name) > 1:
                    yield ".".join(name)
                name = []
            name = [*name, first] if first else []
        if len(name) > 1:
            yield ".".join(name)


@functools.lru_cache(maxsize=256)
def _read(text: str) -> Any:
    """What a text says as YAML; once for all places that an alias puts it in."""
    return load_yaml(text)


def _require_description(value: Any, place: str, file: str) -> None:
    """Raises an error for a class path that is no name, and for arguments that are no mapping."""
    if not (isinstance(value, Mapping) and "class_path" in value):
        return
    path, arguments = value["class_path"], value.get("init_args")
    if not (isinstance(path, str) and _is_name(path)):
        raise ValueError(
            f"{file}, {place}: class_path must be a name such as package.module.Class, got {path!r}"
        )
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"{file}, {place}: init_args must be names and values, got {arguments!r}")


def _fits_when_trusted(found: Any, role: str) -> bool:
    """Whether something that the user trusts can be used in a role at all."""
    if role in ("model", "guide", "model_guide"):
        return "__call__" in dir(found) if inspect.isclass(found) else callable(found)
    if role in ("objective", "constraint"):
        return inspect.isclass(found) and issubclass(found, import_by_name(_ROLES[role].base))
    return True


def _shown(text: str) -> str:
    """A text of a folder in the question: on one line, not so long that the rest is overlooked.

    Letters that look like those of another name are also shown by their numbers.
    """
    text = printable(text)
    text = text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN // 2]}...{text[-20:]}"
    return text if text.isascii() else f"{text} = {text!a}"


def _home(found: Any) -> str:
    return str(getattr(found, "__module__", None) or type(found).__module__)


def _is_offered(kind: type[Any]) -> bool:
    """Whether a class of ours is on a face, or public in a module that is one."""
    place, _, name = public_name(kind).rpartition(".")
    return not name.startswith("_") and (place in _PARTS or place == "ppl_vae.models.priors")


def _is_name(text: str) -> bool:
    return all(word.isidentifier() for word in text.split("."))


def _is_within(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
