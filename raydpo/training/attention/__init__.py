"""Attention over the flat layout: one interface, one module for each way to compute it."""
