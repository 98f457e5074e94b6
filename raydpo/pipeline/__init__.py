"""Run one round from prompts to a report, or report what it would do.

It imports the stages, in their order.
"""
