"""How the processes of a node run, end, are linked and watched."""
