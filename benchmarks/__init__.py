"""Benchmarks: ``python -m benchmarks [names] [--quick] [--json FILE]``.

Every figure is compared with a *floor*: the same work in plain pyzmq (or plain asyncio) without a
runtime, measured in the same run, in turns. On a shared machine the placement of processes alone
changes a figure by a factor of three, so only ratios from one run are meaningful.
"""
