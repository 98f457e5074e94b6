"""Model folders and tokenizers: their files, their weights, and how raydpo loads them.

It imports `core` and `config`.
"""
