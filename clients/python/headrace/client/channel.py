"""How a client is connected: options of the channel, and what they mean to gRPC."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict

import grpc

from headrace.client.messages import Headers
from headrace.client.options import expect

Secret = bytes | str | Path
"""PEM data as bytes, or the path of a file that holds it."""
# Of addresses that are not host:port: what gRPC's resolvers are called.
_SCHEMES = frozenset(("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds"))
# RFC 6750, b64token.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


@dataclass(frozen=True, slots=True)
class TLS:
    """An encrypted connection. `TLS()` checks the server against gRPC's own root certificates.

    `root_certificates` replaces those. `client_key` and `client_certificate` go together, for a
    server that asks its clients for a certificate (mTLS). `server_name` is the name expected in
    the server's certificate when it is not that of the address. Each of the first three is PEM
    data as bytes, or a path.
    """

    root_certificates: Secret | None = None
    client_key: Secret | None = field(default=None, repr=False)
    client_certificate: Secret | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.client_key is None) != (self.client_certificate is None):
            raise ValueError("client_key and client_certificate are given together or not at all")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files, if any. Raises OSError when one cannot be read."""
        return grpc.ssl_channel_credentials(
            _pem(self.root_certificates), _pem(self.client_key), _pem(self.client_certificate)
        )


def _pem(secret: Secret | None) -> bytes | None:
    if secret is None or isinstance(secret, bytes):
        return secret
    return Path(secret).read_bytes()


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Options of a connection. The defaults suit a server on the same machine.

    tls: encrypt; None sends plain text.
    max_message_bytes: the largest message in either direction; -1 for no limit.
    keepalive_seconds: ping an open call this often, so that a long stream with pauses outlives the
        idle limits of proxies, and a dead peer is noticed. None sends no pings. A server may
        refuse pings that come more often than it allows (gRPC servers: every 300 s).
    load_balancing: "pick_first" holds one connection; "round_robin" spreads calls over all the
        addresses that the name resolves to, as a headless Kubernetes service's name does, but for
        those that grpc.health.v1 says are not serving.
    authority: the `:authority` header, where a proxy routes by it; empty derives it from the
        address.
    compression: of what is sent. Tensors rarely repay it.
    arguments: further gRPC channel arguments by name; they win over those set here.
    token_in_plain_text: send a client's token even without TLS, where whoever is on the way can
        read it: to a server on the same machine, or where something else encrypts.
    """

    tls: TLS | None = None
    max_message_bytes: int = -1
    keepalive_seconds: float | None = None
    load_balancing: Literal["pick_first", "round_robin"] = "pick_first"
    authority: str = ""
    compression: grpc.Compression | None = None
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    token_in_plain_text: bool = False

    def __post_init__(self) -> None:
        if self.keepalive_seconds is not None and self.keepalive_seconds <= 0:
            raise ValueError(f"keepalive_seconds must be above 0, got {self.keepalive_seconds}")


def with_token(
    headers: Headers | None, token: str | None, options: ChannelOptions
) -> Headers | None:
    """`headers`, and `token` as a bearer token (RFC 6750).

    Raises ValueError where that, or an authorization that `headers` has, would go out in plain text
    unasked, or is no token.
    """
    expect("headers", headers, (Mapping, type(None)), "values by name")
    if token is None:
        if any(name.lower() == "authorization" for name in headers or {}):
            _expect_encryption("headers: authorization", options)
        return headers
    if not _TOKEN.fullmatch(token):  # and is not shown: it may be one but for a line break
        raise ValueError("token: expected letters, digits and -._~+/=, got something else")
    _expect_encryption("token", options)
    return {**(headers or {}), "authorization": f"Bearer {token}"}


def _expect_encryption(secret: str, options: ChannelOptions) -> None:
    if options.tls is None and not options.token_in_plain_text:
        raise ValueError(
            f"{secret}: expected channel=ChannelOptions(tls=...) with it, since others could read "
            "it on its way; ChannelOptions(token_in_plain_text=True) sends it all the same"
        )


class ChannelSettings(TypedDict):
    """The keywords that gRPC's sync and asyncio channels have in common."""

    options: list[tuple[str, str | int]]
    compression: grpc.Compression | None


def target(address: str, options: ChannelOptions) -> str:
    """`address` as gRPC takes it.

    Raises TypeError for what is no text, and ValueError for what gRPC would misread: it takes the
    address of a web page for the name of a host, and looks it up; where no port is given, the
    port of encrypted connections; and of one that is too large, the rest by 65536.
    """
    expect("address", address, str, "host:port as text")
    scheme, separator, rest = address.partition("://")
    if separator and scheme.lower() in ("http", "https", "grpc", "grpcs"):
        raise ValueError(
            f"address: expected host:port, such as 127.0.0.1:8001, got {address!r}: leave out "
            f"{scheme}:// (try {rest.rstrip('/')!r}); ChannelOptions(tls=TLS()) encrypts"
        )
    host, colon, port = address.rpartition(":")
    encrypted = bool(address) and options.tls is not None and not host
    known = address.partition(":")[0] in _SCHEMES
    if not known and not encrypted and not (colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            "address: expected host:port, such as 127.0.0.1:8001, with a port of at most 65535, "
            f"got {address!r}"
        )
    return address


def settings(options: ChannelOptions) -> ChannelSettings:
    """What to open a channel with, apart from address and credentials."""
    balancing: dict[str, object] = {"loadBalancingConfig": [{options.load_balancing: {}}]}
    if options.load_balancing == "round_robin":
        # A server that drains goes on refusing for a while: its calls go elsewhere as soon as it
        # says so. One that knows no grpc.health.v1 counts as healthy.
        balancing["healthCheckConfig"] = {"serviceName": ""}
    arguments: dict[str, str | int] = {
        "grpc.max_send_message_length": options.max_message_bytes,
        "grpc.max_receive_message_length": options.max_message_bytes,
        "grpc.service_config": json.dumps(balancing),
    }
    if options.keepalive_seconds is not None:
        arguments["grpc.keepalive_time_ms"] = max(1, round(options.keepalive_seconds * 1000))
        # Without this gRPC stops after two pings that no data follows: a paused stream's case.
        arguments["grpc.http2.max_pings_without_data"] = 0
    if options.authority:
        arguments["grpc.default_authority"] = options.authority
    if options.tls is not None and options.tls.server_name:
        arguments["grpc.ssl_target_name_override"] = options.tls.server_name
    arguments.update(options.arguments)
    return ChannelSettings(options=list(arguments.items()), compression=options.compression)


# Of sensor streams, where nothing else is asked: seconds until a silent peer is asked for a sign of
# life (servers may refuse less than 10), milliseconds that it has for it, those until a lost
# connection is tried again, which gRPC would do after 1 s and then ever more slowly, and, under a
# misleading name, those that an attempt to connect may take.
_STREAM_KEEPALIVE = 20.0
_STREAM_ARGUMENTS: dict[str, str | int] = {
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 5_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
}


def for_streams(options: ChannelOptions) -> ChannelOptions:
    """`options` for a connection that sensor streams have to themselves."""
    return replace(
        options,
        keepalive_seconds=options.keepalive_seconds or _STREAM_KEEPALIVE,
        arguments={**_STREAM_ARGUMENTS, **options.arguments},
    )
