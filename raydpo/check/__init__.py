"""Everything that `raydpo check` and the commands refuse before they ask a cluster for anything.

It may import every stage.
"""
