from __future__ import annotations

import csv
import io

import duckdb
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables.csv_text import csv_line, csv_rows


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\tx", "\rx", "\nx", "\uff1d1", "'=1", "''@x", "+", "-a"]
)
def test_formulas_begin_with_an_apostrophe(cell: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_line(cell, "b").decode(), newline=""))
    assert row == [f"'{cell}", "b"]


@pytest.mark.parametrize("cell", [7, -7, "-7", "+1.5e-3", "-.5", "a=b", "'tis", "it's", "", " =1", "1-2"])
def test_others_stay(cell: int | str) -> None:
    (row,) = csv.reader(io.StringIO(csv_line(cell, "b").decode(), newline=""))
    assert row == [str(cell), "b"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=4))
def test_pandas_reads_what_was_written(cells: list[str]) -> None:
    lines = csv_line(*(f"c{i}" for i in range(len(cells)))) + csv_line(*cells)
    table = pd.read_csv(io.BytesIO(lines), dtype=str, keep_default_na=False, skip_blank_lines=False, engine="python")
    undone = table.replace("^'('*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20])", r"\1", regex=True)
    assert list(csv_rows(lines.decode()))[1] == cells
    numbers = [cell for cell in cells if cell.startswith(("+", "-"))]
    assert [a for a in undone.iloc[0] if a not in numbers] == [c for c in cells if c not in numbers]


def test_duckdb_sees_numbers(tmp_path: object) -> None:
    file = f"{tmp_path}/t.csv"
    with open(file, "wb") as out:
        out.write(csv_line("image_id", "name") + csv_line(-7, "=1") + csv_line(8, "a\rb"))
    assert duckdb.sql(f"SELECT * FROM '{file}'").fetchall() == [(-7, "'=1"), (8, "a\rb")]
