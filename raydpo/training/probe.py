"""Record what the trainer's forward pass computes for a few completions after the last step.

The trained module and the groups give JSON that lies in the exported model's folder. Before the
training is done, `export.py` compares the exported model with it; `sampling/probe.py` compares
engines. So an error in exporting or loading a weight shows before the model samples.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset
from raydpo.training.logps import completion_logps
from raydpo.training.sharding import World

#: File in the model's folder.
PROBE_FILE: Final = "probe.json"
#: Key of the log-probs of tokens, in nats.
LOGPS: Final = "token_logps"
#: Key of the rewards of completions, given by a reward model.
REWARDS: Final = "rewards"
#: Maximum number of groups, taken from the last step.
_GROUPS: Final = 2


@torch.no_grad()
def probe(
    module: nn.Module,
    shared: bool,
    rewards: bool,
    data: GroupDataset,
    plan: Plan,
    world: World,
) -> list[dict[str, Any]]:
    """Return the module's values for the last step's first groups, one row per group.

    Every rank calls this and makes the same pass, because the pass gathers sharded parameters.

    Args:
        module: the value that `train` returned.
        shared: whether the module takes the shared layout.
        rewards: whether the module is a reward model.
        data: all groups.
        plan: the plan of the training.
        world: the train workers.

    Returns:
        Rows of `prompt_ids`, `completions` (token ids) and `token_logps` (nats, float32) or
        `rewards`.
    """
    groups = [data[number] for number in plan.step_groups(plan.total_steps - 1)[:_GROUPS]]
    with torch.compiler.set_stance("force_eager"):  # compiling does not pay off for one batch
        values = completion_logps(module, groups, shared, world.device)
    return [
        {
            "prompt_ids": group.prompt_ids,
            "completions": group.completions,
            # A reward is the value of a completion's last token; all other values are 0.
            **({REWARDS: [sum(one) for one in own]} if rewards else {LOGPS: own}),
        }
        for group, own in zip(groups, values, strict=True)
    ]
