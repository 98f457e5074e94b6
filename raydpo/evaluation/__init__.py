"""Policy against reference: metrics, plots, report."""
