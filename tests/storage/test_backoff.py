from __future__ import annotations

import pytest

from pipeline.storage.backoff import Backoff


@pytest.mark.parametrize(("base_s", "cap_s"), [(-1.0, 10.0), (2.0, 1.0)])
def test_waits_that_make_no_sense(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Backoff(base_s, cap_s)
