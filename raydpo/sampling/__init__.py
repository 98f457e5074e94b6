"""The vLLM engine pool and the Ray Data stage that feeds it."""
