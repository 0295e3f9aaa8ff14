"""Escapes what a terminal would obey, in texts that come from peers, programs and other users.

A control sequence in a text may move the cursor, change the title of a window, or hide what stands before it;
a character that turns the direction of writing makes a line read as another one. This module imports nothing,
since `fleetlm health` runs every few seconds.
"""

from __future__ import annotations


def escape(text: str) -> str:
    """Return ``text`` with line ends and control characters replaced by visible escapes.

    That includes the C1 controls, and the characters that turn the direction of writing: nothing is left
    that a terminal obeys, or that looks like the end of a line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def escape_lines(text: str) -> str:
    """Return ``text`` as `escape` does, with its line ends and tabs as they are."""
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" or each.isprintable() else ascii(each)[1:-1] for each in text)


def escape_on_terminal(text: str, is_terminal: bool) -> str:
    """Return the output of a command: with `escape_lines` on a terminal, as it is in a file or a pipe."""
    return escape_lines(text) if is_terminal else text
