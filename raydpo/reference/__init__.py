"""Compute offline log-probabilities of the reference."""
