import itertools

from raydpo.sampling.stage import prompt_seed


def test_a_seed_depends_on_run_round_and_prompt() -> None:
    seeds = {
        prompt_seed(0, 0, "a"),
        prompt_seed(1, 0, "a"),
        prompt_seed(0, 1, "a"),
        prompt_seed(0, 0, "b"),
        prompt_seed(0, 10, "a"),
        prompt_seed(10, 0, "a"),
    }
    assert len(seeds) == 6


def test_a_seed_stays_the_same_between_versions() -> None:
    assert prompt_seed(7, 2, "prompt-1") == 514867988259403404


def test_seeds_of_all_candidates_fit_an_int64_and_do_not_overlap() -> None:
    seeds = sorted(prompt_seed(0, 0, str(number)) for number in range(10_000))
    assert seeds[0] >= 0
    assert seeds[-1] + 1_000 < 2**63
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 1_000


def test_an_id_with_a_lone_surrogate_has_a_seed() -> None:
    assert prompt_seed(0, 0, "\ud800") != prompt_seed(0, 0, "?")
