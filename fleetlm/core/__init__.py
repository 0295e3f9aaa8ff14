"""Decisions, without a clock, a socket or a loop: facts and `now` go in, effects come out."""
