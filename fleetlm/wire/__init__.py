"""Frames, operations, and the exact encoding of messages as bytes. Pure: uses no socket and no clock."""
