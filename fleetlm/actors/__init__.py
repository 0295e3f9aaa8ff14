"""How actors serve requests, and how they are called."""
