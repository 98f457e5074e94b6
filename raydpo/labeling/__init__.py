"""Rewards, people, and the pairs that raydpo builds from scores."""
