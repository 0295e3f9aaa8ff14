"""`fleetlm demo`: `story` runs it, `replicas` starts its processes, which run `worker`; `screen` prints."""
