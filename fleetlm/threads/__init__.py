"""What threads hold of a node besides `SyncNode`: streams, subscriptions, references, groups and names.

Each class is a front: `runtime.thread_requests` hands a request to the event loop, and the class of the same
name without ``Sync`` does the work there.
"""
