"""`fleetlm demo`: `story` has the steps, `replicas` the processes, `worker` their code, `screen` the view."""
