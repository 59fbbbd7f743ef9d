"""Split text into tokens, move over them, and point at the one that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from graphopt.errors import ModelError

T = TypeVar("T")

_TOKEN = re.compile(
    r"""(?:\s+|\#[^\n]*)*
    (?: (?P<hex>x"(?:[0-9a-fA-F]{2})*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<string>"[^"\\]*(?:\\.[^"\\]*)*")
      | (?P<float>-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|(?:inf|infinity|nan)\b))
      | (?P<int>-?\d+)
      | (?P<mark>=>|[\[\](){}<>,:=.@?])
      | (?P<end>\Z)
      | (?P<stray>.))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_CONTEXT = 120
_LONGEST_INT = 20
_EXPECTED = {"word": "a name", "int": "a whole number", "string": "a quoted string"}


@dataclass(slots=True)
class Name:
    """A name and the number of its token, for messages."""

    text: str
    at: int


class Source:
    """The tokens of a text, and messages that point into it."""

    def __init__(self, text: str):
        self.text = text
        self.kinds: list[str] = []
        self.words: list[str] = []
        self.starts: list[int] = []
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or ""
            word = match[kind]
            self.kinds.append(word if kind == "mark" else kind)
            self.words.append(word)
            self.starts.append(match.start(kind))
            if kind == "stray":
                unclosed = word == '"'
                raise self.error("this string is not closed" if unclosed else f"unexpected {word!r}", -1)

    def error(self, message: str, at: int, hint: str | None = None) -> ModelError:
        """Return a ModelError with the line of token number ``at`` and a caret under it."""
        start = self.starts[at]
        line_start = self.text.rfind("\n", 0, start) + 1
        line = self.text[line_start:].split("\n", 1)[0]
        column = start - line_start
        shift = max(0, column - _CONTEXT // 2)
        context = f"{line[shift : shift + _CONTEXT]}\n{' ' * (column - shift)}^"
        where = f"line {self.text.count(chr(10), 0, start) + 1}, column {column + 1}"
        return ModelError(message, where=where, context=context, hint=hint)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the entry of ``known`` most like ``word``, if one is like it."""
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None


class Cursor:
    """A place among the tokens of ``source``, and the parts that all of the grammar is made of."""

    def __init__(self, source: Source):
        self.source = source
        self.kinds = source.kinds
        self.words = source.words
        self.i = 0

    def error(self, message: str, at: int | None = None, hint: str | None = None) -> ModelError:
        return self.source.error(message, self.i if at is None else at, hint)

    def found(self) -> str:
        """What stands at the cursor, for messages."""
        return "the end of the text" if self.kinds[self.i] == "end" else repr(self.words[self.i])

    def accept(self, kind: str) -> bool:
        if self.kinds[self.i] != kind:
            return False
        self.i += 1
        return True

    def expect(self, kind: str) -> str:
        if self.kinds[self.i] != kind:
            raise self.error(f"expected {_EXPECTED.get(kind, repr(kind))}, found {self.found()}")
        self.i += 1
        return self.words[self.i - 1]

    def keyword(self, known: tuple[str, ...]) -> str:
        word = self.expect("word")
        if word not in known:
            raise self.error(
                f"unknown field {word!r}", self.i - 1, nearest(word, known) or f"known are {', '.join(known)}"
            )
        self.expect(":")
        return word

    def several(self, parse: Callable[[], T], close: str) -> list[T]:
        """Read elements separated by commas up to and with ``close``; there may be none."""
        if self.accept(close):
            return []
        items = [parse()]
        while self.accept(","):
            items.append(parse())
        self.expect(close)
        return items

    def integer(self) -> int:
        word = self.expect("int")
        if len(word) > _LONGEST_INT or not -(1 << 63) <= int(word) < 1 << 63:
            raise self.error("this number does not fit 64 bits", self.i - 1)
        return int(word)

    def data(self) -> bytes:
        if self.kinds[self.i] == "hex":
            self.i += 1
            return bytes.fromhex(self.words[self.i - 1][2:-1])
        word = self.expect("string")[1:-1]
        return (_ESCAPE.sub(r"\1", word) if "\\" in word else word).encode("utf-8", "surrogatepass")

    def string(self) -> str:
        try:
            return self.data().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.error("these bytes are no UTF-8 text", self.i - 1) from error

    def name(self) -> Name:
        self.i += 1
        if self.kinds[self.i - 1] == "word":
            return Name(self.words[self.i - 1], self.i - 1)
        self.i -= 1
        if self.kinds[self.i] not in ("string", "hex"):
            self.expect("word")
        return Name(self.string(), self.i - 1)

    def plain(self) -> Any:
        """A number, string, ``?`` or list of these, as device configurations are written."""
        if self.accept("["):
            return self.several(self.plain, "]")
        if self.accept("?"):
            return None
        return self.integer() if self.kinds[self.i] == "int" else self.string()

    def pairs(self, value: Callable[[], T]) -> dict[str, T]:
        def pair() -> tuple[str, T]:
            key = self.string()
            self.expect(":")
            return key, value()

        self.expect("[")
        return dict(self.several(pair, "]"))

    def fields(self, known: dict[str, Callable[[], Any]], close: str) -> dict[str, Any]:
        def one() -> tuple[str, Any]:
            key = self.keyword(tuple(known))
            return key, known[key]()

        return dict(self.several(one, close))

    def strings(self) -> dict[str, str]:
        return self.pairs(self.string)
