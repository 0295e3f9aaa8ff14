"""Attacks on a node, with what its honest peer notices of them: ``python -m tests.long.attacks``.

See `tests.long.attacks.lab` for how it is measured.
"""
