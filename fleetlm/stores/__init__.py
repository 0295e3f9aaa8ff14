"""Where the states of keyed entities outlive their nodes.

`interface` says what a store promises, and `memory`, `sqlite` and `postgres` are stores. They know nothing of
entities: bytes go in and come out. `entities.keeping` uses them.
"""
