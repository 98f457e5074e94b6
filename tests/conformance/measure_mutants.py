"""Plant one mistake at a time into the code between sections and the losses of micro-batches.

`python -m tests.conformance.measure_mutants` prints every mutant with its fate. The mutants of
raydpo.training.measures and of the objectives have the mistakes of `mutants.py`, and those that
only this layer can have: an ignored option, two exchanged arguments, a stopped gradient, ignored
weights.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator

from raydpo.config import objectives as config_objectives
from tests.conformance import mutants, plants
from tests.conformance.held import noticed
from tests.conformance.plants import FunctionTree, Plant

MODULES = [
    *(f"raydpo.training.measures.{name}" for name in ("cringe", "pairs", "rankings", "rewards")),
    *(f"raydpo.training.measures.{name}" for name in ("policy_gradient", "surveyed", "values")),
    "raydpo.training.objectives",
]
#: The hash that tokens are drawn by: its parts stand in `known_mistakes.py`. With other shifts in it
#: it asks Python for numbers larger than memory.
LEFT_OUT = ("token_uniforms", "_mixed")
#: Mutants that are as right, by module, function and the statement or part with the mistake.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "pairs",
        "_measure_logratios",
        "scale = settings.kl_beta or 2.0",
    ): "these have a beta or a tau",
    (
        "rankings",
        "_measure",
        "numbers = batch.rankings",
    ): "-1 is a sequence too, and masked all the same",
    (
        "rankings",
        "_token_weights",
        "lengths = batch.sequence_lengths[batch.rankings]",
    ): "masked as well",
    (
        "rankings",
        "_metrics",
        "logps = batch.sequence_sums(outputs.logps.detach())[batch.rankings]",
    ): "what is read of them is not padding",
    (
        "rewards",
        "_measure_pairs",
        "return Values(losses, batch.pair_weights, batch.pairs[:, 1], metrics)",
    ): "a reward model has no anchor",
    (
        "rewards",
        "_measure_pairs",
        "centering_term(rejected, chosen)",
    ): "the term is of the sum of both",
    (
        "rewards",
        "_measure_rankings",
        "return Values(losses, torch.ones_like(losses), batch.rankings[:, 1], metrics)",
    ): "a reward model has no anchor",
    (
        "rewards",
        "_measure_rankings",
        "rewards = batch.sequence_sums(outputs.logps)[batch.rankings]",
    ): "masked",
    (
        "rewards",
        "_measure_rankings",
        "metrics['rewards/accuracies'] = share_in_order(rewards, mask)",
    ): "a comparison has no gradient",
    (
        "policy_gradient",
        "_measure",
        "nothing = torch.full_like(batch.sequence_lengths, -2)",
    ): "none, as -1 is",
    (
        "policy_gradient",
        "_sampler_logratios",
        "return batch.sequence_sums((batch.sampler_token_logps - batch.reference_token_logps)"
        ".detach()).double()",
    ): "data has no gradient",
    (
        "surveyed",
        "_measure_kto",
        "preferred = torch.where(desirable, batch.judged, -2)",
    ): "none, as -1 is",
    (
        "surveyed",
        "_mean_logratio",
        "return sum((w * both for both, w in pairs)) / (2 * sum((w for w, _ in pairs)))",
    ): "a product of the same two",
    (
        "objectives",
        "SumOfObjectives.view",
        "return self.terms[1][1].view(group)",
    ): "all terms see the same",
    (
        "objectives",
        "_anchor",
        "sequences = values.preferred",
    ): "-1 is a sequence too, and masked all the same",
}
#: The mean of chosen and rejected is the same where they are exchanged.
SYMMETRIC = ("_mean_logratio", "pairs = ")
#: What an option may be called after in these modules.
SETTINGS = ("settings", "self.settings", "length")
TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Gt: ast.LtE,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
}
#: Tensors of weights that are easily left out.
WEIGHTS = ("pair_weights", "pair_probabilities")


def all_mutants(module: str) -> Iterator[Plant]:
    """All mutants of a module, each once."""
    seen: set[tuple[str, str]] = set()
    for name, function in plants.functions(plants.source_of(module)).items():
        for line, tree in () if name in LEFT_OUT else _mutated(function):
            key = (name, ast.dump(tree))
            if key not in seen and key[1] != ast.dump(function):
                seen.add(key)
                yield Plant(module, name, line, tree)


def key_of(mutant: Plant) -> tuple[str, str, str]:
    """What it is called in `EQUIVALENT`."""
    return (mutant.module.rsplit(".", 1)[-1], mutant.name, mutant.line)


def is_equivalent(mutant: Plant) -> bool:
    """Whether it is as right as what is shipped."""
    name, start = SYMMETRIC
    exchanged = mutant.name == name and mutant.line.startswith(start) and _both_exchanged(mutant)
    return exchanged or key_of(mutant) in EQUIVALENT


def _both_exchanged(mutant: Plant) -> bool:
    return any(
        names in mutant.line
        for names in (
            "(rejected, chosen, of_chosen, of_rejected)",
            "(chosen, rejected, of_rejected, of_chosen)",
        )
    )


def _mutated(function: FunctionTree) -> Iterator[tuple[str, FunctionTree]]:
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    for place, statement in enumerate(function.body):
        if isinstance(statement, ast.Assert) or _is_docstring(statement):
            continue
        for index, node in enumerate(_walk(statement)):
            for replacement in _replacements(node):
                if isinstance(replacement, ast.Name) and replacement.id not in names:
                    continue
                mutated = copy.deepcopy(function)
                found = list(_walk(mutated.body[place]))[index]
                mutants.Replace(found, replacement).visit(mutated.body[place])
                yield _line(replacement, mutated.body[place]), mutated


def _walk(statement: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of assertions, annotations and patterns of cases."""
    yield statement
    for name, value in ast.iter_fields(statement):
        if name in ("annotation", "pattern"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_never_wrong(child):
                yield from _walk(child)


def _is_never_wrong(node: ast.AST) -> bool:
    """An assertion, or the end of a match over a closed set."""
    ends = isinstance(node, ast.Call) and ast.unparse(node.func) == "assert_never"
    return ends or isinstance(node, ast.Assert)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _line(replacement: ast.AST, statement: ast.stmt) -> str:
    """What is written in the list: the statement, or of a long one the part with the mistake."""
    whole = ast.unparse(statement)
    return whole if "\n" not in whole else ast.unparse(replacement)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        # Turned round; what a tie is does not matter here.
        yield ast.Compare(node.left, [TURNED[type(node.ops[0])]()], node.comparators)
    else:
        yield from mutants.replacements(node)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield from _attribute(node)
    if isinstance(node, ast.Call):
        yield from _exchanged_arguments(node)
        yield from _stopped_gradients(node)
    if isinstance(node, ast.Tuple):
        yield from (ast.Tuple(pair, node.ctx) for pair in _exchanged(node.elts))
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Name):
        yield ast.Return(_call(node.value, "detach"))


