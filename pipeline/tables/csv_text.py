"""Lines of CSV files as RFC 4180 has them, with no cell that a spreadsheet would take for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

# OWASP, "CSV injection": what begins like this is run when the file is opened in a spreadsheet.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"(?a)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def csv_line(*cells: int | str) -> bytes:
    """One line in UTF-8.

    A text that begins with ``= + - @``, a tab or a line's end, or with apostrophes and one of these, gets an apostrophe
    before it; who reads the file takes one away from such cells, and has what was written. Numbers stay numbers.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return line.getvalue().encode()


def csv_rows(text: str) -> Iterator[list[str]]:
    """The cells of lines that `csv_line` made, as they were before."""
    for row in csv.reader(io.StringIO(text, newline="")):
        yield [cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row]


def _harmless(cell: int | str) -> int | str:
    if isinstance(cell, int) or not _FORMULA.match(cell) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"
