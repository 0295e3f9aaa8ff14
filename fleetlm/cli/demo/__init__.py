"""`fleetlm demo`."""
