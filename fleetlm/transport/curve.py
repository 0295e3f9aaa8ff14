"""From the cookie to the cluster's CURVE keys, and the ZAP handler that admits only them.

One key pair for the whole cluster: whoever knows the cookie has it, as server and as client. It
only authenticates; CurveZMQ draws fresh keys for each connection, so that a cookie that leaks later
does not open recorded traffic.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import Final, NamedTuple, cast

import zmq
from zmq.auth import Authenticator
from zmq.utils import z85

SALT: Final = b"fleetlm/1/curve"
"""With a version: another way to derive keys must not meet this one by accident."""
SCRYPT_N: Final = 2**14
"""About 40 ms and 16 MiB: once for each start of a node, once for each guess of an attacker."""
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SCRYPT_MAX_BYTES: Final = 64 * 1024 * 1024
ZAP_DOMAIN: Final = "fleetlm"
"""pyzmq's authenticator has no fall-back to ``*``: handler and socket must name the very same."""


class CurveKeys(NamedTuple):
    """A key pair, both in Z85, as ZeroMQ's options take them."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r}, secret=...)"


@functools.lru_cache(maxsize=4)
def keys_from_cookie(cookie: str) -> CurveKeys:
    """The key pair of every node with this cookie. Takes some 40 ms the first time."""
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


class ZapHandler:
    """The ZAP handler of one context: admits the cluster's own public key and nothing else.

    ``socket`` is to be watched by the loop and `serve` called when it is readable. A blocked loop
    delays new handshakes, and harms nothing that is connected already.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], public: bytes) -> None:
        self._public = public
        self._authenticator = Authenticator(context)
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=self)
        self._authenticator.start()
        self.socket: zmq.Socket[bytes] = self._authenticator.zap_socket

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client that has proved to own ``key`` (Z85) may enter."""
        return domain == ZAP_DOMAIN and hmac.compare_digest(key, self._public)

    def serve(self) -> None:
        """Answer every request that waits."""
        while cast("int", self.socket.get(zmq.EVENTS)) & zmq.POLLIN:
            request = self.socket.recv_multipart(zmq.NOBLOCK)
            answering = self._authenticator.handle_zap_message(request)
            # A coroutine only for the sake of callbacks that wait; ours does not, so that one step
            # is all of it, and no task is needed.
            try:
                answering.send(None)
            except StopIteration:
                continue
            answering.close()

    def close(self) -> None:
        """Admit nobody any more."""
        self._authenticator.stop()
