"""`fleetlm remote`: evaluate Python inside a running node.

The client's side is `client` (one expression) and `shell` (interactive). The node's side is `server`,
which evaluates with `evaluator` in the names of `namespace`. Both sides share `protocol`. `facts` is what
a node tells `fleetlm doctor`.

This file imports nothing, and `protocol`, `client` and `shell` import neither the network nor the event
loop, so that the command starts fast.
"""
