"""The configuration: frozen pydantic models, one file per section.

It imports only `core`, and neither torch nor Ray.
"""
