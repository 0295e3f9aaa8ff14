"""The language of the scenarios, which Erlang (judge.erl) and fleetlm (ours.py) both play.

A file holds scenarios; each begins with its name, and has one step a line::

    == link/ends {where:here,there} {how:normal=return,other=raise boom}
    spawn a here trap
    spawn b {where}
    a link b
    settle
    b {how}

Alternatives in braces make one scenario each (``link/ends/here/normal`` ...); ``word=text`` puts
another text into the steps than into the name. Words of the one who directs:

* ``spawn LABEL here|there [trap] [named N]``: a puppet on one of the two nodes.
* ``LABEL COMMAND ; COMMAND``: the puppet does it, and the director waits for it; ``~LABEL``: does not.
* ``settle`` (until nothing moves), ``wait SECONDS``, ``unordered`` (events come in any order).
* ``lose``, ``rejoin``: the connection; ``crash``, ``restart``: the node ``there``.
* ``tree LABEL STRATEGY RESTARTS PERIOD CHILD...``: the plan of a supervisor; a child is
  ``label:restart:shutdown:manner``, where shutdown is seconds, ``kill`` or ``default``, and the manner
  ``plain``, ``tidy`` (traps exits, ends when told to), ``slow`` (tidy, after 5.5 s), ``stubborn`` (traps,
  ends not), ``named=N`` or ``sup`` (the tree of that label).
* ``members GROUP here|there``: what a node says of a group.

Commands of a puppet: ``link unlink unlink_flush monitor X``, ``demonitor demonitor_flush`` (the last),
``exit X REASON``, ``trap on|off``, ``return``, ``raise REASON``, ``crash``, ``pause SECONDS``,
``send X TEXT``, ``post X TEXT`` (and note what came of it), ``register unregister N``,
``spawn_link spawn_monitor LABEL COMMAND``, ``call X REQUEST [SECONDS]``, ``reply TEXT``,
``start TREE``, ``ask TREE QUESTION``, ``join leave GROUP [X]``. X is a label, ``me`` or
``name:N@here|there|away``; the node ``away`` is nowhere.

The outcome: for each label, in order, what its processes saw, how each of them ended, and whether the
last one lives. ``log`` is the order in which a tree was started (``+a``) and ended in order (``-a``).
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SCENARIOS = FOLDER / "scenarios"
ALTERNATIVES = re.compile(r"\{(\w+):([^}]*)\}")

Step = list[str]


def scenarios() -> dict[str, list[Step]]:
    """Every scenario by name, in the order of the files."""
    found: dict[str, list[Step]] = {}
    for path in sorted(SCENARIOS.glob("*.txt")):
        for name, steps in parse(path.read_text(encoding="utf-8")):
            if name in found:
                raise ValueError(f"{path.name}: two scenarios are called {name}")
            found[name] = steps
    return found


def parse(text: str) -> list[tuple[str, list[Step]]]:
    """The scenarios of a file, expanded."""
    found: list[tuple[str, list[Step]]] = []
    blocks = re.split(r"^== ", text, flags=re.MULTILINE)[1:]
    for block in blocks:
        header, *rest = block.splitlines()
        lines = [line for line in map(str.strip, rest) if line and not line.startswith("#")]
        found += expand(header, lines)
    return found


def expand(header: str, lines: list[str]) -> list[tuple[str, list[Step]]]:
    """One scenario for each combination of the alternatives in its header."""
    base = header.split(maxsplit=1)[0]
    names = [name for name, _ in ALTERNATIVES.findall(header)]
    choices = [
        [(word, text if given else word) for word, given, text in (c.partition("=") for c in body.split(","))]
        for _, body in ALTERNATIVES.findall(header)
    ]
    found = []
    for combination in itertools.product(*choices):
        texts = {name: text for name, (_, text) in zip(names, combination, strict=True)}
        steps = [line.format_map(texts).split() for line in lines]
        found.append(("/".join([base, *(word for word, _ in combination)]), steps))
    return found


def flat(named: dict[str, list[Step]]) -> str:
    """As judge.erl reads them."""
    lines = []
    for name, steps in named.items():
        lines.append(f"== {name}")
        lines += [" ".join(step) for step in steps]
    return "\n".join(lines) + "\n"


def commands(words: Step) -> list[Step]:
    """A compound of commands in its parts."""
    parts: list[Step] = [[]]
    for word in words:
        if word == ";":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
