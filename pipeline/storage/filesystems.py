"""URI -> pyarrow file system, for manifests and outputs; bucket -> obstore client, for many small objects, and a client
of AWS's own for what obstore cannot say.

Both are opened where they are used: nothing that is pickled for another process holds a key. Credentials
come from the usual places only (environment, profile, web identity, container, instance).
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline.storage.uris import Uri, UriError, UriText, hide_secrets

_OPENING = threading.Lock()
_STATUS = re.compile(r"status code: (\d{3})")
_TRUE = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True)
class S3Environment:
    """How to reach S3, as the environment says; no secrets.

    Attributes:
        endpoint: URL of an S3-compatible service; ``None`` for AWS itself.
        region: ``None`` where neither the environment nor AWS tells.
        anonymous: send unsigned requests (public buckets).
    """

    endpoint: str | None
    region: str | None
    anonymous: bool


def s3_environment(bucket: str) -> S3Environment:
    """Read the variables that the AWS tools read, for one bucket.

    ``AWS_ENDPOINT_URL_S3`` before ``AWS_ENDPOINT_URL``; ``AWS_REGION`` before ``AWS_DEFAULT_REGION``, and
    where neither is set and no endpoint either, AWS is asked once per process and bucket;
    ``AWS_NO_SIGN_REQUEST``.

    Raises:
        UriError: the endpoint is not an http(s) URL.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UriError(f"AWS_ENDPOINT_URL must start with http:// or https://, not {str(UriText(endpoint))!r}")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    if region is None:
        region = "us-east-1" if endpoint else _region_of(bucket)
    anonymous = os.environ.get("AWS_NO_SIGN_REQUEST", "").strip().lower() in _TRUE
    return S3Environment(endpoint, region, anonymous)


def open_filesystem(uri: Uri) -> tuple[pafs.FileSystem, str]:
    """The file system behind a URI, and the path within it.

    Local paths come back absolute; S3 paths as ``bucket/key``; a trailing slash is dropped. Nothing is opened
    or created: a missing bucket or directory shows at first use.

    Raises:
        UriError: its scheme is unknown, or needs a package that is not installed (``unsupported_scheme``, naming the
            package), or its file system cannot be set up.
    """
    if uri.local_path is not None:
        return pafs.LocalFileSystem(), uri.local_path
    if uri.scheme == "s3":
        return _open_s3(uri.host), f"{uri.host}/{uri.path}".rstrip("/")
    return _open_fsspec(uri)


def open_s3_store(bucket: str, timeout_s: float) -> S3Store:
    """The obstore client of a bucket, one per process, environment and time limit.

    It does not retry: whoever calls it counts the attempts.

    Args:
        timeout_s: for one request, from connecting to the last byte of the body.
    """
    with _OPENING:  # or each thread of a pool would open, and find credentials for, a client of its own
        return _s3_store(bucket, s3_environment(bucket), timeout_s, _has_profile())


@lru_cache(maxsize=256)
def _s3_store(bucket: str, environment: S3Environment, timeout_s: float, has_profile: bool) -> S3Store:
    options: dict[str, Any] = {}
    if environment.endpoint:
        options["endpoint"] = environment.endpoint
    if environment.region:
        options["region"] = environment.region
    if environment.anonymous:
        options["skip_signature"] = True
    elif has_profile:
        options["credential_provider"] = _profile_credentials
    return S3Store(
        bucket,
        client_options={
            "timeout": timedelta(seconds=timeout_s),
            "connect_timeout": timedelta(seconds=min(5.0, timeout_s)),
            "allow_http": (environment.endpoint or "").startswith("http://"),
        },
        retry_config={"max_retries": 0},
        **options,
    )


def open_aws_client(bucket: str, timeout_s: float, max_attempts: int) -> Any:
    """botocore's client, which takes every key literally, ``a//b`` and ``./a`` too; for threads to share.

    Args:
        timeout_s: without a byte.
        max_attempts: requests if the service stumbles.
    """
    with _OPENING:
        return _aws_client(s3_environment(bucket), timeout_s, max_attempts)


