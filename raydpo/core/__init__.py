"""The base of every stage: errors, storage, the run directory, parts and the cluster.

It imports no other room.
"""
