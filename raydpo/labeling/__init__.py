"""Rewards, people, and how scores become pairs."""
