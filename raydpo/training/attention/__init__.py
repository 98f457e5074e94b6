"""Attention over the flat layout: one interface, with one module per implementation."""