@lru_cache(maxsize=64)
def _aws_client(environment: S3Environment, timeout_s: float, max_attempts: int) -> Any:
    import botocore.session  # type: ignore[import-untyped]  # slow to import and rarely needed; comes with s3fs
    from botocore import UNSIGNED
    from botocore.config import Config  # type: ignore[import-untyped]

    config = Config(
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        connect_timeout=min(5.0, timeout_s),
        read_timeout=timeout_s,
        max_pool_connections=64,
        **({"signature_version": UNSIGNED} if environment.anonymous else {}),
    )
    session = botocore.session.Session()
    # Most of what a listing of many keys costs was botocore's own, which takes a time in any form.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return session.create_client("s3", region_name=environment.region, endpoint_url=environment.endpoint, config=config)


def _timestamp(value: Any) -> datetime:
    """What botocore makes of a time, sooner where it is written as S3 lists it: ``2026-01-31T02:00:00.000Z``."""
    with suppress(LookupError, TypeError, ValueError):
        if value[10] == "T" and value[-1] == "Z":
            return datetime.fromisoformat(f"{value[:-1]}+00:00")
    from botocore.utils import parse_timestamp  # type: ignore[import-untyped]

    found: datetime = parse_timestamp(value)
    return found


def _has_profile() -> bool:
    """Whether keys come from a profile: the one usual source that obstore does not read by itself."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return False
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return "AWS_PROFILE" in os.environ or os.path.isfile(os.path.expanduser(credentials))


def _profile_credentials() -> Any:
    import botocore.session

    credentials = botocore.session.Session().get_credentials()
    if credentials is None:
        raise RuntimeError("no AWS credentials")
    keys = credentials.get_frozen_credentials()
    return {
        "access_key_id": keys.access_key,
        "secret_access_key": keys.secret_key,
        "token": keys.token,
        "expires_at": datetime.now(timezone.utc) + timedelta(minutes=10),  # then botocore is asked again
    }


def fsspec_class(scheme: str) -> type[fsspec.AbstractFileSystem]:
    """The fsspec implementation of a scheme.

    Raises:
        UriError: ``unsupported_scheme``, saying what to install if fsspec knows.
    """
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UriError(f"{scheme}:// needs another package: {error}", "unsupported_scheme") from None
    except ValueError:
        raise UriError(f"{scheme}:// is not a known scheme", "unsupported_scheme") from None


def _open_s3(bucket: str) -> pafs.S3FileSystem:
    environment = s3_environment(bucket)
    # pyarrow's constructor, unlike FileSystem.from_uri, looks at no AWS_ENDPOINT_URL; and from_uri would take
    # "?" and "#" in keys for options. No keys are passed, so none are pickled.
    try:
        return pafs.S3FileSystem(
            endpoint_override=environment.endpoint,
            region=environment.region,
            anonymous=environment.anonymous,
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UriError(f"S3 cannot be set up for bucket {bucket!r}: {hide_secrets(str(error))}") from None


def open_fsspec(uri: Uri) -> tuple[Any, str]:
    """fsspec's object for a URI, and the path in it.

    Raises:
        UriError: as `fsspec_class`; or it cannot be set up.
    """
    kind = fsspec_class(uri.scheme)
    try:
        # Not url_to_fs, for which "::" in a key would be the end of one URL and the beginning of another.
        options = kind._get_kwargs_from_urls(uri.secret_text)
        return fsspec.filesystem(uri.scheme, **options), str(kind._strip_protocol(uri.secret_text))
    except Exception as error:  # constructors raise whatever their SDK does
        raise UriError(f"{str(uri)!r} cannot be opened: {type(error).__name__}") from None


def _open_fsspec(uri: Uri) -> tuple[pafs.FileSystem, str]:
    filesystem, path = open_fsspec(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@lru_cache(maxsize=256)
def _region_of(bucket: str) -> str | None:
    try:
        return pafs.resolve_s3_region(bucket)
    except (OSError, ValueError):
        return None


def s3_status(error: BaseError) -> int:
    """The HTTP status that a client of `open_s3_store` was answered with; 0 where there was no answer."""
    status = _STATUS.search(str(error))
    return int(status[1]) if status else 0
