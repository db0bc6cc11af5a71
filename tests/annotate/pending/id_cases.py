"""Ids to test with."""

from __future__ import annotations

from hypothesis import strategies as st

# Some ids that share most of their bytes, whatever the length.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.builds(
    lambda length, tail: "x" * length + tail, st.integers(0, 40), st.sampled_from(["a", "b", "\x00", "ä"])
)
