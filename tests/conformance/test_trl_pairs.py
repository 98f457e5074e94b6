"""Our losses against TRL's DPOTrainer and RewardTrainer, run for real on the same batch.

If TRL differs from the paper, the test's name says so, and the test checks both that it differs
and what it computes instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from raydpo.training.losses import (
    anchors,
    aot,
    apo,
    contrastive,
    discopop,
    dpo,
    f_divergence,
    hinge,
    ipo,
    length,
    reward_model,
)
from tests.conformance import peers
from tests.conftest import make_tiny_model

pytest.importorskip("trl")
#: Importing the trainers of TRL takes longer than all fast checks of losses together.
pytestmark = pytest.mark.slow

BETA = 0.3


@dataclass(frozen=True)
class World:
    """TRL's trainer with a batch of its own making, and our sums over that batch."""

    trainer: Any
    batch: dict[str, Tensor]
    policy: peers.Sequences
    reference: peers.Sequences

    def theirs(self, loss_type: str, **settings: object) -> Tensor:
        """The loss of TRL's own `compute_loss`."""
        chosen = {
            "loss_types": [loss_type],
            "beta": BETA,
            "label_smoothing": 0.0,
            "f_divergence_type": "reverse_kl",
            "ld_alpha": None,
            **settings,
        }
        for name, value in chosen.items():
            assert hasattr(self.trainer, name), name
            setattr(self.trainer, name, value)
        return self.trainer.compute_loss(self.trainer.model, dict(self.batch))

    @property
    def logratios(self) -> tuple[Tensor, Tensor]:
        return peers.halves(self.policy.logps - self.reference.logps)

    @property
    def mean_logratios(self) -> tuple[Tensor, Tensor]:
        means = length.per_token_means(
            self.policy.logps - self.reference.logps, self.policy.lengths
        )
        return peers.halves(means)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from trl import DPOConfig, DPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    policy, tokenizer = peers.load(make_tiny_model(folder / "policy", seed=0))
    reference, _ = peers.load(make_tiny_model(folder / "reference", seed=1))
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**arguments(folder)),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": peers.PROMPTS, "chosen": peers.CHOSEN, "rejected": peers.REJECTED}
        ),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ours = [
        peers.sums(model, batch["input_ids"], batch["completion_mask"])
        for model in (policy, reference)
    ]
    return World(trainer, batch, *ours)


def arguments(folder: Path) -> dict[str, Any]:
    """One batch of everything, in float32 on the CPU."""
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": len(peers.PROMPTS),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def exo(c: Tensor, r: Tensor) -> Tensor:
    return contrastive.exo_loss(c, r, beta=BETA, label_smoothing=1e-3)


def robust(c: Tensor, r: Tensor) -> Tensor:
    return dpo.robust_loss(c, r, beta=BETA, flip_rate=0.1)


def pop(c: Tensor, r: Tensor) -> Tensor:
    return discopop.discopop_loss(c, r, beta=BETA, temperature=0.05)


def sigmoid(c: Tensor, r: Tensor) -> Tensor:
    return dpo.sigmoid_loss(c, r, beta=BETA)


def bco(c: Tensor, r: Tensor) -> Tensor:
    return contrastive.bco_loss(c, r, 0.0, beta=BETA)


def sppo(c: Tensor, r: Tensor) -> Tensor:
    return ipo.sppo_loss(c, r, torch.ones_like(c), torch.zeros_like(r), beta=BETA)


def aot_loss(values: Tensor, others: Tensor) -> Tensor:
    matched = aot.matched_by_rank(values, others)
    return dpo.conservative_loss(values, matched, beta=BETA, label_smoothing=0.1)


SAME: list[tuple[str, Callable[[Tensor, Tensor], Tensor], dict[str, float]]] = [
    ("sigmoid", sigmoid, {}),
    ("hinge", lambda c, r: hinge.hinge_loss(c, r, beta=BETA), {}),
    ("exo_pair", exo, {"label_smoothing": 1e-3}),
    ("nca_pair", lambda c, r: contrastive.nca_loss(c, r, beta=BETA), {}),
    ("robust", robust, {"label_smoothing": 0.1}),
    ("bco_pair", bco, {}),
    ("sppo_hard", sppo, {}),
    ("aot_unpaired", aot_loss, {"label_smoothing": 0.1}),
    ("discopop", pop, {}),
]


@pytest.mark.parametrize(("name", "loss", "settings"), SAME, ids=[row[0] for row in SAME])
def test_loss_is_that_of_trl(
    world: World,
    name: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: dict[str, float],
) -> None:
    peers.close(loss(*world.logratios).mean(), world.theirs(name, **settings))


