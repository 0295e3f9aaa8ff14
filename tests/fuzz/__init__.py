"""Fuzzing of everything that reads bytes from outside.

A *target* is a function of bytes that raises when the code under test breaks a promise: the code raises what
it must not raise, takes too long, keeps too much, or disturbs a peer that did nothing. `targets.TARGETS` has
all targets.

- ``make fuzz`` runs each target under atheris, which changes inputs so that they reach new code.
- ``make test`` runs each target over the stored inputs (`stored`), as ordinary fast tests without atheris.

An input that found a fault is kept in ``found/<target>/``, under a name that says what was wrong.
"""
