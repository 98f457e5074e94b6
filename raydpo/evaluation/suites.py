"""Results of suites that other projects make, such as lm-evaluation-harness, in a run's folders.

A suite's results are a stage in `suites/` of the round's folder: its manifest names the weights
that were evaluated, the program with its version, and every number. `raydpo show` and
`raydpo publish` read them from there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from raydpo.core.run import read_manifest
from raydpo.core.storage import Folder

Json = dict[str, Any]

#: Folder of a round, or of supervised fine-tuning, that holds them.
SUITES: Final = "suites"
#: Key of a manifest that holds the numbers.
RESULTS: Final = "results"
_Z_95: Final = 1.96


@dataclass(frozen=True)
class SuiteResult:
    """One number of a suite.

    Attributes:
        program: the program with its version.
        task: what was measured, in the suite's own words.
        metric: the metric's name there.
        value: of the model.
        standard_error: of the value, if the suite gives one.
        samples: examples that were evaluated, if it is known.
        settings: what else the number depends on, such as `num_fewshot 5`; empty for the
            suite's own defaults.
    """

    program: str
    task: str
    metric: str
    value: float
    standard_error: float | None = None
    samples: int | None = None
    settings: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The normal 95 % confidence interval, if there is a standard error."""
        if self.standard_error is None:
            return None
        return (
            self.value - _Z_95 * self.standard_error,
            self.value + _Z_95 * self.standard_error,
        )

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        samples = "" if self.samples is None else f" on {self.samples:,} examples"
        settings = f" ({self.settings})" if self.settings else ""
        return f"{self.task} {self.metric} {self.value:.4f}{error}{samples}{settings}"

    def as_json(self) -> Json:
        """Return the number as plain values, for a manifest."""
        return asdict(self)


def results_in(manifest: Json) -> list[SuiteResult]:
    """Return the numbers in the manifest of a suite; none in that of another stage."""
    return [SuiteResult(**values) for values in manifest.get(RESULTS, [])]


def suite_results(folder: Folder, policy: str) -> list[SuiteResult]:
    """Return the numbers of all suites of a round that are of this policy.

    Args:
        folder: of the round.
        policy: the fingerprint of the policy's weights; numbers of earlier weights are left out.
    """
    suites = folder.child(SUITES)
    ends = [name for name in suites.files(recursive=True) if name.endswith("/manifest.json")]
    found: list[SuiteResult] = []
    for name in sorted(ends):
        manifest = read_manifest(suites.child(name.rpartition("/")[0]))
        if manifest is not None and manifest["inputs"].get("policy") == policy:
            found += results_in(manifest)
    return found
