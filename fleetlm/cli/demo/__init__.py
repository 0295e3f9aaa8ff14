"""`fleetlm demo`: `story` tells it, `replicas` are its processes, `worker` their program, `screen` its output."""
