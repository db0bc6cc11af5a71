from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.evaluate.report.sections import MOST_CLASSES, MOST_PAIRS, Pair, confusion_view

# Objects: 10 cats, 20 dogs, no cow; the last row is detections of nothing.
MATRIX = [[6, 1, 0, 3], [4, 15, 1, 0], [0, 0, 0, 0], [2, 8, 0, 0]]
LABELS = ["cat", "dog", "cow", "background"]


def test_shares_are_of_the_row() -> None:
    view = confusion_view({"labels": LABELS, "matrix": MATRIX})
    assert view.labels == tuple(LABELS)
    assert [cell.share for cell in view.rows[1]] == [0.2, 0.75, 0.05, 0.0]
    assert [cell.share for cell in view.rows[2]] == [0.0] * 4
    assert [cell.share for cell in view.rows[3]] == [0.2, 0.8, 0.0, 0.0]
    assert [[cell.diagonal for cell in row] for row in view.rows] == np.eye(4, dtype=bool).tolist()
    assert not view.is_part


def test_pairs_leave_out_the_background_and_what_is_right() -> None:
    view = confusion_view({"labels": LABELS, "matrix": MATRIX})
    assert view.pairs == (Pair("dog", "cat", 4, 0.2), Pair("cat", "dog", 1, 0.1), Pair("dog", "cow", 1, 0.05))


def test_of_many_classes_the_most_confused_in_their_order() -> None:
    size = 50
    matrix = np.zeros((size + 1, size + 1), int)
    np.fill_diagonal(matrix, 100)
    matrix[:, -1] = 1000  # missed objects are no confusion
    wrong = list(range(49, 49 - MOST_CLASSES, -1))
    for number, (i, j) in enumerate(pairwise(wrong)):
        matrix[i, j] = number + 1
    view = confusion_view({"labels": [f"c{i}" for i in range(size)] + ["background"], "matrix": matrix.tolist()})
    assert view.labels == (*(f"c{i}" for i in sorted(wrong)), "background")
    assert view.num_classes == 50
    assert view.is_part
    assert len(view.pairs) == MOST_PAIRS
    assert view.pairs[0].number == MOST_CLASSES - 1
    assert view.rows[0][0].share == 100 / matrix[sorted(wrong)[0]].sum()  # of the whole row, not of what is shown


@pytest.mark.parametrize(("share", "text"), [(0.004, ""), (0.006, "1"), (0.6, "60"), (1.0, "100")])
def test_text_of_a_cell(share: float, text: str) -> None:
    matrix = [[round(1000 * share), 1000 - round(1000 * share)], [0, 0]]
    assert confusion_view({"labels": ["cat", "background"], "matrix": matrix}).rows[0][0].text == text


def test_one_class() -> None:
    assert confusion_view({"labels": ["cat", "background"], "matrix": [[1, 2], [3, 0]]}).pairs == ()


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="4 labels"):
        confusion_view({"labels": LABELS, "matrix": [[1]]})
