"""Configuration of gunicorn for ``wsgi.py``: each worker starts a node after the fork, and stops it.

Its name is not ``gunicorn.conf.py``, which gunicorn would read for every application in this folder.
"""

from __future__ import annotations


def post_fork(_server: object, _worker: object) -> None:
    """Start the node of a new worker. If it raises, gunicorn stops: a worker must not serve without it."""
    import wsgi  # noqa: PLC0415  # in the worker, so that a reload of gunicorn reads it again

    wsgi.start_node()


def worker_exit(_server: object, _worker: object) -> None:
    """Stop it, after the worker's last request."""
    import wsgi  # noqa: PLC0415

    wsgi.stop_node()
