from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.annotate.manifest.rules import ManifestError, check_uris_as_ids
from pipeline.storage.uris import Uri


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("https://host/a.jpg?X-Amz-Signature=secret", None),
        ("HTTP://host/a.jpg?secret", "/root"),
        ("https://user:secret@host/a.jpg", None),
        ("https://user:sec/secret@host/a.jpg", None),
        ("https://user:1#secret@host/a.jpg", None),
        ("https://secret@host/a.jpg", None),
        ("https://host/\n?secret", None),
        ("simplecache::https://host/a.jpg?secret", None),
        ("a.jpg?secret", "https://host/root"),
        ("ftp://user:secret@host/a.jpg", None),
        ("s3://KEY:secret@bucket/a.jpg", None),
        ("abfs://user:secret@account/a.jpg", None),
        ("abfs://box@account/a.jpg?sig=secret", None),
    ],
)
def test_uris_that_hold_secrets_are_no_ids(uri: str, root: str | None) -> None:
    with pytest.raises(ManifestError, match=r"row 2: .* give the manifest an id column") as raised:
        check_uris_as_ids(pa.array([None, "/a", uri]), root and Uri(root), lambda index: f"row {index}")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("s3://bucket/a?b@c.jpg", None),
        ("gs://bucket/a?b@c.jpg", "https://host/root"),
        ("abfs://box@account/a.jpg", None),
        ("/data/a?b@c.jpg", "https://host/root"),
        ("a?b@c.jpg", None),
        ("a?b@c.jpg", "s3://bucket"),
        ("../a?b.jpg", "s3://bucket"),
        ("https://host/@user/a%3Fb.jpg", None),
        ("https://host/a.jpg#1", None),
        ("@user/a.jpg", "https://host/root"),
        (None, "https://host/root"),
    ],
)
def test_other_uris_are(uri: str | None, root: str | None) -> None:
    check_uris_as_ids(pa.array([uri], pa.string()), root and Uri(root), str)
