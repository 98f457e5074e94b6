"""Distributed preference optimization on Ray."""

__version__ = "0.1.0"
