"""The cluster's secret: where it is read from, which texts are refused, and who may see it.

A cookie can be guessed offline: a node that dials a stranger sends it what a guess can be compared with. So
a cookie has to be random. Texts that people make up in a hurry are refused (`find_weakness`); that a text
passes does not make it good, and `fleetlm cookie` makes one that is.

A program that a node starts must not inherit the cookie. So `take_cookies` removes the variables from the
environment when a node starts, and leaves `TAKEN` in their place. The values stay in this module, for further
nodes of the same process. A child process finds `TAKEN` and no cookie: a node that starts there is refused
rather than left open. The file of FLEETLM_COOKIE_FILE can be read by children with the rights to it.

Other processes of the same user can read the environment with which a process was started
(``/proc/PID/environ``), whatever the process does later. Only FLEETLM_COOKIE_FILE keeps the cookie out of it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from typing import Final

from fleetlm.errors import SettingsError
from fleetlm.records import Row
from fleetlm.setting_parsers import Refused

COOKIE_MIN_LENGTH: Final = 16
"""Characters. A recorded handshake allows guessing offline, so a short cookie would not stay secret."""
COOKIE_MAX_LENGTH: Final = 4096
"""Characters. A longer one is probably the wrong file."""
COOKIE_MIN_DISTINCT: Final = 6
"""Different characters. Sixteen random digits have fewer once in 30,000 times."""
COOKIE_MIN_UNKNOWN: Final = 5
"""Characters beside well-known words and sequences. With fewer, such a cookie is in lists of passwords, or is
soon found by who combines them."""
MAX_COOKIES: Final = 4
"""A change of the cookie needs two. Each further one costs a failed dial, and a derivation of its keys."""
TAKEN: Final = "FLEETLM_COOKIE_TAKEN"
"""The variable that says that a node has taken the cookie out of this environment."""
GOOD: Final = "Make one with: fleetlm cookie"

_VARIABLES: Final = ("FLEETLM_COOKIE", "FLEETLM_COOKIE_OLD")
"""The variables that hold a cookie themselves."""
_ALLOWED: Final = f"{COOKIE_MIN_LENGTH} to {COOKIE_MAX_LENGTH:,} characters, the same on every node"
_HARD: Final = f"{COOKIE_MIN_LENGTH} or more characters that nobody can guess, the same on every node"
_WORDS: Final = (
    r"password|passwort|passwd|change[-_ ]?me|replace[-_ ]?me|secret|letmein|welcome|admin|root|default"
    r"|example|test|cookie|cluster|fleetlm|iloveyou|monkey|dragon|master|super|token|shared|private|company"
    r"|server|node|production|staging|docker|kubernetes|python|erlang|this|that|key"
)
_LETTERS: Final = str.maketrans("0134578@$!", "oieastbasi")
"""What is written for a letter in p@ssw0rd and the like."""
_ROWS: Final = (
    *("1234567890", "qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm"),
    *("qazwsxedcrfvtgbyhnujm", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p", "1q2w3e4r5t6y7u8i9o0p"),
    *("a1b2c3d4e5f6g7h8i9", "aabbccddeeffgghhiijjkkllmmnnooppqqrrssttuuvvwwxxyyzz", "00112233445566778899"),
)
"""Keys that lie side by side or below each other, and other orders that people write down."""
_SEQUENCES: Final = (*_ROWS, *(row[::-1] for row in _ROWS))
_RUN_LENGTH: Final = 4
"""Characters that follow each other, such as 1234, dcba or qwer, from which on they are a sequence."""
_FILE: Final = "FLEETLM_COOKIE_FILE"

_taken: dict[str, str] = {}
"""Variable → the value that `take_cookies` has taken out of the environment of this process."""


class Cookies(Row):
    """The cookies of an environment.

    Attributes:
        own: the node's own; None if none is set.
        others: those that it knows besides.
        warnings: what is wrong with their file, as sentences.
    """

    own: str | None
    others: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def parse_cookie(text: str) -> str:
    """Return a cookie if it may be one. Raises: Refused, with a text that does not show it."""
    if not COOKIE_MIN_LENGTH <= len(text) <= COOKIE_MAX_LENGTH:
        raise Refused(_ALLOWED, f"It has {len(text)}. {GOOD}.")
    weakness = find_weakness(text)
    if weakness:
        raise Refused(_HARD, f"{weakness}. {GOOD}.")
    return text


def find_weakness(cookie: str) -> str:
    """Return why a cookie is easy to guess, as the beginning of a sentence; empty if it does not look so."""
    distinct = len(set(cookie))
    if distinct < COOKIE_MIN_DISTINCT:
        return f"It has only {distinct} different character{'s' if distinct > 1 else ''}"
    part = _find_period(cookie)
    if part < COOKIE_MIN_LENGTH and 2 * part <= len(cookie):
        return f"It repeats the same {part} characters"
    if len(_drop_runs(_drop_words(cookie.lower()))) < COOKIE_MIN_UNKNOWN:
        return "It consists of well-known words and sequences"
    return ""


def _find_period(text: str) -> int:
    """Return the length of the shortest part that, repeated and cut off, gives the text."""
    longest = [0]  # For each prefix: its longest proper prefix that is a suffix too (Knuth, Morris, Pratt).
    for each in text[1:]:
        border = longest[-1]
        while border and text[border] != each:
            border = longest[border - 1]
        longest.append(border + (text[border] == each))
    return len(text) - longest[-1]


def _drop_words(text: str) -> str:
    """Remove well-known words, however they are spelt."""
    kept, end = "", 0
    for word in re.finditer(_WORDS, text.translate(_LETTERS)):
        kept += text[end : word.start()]
        end = word.end()
    return kept + text[end:]


def _drop_runs(text: str) -> str:
    """Remove sequences of characters that follow each other in some order, or are the same."""
    kept: list[str] = []
    at = 0
    while at < len(text):
        length = max(_run_length(text, at), *(_row_length(text, at, row) for row in _SEQUENCES))
        if length < _RUN_LENGTH:
            length = 1
            kept.append(text[at])
        at += length
    return "".join(kept)


def _run_length(text: str, at: int) -> int:
    """Return how many characters from there on follow each other up or down, or are the same."""
    end = at + 1
    step = ord(text[end]) - ord(text[at]) if end < len(text) else 2
    while end < len(text) and abs(step) <= 1 and ord(text[end]) - ord(text[end - 1]) == step:
        end += 1
    return end - at


def _row_length(text: str, at: int, row: str) -> int:
    """Return how many characters from there on stand in a row like this."""
    start, length = row.find(text[at : at + _RUN_LENGTH]), _RUN_LENGTH
    if start < 0 or at + length > len(text):
        return 0
    while text[at : at + length + 1] == row[start : start + length + 1] and at + length < len(text):
        length += 1
    return min(length, len(row) - start)


def read_cookies(env: Mapping[str, str]) -> Cookies:
    """Read the cookies of an environment.

    A file has one cookie on each line; the first one is the node's own.

    Raises:
        SettingsError: a cookie cannot be used, or was taken out of this environment by another process.
    """
    env = _restore_taken(env)
    text, path, old = env.get("FLEETLM_COOKIE"), env.get(_FILE), env.get("FLEETLM_COOKIE_OLD")
    if text is not None and path is not None:
        allowed = "only one of FLEETLM_COOKIE and FLEETLM_COOKIE_FILE"
        raise SettingsError(_FILE, show_path(path), allowed, "Unset one of them.")
    cookies: list[str] = []
    warnings: tuple[str, ...] = ()
    if path is not None:
        written, warnings = read_secret(_FILE, path)
        lines = [line.strip() for line in written.splitlines()]
        cookies += [_check(_FILE, line, path) for line in filter(None, lines)] or [_check(_FILE, "", path)]
    elif text is not None:
        cookies.append(_check("FLEETLM_COOKIE", text))
    if old is not None:
        if not cookies:
            raise SettingsError(
                "FLEETLM_COOKIE_OLD", "(masked)", "FLEETLM_COOKIE beside it", "Set FLEETLM_COOKIE, too."
            )
        cookies.append(_check("FLEETLM_COOKIE_OLD", old))
    if len(cookies) > MAX_COOKIES:
        allowed = f"up to {MAX_COOKIES} cookies"
        raise SettingsError(_FILE, show_path(path or ""), allowed, "Drop those that no node uses.")
    own, *others = dict.fromkeys(cookies) if cookies else (None,)
    return Cookies(own, tuple(filter(None, others)), warnings)


def take_cookies(environ: MutableMapping[str, str]) -> None:
    """Take the cookies out of an environment, so that child processes do not inherit them.

    `read_cookies` of this process finds them as before.
    """
    found = {name: environ[name] for name in _VARIABLES if name in environ}
    if found:
        _taken.clear()
        _taken.update(found)
        environ[TAKEN] = "1"
        for name in found:
            del environ[name]


def _restore_taken(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment with the cookies that were taken out of it. Raises: SettingsError."""
    if TAKEN not in env or "FLEETLM_COOKIE" in env or _FILE in env:
        return env
    if not _taken:
        raise SettingsError(
            TAKEN,
            env[TAKEN],
            "only beside a cookie: the node that started this process has one, and keeps it to itself",
            f"Give the cookie to this process, best by {_FILE}; or unset {TAKEN} to start without.",
        )
    return {**env, **_taken}


