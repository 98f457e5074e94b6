"""Load new weights into a live engine, inside vLLM's workers.

The weights come from a model folder that vLLM's process can see, or as tensors from another
process, and go into the engine's existing tensors. vLLM mixes `ReloadingWorker` into its worker
class, in each of an engine's processes; `arguments.py` names it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from raydpo.sampling.transfer import Meeting, TensorSpec, arriving, joined


class ReloadingWorker:
    """Extension of vLLM's worker."""

    # All are the worker's own; vLLM refuses an extension that defines them again.
    model_runner: Any
    reload_weights: Any
    rank: int
    device: Any

    def reload_from(self, folder: str) -> None:
        """Load the weights of a folder in place.

        vLLM's own reload copies into the tensors that are there, so captured CUDA graphs stay
        right. But an output layer that shares its weights with the input embedding stands in
        no file, so vLLM leaves it alone, and on CPU it keeps a packed copy of the old ones.
        """
        self.reload_weights(weights_path=folder)
        self._pack_output_layer()

    def receive(self, meeting: Meeting, tensors: tuple[TensorSpec, ...]) -> str | None:
        """The same, with weights that another process sends; says why it could not join it.

        It joins before vLLM touches a tensor: until then nothing has happened to the engine.
        """
        import torch

        with ExitStack() as stack:
            try:
                group = stack.enter_context(joined(meeting, self.rank, self.device))
            except Exception as error:  # noqa: BLE001 - gloo and NCCL raise what they like
                return f"rank {self.rank} could not join the sender: {error}"
            place = self.device if meeting.cuda else torch.device("cpu")
            self.reload_weights(weights_iterator=arriving(group, tensors, place))
        self._pack_output_layer()
        return None

    def _pack_output_layer(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)  # packs it again on CPU
