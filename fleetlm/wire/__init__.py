"""Bytes and values: frames, operations, and the exact encoding of messages. Pure: knows no socket."""
