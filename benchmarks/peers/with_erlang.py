"""Erlang: gen_servers on distributed nodes of the Erlang in ``PATH``.

Both programs become an Erlang node by ``exec``, which compiles `bench_peer.erl` in memory and talks to the
parent by itself. The nodes need no epmd: all of them listen on one port, each at its own address.
Source: erl(1), ``-erl_epmd_port`` and ``-start_epmd``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import measures
from benchmarks.helper import Parent

SOURCE = Path(__file__).with_name("bench_peer.erl")


def server(_parent: Parent, config: dict[str, Any]) -> None:
    """Become a node with the gen_servers."""
    _become("server", config, [str(config.get("each", 1))])


def client(_parent: Parent, config: dict[str, Any]) -> None:
    """Become the node that calls them."""
    servers = [_name(config, index) for index in range(1, len(config["ips"]))]
    sizes = ",".join(f"{key}={measures.SIZES[key]}" for key in config.get("sizes", ()))
    at_once = ",".join(map(str, config.get("at_once", ())))
    numbers = [str(config.get(key, 0)) for key in ("each", "count", "sequential", "outstanding", "total_mib")]
    _become("client", config, [config["work"], ",".join(servers), at_once, sizes, *numbers])


def _name(config: dict[str, Any], index: int) -> str:
    return f"bench{index}@{config['ips'][index]}"


def _become(function: str, config: dict[str, Any], arguments: list[str]) -> None:
    index, port = config["index"], str(config["port"])
    interface = "{" + config["ips"][index].replace(".", ",") + "}"
    source, texts = json.dumps(str(SOURCE)), json.dumps(arguments)  # They are texts in Erlang, too.
    program = (
        f"{{ok, Module, Code}} = compile:file({source}, [binary]), "
        f"{{module, Module}} = code:load_binary(Module, {source}, Code), Module:{function}({texts})."
    )
    os.environ["ERL_CRASH_DUMP_BYTES"] = "0"
    os.execvp(
        "erl",
        [
            *("erl", "-noshell", "-start_epmd", "false", "-erl_epmd_port", port),
            *("-name", _name(config, index), "-setcookie", f"bench{port}"),
            *("-kernel", "inet_dist_use_interface", interface),
            *("-eval", program),
        ],
    )
