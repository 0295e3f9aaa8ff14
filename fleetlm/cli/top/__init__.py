"""`fleetlm top`: a live view of the cluster in a terminal, through one node of this machine."""
