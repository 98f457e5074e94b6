"""What the trainer's forward pass says of a few completions, once the last step is done.

What comes in: the trained module and the groups. What goes out: JSON that lies in the
exported model's folder. Engines that hold the model are held against it (`sampling/probe.py`): a
weight that was exported or loaded wrongly shows there before it samples.
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
#: Of the last step.
_GROUPS: Final = 2


@torch.no_grad()
def probe_logps(
    module: nn.Module, shared: bool, data: GroupDataset, plan: Plan, world: World
) -> list[dict[str, Any]]:
    """Log-probs of the first completions of the last step, one row a group.

    Every rank calls this and makes the same pass: sharded parameters are gathered in it.

    Args:
        module: what `train` returned.
        shared: the layout that it takes.
        data: all groups.
        plan: of the training.
        world: the ranks.

    Returns:
        Rows of `prompt_ids`, `completions` (token ids) and `token_logps` (nats, float32).
    """
    groups = [data[number] for number in plan.step_groups(plan.total_steps - 1)[:_GROUPS]]
    with torch.compiler.set_stance("force_eager"):  # one batch is not worth a compilation
        logps = completion_logps(module, groups, shared, world.device)
    return [
        {"prompt_ids": group.prompt_ids, "completions": group.completions, "token_logps": own}
        for group, own in zip(groups, logps, strict=True)
    ]
