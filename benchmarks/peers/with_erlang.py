"""Erlang: gen_servers on distributed nodes of the Erlang in ``PATH``.

Both programs become an Erlang node by ``exec``, which compiles `bench_peer.erl` in memory and talks to the
parent by itself. The nodes need no epmd: all of them listen on one port, each at its own address.
What `global` warns of when a node is killed would stand among the facts, so nothing is logged.
Source: erl(1), ``-erl_epmd_port`` and ``-start_epmd``; kernel(6), ``logger_level``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import measures
from benchmarks.helper import Parent

SOURCE = Path(__file__).with_name("bench_peer.erl")
NUMBERS = ("each", "count", "sequential", "outstanding", "total_mib")


def server(_parent: Parent, config: dict[str, Any]) -> None:
    """Become a node with the gen_servers."""
    _become("server", config, [str(config.get("each", 1))])


def client(_parent: Parent, config: dict[str, Any]) -> None:
    """Become the node that calls them."""
    servers = [_name(config, index) for index in range(1, len(config["ips"]))]
    sizes = ",".join(f"{key}={measures.SIZES[key]}" for key in config.get("sizes", ()))
    at_once = ",".join(map(str, config.get("at_once", ())))
    numbers = [str(config.get(key, 0)) for key in NUMBERS]
    milliseconds = str(round(config.get("seconds", 0) * 1000))
    _become("client", config, [config["work"], ",".join(servers), at_once, sizes, *numbers, milliseconds])


def mesh_node(_parent: Parent, config: dict[str, Any]) -> None:
    """Become a node that connects to all others on command."""
    _become_member("mesh", config)


def idle_node(_parent: Parent, config: dict[str, Any]) -> None:
    """Become a node that is connected with all others, and measures its CPU time on command."""
    _become_member("idle", config)


def crash_node(_parent: Parent, config: dict[str, Any]) -> None:
    """Become a node that notices when the first one is killed, or that first one."""
    _become_member("crash", config)


def start_command(port: int) -> list[str]:
    """Return the command line of a distributed node that does nothing but say that it has started."""
    program = 'io:format("{}~n"), io:get_line(""), erlang:halt(0).'
    return _command("ready@127.0.0.1", "127.0.0.1", port, program)


def _become_member(task: str, config: dict[str, Any]) -> None:
    nodes = [_name(config, index) for index in range(len(config["ips"]))]
    milliseconds = str(round(config.get("window_s", 0) * 1000))
    _become("member", config, [task, str(config["index"]), ",".join(nodes), milliseconds])


def _name(config: dict[str, Any], index: int) -> str:
    return f"bench{index}@{config['ips'][index]}"


def _become(function: str, config: dict[str, Any], arguments: list[str]) -> None:
    index = config["index"]
    source, texts = json.dumps(str(SOURCE)), json.dumps(arguments)  # They are texts in Erlang, too.
    program = (
        f"{{ok, Module, Code}} = compile:file({source}, [binary]), "
        f"{{module, Module}} = code:load_binary(Module, {source}, Code), Module:{function}({texts})."
    )
    os.environ["ERL_CRASH_DUMP_BYTES"] = "0"
    command = _command(_name(config, index), config["ips"][index], config["port"], program)
    os.execvp(command[0], command)


def _command(name: str, ip: str, port: int, program: str) -> list[str]:
    interface = "{" + ip.replace(".", ",") + "}"
    return [
        *("erl", "-noshell", "-start_epmd", "false", "-erl_epmd_port", str(port)),
        *("-name", name, "-setcookie", f"bench{port}"),
        *("-kernel", "inet_dist_use_interface", interface, "logger_level", "none"),
        *("-eval", program),
    ]