def _attribute(node: ast.Attribute) -> Iterator[ast.AST]:
    owner = ast.unparse(node.value)
    if owner in SETTINGS and node.attr in _options():
        # Ignored: always its default.
        section = f"type({owner}).model_fields[{node.attr!r}]"
        default = f"{section}.default if not {section}.is_required() else 1.0"
        yield ast.parse(f"({default})", mode="eval").body
    if node.attr in WEIGHTS:
        weights = ast.unparse(node)
        yield ast.parse(f"{weights}.new_ones({weights}.shape)", mode="eval").body


def _options() -> set[str]:
    sections = vars(config_objectives).values()
    found = {"ld_alpha"}
    for section in sections:
        if isinstance(section, type) and issubclass(section, config_objectives.Section):
            found |= set(section.model_fields)
    return found - {"name", "terms", "objective", "weight"}


def _exchanged(values: list[ast.expr]) -> Iterator[list[ast.expr]]:
    """Two neighbours in each other's place."""
    for index in range(len(values) - 1):
        one, other = values[index], values[index + 1]
        if not any(isinstance(value, ast.Starred | ast.Constant) for value in (one, other)):
            yield [*values[:index], other, one, *values[index + 2 :]]


def _exchanged_arguments(node: ast.Call) -> Iterator[ast.AST]:
    if ast.unparse(node.func) in ("partial", "isinstance", "zip", "torch.full_like"):
        return
    for arguments in _exchanged(node.args):
        yield ast.Call(node.func, arguments, node.keywords)
    for values in _exchanged([keyword.value for keyword in node.keywords]):
        names = [keyword.arg for keyword in node.keywords]
        keywords = [ast.keyword(n, v) for n, v in zip(names, values, strict=True)]
        yield ast.Call(node.func, node.args, keywords)


#: What makes losses of tensors: a gradient may be stopped at each of their arguments.
OF_TENSORS = ("loss", "_loss", "_sums", "sums", "token_losses", "sequence_values", "scores")

HAS_GRADIENT = re.compile(r"chosen|rejected|logps|logratios|values|kl|contrast")


def _stopped_gradients(node: ast.Call) -> Iterator[ast.AST]:
    if ast.unparse(node.func).endswith(OF_TENSORS):
        for index, argument in enumerate(node.args):
            text = ast.unparse(argument)
            if HAS_GRADIENT.search(text) and not text.endswith("detach()"):
                arguments = [*node.args]
                arguments[index] = _call(argument, "detach")
                yield ast.Call(node.func, arguments, node.keywords)


def _call(value: ast.expr, method: str) -> ast.Call:
    return ast.Call(ast.Attribute(value, method, ast.Load()), [], [])


def main() -> None:
    total = survivors = 0
    for module in MODULES:
        for mutant in all_mutants(module):
            total += 1
            alive = not is_equivalent(mutant) and not noticed(mutant)
            survivors += alive
            known = "as right" if is_equivalent(mutant) else "noticed"
            fate = "NOT NOTICED" if alive else known
            print(f"{module.rsplit('.', 1)[-1]:12} {mutant.name:35} {fate:12} {mutant.line}")
    print(f"{total} mutants, {survivors} not noticed")


if __name__ == "__main__":
    main()
