"""Functions and classes as their source files describe them, because importing them would load torch.

It reads what the command line offers: names, types, defaults and docstrings, of this package and of
`torch.optim`. Every package is read through its face (see `ppl_vae/__init__.pyi`).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, NamedTuple

_READ = ("ppl_vae", "torch.optim")
"""The packages with classes that a user may choose by name; no others are read."""

_PLAIN = {"str", "int", "float", "dict", "list", "tuple", "Path", "Any", "Sequence", "Mapping"}


class Definition(NamedTuple):
    """A function, a class or the assignment of a type alias, and the module that it stands in."""

    module: str
    node: ast.stmt


class Type(NamedTuple):
    """What an option takes.

    Attributes:
        kinds: Names of plain types, such as `int`.
        values: All values that are allowed beside those, as they are written on the command line.
        bases: Classes of which a subclass may be given by its name.
        called: Whether the class is called later, by code that passes the first argument itself.
    """

    kinds: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    bases: tuple[Definition, ...] = ()
    called: bool = False

    def __or__(self, other: Type) -> Type:
        return Type(
            tuple(dict.fromkeys(self.kinds + other.kinds)),
            tuple(dict.fromkeys(self.values + other.values)),
            tuple({base.node: base for base in self.bases + other.bases}.values()),
            self.called or other.called,
        )


class Parameter(NamedTuple):
    """A parameter of a function or of a constructor; `default` is also None if there is no default."""

    name: str
    type: Type
    default: Any = None
    help: str = ""


def find(module: str, name: str) -> Definition | None:
    """Where a module's name is defined; None for modules that are not read here."""
    for node in _body(module):
        if isinstance(node, ast.FunctionDef) and "overload" in map(_last, node.decorator_list):
            continue  # one of its types, not the function itself
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Definition(module, node)
        if isinstance(node, ast.Assign):
            if any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
                return Definition(module, node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                source = _imported(module, node)
                if name == (alias.asname or alias.name) and source != module:
                    return find(source, alias.name)
    return None


def offered(module: str) -> dict[str, Definition]:
    """The classes and functions that a module or a package's face offers, by their names, sorted."""
    names = set()
    for node in _body(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and _file(module)[1]:
            names |= {alias.asname or alias.name for alias in node.names}
    found = {name: find(module, name) for name in sorted(names) if not name.startswith("_")}
    return {name: definition for name, definition in found.items() if definition is not None}


def derives(definition: Definition, base: str) -> bool:
    """Whether a class has a base, or a base's base, of this name."""
    return any(
        isinstance(ancestor.node, ast.ClassDef) and base in map(_last, ancestor.node.bases)
        for ancestor in _ancestry(definition)
    )


def is_abstract(definition: Definition) -> bool:
    """Whether a class is abstract: it derives directly from `ABC` or `Protocol`, or has abstract methods."""
    node = definition.node
    if not isinstance(node, ast.ClassDef):
        return False
    decorators = [d for f in node.body if isinstance(f, ast.FunctionDef) for d in f.decorator_list]
    return bool({"ABC", "Protocol"} & set(map(_last, node.bases))) or (
        "abstractmethod" in map(_last, decorators)
    )


def subclasses(base: Definition) -> dict[str, Definition]:
    """The concrete subclasses of a base that its module or its package offers."""
    found = {n: d for place in _places(base) for n, d in offered(place).items()}
    return {n: d for n, d in sorted(found.items()) if _is_concrete(d, base)}


def find_subclass(base: Definition, name: str) -> Definition | None:
    """The concrete subclass of this name; None if there is none. Faster than a search in `subclasses`."""
    found = (find(place, name) for place in _places(base))
    return next((d for d in found if d is not None and _is_concrete(d, base)), None)


def find_by_path(path: str) -> Definition | None:
    """The class or function of a full name; None if it does not exist or its package is not read."""
    module, _, name = path.rpartition(".")
    return find(module, name) if module else None


def _places(base: Definition) -> list[str]:
    """The modules that may offer subclasses of a base: its package and its own."""
    return [place for place in (base.module.rpartition(".")[0], base.module) if _read(place)]


def _is_concrete(definition: Definition, base: Definition) -> bool:
    return derives(definition, getattr(base.node, "name", "")) and not is_abstract(definition)


def parameters(definition: Definition) -> list[Parameter]:
    """The parameters of a function, or of a class's constructor without `self`."""
    constructor = _constructor(definition)
    described = _described_by_class(definition)
    if constructor is not None:
        listed = _of_function(constructor)
        if constructor is definition:
            return listed
        return [p._replace(help=p.help or described.get(p.name, "")) for p in listed[1:]]
    ancestry = list(_ancestry(definition))
    fields: dict[str, Parameter] = {}
    positional: list[str] = []
    for module, node in reversed(ancestry if _is_dataclass(definition) else []):
        for statement in getattr(node, "body", ()):
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                    if ast.unparse(annotation).rpartition(".")[2].startswith("ClassVar"):
                        continue
                    if isinstance(value, ast.Call) and _last(value.func) == "field":
                        options = {each.arg: each.value for each in value.keywords}
                        value = options.get("default")
                        first = options.get("kw_only")
                        if isinstance(first, ast.Constant) and first.value is False:
                            positional.append(name)
                    expected, default = _type(annotation, module), _value(value)
                    fields[name] = Parameter(name, expected, default, described.get(name, ""))
    return [fields[name] for name in positional] + [
        each for name, each in fields.items() if name not in positional
    ]


def takes_any_name(definition: Definition) -> bool:
    """Whether a function or a constructor has `**kwargs`, so that its source does not list what it takes."""
    constructor = _constructor(definition)
    node = None if constructor is None else constructor.node
    return isinstance(node, ast.FunctionDef) and node.args.kwarg is not None


def _constructor(definition: Definition) -> Definition | None:
    """A function itself; of a class, its `__init__`, which may be a base's."""
    if isinstance(definition.node, ast.FunctionDef):
        return definition
    for module, node in _ancestry(definition):
        for statement in getattr(node, "body", ()):
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return Definition(module, statement)
    return None


def _is_dataclass(definition: Definition) -> bool:
    return "dataclass" in map(_last, getattr(definition.node, "decorator_list", ()))


def methods(definition: Definition) -> set[str]:
    """The names of the methods of a class and of its bases, as far as they are read."""
    return {
        statement.name
        for _, node in _ancestry(definition)
        for statement in getattr(node, "body", ())
        if isinstance(statement, ast.FunctionDef)
    }


def function(path: str) -> Definition:
    """The function of this full name."""
    found = find_by_path(path)
    if found is None or not isinstance(found.node, ast.FunctionDef):
        raise LookupError(f"there is no function {path} in the sources that are read")
    return found


def _of_function(definition: Definition) -> list[Parameter]:
    node = definition.node
    assert isinstance(node, ast.FunctionDef)
    arguments = node.args
    listed = [*arguments.posonlyargs, *arguments.args]
    defaults: dict[str, ast.expr | None] = {
        a.arg: d for a, d in zip(reversed(listed), reversed(arguments.defaults), strict=False)
    }
    defaults |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    described = _described(_docstring(definition))
    return [
        Parameter(
            a.arg,
            _type(a.annotation, definition.module),
            _value(defaults.get(a.arg)),
            described.get(a.arg, ""),
        )
        for a in (*listed, *arguments.kwonlyargs)
    ]


def _type(annotation: ast.expr | None, module: str) -> Type:
    """The meaning of an annotation that stands in a module."""
    match annotation:
        case ast.Constant(value=None):
            return Type(values=("null",))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left, module) | _type(right, module)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            listed = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Type(values=tuple(str(_value(value)) for value in listed))
        case ast.Subscript(value=ast.Name(id="Callable"), slice=ast.Tuple(elts=[_, made])):
            return _type(made, module) | Type(called=True)
        case ast.Name(id="bool"):
            return Type(values=("true", "false"))
        case ast.Name(id=name) if name in _PLAIN:
            return Type(kinds=(name,))
        case ast.Name(id=name):
            found = find(module, name)
            if found is None:
                return Type(kinds=(name,))
            if isinstance(found.node, ast.Assign):
                return _type(found.node.value, found.module)
            return Type(bases=(found,))
    return Type() if annotation is None else Type(kinds=(ast.unparse(annotation),))


def _ancestry(definition: Definition) -> Iterator[Definition]:
    """A class, and its bases as far as they are read."""
    if isinstance(definition.node, ast.ClassDef):
        yield definition
        for base in definition.node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base  # `Amortized[Normal]`
            found = find(definition.module, named.id) if isinstance(named, ast.Name) else None
            if found is not None:
                yield from _ancestry(found)


def _docstring(definition: Definition) -> str:
    """The docstring of a function or a class, without markup."""
    node = definition.node
    text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
    return re.sub(r":\w+:`(.*?)`", r"\1", text or "").replace("`", "")


def _described_by_class(definition: Definition) -> dict[str, str]:
    """What the docstrings of a class and its bases say about its arguments; empty for a function."""
    described: dict[str, str] = {}
    for found in reversed(list(_ancestry(definition))):
        for section in ("Attributes", "Args"):  # of a dataclass the attributes are the arguments
            described |= _described(_docstring(found), section)
    return described


def _described(docstring: str, section_name: str = "Args") -> dict[str, str]:
    """The entries below `Args:`, or below another title."""
    section = re.search(rf"^{section_name}:\n((?: .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.split(r"^    (?=\w)", section[1] if section else "", flags=re.MULTILINE)
    parts = [entry.partition(":") for entry in entries]
    return {name: " ".join(text.split()) for name, _, text in parts if text}


def _value(default: ast.expr | None) -> Any:
    if default is None:
        return None
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _last(node: ast.expr) -> str:
    """The last name in `abc.ABC`, `dataclass(frozen=True)` or `Sequence[int]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _last(inner)
    return ""


def _read(module: str) -> bool:
    return any(module == read or module.startswith(f"{read}.") for read in _READ)


def _imported(module: str, node: ast.ImportFrom) -> str:
    """The full name of the module that an import statement of another names."""
    package = module if _file(module)[1] else module.rpartition(".")[0]
    return resolve_name("." * node.level + (node.module or ""), package)


@cache
def _body(module: str) -> list[ast.stmt]:
    """The statements of a module, with those below `if TYPE_CHECKING:`."""
    file = _file(module)[0] if _read(module) else None
    body = [] if file is None else ast.parse(file.read_text(encoding="utf-8")).body
    return [s for node in body for s in (node, *(node.body if isinstance(node, ast.If) else ()))]


@cache
def _file(module: str) -> tuple[Path | None, bool]:
    """The source file of a module, or the stub that is a package's face; and whether it is a package."""
    path, spec = None, None
    parts = module.split(".")
    for i in range(len(parts)):  # find_spec of importlib.util would execute the packages above
        name = ".".join(parts[: i + 1])
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((found for found in specs if found is not None), None)
        if spec is None:
            return None, False
        path = spec.submodule_search_locations
    if spec is None or not spec.has_location or spec.origin is None:
        return None, False
    file, is_package = Path(spec.origin), path is not None
    stub = file.with_suffix(".pyi")
    return stub if is_package and stub.is_file() else file, is_package
