"""Keyed entities: actors with a key, each of which lives on one node at a time.

`core.shard_table` knows which node owns which shard, and `core.shard_plan` who takes or hands over what.
`replicated_shards` performs it; `hosting` runs the entities of one kind on this node, `handoff` moves them,
`entity_calls` finds their owner for each request, and `kinds` is what programs hold. `info` is what people
see of all this.
"""
