"""Who may read what the ops listener tells: pure decisions about the headers of a request.

A request is trusted if it shows the token: in ``Authorization: Bearer``, or in the cookie that a browser
got for it. Where there is no token, a request is trusted by the name that it was sent to. A page of another
site can make a browser resolve a name of its own to 127.0.0.1 and read what answers there (DNS rebinding);
such requests carry that name in ``Host``, so only loopback names are answered. With a token the name does
not matter: a browser gives the cookie to no other name.

Health checks are answered to everybody, with one word.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie

_HOST = re.compile(r"(?:\[(?P<ip>[0-9a-f:.]+)\]|(?P<name>[^\s:\[\]@/]+))(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_PURPOSE = b"fleetlm ops cookie"


class Verdict(enum.Enum):
    """What becomes of a request, by its headers."""

    TRUSTED = enum.auto()
    NEEDS_TOKEN = enum.auto()
    WRONG_TOKEN = enum.auto()
    WRONG_HOST = enum.auto()
    CROSS_SITE = enum.auto()


class Access:
    """The rules of one listener.

    Args:
        token: the secret; None: the ``Host`` header decides.
        hosts: names that are answered without a token besides loopback ones; ``"*"``: any.
    """

    def __init__(self, token: str | None, hosts: Iterable[str] = ()) -> None:
        self._digest = None if token is None else _digest(token)
        self._hosts = frozenset(name.lower() for name in hosts)
        self._key = b"" if token is None else token.encode()

    @property
    def has_token(self) -> bool:
        """Whether readers must show a token."""
        return self._digest is not None

    def cookie(self, host: str) -> tuple[str, str]:
        """Return the name and the value of what a browser keeps instead of the token.

        Both belong to the token and to the port that the browser has asked: it sends the cookies of a host to
        all of its ports, and what another program there reads must not open further listeners. They are the
        same after a restart.

        Args:
            host: the ``Host`` header of the request.
        """
        port = _port(host.strip())
        name = hmac.new(self._key, _PURPOSE + b" name", hashlib.sha256).hexdigest()
        value = hmac.new(self._key, _PURPOSE + b" " + port.encode(), hashlib.sha256).hexdigest()
        return f"fleetlm_ops_{port or 'default'}_{name[:8]}", value

    def is_token(self, text: str) -> bool:
        """Whether a text is the token; takes the same time for all texts of one length."""
        return self._digest is not None and hmac.compare_digest(_digest(text), self._digest)

    def judge(self, headers: Mapping[str, str]) -> Verdict:
        """Decide about a request.

        Args:
            headers: names in lower case, and their values.
        """
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return Verdict.CROSS_SITE
        if self._digest is None:
            return Verdict.TRUSTED if self._may_be_asked_as(headers.get("host", "")) else Verdict.WRONG_HOST
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Verdict.TRUSTED if self.is_token(given.strip()) else Verdict.WRONG_TOKEN
        name, value = self.cookie(headers.get("host", ""))
        cookie = _cookie(headers.get("cookie", ""), name)
        if cookie is None:
            return Verdict.NEEDS_TOKEN
        is_right = hmac.compare_digest(_digest(cookie), _digest(value))
        return Verdict.TRUSTED if is_right else Verdict.WRONG_TOKEN

    def _may_be_asked_as(self, host: str) -> bool:
        """Whether a request without a token may have this ``Host`` header; its port does not matter."""
        name = _without_port(host.strip().lower())
        if "*" in self._hosts or name in self._hosts or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _without_port(host: str) -> str:
    """Return the name or address of a ``Host`` header, without brackets and port; empty if it is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found["ip"] or found["name"]


def _port(host: str) -> str:
    """Return the port of a ``Host`` header, in digits; empty if it has none."""
    found = _HOST.fullmatch(host.lower())
    return "" if found is None else found["port"] or ""


def _cookie(header: str, name: str) -> str | None:
    """Return the value of a cookie; None if it is not there or the header cannot be read."""
    for part in header.split(";"):  # One at a time: a strange cookie of another program hides no other.
        if part.strip().startswith(f"{name}="):
            try:
                return SimpleCookie(part.strip())[name].value
            except (CookieError, KeyError):
                return None
    return None
