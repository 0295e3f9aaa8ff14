"""Derives the cluster's CURVE keys from the cookie, and admits only clients that hold them.

All nodes with one cookie and one cluster id have the same key pair, as server and as client. The pair only
authenticates: CurveZMQ draws fresh keys for each connection, so a cookie that leaks later does not decrypt
recorded traffic. Without a cookie there is no CURVE, and connections are plain text. While the cookie is
changed, a node has two; see `derive_keys`.

The first message of a connection is encrypted for the key that is expected at the other end. Whoever listens
at an address that a node dials can therefore test guesses of the cookie, as often as it likes. A random
cookie cannot be guessed. For one that a person has thought of, each guess costs a derivation, and the
cluster's id in it makes guesses for one cluster worthless for another.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final, cast

import zmq

from fleetlm.cookies import MAX_COOKIES
from fleetlm.records import Row
from fleetlm.settings import Settings

SALT: Final = b"fleetlm/2/curve/"
"""The beginning of the salt; the cluster's id follows. Contains a version, so that another way to derive keys
never yields the same keys by accident."""
SCRYPT_N: Final = 2**15
SCRYPT_R: Final = 8
SCRYPT_P: Final = 3
"""Makes a derivation cost a quarter of a second and 32 MiB: once for each cookie at the start of a node, and
for each guess of an attacker. Source: OWASP, password storage, which counts these three numbers as equal to N
= 2**17 with p = 1; that would take 128 MiB, more than some containers have."""
SCRYPT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Memory limit given to OpenSSL; the derivation needs 32 MiB of it."""
ZAP_DOMAIN: Final = "fleetlm"
"""Named by the handler and by the socket; pyzmq's authenticator does not fall back to ``*``."""


class CurveKeys(Row):
    """A key pair. Both keys are in Z85, as ZeroMQ's options take them."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r}, secret=...)"


@functools.lru_cache(maxsize=4 * MAX_COOKIES)
def keys_from_cookie(cookie: str, cluster: str = "") -> CurveKeys:
    """Derive the key pair that all nodes with this cookie and this cluster id share.

    Takes about a quarter of a second the first time, during which nothing else runs on this thread.
    """
    import hashlib  # noqa: PLC0415  # a node without a cookie needs neither

    from zmq.utils import z85  # noqa: PLC0415

    secret = hashlib.scrypt(
        cookie.encode("utf-8", "surrogatepass"),
        salt=SALT + cluster.encode(),
        n=SCRYPT_N,
        r=SCRYPT_R,
        p=SCRYPT_P,
        maxmem=SCRYPT_MAX_BYTES,
        dklen=32,
    )
    encoded = z85.encode(secret)
    return CurveKeys(zmq.curve_public(encoded), encoded)


async def derive_keys(settings: Settings) -> tuple[CurveKeys, ...]:
    """Return the key pairs of a node's cookies, that of its first one first; none without a cookie.

    A node listens with its first pair. It dials with each of them in turn until one is accepted: CURVE gives
    a listening socket one key, so a client must know which of the cookies the other node has first.

    Other tasks of the loop run between two derivations. They are not made in a thread, since a program may
    have replaced threads by those of gevent.
    """
    cookies = () if settings.cookie is None else (settings.cookie, *settings.other_cookies)
    pairs = []
    for cookie in cookies:
        pairs.append(keys_from_cookie(cookie, settings.cluster))
        await asyncio.sleep(0)
    return tuple(pairs)


class ZapHandler:
    """The ZAP handler of one context. It admits the cluster's public key and no other.

    The loop must watch ``socket`` and call `serve` when it is readable. A blocked loop delays new
    handshakes; existing connections are not affected.

    Source: ZeroMQ RFC 27 (ZAP).
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], public: bytes) -> None:
        import hmac  # noqa: PLC0415  # Here, as an import fails when the process is short of descriptors.

        from zmq.auth import Authenticator  # noqa: PLC0415  # a node without a cookie needs none

        self._is_equal = hmac.compare_digest
        self._public = public
        self._authenticator = Authenticator(context)
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=self)
        self._authenticator.start()
        self.socket: zmq.Socket[bytes] = self._authenticator.zap_socket

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a client that has proved to own ``key`` (Z85) may connect. Called by pyzmq."""
        return domain == ZAP_DOMAIN and self._is_equal(key, self._public)

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
