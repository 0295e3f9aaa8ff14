"""Clients that speak ZMTP themselves, so that they can send what libzmq's own sockets do not.

`Raw` shakes hands without security, `RawCurve` as one who holds the cookie (ZMTP 3.1, RFC 37; CurveZMQ, RFC
26). For the cryptography `RawCurve` uses the libsodium that comes with pyzmq's wheels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import socket
import struct
from pathlib import Path
from typing import Final

from zmq.utils import z85

from fleetlm.transport.curve import CurveKeys

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
CURVE_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
READY: Final = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x00"
PING: Final = b"\x04\x07\x04PING\0\0"
PONG: Final = b"\x04\x05\x04PONG"
CONNECT_S: Final = 5.0
KEY_BYTES: Final = 32
_ZEROS_BEFORE: Final = 32
"""Bytes of zeros that libsodium's functions want in front of a plain text."""
_ZEROS_AFTER: Final = 16
"""Bytes of zeros that they leave in front of what they have encrypted."""


def zmtp(body: bytes, *, more: bool = False) -> bytes:
    """Build a message frame as it is on the wire."""
    if len(body) < 256:
        return bytes((int(more), len(body))) + body
    return bytes((2 + int(more),)) + len(body).to_bytes(8, "big") + body


def command(body: bytes) -> bytes:
    """Build a command frame as it is on the wire."""
    if len(body) < 256:
        return bytes((4, len(body))) + body
    return b"\x06" + len(body).to_bytes(8, "big") + body


class Raw:
    """A client without security, connected when it is made. Raises: OSError.

    Args:
        ip: where it connects.
        port: likewise.
        source: the address from which it connects; default: any.
    """

    greeting = GREETING

    def __init__(self, ip: str, port: int, source: str = "") -> None:
        address = (source, 0) if source else None
        self.sock = socket.create_connection((ip, port), CONNECT_S, address)
        self._came = b""
        try:
            self._shake_hands()
        except BaseException:
            self.sock.close()
            raise

    def _shake_hands(self) -> None:
        self.sock.sendall(GREETING + READY)
        self._read(len(GREETING))
        self._frame()  # libzmq takes no message before it has sent its own READY.

    def packed(self, body: bytes, *, more: bool = False) -> bytes:
        """Return the bytes of one part of a message; they must be sent in the order of these calls."""
        return zmtp(body, more=more)

    def send(self, data: bytes) -> None:
        """Send bytes that `packed` made. Raises: OSError."""
        self.sock.sendall(data)

    def close(self) -> None:
        """End the connection. Idempotent."""
        self.sock.close()

    def _read(self, count: int) -> bytes:
        while len(self._came) < count:
            more = self.sock.recv(65_536)
            if not more:
                raise ConnectionResetError("it has closed the connection")
            self._came += more
        read, self._came = self._came[:count], self._came[count:]
        return read

    def _frame(self) -> bytes:
        flags = self._read(1)[0]
        size = int.from_bytes(self._read(8 if flags & 2 else 1), "big")
        return self._read(size)


class RawCurve(Raw):
    """A client that holds the cookie. Raises: OSError; LookupError where there is no libsodium.

    Args:
        ip: where it connects.
        port: likewise.
        keys: the cluster's.
        source: the address from which it connects; default: any.
    """

    def __init__(self, ip: str, port: int, keys: CurveKeys, source: str = "") -> None:
        self._sodium = _load_sodium()
        self._public, self._secret = z85.decode(keys.public), z85.decode(keys.secret)
        self._shared = b""
        self._number = 2
        super().__init__(ip, port, source)

    def _shake_hands(self) -> None:
        """Say HELLO, take the WELCOME, say INITIATE, take the READY. The server's key is our own one."""
        self.sock.sendall(CURVE_GREETING)
        self._read(len(CURVE_GREETING))
        public, secret = self._key_pair()
        number = struct.pack(">Q", 1)
        box = self._box(bytes(64), b"CurveZMQHELLO---" + number, self._public, secret)
        self.sock.sendall(command(b"\x05HELLO\x01\x00" + bytes(72) + public + number + box))
        welcome = self._frame()
        if welcome[:8] != b"\x07WELCOME":
            raise ConnectionRefusedError(f"no WELCOME, but {welcome[:20]!r}")
        opened = self._open(welcome[24:], b"WELCOME-" + welcome[8:24], self._public, secret)
        their_public, cookie = opened[:KEY_BYTES], opened[KEY_BYTES:]
        nonce = os.urandom(16)
        vouch = self._box(public + self._public, b"VOUCH---" + nonce, their_public, self._secret)
        identity = b"R" + os.urandom(15)
        about = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x10" + identity
        number = struct.pack(">Q", 2)
        text = self._public + nonce + vouch + about
        box = self._box(text, b"CurveZMQINITIATE" + number, their_public, secret)
        self.sock.sendall(command(b"\x08INITIATE" + cookie + number + box))
        ready = self._frame()
        if ready[:6] != b"\x05READY":
            raise ConnectionRefusedError(f"no READY, but {ready[:20]!r}")
        shared = ctypes.create_string_buffer(KEY_BYTES)
        self._sodium.crypto_box_beforenm(shared, their_public, secret)
        self._shared = shared.raw

    def packed(self, body: bytes, *, more: bool = False) -> bytes:
        self._number += 1
        number = struct.pack(">Q", self._number)
        padded = bytes(_ZEROS_BEFORE) + bytes((int(more),)) + body
        made = ctypes.create_string_buffer(len(padded))
        nonce = b"CurveZMQMESSAGEC" + number
        self._sodium.crypto_box_afternm(made, padded, ctypes.c_ulonglong(len(padded)), nonce, self._shared)
        return zmtp(b"\x07MESSAGE" + number + made.raw[_ZEROS_AFTER:])

    def _key_pair(self) -> tuple[bytes, bytes]:
        public, secret = (ctypes.create_string_buffer(KEY_BYTES) for _ in range(2))
        self._sodium.crypto_box_keypair(public, secret)
        return public.raw, secret.raw

    def _box(self, text: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
        padded = bytes(_ZEROS_BEFORE) + text
        made = ctypes.create_string_buffer(len(padded))
        self._sodium.crypto_box(made, padded, ctypes.c_ulonglong(len(padded)), nonce, public, secret)
        return made.raw[_ZEROS_AFTER:]

    def _open(self, box: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
        padded = bytes(_ZEROS_AFTER) + box
        made = ctypes.create_string_buffer(len(padded))
        size = ctypes.c_ulonglong(len(padded))
        if self._sodium.crypto_box_open(made, padded, size, nonce, public, secret):
            raise ConnectionRefusedError("its box cannot be opened: another key")
        return made.raw[_ZEROS_BEFORE:]


def has_sodium() -> bool:
    """Whether `RawCurve` works here."""
    return _find_sodium() is not None


def _find_sodium() -> Path | None:
    found = importlib.util.find_spec("zmq")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parents[1] / "pyzmq.libs"
    return next(folder.glob("libsodium*"), None)


def _load_sodium() -> ctypes.CDLL:
    path = _find_sodium()
    if path is None:
        raise LookupError("no libsodium: pyzmq was not installed from a wheel")
    library = ctypes.CDLL(str(path))
    library.sodium_init()
    return library
