"""Which weights an engine holds, and how it loads others while it lives.

Given a model folder, or the folder of a LoRA adapter, the engine afterwards holds exactly these
weights. Otherwise the module raises an error, and the engine loads again at the next call. If
vLLM failed in the middle of loading, the engine is no longer usable. The engine hashes the files
that it loads, so it reports what it has really read. Only if a train worker sends the weights
does it repeat what it was told; the probe after every push checks that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.core.errors import EngineError, ModelError, RaydpoError, said_by
from raydpo.models.files import TensorHeader, read_tensors
from raydpo.models.loading import (
    CAUSAL_LM,
    adapter_base,
    load_with,
    local_folder,
    meta_model,
    unties_embeddings,
    weights_fingerprint,
)
from raydpo.models.weights import loading_report
from raydpo.sampling.arguments import engine_dtype

if TYPE_CHECKING:
    from vllm import LLMEngine
    from vllm.lora.request import LoRARequest

    from raydpo.sampling.transfer import Delivery

#: Keys of a model's config.json that change nothing about what its weights compute.
_DOES_NOT_MATTER: Final = {
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class Weights:
    """A version of the policy: where its files are, and the hash of what is in them."""

    model: ModelConfig
    fingerprint: str


def weights_of(model: ModelConfig) -> Weights:
    """The weights in a model's folder, or in an adapter's, as they are now."""
    return Weights(model, weights_fingerprint(model))


def architecture(model: ModelConfig) -> dict[str, Any]:
    """What a model computes apart from its weights: two that agree can share an engine.

    Raises:
        ModelError: transformers does not know it.
    """
    from transformers import AutoConfig

    whole = adapter_base(model) or model
    values = load_with(AutoConfig, whole).to_dict()
    if unties_embeddings(whole):
        values["tie_word_embeddings"] = False
    return {key: value for key, value in values.items() if key not in _DOES_NOT_MATTER}


def share_engines(models: list[ModelConfig], sampling: SamplingConfig) -> bool:
    """Whether engines started with one of the models can be brought to each of the others."""
    kinds = [(engine_dtype(model, sampling), architecture(model)) for model in models]
    return all(kind == kinds[0] for kind in kinds)


class HeldWeights:
    """The weights of one engine. Not for several threads: its owner steps the engine too."""

    def __init__(self, engine: LLMEngine, loaded: Weights) -> None:
        self._engine = engine
        self._model = loaded.model
        self._architecture = architecture(loaded.model)
        self._tensors = read_tensors(local_folder(loaded.model))
        self._base: str | None = loaded.fingerprint
        self._adapters = 0
        self.fingerprint: str | None = loaded.fingerprint
        #: vLLM failed while loading: its layers are half of these weights, half of those.
        self.broken = False
        self.lora: LoRARequest | None = None

    def bring(self, wanted: Weights) -> float:
        """Load the wanted weights while no request is under way; return the seconds it took.

        Raises:
            ModelError: the engine cannot hold these weights, or vLLM cannot load them.
            EngineError: the files are not what the caller saw.
        """
        if wanted.fingerprint == self.fingerprint:
            return 0.0
        started = time.perf_counter()
        found = weights_fingerprint(wanted.model)
        if found != wanted.fingerprint:
            raise EngineError(
                f"an engine found the weights {found[:12]} in {wanted.model.path}",
                f"this call is for the weights {wanted.fingerprint[:12]}",
                "the folder changed under the run: put it back, or start the run again; on "
                "several nodes it is a folder that all of them share, or a URI",
            )
        self.fingerprint = None  # until all of it is there, the engine holds nothing known
        base = adapter_base(wanted.model)
        self._bring_model(base or wanted.model)
        self._swap_adapter(wanted if base else None)
        self._forget_the_cache()
        self.fingerprint = found
        return time.perf_counter() - started

    def receive(self, delivery: Delivery) -> None:
        """Take weights that the process sends that made them.

        Raises:
            ModelError: they are of another model, or do not come.
        """
        sent = {t.name: TensorHeader("", t.dtype, t.shape) for t in delivery.tensors}
        missing = self._missing(sent)
        if missing:
            raise _another_model("the weights that are sent", sorted(missing)[:4])
        what, before = "the weights that are sent", (self.fingerprint, self._base)
        self.fingerprint = self._base = None
        answers = self._in_workers(what, "receive", delivery.meeting, delivery.tensors)
        refusals = [answer for answer in answers if answer]
        if refusals:
            self.fingerprint, self._base = before
            raise ModelError(
                f"{what} did not arrive: {refusals[0]}",
                "the train worker and all engines reach each other over the network",
                "the engines read the files; look at the network, or leave "
                "sampling.engines.weight_transfer at 'files'",
            )
        self._swap_adapter(None)
        self._forget_the_cache()
        self.fingerprint = self._base = delivery.fingerprint

    def _forget_the_cache(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise EngineError(
                "vLLM kept keys and values of the weights before",
                "its prefix cache is empty after new weights",
                "end the engine: run the same command again",
            )

    def _bring_model(self, model: ModelConfig) -> None:
        """A whole model's weights, in place."""
        found = weights_fingerprint(model)
        if found == self._base:
            return
        self._refuse_another_architecture(model)
        self._base = None
        folder = str(local_folder(model))
        self._in_workers(model.path, "reload_from", folder)
        self._base = found

    def _in_workers(self, model: str, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `ReloadingWorker` in every rank.

        A rank that died is no matter of the weights: that error is vLLM's own, and ends the engine.
        """
        self.broken = True
        try:
            results = _in_vllm(model, self._engine.collective_rpc, method, args=arguments)
        except ModelError as error:
            if getattr(self._engine.model_executor, "is_failed", False):
                raise RuntimeError("a rank of the engine is dead") from error
            raise
        self.broken = False
        return results

    def _swap_adapter(self, adapter: Weights | None) -> None:
        """Remove the current adapter, and add the new one under a new number."""
        from vllm.lora.request import LoRARequest

        if self.lora is not None:
            self._engine.remove_lora(self.lora.lora_int_id)
            self.lora = None
        if adapter is None:
            return
        if self._engine.vllm_config.lora_config is None:
            raise ModelError(
                f"{adapter.model.path} is an adapter",
                "engines take adapters only where they were started for them",
                "set sampling.engines.max_lora_rank to the adapter's rank or more",
            )
        self._adapters += 1
        folder = str(local_folder(adapter.model))
        request = LoRARequest(str(adapter.fingerprint), self._adapters, folder)
        _in_vllm(adapter.model.path, self._engine.add_lora, request)
        self.lora = request

    def _refuse_another_architecture(self, model: ModelConfig) -> None:
        """Refuse other architectures: vLLM would silently keep old weights of other names."""
        values = architecture(model)
        keys = self._architecture.keys() | values.keys()
        differing = {k for k in keys if self._architecture.get(k) != values.get(k)}
        missing = self._missing(read_tensors(local_folder(model)))
        if differing or missing:
            names = sorted(differing) or sorted(missing)[:4]
            raise _another_model(f"the weights in {model.path}", names)

    def _missing(self, tensors: dict[str, TensorHeader]) -> frozenset[str]:
        """Weights of the engine that other tensors of its architecture would leave as they were."""
        if self._tensors.keys() <= tensors.keys():
            return frozenset()
        return loading_report(meta_model(self._model, CAUSAL_LM), tensors).missing


def _another_model(what: str, names: list[str]) -> ModelError:
    return ModelError(
        f"{what} are of another model: {', '.join(names)}",
        "a live engine takes weights of the architecture that it was started with",
        "push a model trained from the same base, or start engines of its own for it",
    )


def _in_vllm(model: str, call: Any, *arguments: Any, **named: Any) -> Any:
    """Call vLLM; what it raises becomes an error that names the model."""
    try:
        return call(*arguments, **named)
    except RaydpoError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model}: vLLM cannot load it into a live engine: {said_by(error)}",
            "its tensors have the shapes of the model that the engine was started with",
            "look at the engine's log above (VLLM_LOGGING_LEVEL=INFO says more)",
        ) from error
