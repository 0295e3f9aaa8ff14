"""`fleetlm remote`: the node's end, the client's end, and what they say."""
