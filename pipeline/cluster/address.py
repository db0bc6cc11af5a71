"""Whether a Ray cluster answers at an address, asked before Ray is: Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import get_ray_address_from_environment
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]  # made at import
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from pipeline.errors import UserError
from pipeline.storage.uris import UriText, shows_password

ANSWER_S = 5.0
SETTING, VARIABLE = "resources.ray_address", "RAY_ADDRESS"
_CLIENT_PORT = 10001
_TOKEN = "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"


class ClusterError(UserError):
    """The cluster cannot run this job; the message says what is missing."""


class Address:
    """Of a Ray cluster, and where it was given.

    Args:
        text: ``host:port``, ``ray://host:port``, ``auto`` or ``local``.
        origin: the setting or variable that it comes from.
    """

    def __init__(self, text: UriText, origin: str) -> None:
        self.text = text
        self._origin = origin

    @classmethod
    def find(cls, setting: UriText | None) -> Address | None:
        """That of the setting, else of ``RAY_ADDRESS``; ``None``: Ray in this process.

        Raises:
            ClusterError: the variable holds a password, which nobody asked for and which would be shown.
        """
        if setting is not None:
            return cls(setting, SETTING)
        variable = UriText(os.environ.get(VARIABLE, ""))
        if shows_password(variable):
            raise ClusterError(f"{VARIABLE} holds a password: give host:6379, ray://host:10001 or auto")
        return cls(variable, VARIABLE) if variable.secret_text else None

    def __str__(self) -> str:
        return f"{self.text} ({self._origin})"

    def refused(self, reason: str) -> ClusterError:
        """An error that names the address and where it was given."""
        return ClusterError(f"no Ray cluster can be had at {self}: {self.text.hide_in(reason)}")

    def check(self) -> None:
        """Return once a cluster of this version answers there, and takes the token; a few seconds at most.

        Raises:
            ClusterError: none does; the message says which of it.
        """
        if self.text.secret_text == "local":
            return
        host, port, is_client = self._where()
        try:
            socket.create_connection((host, port), ANSWER_S).close()
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
            raise self.refused(f"{reason} within {ANSWER_S:.0f} s; is the cluster up, and the port right?") from None
        try:
            with init_grpc_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
                answer = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
        except AuthenticationError as error:
            raise self.refused(f"{str(error).partition('. ')[0]}; set {_TOKEN}") from None
        except grpc.RpcError as error:
            self._judge(error.code(), is_client)
            return
        if is_client:
            raise self.refused("the head itself is at this port: leave ray:// out, or give the port of its clients")
        if answer.ray_version != ray.__version__:
            raise self.refused(
                f"it runs Ray {answer.ray_version}, and here is {ray.__version__}: both must be the same"
            )

    @property
    def is_of_clients(self) -> bool:
        """Whether it is ``ray://``: the driver proper then runs on the head.

        Raises:
            ClusterError: it is no address, or ``auto`` and there is none.
        """
        return self._where()[2]

    def _where(self) -> tuple[str, int, bool]:
        """Host, port, and whether that is the port of clients."""
        text = self.text.secret_text
        if text == "auto":
            try:
                text = get_ray_address_from_environment(text, None)
            except ConnectionError:
                raise self.refused("no Ray runs on this machine") from None
        scheme, separator, rest = text.rpartition("://")
        is_client = scheme == "ray"
        if separator and not is_client:
            raise self.refused("give host:6379 or ray://host:10001; http is for ray job submit")
        host, colon, port = rest.partition("/")[0].partition("?")[0].rpartition(":")
        if not colon and is_client:
            host, port = port, str(_CLIENT_PORT)
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise self.refused("give host:6379 or ray://host:10001, with the port")
        return host.strip("[]"), int(port), is_client

    def _judge(self, code: grpc.StatusCode, is_client: bool) -> None:
        """What an answer other than the head's says; that of the port of clients is that it knows no such question."""
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            given = "this token" if is_token_auth_enabled() else "a connection without a token"
            raise self.refused(f"it refuses {given}; set {_TOKEN}")
        if code is not grpc.StatusCode.UNIMPLEMENTED:
            raise self.refused("something answers there, but it is no Ray; is the port right?")
        if not is_client:
            raise self.refused("no head answers there; the port of its clients (10001) wants ray:// before the host")
