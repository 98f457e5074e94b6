"""Objectives as pure functions, one file per family."""
