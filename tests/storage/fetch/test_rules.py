from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipeline.storage.fetch.rules import FetchError, FetchSettings
from pipeline.storage.uris import UriText
from tests.storage.flaky_server import SECRET


def test_error_pickles() -> None:
    error = FetchError("timeout", UriText(f"https://host/a?{SECRET}"), "no answer")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.code, again.uri, again.retryable, str(again)) == (
        "timeout",
        "https://host/a",
        True,
        "timeout: https://host/a: no answer",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"attempt_timeout_s": 0},
        {"attempt_timeout_s": 10, "deadline_s": 9},
        {"max_attempts": 0},
        {"fetch_concurrency": 0},
        {"max_object_bytes": 0},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|should be"):
        FetchSettings(**settings)
