from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch import http_get
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.http_get import HttpGet
from pipeline.storage.fetch.rules import FetchError, FetchSettings
from pipeline.storage.uris import Uri, UriText
from tests.storage.flaky_server import BODY, QUICK, SECRET, SHORT_TIMEOUT_S, FlakyServer, error_of, fetcher


class TestHttp:
    def test_query_is_sent_and_not_shown(self, flaky: FlakyServer) -> None:
        assert fetcher(flaky).fetch(UriText(f"{flaky.url}/ok?X-Amz-Signature=a%2Fb&c=d e#fragment")).data == BODY
        assert flaky.requests == {"GET /ok?X-Amz-Signature=a%2Fb&c=d%20e": 1}
        error = error_of(fetcher(flaky), f"{flaky.url}/404?sig={SECRET}")
        assert error.uri == f"{flaky.url}/404"

    def test_non_ascii_path(self, flaky: FlakyServer) -> None:
        error = error_of(fetcher(flaky), f"{flaky.url}/ünï/404")
        assert error.code == "not_found"
        assert flaky.requests == {"GET /%C3%BCn%C3%AF/404": 1}

    def test_endless_body_of_unknown_size(self, flaky: FlakyServer) -> None:
        assert error_of(fetcher(flaky, max_object_bytes=1 << 20), f"{flaky.url}/hugechunked").code == "too_large"
        assert flaky.poured_bytes < 64 << 20

    def test_redirect_inside_the_roots_is_followed(self, flaky: FlakyServer) -> None:
        assert fetcher(flaky).fetch(UriText(f"{flaky.url}/redirect?to=/ok")).data == BODY
        assert flaky.requests.total() == 2

    @pytest.mark.parametrize(
        "target",
        [
            "http://169.254.169.254/latest/meta-data/",
            "http://[::ffff:127.0.0.1]/ok",
            "//10.0.0.1/ok",
            "http://localhost:{port}/ok",
            "http://example.com/",
            "file:///etc/passwd",
            "s3://bucket/ok",
            "http://user:" + SECRET + "@127.0.0.1/ok",
        ],
    )
    def test_redirect_elsewhere_is_not(self, flaky: FlakyServer, target: str) -> None:
        target = target.format(port=flaky.server_port)
        error = error_of(fetcher(flaky), f"{flaky.url}/redirect?to={target}")
        assert error.code == "uri_not_allowed"
        assert flaky.requests.total() == 1

    def test_redirect_loop_ends(self, flaky: FlakyServer) -> None:
        flaky.RequestHandlerClass.do_loop = lambda self: self.answer(302, b"", Location="/loop")  # type: ignore[attr-defined]
        assert error_of(fetcher(flaky), f"{flaky.url}/loop").code == "rejected"
        assert flaky.requests.total() == 6

    def test_from_https_to_http_is_not_followed(self) -> None:
        get = HttpGet(Uri("https://host/a"), QUICK, AccessPolicy())
        with pytest.raises(FetchError) as caught:
            get._next_hop(Uri("https://host/a"), "http://host/a")
        assert caught.value.code == "uri_not_allowed"
        assert get._next_hop(Uri("http://host/a"), "https://host/b") == Uri("https://host/b")

    def test_internal_hosts_are_refused(self, flaky: FlakyServer) -> None:
        assert error_of(fetcher(), f"{flaky.url}/ok").code == "uri_not_allowed"

    def test_name_that_resolves_to_an_internal_address(
        self, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def resolve(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", flaky.server_port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        uri = f"http://looks-public.example:{flaky.server_port}/ok"
        assert error_of(fetcher(), uri).code == "uri_not_allowed"
        assert not flaky.requests
        assert Fetcher(QUICK, AccessPolicy((Uri(uri),))).fetch(UriText(uri)).data == BODY

    def test_next_address_is_tried(self, flaky: FlakyServer) -> None:
        get = HttpGet(Uri(flaky.url), QUICK, AccessPolicy())
        nobody = ("127.0.0.1", 1)
        get._first_that_answers([nobody, flaky.server_address]).close()
        with pytest.raises(ConnectionRefusedError):
            get._first_that_answers([nobody, nobody])

    def test_plain_server_behind_https(self, flaky: FlakyServer) -> None:
        uri = f"https://127.0.0.1:{flaky.server_port}/ok"
        started = time.monotonic()
        impatient = FetchSettings(attempt_timeout_s=SHORT_TIMEOUT_S, deadline_s=2, max_attempts=2)
        error = error_of(Fetcher(impatient, AccessPolicy((Uri(uri),))), uri)
        assert error.code in {"unavailable", "timeout"}
        assert time.monotonic() - started < 2.5


class TestHttps:
    @pytest.fixture
    def certificate(self, flaky: FlakyServer, tmp_path: Path) -> Path:
        """Make the flaky server speak TLS with a self-signed certificate for 127.0.0.1; the PEM file."""
        x509 = pytest.importorskip("cryptography.x509")
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.now(timezone.utc)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        pem = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
        path = tmp_path / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + pem.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        flaky.socket = context.wrap_socket(flaky.socket, server_side=True)
        flaky.url = flaky.url.replace("http:", "https:")
        return path

    def test_trusted(self, flaky: FlakyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(http_get, "_tls_context", lambda: trusting)
        assert fetcher(flaky).fetch(UriText(f"{flaky.url}/ok?a=b")).data == BODY
        assert flaky.requests == {"GET /ok?a=b": 1}
        impatient = fetcher(flaky, attempt_timeout_s=SHORT_TIMEOUT_S, max_attempts=1)
        assert error_of(impatient, f"{flaky.url}/drip").code == "timeout"
        assert error_of(fetcher(flaky), f"{flaky.url}/redirect?to=http://127.0.0.1/").code == "uri_not_allowed"

    def test_not_trusted(self, flaky: FlakyServer, certificate: Path) -> None:
        error = error_of(fetcher(flaky), f"{flaky.url}/ok")
        assert (error.code, error.retryable) == ("bad_certificate", False)
        assert not flaky.requests
