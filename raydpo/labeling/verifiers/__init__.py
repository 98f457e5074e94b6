"""Verifiers: reward functions that compare a completion with what its prompt asks for.

`reward: {function: raydpo.labeling.verifiers:number}` names one; docs/rewards.md has the table. A
verifier gives 1.0 or 0.0, `python_tests` also a share of tests. For a prompt whose column is empty
it gives None, which means that it does not apply. It raises `ValueError` if the column cannot be
judged by; raydpo then refuses that completion with the reason. The modules import nothing heavy.
"""

from __future__ import annotations

from raydpo.labeling.verifiers.documents import json_schema
from raydpo.labeling.verifiers.numbers import number
from raydpo.labeling.verifiers.programs import python_tests
from raydpo.labeling.verifiers.texts import exact, regex

__all__ = ["exact", "json_schema", "number", "python_tests", "regex"]
