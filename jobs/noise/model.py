"""The noise study on the demo's model: sample, score, corrupt, train, evaluate on held-out prompts.

From the models and prompts in assets/ and a corruption, it measures how the implicit reward orders
held-out pairs with clean labels, how a judge scores new samples, and how far they are from the
reference. All of it runs in this process, with the same pair building and train loop as a job,
without Ray.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from noise.contenders import EQUAL_WITHOUT_NOISE, Result, contenders
from noise.labels import Asked, Noise, is_asked, share_of_votes
from raydpo.config.job import ModelConfig, PairsConfig, RewardConfig, TrainingConfig
from raydpo.config.objectives import SingleObjective
from raydpo.core.tables import Row
from raydpo.evaluation.metrics import sequence_logratios
from raydpo.labeling.builders import Draws, Scored
from raydpo.labeling.classifier import judge_with_classifier, load_classifier
from raydpo.labeling.pairs import build_pairs
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.prompts.encode import Text, make_encoder
from raydpo.training.batch import build_micro_batch, split_by_sequence
from raydpo.training.composition import Plan
from raydpo.training.groups import Group, GroupDataset, joined_rows, write_groups
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.loop import Hooks, train
from raydpo.training.objectives import make_objective
from raydpo.training.sharding import World
from raydpo.training.split import is_heldout

ASSETS = Path(__file__).parents[2] / "assets"
MODEL = ModelConfig(path=str(ASSETS / "review-lm"))
REWARD = RewardConfig(
    classifier=str(ASSETS / "sentiment-reward"), label="positive", input="completion"
)
JUDGE = RewardConfig(
    classifier=str(ASSETS / "sentiment-judge"),
    label="positive",
    output="probability",
    input="completion",
)
BETA, MIN_MARGIN = 0.1, 0.5
CANDIDATES, SAMPLES, MAX_COMPLETION_TOKENS = 8, 4, 64
HELDOUT_FRACTION = 0.3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Material:
    """Candidates with their true rewards and the reference's log-probs, prompt by prompt."""

    prompt_ids: list[list[int]]
    completions: list[list[list[int]]]
    rewards: list[list[float]]
    reference: list[list[list[float]]]


def prepare(cache: Path, prompts: int, seed: int) -> Material:
    """Sample and score candidates for the demo's first prompts, once."""
    if not cache.exists():
        made = _make_material(prompts, seed)
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(made.__dict__))
    return Material(**json.loads(cache.read_text()))


def run_model(
    material: Material, noise: Noise, seed: int, epochs: int, skip: set[str]
) -> Iterator[Result]:
    """Objectives on the same votes, one after the other.

    Without noise, objectives whose loss is that of `dpo` get its result.

    Args:
        material: candidates of all prompts.
        noise: how labels are corrupted.
        seed: of corruption, order and samples.
        epochs: passes over the training groups.
        skip: names of objectives that are done.
    """
    clean = _dataset(heldout_rows(material, seed))
    reference = TokenLogps(load_causal_lm(MODEL).eval(), attention="segments")
    for name, contender in contenders(noise, BETA).items():
        equal = EQUAL_WITHOUT_NOISE if name == "dpo" and not noise.rate else ()
        names = [one for one in (name, *equal) if one not in skip]
        if not names or (not noise.rate and name in EQUAL_WITHOUT_NOISE):
            continue
        data = _dataset(training_rows(material, noise, seed, contender.asked))
        policy = _train(data, contender.section, seed, epochs)
        right, prompts = _right_orders(policy, clean)
        scores, kl, of = _samples(policy, reference, clean, seed)
        for one in names:
            yield Result(
                "model", one, noise.name, noise.rate, seed, right, prompts,
                scores=scores, kl=kl, score_prompts=of,
            )  # fmt: skip


def _dataset(rows: Iterator[Row]) -> GroupDataset:
    return GroupDataset(write_groups(rows, uuid.uuid4().hex))


def _make_material(count: int, seed: int) -> Material:
    tokenizer = load_tokenizer(MODEL)
    lines = (ASSETS / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    texts = [json.loads(line)["prompt"] for line in lines]
    prompts = make_encoder(tokenizer).prompts([Text(text) for text in texts])
    completions = _sample(load_causal_lm(MODEL), tokenizer, prompts, CANDIDATES, seed)
    rewards = _judged(REWARD, tokenizer, completions)
    module = TokenLogps(load_causal_lm(MODEL).eval(), attention="segments")
    reference = [
        _logps(module, Group("", prompt, answers, [], None))
        for prompt, answers in zip(prompts, completions, strict=True)
    ]
    return Material(prompts, completions, rewards, reference)


@torch.no_grad()
def _sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], count: int, seed: int
) -> list[list[list[int]]]:
    """Completions of each prompt at temperature 1, EOS included; prompts of one length together."""
    torch.manual_seed(seed)
    eos_id = tokenizer.eos_token_id
    assert isinstance(eos_id, int)
    found: dict[int, list[list[int]]] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        numbers = [n for n, prompt in enumerate(prompts) if len(prompt) == length]
        ids = model.generate(
            input_ids=torch.tensor([prompts[n] for n in numbers]),
            attention_mask=torch.ones(len(numbers), length, dtype=torch.int64),
            do_sample=True,
            top_k=0,
            num_return_sequences=count,
            max_new_tokens=MAX_COMPLETION_TOKENS,
            pad_token_id=eos_id,
        )[:, length:].tolist()
        ended = [_until_eos(row, eos_id) for row in ids]
        for place, number in enumerate(numbers):
            found[number] = ended[place * count : (place + 1) * count]
    return [found[number] for number in range(len(prompts))]


