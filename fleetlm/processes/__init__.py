"""How the processes of a node run and end, and how they are linked and monitored."""
