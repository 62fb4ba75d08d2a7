"""A YAML file as nodes that know their line, and that refuse what does not fit without showing secrets.

Jinja is rendered first, as SQLMesh does, but what an expression gives is put into the parsed document,
not into the text: a password needs no quoting for YAML, cannot change what the file says, and shifts no
line. A value that came from an expression is never shown in a message.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from attrs import evolve, field, frozen

from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from ruamel.yaml.nodes import Node as YamlNode

T = TypeVar("T")
_SUSPICIOUS = re.compile(r"@|://|pass|secret|token", re.IGNORECASE)


@frozen
class Node:
    """One value of the file.

    Attributes:
        kind: `scalar`, `sequence` or `mapping`.
        type: YAML's name for the type of a scalar: `str`, `int`, `float`, `bool`, `null`.
        text: A scalar's text, with the values of expressions in it.
        rendered: Whether a value of an expression is in it.
        line: Counted from one; None where template statements have shifted the lines.
        items: Of a sequence.
        entries: Of a mapping, in the order of the file, duplicates included.
    """

    kind: Literal["scalar", "sequence", "mapping"]
    line: int | None
    type: str = ""
    text: str = field(default="", repr=False)
    rendered: bool = False
    items: tuple[Node, ...] = ()
    entries: tuple[tuple[Node, Node], ...] = ()


class YamlSource:
    """One file while it is read.

    Args:
        file: For messages.
        source: Its text.
        hidden: Keys whose content is not shown in messages.
        homes: Which keys belong under which name, to say so where one stands in the wrong place.

    Attributes:
        root: The document; None if the file is empty.

    Raises:
        ConfigError: A variable without a default is not set, or the text is no template or not YAML.
    """

    def __init__(
        self, file: Path, source: str, *, hidden: Iterable[str] = (), homes: Mapping[str, Iterable[str]]
    ) -> None:
        self._file = file
        self._hidden = frozenset(hidden)
        self._homes = homes
        self._values: dict[str, str] = {}
        # Stands for a value until the text is parsed; nobody can have written it into the file.
        self._token = f"v{secrets.token_hex(8)}"
        rendered = self._render(source)
        # A statement such as {% if %} can drop lines; then no number is better than a wrong one.
        self._has_lines = rendered.count("\n") == source.count("\n")
        tree = self._parse(rendered)
        self.root = None if tree is None else self._node(tree, {})

    # -- from text to nodes

    def _render(self, source: str) -> str:
        import jinja2

        read: list[str] = []

        def env_var(name: str, default: str | None = None) -> str:
            value = os.environ.get(name, default)
            if value is None:
                quoted = re.compile(rf"""['"]{re.escape(name)}['"]""")
                line = next((n for n, text in enumerate(source.split("\n"), 1) if quoted.search(text)), None)
                hint = f"export {name}=..., or give env_var a default as its second argument"
                self._fail_at(line, f"the environment variable {name} is not set", hint=hint)
            read.append(str(value))
            return value

        def finalize(value: object) -> object:
            if isinstance(value, jinja2.Undefined):
                return value  # it raises when it is written
            name = f"{self._token}n{len(self._values)}e"
            self._values[name] = str(value)
            return name

        environment = jinja2.Environment(  # noqa: S701 - this is not HTML
            undefined=jinja2.StrictUndefined, finalize=finalize, keep_trailing_newline=True
        )
        environment.globals["env_var"] = env_var
        try:
            return environment.from_string(source).render()
        except ConfigError:
            raise
        except jinja2.TemplateSyntaxError as error:
            lines = source.split("\n")[error.lineno - 1 : error.lineno]
            # It quotes the word that it stumbled over, which may be a piece of a password.
            said = "" if any(map(_SUSPICIOUS.search, lines)) else f": {error.message}"
            self._fail_at(error.lineno, f"the template is malformed{said}")
        except Exception as error:  # noqa: BLE001 - an expression can raise anything, and may quote a secret
            problem = str(error)
            for value in sorted(filter(None, read), key=len, reverse=True):
                problem = problem.replace(value, "***")
            self._fail_at(None, f"the template cannot be rendered: {problem}")

    def _parse(self, rendered: str) -> YamlNode | None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        found: YamlNode | None
        try:
            found = YAML(typ="rt").compose(rendered)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None and self._has_lines else None
            # What it quotes may be a part of a secret, unless it is a single sign.
            problem = re.sub(r"""(["'])[^"']{2,}\1""", "a value", error.problem or "malformed")
            self._fail_at(line, f"not YAML: {problem}")
        except (YAMLError, ValueError) as error:
            self._fail_at(None, f"not YAML: {type(error).__name__}")
        return found

    def _node(self, found: Any, made: dict[int, Node | None]) -> Node:
        """Convert once per node: an alias is the same node, and may even lie within itself."""
        line = found.start_mark.line + 1 if self._has_lines else None
        if id(found) in made:
            known = made[id(found)]
            if known is None:
                self._fail_at(line, "not YAML that can be read: a value contains itself")
            return known
        made[id(found)] = None
        if found.id == "mapping":
            pairs = [(self._node(key, made), self._node(value, made)) for key, value in found.value]
            # A value is where its key is: its own place may be the next line, or, if it is empty, any.
            entries = tuple((key, evolve(value, line=key.line)) for key, value in pairs)
            node = Node("mapping", line, entries=entries)
        elif found.id == "sequence":
            node = Node("sequence", line, items=tuple(self._node(each, made) for each in found.value))
        else:
            pattern = rf"{self._token}n\d+e"
            text, count = re.subn(pattern, lambda match: self._values[match[0]], found.value)
            node = Node("scalar", line, str(found.tag).rpartition(":")[2], text, rendered=count > 0)
        made[id(found)] = node
        return node

    # -- refusing

    def _fail_at(self, line: int | None, message: str, *, hint: str | None = None, **facts: Any) -> NoReturn:
        where = f"{self._file}:{line}" if line else str(self._file)
        raise ConfigError(f"{where}: {message}", hint=hint, file=str(self._file), line=line, **facts)

    def fail(self, node: Node | None, key: str, problem: str, *, hint: str | None = None) -> NoReturn:
        """Refuse a key: `file:line: key problem`."""
        self._fail_at(node.line if node else None, f"{key} {problem}".strip(), hint=hint, key=key)

    def unexpected(self, node: Node | None, key: str, expected: str) -> NoReturn:
        """Refuse a value: what was found there, and what is expected."""
        self.fail(node, key or "the file", f"is {self._shown(node, key)}, expected {expected}")

    def _shown(self, node: Node | None, key: str) -> str:
        """What was found, in words: its text only if that cannot be, or hold, a secret."""
        if node is None or node.type == "null" or (node.type == "str" and not node.text.strip()):
            return "empty"
        if node.kind != "scalar":
            kind = "list" if node.kind == "sequence" else "mapping"
            return f"a {kind}" if node.items or node.entries else f"an empty {kind}"
        if node.rendered:
            return "a value from the environment"
        if key in self._hidden:
            return {"int": "a number", "float": "a number", "bool": "true or false"}.get(node.type, "text")
        return f"the number {node.text}" if node.type in {"int", "float"} else _printable(node.text)

    # -- nodes to values

    def mapping(
        self, node: Node | None, key: str, known: tuple[str, ...], expected: str = "a mapping"
    ) -> dict[str, Node]:
        """The entries of a mapping whose keys are all known.

        Raises:
            ConfigError: It is none, or a key is unknown (names the nearest known one) or given twice.
        """
        if node is None or node.kind != "mapping":
            self.unexpected(node, key, expected)
        entries: dict[str, Node] = {}
        for name_node, value in node.entries:
            name = name_node.text
            if name not in known:
                shown = "from the environment" if name_node.rendered else _printable(name)
                self.fail(
                    name_node, "", f"unknown key {shown}{key and f' in {key}'}", hint=self._hint(name, known)
                )
            if name in entries:
                first = f", first in line {entries[name].line}" if entries[name].line else ""
                self.fail(name_node, f"{key}.{name}".lstrip("."), f"is given twice{first}")
            entries[name] = value
        return entries

    def _hint(self, name: str, known: tuple[str, ...]) -> str:
        for home, keys in self._homes.items():
            if name in keys and tuple(keys) != known:
                return f"{name} belongs under {home}"
        return nearest(name, known)

    def text(self, entries: Mapping[str, Node], key: str, name: str, expected: str = "text") -> str | None:
        """A text that is not empty; None if the key is absent."""
        node = entries.get(name)
        if node is None:
            return None
        # A value from the environment is text, whatever it looks like.
        if node.type != "str" or not node.text.strip():
            self.unexpected(node, f"{key}.{name}", expected)
        return node.text

    def required(self, owner: Node, entries: Mapping[str, Node], key: str, name: str, expected: str) -> str:
        """A text that must be there."""
        text = self.text(entries, key, name, expected)
        if text is None:
            self.fail(owner, f"{key}.{name}", f"is missing, expected {expected}")
        return text

    def choice(self, entries: Mapping[str, Node], key: str, name: str, choices: tuple[str, ...]) -> str:
        """One of `choices`, of which the first is the default."""
        expected = f"one of {', '.join(choices)}"
        text = self.text(entries, key, name, expected)
        if text is not None and text not in choices:
            self.unexpected(entries[name], f"{key}.{name}", expected)
        return text or choices[0]

    def converted(
        self, entries: Mapping[str, Node], key: str, name: str, convert: Callable[[str], T], expected: str
    ) -> T | None:
        """A scalar converted by a function that raises ConfigError for what it cannot convert."""
        node = entries.get(name)
        if node is None:
            return None
        if node.kind != "scalar" or node.type == "null":
            self.unexpected(node, f"{key}.{name}", expected)
        try:
            return convert(node.text)
        except ConfigError:
            self.unexpected(node, f"{key}.{name}", expected)


def _printable(text: str) -> str:
    return "text" if _SUSPICIOUS.search(text) or len(text) > 60 else f"'{text}'"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or all of them if none is near."""
    words = list(known)
    close = difflib.get_close_matches(word.lower(), words, n=1)
    return f"did you mean {close[0]}?" if close else f"known are: {', '.join(words)}"


def parse_count(text: str) -> int:
    """A whole number above 0, for `YamlSource.converted`.

    Raises:
        ConfigError: It is none, or beyond all reason.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise ConfigError(f"{text!r} is not a whole number above 0")
    return int(text)
