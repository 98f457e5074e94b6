"""Limits of the data that a job trains on: `raydpo inspect` measures them, and a run stops at them."""

from __future__ import annotations

from raydpo.config.base import Fraction, Section
from raydpo.config.content import Placement


class InspectConfig(Section):
    """Inspection of the preferences before anything is trained on them; `inspect: {}` writes the page only.

    A limit that is exceeded stops the run after the page is written. The limits change no table.
    """

    max_longer_chosen: Placement[Fraction | None] = None
    """Maximum share of pairs (of two lengths) whose longer completion is the chosen one."""
    max_length_rule_accuracy: Placement[Fraction | None] = None
    """Maximum held-out accuracy of a rule that knows the lengths alone; 0.5 is chance."""
    max_word_rule_accuracy: Placement[Fraction | None] = None
    """Maximum held-out accuracy of a rule that knows words and pairs of words alone; 0.5 is chance."""
    max_ties: Placement[Fraction | None] = None
    """Maximum share of ties among the rewards of one prompt's completions."""
    max_duplicates: Placement[Fraction | None] = None
    """Maximum share of rows that repeat an earlier one, exactly or nearly."""
    max_conflicts: Placement[Fraction | None] = None
    """Maximum share of pairs that another row has with the opposite label."""
    max_overlap: Placement[Fraction | None] = None
    """Maximum share of the evaluation's or held-out prompts that are also trained on, exactly or nearly."""
    max_truncated: Placement[Fraction | None] = None
    """Maximum share of completions at the token limit."""
    max_anomalies: Placement[Fraction | None] = None
    """Maximum share of completions with traces of a template or damage."""

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of what they limit."""
        given = {
            "longer_chosen": self.max_longer_chosen,
            "length_rule_accuracy": self.max_length_rule_accuracy,
            "word_rule_accuracy": self.max_word_rule_accuracy,
            "ties": self.max_ties,
            "duplicates": self.max_duplicates,
            "conflicts": self.max_conflicts,
            "overlap": self.max_overlap,
            "truncated": self.max_truncated,
            "anomalies": self.max_anomalies,
        }
        return {name: limit for name, limit in given.items() if limit is not None}
