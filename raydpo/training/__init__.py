"""The train step and its parts; the numeric core needs no Ray."""
