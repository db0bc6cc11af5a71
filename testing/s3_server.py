"""A real S3 server process (moto) on this machine, for tests: ``with s3_server() as s3: s3.put(...)``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

STARTUP_TIMEOUT_S = 60.0
# Dummy keys: moto takes any, but clients without keys would go looking for an instance role.
CLIENT_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "dummy-secret-for-tests",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
_FOREIGN_VARIABLES = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_NO_SIGN_REQUEST",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
)


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: URL of the server, ``http://127.0.0.1:port``.
    """

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client process needs; `s3_environment_variables` is more thorough in this one."""
        return {**CLIENT_ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def reset(self) -> None:
        """Forget all buckets."""
        self._send("POST", "/moto-api/reset", b"")

    def create_bucket(self, bucket: str) -> None:
        self._send("PUT", f"/{bucket}", b"")

    def put(self, bucket: str, key: str, body: bytes) -> str:
        """Store an object; its URI."""
        self._send("PUT", f"/{bucket}/{urllib.parse.quote(key)}", body)
        return f"s3://{bucket}/{key}"

    def deny(self, bucket: str, prefix: str) -> None:
        """Answer 403 to every GET below the prefix."""
        resource = f"arn:aws:s3:::{bucket}/{prefix}*"
        statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": resource}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._send("PUT", f"/{bucket}?policy", policy.encode())

    @contextmanager
    def recorded(self) -> Iterator[list[tuple[str, str]]]:
        """Requests in this block, whoever makes them: method and path, with the query; they are there at its end."""
        found: list[tuple[str, str]] = []
        self._send("POST", "/moto-api/recorder/reset-recording", b"")
        self._send("POST", "/moto-api/recorder/start-recording", b"")
        try:
            yield found
        finally:
            self._send("POST", "/moto-api/recorder/stop-recording", b"")
            lines = self._send("GET", "/moto-api/recorder/download-recording", None).splitlines()
            requests = [json.loads(line) for line in lines]
            found += [(each["method"], each["url"].removeprefix(self.endpoint)) for each in requests]

    def _send(self, method: str, path: str, body: bytes | None) -> bytes:
        # Without a type of its own urllib calls the body a form, and moto takes it apart.
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.endpoint + path, data=body, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return answer.read()


@contextmanager
def s3_environment_variables(endpoint: str) -> Iterator[None]:
    """Dummy keys and the endpoint in ``os.environ``; nothing of the developer's own AWS set-up."""
    with mock.patch.dict(os.environ, {**CLIENT_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}):
        for name in _FOREIGN_VARIABLES:
            os.environ.pop(name, None)
        yield


@contextmanager
def s3_process() -> Iterator[S3Server]:
    """Start moto as a process of its own on a free port; end it afterwards. ``os.environ`` knows nothing of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = S3Server(f"http://127.0.0.1:{port}")
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        environment = {**os.environ, "MOTO_RECORDER_FILEPATH": os.path.join(folder, "requests")}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            _wait_until_it_answers(process, server.endpoint)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=20)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server of one's own that ``os.environ`` knows."""
    with s3_process() as server, s3_environment_variables(server.endpoint):
        yield server


def _wait_until_it_answers(process: subprocess.Popen[bytes], endpoint: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up_at = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise RuntimeError(f"moto ended with status {process.returncode}; is moto[server] installed?")
        try:
            opener.open(f"{endpoint}/moto-api/", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"moto did not answer within {STARTUP_TIMEOUT_S:.0f} s")
