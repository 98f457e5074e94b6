"""Examine preferences before anything is trained on them: one module for each kind of fault."""
