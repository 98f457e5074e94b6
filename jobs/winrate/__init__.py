"""Win rates of methods against a reference, at several sampling temperatures."""
