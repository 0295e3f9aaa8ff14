"""The token of the ops listener: where it is read from, and which texts are refused.

It is kept as the cookie is kept (`fleetlm.cookies`): texts that are easy to guess are refused, and no error
and no log shows it. `take_token` removes the variable from the environment when a node starts, so that
programs that the node starts do not inherit it. `OPS_TAKEN` stays in its place: a node that such a program
starts with an ops listener of its own is refused rather than left open.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

from fleetlm.cookies import COOKIE_MAX_LENGTH, COOKIE_MIN_LENGTH, GOOD, find_weakness, read_secret, show_path
from fleetlm.errors import SettingsError
from fleetlm.setting_parsers import Refused

OPS_TAKEN: Final = "FLEETLM_OPS_TOKEN_TAKEN"
"""The variable that says that a node has taken the token out of this environment."""

_VARIABLE: Final = "FLEETLM_OPS_TOKEN"
_FILE: Final = "FLEETLM_OPS_TOKEN_FILE"
_ALLOWED: Final = (
    f"{COOKIE_MIN_LENGTH} to {COOKIE_MAX_LENGTH:,} letters, digits and signs of ASCII that nobody can guess"
)
_taken: dict[str, str] = {}
"""Variable → the value that `take_token` has taken out of the environment of this process."""


def check_token(text: str) -> str:
    """Return a token if it may be one. Raises: Refused, with a text that does not show it."""
    if not COOKIE_MIN_LENGTH <= len(text) <= COOKIE_MAX_LENGTH:
        raise Refused(_ALLOWED, f"It has {len(text)} characters. {GOOD}.")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise Refused(_ALLOWED, f"It has to fit into a header of HTTP, so it has no spaces. {GOOD}.")
    weakness = find_weakness(text)
    if weakness:
        raise Refused(_ALLOWED, f"{weakness}. {GOOD}.")
    return text


def read_token(env: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """Read the token of an environment.

    Returns:
        The token, or None if none is set; and what is wrong with its file, as sentences.

    Raises:
        SettingsError: the token cannot be used, or another process has taken it out of this environment.
    """
    text, path = env.get(_VARIABLE), env.get(_FILE)
    if text is None and path is None and OPS_TAKEN in env and "FLEETLM_OPS" in env:
        if not _taken:
            raise SettingsError(
                OPS_TAKEN,
                env[OPS_TAKEN],
                "only beside a token: the node that started this process has one, and keeps it to itself",
                f"Give this process a token, best by {_FILE}; or unset FLEETLM_OPS.",
            )
        text = _taken[_VARIABLE]
    if text is not None and path is not None:
        allowed = f"only one of {_VARIABLE} and {_FILE}"
        raise SettingsError(_FILE, show_path(path), allowed, "Unset one of them.")
    if path is not None:
        written, warnings = read_secret(_FILE, path)
        return _check(_FILE, written, show_path(path)), warnings
    return (None if text is None else _check(_VARIABLE, text, f"({len(text)} characters)")), ()


def take_token(environ: MutableMapping[str, str]) -> None:
    """Take the token out of an environment, so that child processes do not inherit it.

    `read_token` of this process finds it as before.
    """
    if _VARIABLE in environ:
        _taken[_VARIABLE] = environ.pop(_VARIABLE)
        environ[OPS_TAKEN] = "1"


def _check(variable: str, text: str, shown: str) -> str:
    """Return a token without the spaces around it. Raises: SettingsError, which does not show it."""
    try:
        return check_token(text.strip())
    except Refused as refused:
        raise SettingsError(variable, shown, refused.allowed, refused.hint) from None