def read_secret(variable: str, path: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a file with secrets, and warnings about its rights.

    Args:
        variable: the variable that names the file.
        path: its value.

    Raises:
        SettingsError: the file cannot be read.
    """
    from pathlib import Path  # noqa: PLC0415  # its import takes longer than that of this module

    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_COOKIES * (COOKIE_MAX_LENGTH + 2))
        warning = _find_readers(variable, path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SettingsError(
            variable, show_path(path), "a readable text file", f"Reading it failed: {reason}."
        ) from None
    return text, (warning,) if warning else ()


def _find_readers(variable: str, path: str) -> str:
    """Return who besides the owner has rights to a file, as a warning; empty if nobody has.

    A group that may read is normal where another user owns the file (``fsGroup`` of Kubernetes). Where the
    owner is the user that asks, that user can take the right away.
    """
    from pathlib import Path  # noqa: PLC0415  # a node without such a file needs none

    found = Path(path).stat()
    is_mine = found.st_uid == os.getuid()
    open_to = [
        (stat.S_IROTH, "every user of this machine can read it"),
        (stat.S_IWOTH, "every user of this machine can change it"),
        (stat.S_IWGRP, "its group can change it"),
        (stat.S_IRGRP if is_mine else 0, "its group can read it"),
    ]
    who = next((text for bit, text in open_to if found.st_mode & bit), "")
    if not who or not stat.S_ISREG(found.st_mode):
        return ""
    return (
        f"{variable} is {path}, and {who}: chmod 0400 it (Kubernetes: defaultMode: 0400; Compose: "
        "mode: 0400 of the secret)"
    )


def _check(variable: str, text: str, path: str | None = None) -> str:
    """Return a cookie without the spaces around it. Raises: SettingsError, which does not show it."""
    cookie = text.strip()
    try:
        return parse_cookie(cookie)
    except Refused as refused:
        shown = f"({len(cookie)} characters)" if path is None else show_path(path)
        hint = f"{refused.hint} Unset the variable to run without authentication."
        raise SettingsError(variable, shown, refused.allowed, hint) from None


def show_path(path: str) -> str:
    """Return the path of a file for an error; masked if it does not look like one but like the cookie."""
    return path if not path or path.startswith(("/", ".", "~")) else "(masked: it may be the secret itself)"
