"""The reference: the docstrings, which are Markdown with Google's sections, of what a package offers.

Code in backticks is a link where it names something public. Formulas are plain text in docstrings; here their
indices stand low and their exponents high.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyClasslike
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns|Yields):$", re.MULTILINE)
FIELD = {
    "Args": "param",
    "Attributes": "ivar",
    "Raises": "raises",
    "Returns": "returns",
    "Yields": "returns",
}
SCRIPT = re.compile(
    r"(?<![\w.])(?P<base>[A-Za-z]|sum|prod|max|min|argmax|log|mu|sigma|pi|beta|gamma|alpha|KL)"
    r"_(?:(?P<low>[A-Za-z0-9]{1,3})(?![\w(])|\{(?P<braced>[^{}]+)\})"
    r"|(?<=[)|])_(?P<after>[A-Za-z0-9]{1,3})(?![\w(])"
    r"|(?:(?<=[\w)\]*|])|^)\^(?P<high>-?\w+|\([^()]+\))"
)


# -- a docstring in MyST's Markdown ----------------------------------------------------------------------


def markdown(docstring: str) -> str:
    """A docstring with its sections as fields, which Sphinx sets as lists."""
    parts = SECTION.split(docstring)
    text = [_prose(parts[0])]
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        body = inspect.cleandoc(body)
        if section == "Example":
            text.append(f"```pycon\n{body}\n```")
        elif section in ("Returns", "Yields"):
            text.append(f":{FIELD[section]}: {_indented(_prose(body))}")
        else:
            text += [
                f":{FIELD[section]} {name}: {_indented(_prose(what))}"
                for name, what in _entries(body)
            ]
    return "\n\n".join(text)


def _entries(body: str) -> Iterator[tuple[str, str]]:
    """The names in a section, with what is said of them."""
    for entry in re.split(r"\n(?=\S)", body):
        name, _, what = entry.partition(":")
        what = inspect.cleandoc(what)
        if len(re.findall(r"^[-+*>#] ", what, re.MULTILINE)) == 1:  # a sign, and no list
            what = re.sub(r"^([-+*>#]) ", r"\\\1 ", what)
        yield name.strip(), what


def _prose(text: str) -> str:
    """Lines of a paragraph that begin with a sign are part of it, and no list."""
    text = re.sub(r"(?<=[^\s:.,;])\n([-+*>#]) ", r"\n\\\1 ", text)
    return re.sub(r"(?<!\n)\n\n?(>>> (?:.+\n?)+)", r"\n\n```pycon\n\1\n```\n", text).strip()


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


# -- what a package offers -------------------------------------------------------------------------------


def entry(value: Any, name: str) -> str:
    """A class, a function or a constant, as directives in Markdown."""
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        inside = "\n\n".join(_members(value))
        signature = "" if kind == "exception" else _signature(value)
        return _directive(":::::", kind, name + signature, f"{_docstring(value)}\n\n{inside}")
    if callable(value):
        return _directive("::::", "function", name + _signature(value), _docstring(value))
    return _directive("::::", "data", name, f"`{value!r}`")


def _directive(fence: str, kind: str, head: str, body: str) -> str:
    return f"{fence}{{py:{kind}}} {head}\n\n{body}\n{fence}"


def _docstring(value: Any) -> str:
    return markdown(inspect.cleandoc(value.__doc__ or ""))


def _signature(value: Any) -> str:
    if getattr(value, "_is_protocol", False):  # nobody makes one
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    if inspect.isclass(value):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    return _shown(signature)


def _shown(signature: inspect.Signature) -> str:
    written = stringify_signature(signature, unqualified_typehints=True)
    written = written.replace("<factory>", "...")  # Sphinx cannot read it
    return re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", written)


def _members(owner: type) -> Iterator[str]:
    """The public methods and properties of a class that have a docstring."""
    for name, member in vars(owner).items():
        of = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if name.startswith("_") or not getattr(of, "__doc__", None):
            continue
        if isinstance(of, property | cached_property):
            yield _directive("::::", "property", name, _docstring(of))
        elif inspect.isfunction(of):
            parameters = list(inspect.signature(of).parameters.values())
            bound = parameters if isinstance(member, staticmethod) else parameters[1:]
            signature = inspect.signature(of).replace(parameters=bound)
            yield _directive("::::", "method", name + _shown(signature), _docstring(of))


class Room(SphinxDirective):
    """What a package offers: its docstring, and then the names in the directive, or else all on its face."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        package = self.arguments[0]
        module = importlib.import_module(package)
        names = offered(package, list(self.content))
        text = [] if list(self.content) else [_prose(inspect.getdoc(module) or "")]
        for name in names:
            value = getattr(module, name)
            if not inspect.ismodule(value):
                text.append(entry(value, f"{package}.{name}"))
        parsed = self.parse_text_to_nodes("\n\n".join(text), allow_section_headings=False)
        holder = nodes.container("", *parsed)
        _set_scripts(holder)
        return list(holder.children)


