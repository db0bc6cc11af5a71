"""The lists of a JSON file, an element at a time: a file of any size in the memory of its longest element.

Objects are taken several at a time, as far as braces say that they are whole, by pydantic's parser: in a quarter of the
time of the standard library. That takes all else: braces in strings, other values, and damage, which it can name.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json

from pipeline.coco.errors import InputError
from pipeline.storage.errors import StorageError
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri

CHUNK_BYTES = 4 << 20
LONGEST_ELEMENT = 64 << 20  # characters
_BATCH = 16 << 10  # characters that are parsed at a time, or more where elements are longer
_LONGEST_BATCH = 1 << 20
_MOST_NESTED = 8  # objects in an element that ends behind what is parsed; an RLE is one

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Element(NamedTuple):
    """An element of a list.

    Attributes:
        key: of the list; ``None`` where the file is a list.
        position: in the list, from 0.
        value: the element as Python objects.
    """

    key: str | None
    position: int
    value: Any


class JsonLists:
    """The elements of all lists that a JSON file holds as the values of one object, or of the one list that it is.

    Args:
        uri: local, ``s3://`` or any fsspec scheme; decompressed if its suffix says so.

    Attributes:
        keys: of the lists met so far, empty ones too; ``None`` for the file itself.
    """

    def __init__(self, uri: Uri) -> None:
        self.keys: list[str | None] = []
        self._uri = uri

    def __iter__(self) -> Iterator[Element]:
        """In the order of the file, once.

        Raises:
            InputError: not JSON, or cut off; a key that comes twice; an element that is too long.
            StorageError: the file cannot be opened.
        """
        with open_stream(self._uri) as stream:
            text = _Text(stream, self._uri)
            if text.peek() == "[":
                yield from self._elements(text, None)
            else:
                yield from self._object(text)
            if text.peek():
                raise text.error("there is something after its end")

    def _object(self, text: _Text) -> Iterator[Element]:
        text.take("{")
        if text.peek() == "}":
            text.take("}")
            return
        while True:
            key = text.value()
            text.take(":")
            if not isinstance(key, str) or key in self.keys:
                raise text.error(f"the key {key!r} is no string or comes twice")
            if text.peek() == "[":
                yield from self._elements(text, key)
            else:
                text.value()
            if text.take(",}") == "}":
                return

    def _elements(self, text: _Text, key: str | None) -> Iterator[Element]:
        self.keys.append(key)
        text.take("[")
        if text.peek() == "]":
            text.take("]")
            return
        position = 0
        while True:
            for value in text.values():
                yield Element(key, position, value)
                position += 1
            if text.take(",]") == "]":
                return


class _Text:
    """A window on the text of a stream, which moves forward."""

    def __init__(self, stream: io.RawIOBase, uri: Uri) -> None:
        self._stream = stream
        self._uri = uri
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._window = ""
        self._at = 0
        self._before = 0  # characters that the window has left behind
        self._batch = _BATCH  # characters that are now parsed at a time

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        found = self._window[self._at : self._at + 1]
        if found and not found.isspace():
            return found
        while True:
            match = _SPACE.match(self._window, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._window) or not self._read_on():
                return self._window[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Go past the next character, which must be one of these."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.error(f"expected {' or '.join(wanted)}, not {found or 'the end of the file'}")
        self._at += 1
        return found

    def values(self) -> list[Any]:
        """Go past the next values of a list, at least one: several where they are objects and in the window."""
        while self.peek() == "{" and self._batch:
            end = self._objects_end()
            try:
                found: list[Any] = from_json(f"[{self._window[self._at : end]}]") if end else []
            except ValueError:
                found = []
            if found:
                self._at = end
                self._batch = max(self._batch, min(2 * self._batch, _BATCH))
                return found
            self._batch //= 2  # there is the end of the list, a brace in a string, or damage
        start = self._before + self._at
        value = self.value()
        self._batch = max(self._batch, min(2 * (self._before + self._at - start), _LONGEST_BATCH))
        return [value]

    def value(self) -> Any:
        """Go past the next value."""
        self.peek()
        while True:
            reason, value, end = "", None, len(self._window)
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or str(error)
            # Of a number at the end of the window, up to "e+" may have been taken for what follows it.
            too_long = len(self._window) - self._at > LONGEST_ELEMENT
            if end + 2 < len(self._window) or too_long or not self._read_on():
                break
        if reason:
            raise self.error(f"the value that begins here is damaged, cut off or too long ({reason})")
        self._at = end
        return value

    def _objects_end(self) -> int:
        """Where the last object ends that begins and ends in the next characters, if no string has braces; or 0."""
        stop = self._at + self._batch
        for _ in range(_MOST_NESTED):
            end = self._window.rfind("}", self._at, stop) + 1
            if not end or self._window.count("{", self._at, end) == self._window.count("}", self._at, end):
                return end
            stop = end - 1
        return 0

    def error(self, reason: str) -> InputError:
        """Saying where the window stands."""
        return InputError(f"{self._uri} is not JSON at character {self._before + self._at:,}: {reason}")

    def _read_on(self) -> bool:
        """More of the file behind what is left of the window; false, and nothing changed, at its end."""
        try:
            content = self._stream.read(CHUNK_BYTES)
            more = self._decoder.decode(content, final=not content)
        except StorageError as error:
            raise InputError(f"{self._uri} cannot be read to its end ({error})") from None
        except UnicodeDecodeError:
            raise self.error("after this the text is not UTF-8") from None
        if not content:
            return False
        self._window = self._window[self._at :] + more
        self._before += self._at
        self._at = 0
        return True
