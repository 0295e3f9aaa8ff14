"""Derives the cluster's CURVE keys from the cookie, and admits only clients that hold them.

All nodes with one cookie have the same key pair, as server and as client. The pair only authenticates:
CurveZMQ draws fresh keys for each connection, so a cookie that leaks later does not decrypt recorded
traffic. Without a cookie there is no CURVE, and connections are plain text. While the cookie is changed, a
node has two; see `keys_of`.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import Final, NamedTuple, cast

import zmq
from zmq.auth import Authenticator
from zmq.utils import z85

from fleetlm.settings import Settings

SALT: Final = b"fleetlm/1/curve"
"""Contains a version, so that another way to derive keys never yields the same keys by accident."""
SCRYPT_N: Final = 2**14
"""Makes a derivation cost about 40 ms and 16 MiB: once at each start of a node, and for each guess of an
attacker."""
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SCRYPT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Memory limit given to OpenSSL; the derivation needs 16 MiB of it."""
ZAP_DOMAIN: Final = "fleetlm"
"""Named by the handler and by the socket; pyzmq's authenticator does not fall back to ``*``."""


class CurveKeys(NamedTuple):
    """A key pair. Both keys are in Z85, as ZeroMQ's options take them."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r}, secret=...)"


@functools.lru_cache(maxsize=4)
def keys_from_cookie(cookie: str) -> CurveKeys:
    """Derive the key pair that all nodes with this cookie share. Takes about 40 ms the first time."""
    secret = hashlib.scrypt(
        cookie.encode(),
        salt=SALT,
        n=SCRYPT_N,
        r=SCRYPT_R,
        p=SCRYPT_P,
        maxmem=SCRYPT_MAX_BYTES,
        dklen=32,
    )
    encoded = z85.encode(secret)
    return CurveKeys(zmq.curve_public(encoded), encoded)


def keys_of(settings: Settings) -> tuple[CurveKeys, ...]:
    """Return the key pairs of a node's cookies, that of its first one first; none without a cookie.

    A node listens with its first pair. It dials with each of them in turn until one is accepted: CURVE gives
    a listening socket one key, so a client must know which of the cookies the other node has first.
    """
    if settings.cookie is None:
        return ()
    return tuple(keys_from_cookie(cookie) for cookie in (settings.cookie, *settings.other_cookies))


class ZapHandler:
    """The ZAP handler of one context. It admits the cluster's public key and no other.

    The loop must watch ``socket`` and call `serve` when it is readable. A blocked loop delays new
    handshakes; existing connections are not affected.

    Source: ZeroMQ RFC 27 (ZAP).
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], public: bytes) -> None:
        self._public = public
        self._authenticator = Authenticator(context)
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=self)
        self._authenticator.start()
        self.socket: zmq.Socket[bytes] = self._authenticator.zap_socket

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a client that has proved to own ``key`` (Z85) may connect. Called by pyzmq."""
        return domain == ZAP_DOMAIN and hmac.compare_digest(key, self._public)

    def serve(self) -> None:
        """Answer all waiting requests."""
        while cast("int", self.socket.get(zmq.EVENTS)) & zmq.POLLIN:
            request = self.socket.recv_multipart(zmq.NOBLOCK)
            answering = self._authenticator.handle_zap_message(request)
            # pyzmq's method is a coroutine because callbacks may wait. This one does not, so the
            # coroutine ends at its first step and needs no task.
            try:
                answering.send(None)
            except StopIteration:
                continue
            answering.close()

    def close(self) -> None:
        """Stop; no client is admitted any more."""
        self._authenticator.stop()
