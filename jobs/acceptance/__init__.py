"""One command that checks correctness and measures speed on an available GPU.

It needs torch, transformers and what the training core imports. It uses Ray, vLLM, TRL and
matplotlib if they are installed.
"""
