"""KTO, ORPO, SimPO and CPO against TRL's trainers, run for real on the same batch."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from raydpo.training.losses import anchors, apo, dpo, hinge, kto, length, reference_free
from tests.conformance import peers
from tests.conftest import make_tiny_model

pytest.importorskip("trl")
#: Importing the trainers of TRL takes longer than all fast checks of losses together.
pytestmark = pytest.mark.slow

BETA = 0.3
ARGUMENTS: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Policy, reference, tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    policy, tokenizer = peers.load(make_tiny_model(folder / "policy", seed=0))
    reference, _ = peers.load(make_tiny_model(folder / "reference", seed=1))
    return policy, reference, tokenizer


def pairs() -> Any:
    return datasets.Dataset.from_dict(
        {"prompt": peers.PROMPTS, "chosen": peers.CHOSEN, "rejected": peers.REJECTED}
    )


def kto_trainer(models: tuple[Any, Any, Any], folder: Path, loss_type: str) -> Any:
    from trl import KTOConfig, KTOTrainer

    policy, reference, tokenizer = models
    completions = [*peers.CHOSEN[:3], *peers.REJECTED[3:]]
    data = {"prompt": peers.PROMPTS, "completion": completions, "label": [True] * 3 + [False] * 2}
    return KTOTrainer(
        model=policy,
        ref_model=reference,
        args=KTOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=5,
            beta=BETA,
            desirable_weight=1.3,
            undesirable_weight=0.8,
            loss_type=loss_type,
            **ARGUMENTS,
        ),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(data),
    )


def logratios(models: tuple[Any, Any, Any], batch: dict[str, Tensor], prefix: str) -> Tensor:
    ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
    policy, reference = (peers.sums(model, ids, mask).logps for model in models[:2])
    return policy - reference


def test_kto_is_that_of_trl(models: tuple[Any, Any, Any], tmp_path: Path) -> None:
    trainer = kto_trainer(models, tmp_path, "kto")
    batch = next(iter(trainer.get_train_dataloader()))
    mismatched = logratios(models, batch, "KL_")
    point = kto.kto_reference_point(mismatched)
    assert point > 0.1  # else the clamp would hide a wrong estimate
    losses = kto.kto_loss(
        logratios(models, batch, ""),
        batch["label"].bool(),
        point,
        beta=BETA,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    peers.close(losses.mean(), trainer.compute_loss(trainer.model, dict(batch)))


def test_trl_adds_one_to_the_desirable_half_of_unpaired_apo_zero(
    models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    trainer = kto_trainer(models, tmp_path, "apo_zero_unpaired")
    batch = next(iter(trainer.get_train_dataloader()))
    h, good = logratios(models, batch, ""), batch["label"].bool()
    nothing = torch.full_like(h, -torch.inf)  # sigmoid(-inf) = 0: only one half of a pair
    desirable = 1.3 * (1 + apo.apo_zero_loss(h, nothing, beta=BETA))
    undesirable = 0.8 * apo.apo_zero_loss(nothing, h, beta=BETA)
    ours = torch.where(good, desirable, undesirable).mean()
    peers.close(ours, trainer.compute_loss(trainer.model, dict(batch)))


def reference_free_trainer(
    models: tuple[Any, Any, Any], folder: Path, kind: str, **settings: object
) -> tuple[Any, dict[str, Tensor], peers.Sequences]:
    """A trainer, its batch, and our sums of chosen, then rejected."""
    import trl.experimental.cpo as cpo
    import trl.experimental.orpo as orpo

    config, trainer_class = {
        "cpo": (cpo.CPOConfig, cpo.CPOTrainer),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer),
    }[kind]
    policy, _, tokenizer = models
    trainer = trainer_class(
        model=policy,
        args=config(
            output_dir=str(folder),
            per_device_train_batch_size=len(peers.PROMPTS),
            remove_unused_columns=False,
            **ARGUMENTS,
            **settings,
        ),
        processing_class=tokenizer,
        train_dataset=pairs(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, batch, peers.concatenated(policy, batch)


def means(sums: peers.Sequences) -> tuple[Tensor, Tensor]:
    return peers.halves(length.per_token_means(sums.logps, sums.lengths))


def test_simpo_is_that_of_trl_and_gamma_is_the_same_knob(
    models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0}
    trainer, batch, sums = reference_free_trainer(models, tmp_path, "cpo", **settings)
    ours = reference_free.simpo_loss(*means(sums), beta=2.0, gamma=0.7)
    peers.close(ours.mean(), trainer.compute_loss(trainer.model, dict(batch)))


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_cpo_is_ours_on_logps_with_an_sft_term_that_trl_weighs_by_tokens(
    models: tuple[Any, Any, Any], tmp_path: Path, loss_type: str
) -> None:
    settings = {"loss_type": loss_type, "beta": BETA, "cpo_alpha": 0.5}
    trainer, batch, sums = reference_free_trainer(models, tmp_path, "cpo", **settings)
    loss = {"sigmoid": dpo.sigmoid_loss, "hinge": hinge.hinge_loss}[loss_type]
    contrast = loss(*peers.halves(sums.logps), beta=BETA).mean()
    logps, lengths = (peers.halves(values)[0] for values in (sums.logps, sums.lengths))
    terms = anchors.sft_term(logps, lengths)
    by_tokens = (terms * lengths).sum() / lengths.sum()
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    peers.close(contrast + 0.5 * by_tokens, theirs)
    assert abs(contrast + 0.5 * terms.mean() - theirs) > 1e-3


def test_trl_takes_the_prompt_into_the_cross_entropy_of_orpo(
    models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    trainer, batch, sums = reference_free_trainer(models, tmp_path, "orpo", beta=0.2)
    chosen, rejected = means(sums)
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    ours = reference_free.orpo_loss(chosen, rejected, odds_weight=0.2)
    odds_part = (ours + chosen).mean()
    whole, lengths = (
        peers.halves(values)[0] for values in (sums.prompt_and_completion_logps, sums.full_lengths)
    )
    peers.close(odds_part - whole.sum() / lengths.sum(), theirs)
    assert abs(ours.mean() - theirs) > 1e-2
