"""Offline log-probabilities of the reference."""
