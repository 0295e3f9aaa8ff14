"""Where the addresses of peers come from, and which address is our own."""
