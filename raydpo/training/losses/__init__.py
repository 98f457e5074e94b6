"""Objectives as pure functions, one file a family."""
