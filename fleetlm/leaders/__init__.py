"""One process in the cluster: singletons, and cron jobs that run on them.

A singleton is a kind of entities with one shard and one entity (`leader.Leader`), so claims, epochs, handoff
and quorum are those of the package `entities`. `offering` has what differs, `family` ends what has run here,
and `singletons` is what programs hold. `schedule` and `cron` run jobs, and `slots` tells the other nodes what
has begun.
"""
