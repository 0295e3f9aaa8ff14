"""Where the addresses of peers come from, and which address is this node's own."""
