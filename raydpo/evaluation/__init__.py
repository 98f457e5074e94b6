"""Compare policy and reference: metrics, plots, report."""
