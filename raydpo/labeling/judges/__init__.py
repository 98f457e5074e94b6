"""Judges: language models that score completions by a rubric, or compare two of them."""