def test_gradient_of_every_weight_is_that_of_trl(world: World) -> None:
    model = world.trainer.model
    logps = peers.sums(model, world.batch["input_ids"], world.batch["completion_mask"]).logps
    loss = sigmoid(*peers.halves(logps - world.reference.logps.detach())).mean()
    weights = list(model.parameters())
    ours = torch.autograd.grad(loss, weights)
    theirs = torch.autograd.grad(world.theirs("sigmoid"), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_aot_is_that_of_trl(world: World) -> None:
    policy, reference = (
        chosen - rejected
        for chosen, rejected in map(peers.halves, (world.policy.logps, world.reference.logps))
    )
    ours = aot_loss(policy, reference)
    peers.close(ours.mean(), world.theirs("aot", label_smoothing=0.1))


def test_length_normalised_dpo_is_that_of_trl(world: World) -> None:
    peers.close(sigmoid(*world.mean_logratios).mean(), world.theirs("sigmoid_norm"))


@pytest.mark.parametrize("name", ["forward_kl", "js_divergence"])
def test_f_divergences_are_those_of_trl(world: World, name: str) -> None:
    scores = {
        "forward_kl": f_divergence.forward_kl_scores,
        "js_divergence": f_divergence.js_scores,
    }[name]
    ours = sigmoid(*map(scores, world.logratios)).mean()
    peers.close(ours, world.theirs("sigmoid", f_divergence_type=name))


def test_trl_means_one_minus_alpha_by_its_alpha_divergence_coefficient(world: World) -> None:
    chosen, rejected = (f_divergence.alpha_scores(h, alpha=0.3) for h in world.logratios)
    ours = sigmoid(chosen, rejected).mean()
    settings = {"f_divergence_type": "alpha_divergence"}
    peers.close(ours, world.theirs("sigmoid", **settings, f_alpha_divergence_coef=0.7))
    assert abs(ours - world.theirs("sigmoid", **settings, f_alpha_divergence_coef=0.3)) > 1e-2


def test_length_desensitized_sums_are_those_of_trl(world: World) -> None:
    token_logratios, sequences = peers.token_logratios(
        world.trainer.model, world.trainer.ref_model, world.batch
    )
    count = len(peers.PROMPTS)
    pairs = torch.stack([torch.arange(count), torch.arange(count) + count], dim=1)
    ours = length.length_desensitized_sums(
        token_logratios, sequences, world.policy.lengths, pairs, alpha=0.4
    )
    peers.close(sigmoid(*ours).mean(), world.theirs("sigmoid", ld_alpha=0.4))


def test_trl_ignores_label_smoothing_for_the_sigmoid_loss(world: World) -> None:
    smoothed = dpo.conservative_loss(*world.logratios, beta=BETA, label_smoothing=0.2).mean()
    theirs = world.theirs("sigmoid", label_smoothing=0.2)
    peers.close(sigmoid(*world.logratios).mean(), theirs)
    assert abs(smoothed - theirs) > 1e-2


def test_trl_takes_means_over_tokens_for_ipo(world: World) -> None:
    theirs = world.theirs("ipo")
    peers.close(ipo.ipo_loss(*world.mean_logratios, tau=BETA).mean(), theirs)
    assert abs(ipo.ipo_loss(*world.logratios, tau=BETA).mean() - theirs) > 1


@pytest.mark.parametrize("name", ["apo_zero", "apo_down"])
def test_trl_adds_one_to_apo(world: World, name: str) -> None:
    loss = {"apo_zero": apo.apo_zero_loss, "apo_down": apo.apo_down_loss}[name]
    peers.close(loss(*world.logratios, beta=BETA).mean() + 1, world.theirs(name))


def test_trl_weighs_the_sft_term_by_tokens(world: World) -> None:
    logps, lengths = (peers.halves(v)[0] for v in (world.policy.logps, world.policy.lengths))
    theirs = world.theirs("sft")
    terms = anchors.sft_term(logps, lengths)
    peers.close((terms * lengths).sum() / lengths.sum(), theirs)
    assert abs(terms.mean() - theirs) > 1e-3


def test_trl_has_no_number_for_discopop_far_on_the_wrong_side(world: World) -> None:
    assert not world.theirs("discopop", beta=30.0).isfinite()
    ours = discopop.discopop_loss(*world.logratios, beta=30.0, temperature=0.05)
    assert ours.isfinite().all()


@pytest.mark.parametrize("centering_weight", [None, 0.3])
def test_reward_model_loss_is_that_of_trl(tmp_path: Path, centering_weight: float | None) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    folder = make_tiny_model(tmp_path / "base", seed=0)
    _, tokenizer = peers.load(folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(tmp_path), center_rewards_coefficient=centering_weight),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(
            {
                "chosen": [p + c for p, c in zip(peers.PROMPTS, peers.CHOSEN, strict=True)],
                "rejected": [p + r for p, r in zip(peers.PROMPTS, peers.REJECTED, strict=True)],
            }
        ),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        chosen, rejected = peers.halves(model(**batch).logits.squeeze(-1))
    ours = reward_model.bradley_terry_loss(chosen, rejected)
    ours += (centering_weight or 0.0) * reward_model.centering_term(chosen, rejected)
    peers.close(ours.mean(), theirs)
