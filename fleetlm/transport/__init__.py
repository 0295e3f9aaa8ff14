"""Carries frames between machines: what a node asks of a network, and its implementation on ZeroMQ."""
