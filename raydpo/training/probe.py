"""What the trainer's forward pass says of a few completions, once the last step is done.

What comes in: the trained module and the groups. What goes out: JSON that lies in the
exported model's folder. That model is held against it before the training is done
(`export.py`), and engines that hold it are (`sampling/probe.py`): a weight that was exported or
loaded wrongly shows there before it samples.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset
from raydpo.training.logps import completion_logps
from raydpo.training.sharding import World

#: In the model's folder.
PROBE_FILE: Final = "probe.json"
#: Of each token its log-prob, in nats.
LOGPS: Final = "token_logps"
#: Of each completion its reward, by a reward model.
REWARDS: Final = "rewards"
#: Of the last step.
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
    """What the module gives the completions of the last step's first groups, one row a group.

    Every rank calls this and makes the same pass: sharded parameters are gathered in it.

    Args:
        module: what `train` returned.
        shared: the layout that it takes.
        rewards: whether it is a reward model.
        data: all groups.
        plan: of the training.
        world: the ranks.

    Returns:
        Rows of `prompt_ids`, `completions` (token ids) and `token_logps` (nats, float32) or
        `rewards`.
    """
    groups = [data[number] for number in plan.step_groups(plan.total_steps - 1)[:_GROUPS]]
    with torch.compiler.set_stance("force_eager"):  # one batch is not worth a compilation
        values = completion_logps(module, groups, shared, world.device)
    return [
        {
            "prompt_ids": group.prompt_ids,
            "completions": group.completions,
            # A reward is the value of a completion's last token: all others are 0.
            **({REWARDS: [sum(one) for one in own]} if rewards else {LOGPS: own}),
        }
        for group, own in zip(groups, values, strict=True)
    ]