# -- links and formulas ----------------------------------------------------------------------------------


def offered(package: str, content: list[str]) -> list[str]:
    """The names that a directive describes."""
    return " ".join(content).split() or list(importlib.import_module(package).__all__)


def find_names(app: Sphinx) -> None:
    """Called by Sphinx before pages are read: finds out what the reference describes, by its bare name."""
    directive = re.compile(r"^```\{room\} ([\w.]+)\n(.*?)```", re.DOTALL | re.MULTILINE)
    names: dict[str, str] = {}
    for page in sorted((Path(app.srcdir) / "reference").glob("*.md")):
        for package, content in directive.findall(page.read_text(encoding="utf-8")):
            for name in offered(package, content.split("\n")):
                names.setdefault(name, f"{package}.{name}")
    _names.clear()
    _names.update(names)


_names: dict[str, str] = {}


def link_code(app: Sphinx, holder: nodes.document) -> None:
    """Called by Sphinx: makes links of code that is a name in the reference, a method of it, or a bare call."""
    for code in list(holder.findall(nodes.literal)):
        written = code.astext().removesuffix("()")
        of_package = [
            full for full in _names.values() if written in (full, full.removeprefix("ppl_vae."))
        ]
        name, _, member = written.partition(".")
        target = of_package[0] if of_package else _names.get(name)
        if target is None or not re.fullmatch(r"[\w.]+", written) or _in_link(code):
            continue
        if member and not of_package:
            target = f"{target}.{member}"
        link = pending_xref(
            "", reftarget=target, refexplicit=True, refdomain="py", reftype="obj", refwarn=False
        )
        code.replace_self(link)
        link += code


def _set_scripts(holder: nodes.Element) -> None:
    """Sets indices low and exponents high, in prose."""
    fixed = (nodes.literal, nodes.literal_block, nodes.doctest_block, nodes.raw, desc_signature)
    for text in list(holder.findall(nodes.Text)):
        if any(isinstance(above, fixed) for above in _above(text)):
            continue
        parts: list[nodes.Node] = []
        place = 0
        for match in SCRIPT.finditer(text):
            parts.append(nodes.Text(text[place : match.start()] + (match["base"] or "")))
            low, high = match["low"] or match["braced"] or match["after"], match["high"]
            parts.append(nodes.subscript(low, low) if low else nodes.superscript(high, high))
            place = match.end()
        parts.append(nodes.Text(text[place:]))
        text.parent.replace(text, parts)


def _in_link(node: nodes.Node) -> bool:
    return any(
        isinstance(above, nodes.reference | pending_xref | nodes.title) for above in _above(node)
    )


def _above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("room", Room)
    app.connect("builder-inited", find_names)
    app.connect("doctree-read", link_code)
    for field in PyClasslike.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
