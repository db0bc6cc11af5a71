from __future__ import annotations

from xml.etree import ElementTree
from xml.sax.saxutils import escape

from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.markup import css_colour, printable
from tests.export.export_cases import unhurried


@unhurried
@given(st.text())
def test_any_text_becomes_xml(text: str) -> None:
    ElementTree.fromstring(f"<a>{escape(printable(text))}</a>")


def test_what_is_kept() -> None:
    assert printable("tab\tä 🎈\x00\x1b\ufffe") == "tab\tä 🎈\ufffd\ufffd\ufffd"


def test_colour() -> None:
    assert css_colour(1) == css_colour(1) != css_colour(2)
    assert len(css_colour(1)) == 7
