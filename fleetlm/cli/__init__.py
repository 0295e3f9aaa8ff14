"""The commands `fleetlm start`, `doctor` and `demo`. This file imports nothing: see `cli.main`."""
