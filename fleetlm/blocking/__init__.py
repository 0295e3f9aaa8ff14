"""Threads and processes of the operating system beside the event loop."""
