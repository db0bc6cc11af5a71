"""The lists of a JSON file, an element at a time: a file of any size in the memory of its longest element.

An element leaves its text, which a streaming parser's events would not: what need not be looked into now is passed on
as it stands. Where an object's braces say where it ends, pydantic's parser takes it, in a third of the time of the
standard library, which takes all else: what other objects, braces in strings or damage make of it.
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
_MOST_NESTED = 8  # objects in an element whose end is looked for; an RLE is one

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Element(NamedTuple):
    """An element of a list.

    Attributes:
        key: of the list; ``None`` where the file is a list.
        position: in the list, from 0.
        value: the element as Python objects.
        text: as it stands in the file.
    """

    key: str | None
    position: int
    value: Any
    text: str


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
            key, _ = text.value()
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
            value, source = text.value()
            yield Element(key, position, value, source)
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

    def value(self) -> tuple[Any, str]:
        """Go past the next value: it, and its text."""
        if self.peek() == "{" and (end := self._object_end()):
            source = self._window[self._at : end]
            try:
                found = from_json(source)
            except ValueError:  # braces in a string, or damage
                pass
            else:
                self._at = end
                return found, source
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
        source = self._window[self._at : end]
        self._at = end
        return value, source

    def _object_end(self) -> int:
        """Where the object here ends if no string has braces; 0 if not in the window. What is whole JSON ends there."""
        end = opened = self._at
        depth = 0
        for _ in range(_MOST_NESTED):
            end = self._window.find("}", end) + 1
            if not end:
                return 0
            depth += self._window.count("{", opened, end) - 1
            if not depth:
                return end
            opened = end
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
