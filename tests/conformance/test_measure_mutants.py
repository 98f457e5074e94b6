"""Tests notice a mistake planted anywhere between the configuration and the loss of a step."""

import pytest

from tests.conformance import measure_mutants
from tests.conformance.held import noticed
from tests.conformance.known_mistakes import MISTAKES
from tests.conformance.plants import written

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("name", MISTAKES)
def test_known_mistakes_are_noticed(name: str) -> None:
    assert noticed(written(*MISTAKES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("module", measure_mutants.MODULES)
def test_mistakes_planted_everywhere_are_noticed(module: str) -> None:
    made = list(measure_mutants.all_mutants(module))
    wrong = [mutant for mutant in made if not measure_mutants.is_equivalent(mutant)]
    assert len(wrong) >= 30
    assert [(mutant.name, mutant.line) for mutant in wrong if not noticed(mutant)] == []
    as_right = {key for key in measure_mutants.EQUIVALENT if key[0] == module.rsplit(".", 1)[-1]}
    assert as_right <= {measure_mutants.key_of(mutant) for mutant in made}
