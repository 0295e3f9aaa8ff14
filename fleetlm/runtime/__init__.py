"""One running node: its parts, made and connected; facts in, effects out."""
