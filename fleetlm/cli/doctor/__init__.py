"""`fleetlm doctor`."""
