"""The golden checks notice a mistake planted anywhere in a loss."""

import pytest

from tests.conformance import mutants

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("module", mutants.modules())
def test_checks_notice_planted_mistakes(module: str) -> None:
    made = list(mutants.mutants(module))
    alive = {(mutant.module, mutant.line) for mutant in made if mutants.survives(mutant)}
    assert alive == {key for key in mutants.EQUIVALENT if key[0] == module}
    assert len(made) >= 2


def test_mutants_have_the_mistakes_that_papers_and_code_are_known_for() -> None:
    lines = {mutant.line for module in mutants.modules() for mutant in mutants.mutants(module)}
    wanted = {
        "a sign": "return F.logsigmoid(beta * (chosen_logratios - rejected_logratios))",
        "beta on one term": "return -F.logsigmoid(beta * chosen_logratios - rejected_logratios)",
        "chosen for rejected": "return -F.logsigmoid(beta * (rejected_logratios - rejected_logratios))",
        "gamma in beta": "return -F.logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps - gamma))",
        "gamma's sign": "return -F.logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) + gamma)",
        "mean for sum": "return ((weights * table[chosen]).mean(1), (weights * table[rejected]).sum(1))",
        "robust as conservative": (
            "return (flipped + (1 - flip_rate) * F.logsigmoid(logits)) / (1 - 2 * flip_rate)"
        ),
        "no stopped gradient": (
            "return -F.logsigmoid(beta * (margins - alpha * (rejected_kl - chosen_kl)))"
        ),
    }
    assert {name for name, line in wanted.items() if line not in lines} == set()
