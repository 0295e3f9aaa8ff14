"""Frames between machines: what a node asks of a network, and ZeroMQ."""
