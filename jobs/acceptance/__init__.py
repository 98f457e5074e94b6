"""One command for the day a GPU is at hand: what is right on it, and how fast it is.

It needs torch, transformers and what the training core imports. Ray, vLLM, TRL and
matplotlib are each used where they are there.
"""