def _until_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def _judged(
    reward: RewardConfig, tokenizer: PreTrainedTokenizerBase, completions: list[list[list[int]]]
) -> list[list[float]]:
    """What a classifier gives each completion of each prompt."""
    flat = [ids for answers in completions for ids in answers]
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in flat]
    judged = judge_with_classifier(load_classifier(reward), ["" for _ in texts], texts)
    # A completion without text is as good as none.
    values = iter([v if isinstance(v, float) else 0.0 for v in judged.values])
    return [[next(values) for _ in answers] for answers in completions]


@torch.no_grad()
def _logps(module: TokenLogps, group: Group) -> list[list[float]]:
    batch = build_micro_batch([group], module.shared)
    return split_by_sequence(token_logps(module, batch).tolist(), batch)


def training_rows(material: Material, noise: Noise, seed: int, asked: Asked) -> Iterator[Row]:
    """Groups of the training prompts, with the pairs that a job would build and their votes."""
    for name, row, scores in _rows(material, seed, heldout=False):
        draws, pairs = Draws(seed, 0, name), list[Row]()
        for pair in row["pairs"]:
            better, worse = pair["chosen"], pair["rejected"]
            key = (min(better, worse), max(better, worse))
            if not is_asked(draws, asked, key):
                continue
            share = share_of_votes(noise, draws, asked, key)
            if share < 0.5:
                better, worse = worse, better
            known = {"probability": max(share, 1 - share)}
            pairs.append({"chosen": better, "rejected": worse, "weight": 1.0, **known})
        if pairs:
            yield from joined_rows([{**row, "pairs": pairs}], [scores], lambda _: True)


def heldout_rows(material: Material, seed: int) -> Iterator[Row]:
    """Groups of the held-out prompts, with clean labels."""
    for _, row, scores in _rows(material, seed, heldout=True):
        yield from joined_rows([row], [scores], lambda _: True)


def _rows(material: Material, seed: int, heldout: bool) -> Iterator[tuple[str, Row, Row]]:
    """Name, preferences and reference scores of the groups on one side of the split."""
    config = PairsConfig(builder="all_pairs", min_margin=MIN_MARGIN)
    columns = (material.prompt_ids, material.completions, material.rewards, material.reference)
    for number, (prompt, completions, rewards, reference) in enumerate(zip(*columns, strict=True)):
        name = str(number)
        scored = [
            Scored(i, tuple(ids), reward)
            for i, (ids, reward) in enumerate(zip(completions, rewards, strict=True))
        ]
        pairs = build_pairs(scored, config, Draws(seed, 0, name)).pairs
        if not pairs or is_heldout(name, HELDOUT_FRACTION, seed) != heldout:
            continue
        row = {
            "group_id": name,
            "prompt_id": name,
            "prompt_ids": prompt,
            "completions": completions,
            "pairs": [{"chosen": c, "rejected": r, "weight": 1.0} for c, r in pairs],
        }
        yield name, row, {"group_id": name, "reference_token_logps": reference}


def _train(data: GroupDataset, section: SingleObjective, seed: int, epochs: int) -> TokenLogps:
    settings = TrainingConfig(
        objective=section, learning_rate=2e-4, schedule="cosine", max_tokens_per_micro_batch=8192
    )
    module = TokenLogps(load_causal_lm(MODEL).eval(), attention="segments")
    hooks = Hooks(
        log=lambda _step, _metrics: None,
        checkpoint=lambda _step, _metrics, _save: lambda: None,
        first_step=lambda _largest: None,
        failed=lambda _failure: None,
    )
    plan = Plan(len(data), 16, epochs, None, seed)
    train(module, data, make_objective(section, seed), settings, plan, World(0, 1, CPU), hooks)
    return module


def _right_orders(policy: TokenLogps, clean: GroupDataset) -> tuple[list[float], list[str]]:
    """Of each held-out pair 1.0 where its better completion gained more, and its prompt."""
    right: list[float] = []
    prompts: list[str] = []
    for number in range(len(clean)):
        group = clean[number]
        assert group.reference_token_logps is not None
        sums = map(sum, _logps(policy, group))
        reference = map(sum, group.reference_token_logps)
        ratios = [ours - theirs for ours, theirs in zip(sums, reference, strict=True)]
        margins = [ratios[pair.chosen] - ratios[pair.rejected] for pair in group.pairs]
        right += [0.5 if margin == 0 else float(margin > 0) for margin in margins]
        prompts += [group.group_id] * len(margins)
    return right, prompts


def _samples(
    policy: TokenLogps, reference: TokenLogps, clean: GroupDataset, seed: int
) -> tuple[list[float], list[float], list[str]]:
    """The judge's scores of new samples on held-out prompts, their log-ratios, and their prompts."""
    groups = [clean[number] for number in range(len(clean))]
    model = load_causal_lm(MODEL)  # with the attention that generation takes
    model.load_state_dict(policy.model.state_dict())
    tokenizer = load_tokenizer(MODEL)
    prompts = [group.prompt_ids for group in groups]
    samples = _sample(model, tokenizer, prompts, SAMPLES, seed + 1)
    scores = _judged(JUDGE, tokenizer, samples)
    ratios: list[float] = []
    for prompt, own in zip(prompts, samples, strict=True):
        group = Group("", prompt, own, [], None)
        ratios += sequence_logratios(_logps(policy, group), _logps(reference, group))
    flat = [score for own in scores for score in own]
    return flat, ratios, [group.group_id for group in groups for _ in range(SAMPLES)]
