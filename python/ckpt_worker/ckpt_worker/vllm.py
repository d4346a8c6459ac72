"""vLLM's worker extension: `--worker-extension-cls ckpt_worker.WorkerExtension`. Written for vLLM 0.26."""

from __future__ import annotations

import os
import time
import weakref
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, cast

import zmq

from .awake import require_awake
from .conversation import Limits
from .converted import Looked, changed_layers, has_wrapped, look_at_layers
from .cuda_memory import CudaMemory
from .direct import DirectEngine, update_weights_directly
from .fingerprint import fingerprint_of
from .kept import NotRestored
from .kernel import has_triton
from .layerwise import LayerwiseReload
from .reload import HOOK_CHANGES, Reload, Tally, Weights
from .tensors import ModelTensors
from .update import synchronize, update_weights_from_ipc

# vLLM's RPC gives up after 300 s, and whoever called it does not learn anything then
_TOTAL_SECONDS = 290.0
_KEY = "_ckpt_engine"

# vLLM goes through the layers of these in ways of its own
_RELOADS_ITSELF = ("torchao",)

Mode = Literal["recorded", "ordinary", "layerwise"]
DirectPhase = Literal["begin", "copies", "hook"]


class WorkerExtension:
    """Becomes a base of vLLM's worker class, which may have none of these names itself."""

    def update_weights_from_ipc(self, zmq_handles: dict[str, str]) -> dict[str, Any]:
        """Takes an update from a daemon. It does not raise: vLLM would leave the answers of other workers for the next call.

        @param zmq_handles: the daemon's address for each device, by `GPU-` and its uuid
        @returns `ok`, `error`, `phase` of it (`begin`, `lists` or `hook`), `torn`: what the engine holds is of two versions;
            `mode`, how many tensors were `replayed` and how many `ordinary`, the latter with `reasons`; `busy_seconds` with
            the lists and between them, and `seconds` in all; `not_direct`: why the next one cannot be by `ckpt_direct`, as
            far as is known, or None
        """
        return _engine(self).update(zmq_handles)

    def ckpt_direct(self, zmq_handles: dict[str, str]) -> dict[str, Any]:
        """Lets a daemon copy an update into the engine's memory, as `direct.py` has it. It does not raise either.

        @param zmq_handles: as `update_weights_from_ipc` takes them
        @returns `ok`, `error`, `phase` of it (`begin`: nothing was changed; `copies` or `hook`); `torn`, after a failure in one
            of the latter two until an update has gone through the ring; `mode`, always `direct`; `placed`: the engine has the
            new version (False and `ok`: the daemon has left, and the engine is as it was); `seconds` in all
        """
        return _engine(self).direct(zmq_handles)

    def ckpt_state(self) -> dict[str, Any]:
        """`torn`: the last update has failed half way. `mode` of the next one, and the `reason` for another than `recorded`;
        `converted`: layers that vLLM reloads in each update, with the reason of each.
        `last`: what the last update has returned, of direct ones only those that have begun; None: there was none.
        `not_direct`: why the next one cannot be by `ckpt_direct`, as far as is known, or None."""
        return _engine(self).state()

    def ckpt_forget(self) -> None:
        """Records every list anew."""
        _engine(self).forget()

    def ckpt_checksum(self) -> dict[str, str]:
        """A number of the contents of each parameter and buffer, by its name."""
        return _engine(self).checksum()


def _engine(worker: Any) -> VllmEngine:
    # not an attribute of the class: vLLM has its own
    engine = vars(worker).get(_KEY)
    if engine is None:
        engine = vars(worker)[_KEY] = VllmEngine(worker)
    assert isinstance(engine, VllmEngine)
    return engine


class VllmEngine:
    """A worker's models, and how they take updates."""

    def __init__(self, worker: Any):
        self._worker = worker
        self._context: zmq.Context[Any] = zmq.Context()
        self._torn = False
        self._last: dict[str, Any] | None = None
        self._layerwise: str | None = None
        # the models that were looked at before the first update
        self._known: list[weakref.ref[Any]] = []
        # what was found; None: nothing was, or all layers of a model that is not quantised are processed after each update
        self._looked: Looked | None = None
        self._partly: dict[str, int] = {}
        # what `Reload.changes` was when the tensors had the forms that weights are loaded into
        self._unchanged: int | None = None
        self._reload = self._make_reload()

    def _make_reload(self) -> Reload:
        converted = () if self._looked is None else self._looked.converted
        tensors = ModelTensors(self._models, converted)
        return Reload(tensors, tensors.index_contents, True, tensors.standing)

    def update(self, handles: dict[str, str]) -> dict[str, Any]:
        begin = time.perf_counter()
        tally = Tally()
        failure: dict[str, Any] = {"error": None, "phase": None}
        mode: Mode = "ordinary"
        reason: str | None = None
        try:
            require_awake()
            mode, reason = self._mode()
            address = self._address(handles)
            with self._configured():
                if mode == "recorded" and not self._has_looked():
                    self._look_first()
                    mode, reason = self._mode()
                self._update(address, mode, tally, begin + _TOTAL_SECONDS - time.perf_counter())
            self._torn = False
        except Exception as error:
            phase = "hook" if tally.hook else "lists" if tally.tensors else "begin"
            self._torn |= phase != "begin"
            failure = {"error": f"{type(error).__name__}: {error}", "phase": phase}
        if self._reload.refused is not None:
            self._layerwise = self._reload.refused
        reasons = {**tally.reasons, **({} if reason is None else {reason: tally.ordinary})}
        self._last = {
            "ok": failure["error"] is None,
            **failure,
            "torn": self._torn,
            "mode": mode,
            "replayed": tally.replayed,
            "ordinary": tally.ordinary,
            "reasons": reasons,
            "busy_seconds": tally.busy_seconds,
            "seconds": time.perf_counter() - begin,
        }
        self._last["not_direct"] = self._why_not_direct(mode, reason)
        return self._last

    def direct(self, handles: dict[str, str]) -> dict[str, Any]:
        begin = time.perf_counter()
        phase: DirectPhase = "begin"
        placed = False
        failure: dict[str, Any] = {"error": None, "phase": None}

        def torn(now: bool) -> None:
            nonlocal phase
            self._torn = now
            phase = "copies" if now else phase

        def hook() -> None:
            nonlocal phase
            # it may run before the copies have ended
            before, phase = phase, "hook"
            self._process()
            phase = before

        try:
            require_awake()
            memory = CudaMemory()

            def refusal() -> str | None:
                return self._why_not_direct(*self._mode(looked=True))

            engine = DirectEngine(self._reload, memory.allocation_of, hook, self._synchronize, torn, refusal)
            limits = Limits(total=max(0.0, begin + _TOTAL_SECONDS - time.perf_counter()))
            with self._configured():
                placed = update_weights_directly(self._context, self._address(handles), engine, limits)
        except Exception as error:
            failure = {"error": f"{type(error).__name__}: {error}", "phase": phase}
        answer = {
            "ok": failure["error"] is None,
            **failure,
            "torn": self._torn,
            "mode": "direct",
            "placed": placed,
            "seconds": time.perf_counter() - begin,
        }
        if placed or (self._torn and phase != "begin"):
            self._last = answer
        return answer

    def _why_not_direct(self, mode: Mode, reason: str | None) -> str | None:
        """As far as is known without a look at the engine's memory.

        @param mode: of the next update through the ring, with its reason
        """
        if self._torn:
            return "the last update has failed half way"
        if self._last is not None and not self._last["ok"]:
            return "the last update has failed"
        if mode != "recorded":
            return reason
        return self._reload.not_placed

    def _has_looked(self) -> bool:
        return bool(self._known) and [one() for one in self._known] == self._models()

    def _look_first(self) -> None:
        """Before the first update of a model: which of its layers can be loaded into as they are."""
        models = self._models()
        self._looked, self._unchanged = None, None
        self._partly.clear()
        if self._quantization is not None or changed_layers(models) or has_wrapped(models):
            before, self._torn = self._torn, True
            try:
                self._looked = look_at_layers(models, self._worker.device)
            except NotRestored:
                raise
            except Exception:
                self._torn = before
                raise
            self._torn = before
        else:
            self._process_again()
        self._reload = self._make_reload()
        self._known = [weakref.ref(model) for model in models]

    def _process_again(self) -> None:
        """Before the first update, which writes all weights anew anyway: whether what vLLM has processed can be processed
        again. Where it cannot, weights that are loaded into it may be processed wrongly too."""
        before, torn = self.checksum(), self._torn
        self._torn = True
        self._process()
        if self.checksum() == before:
            self._torn = torn
        else:
            self._layerwise = HOOK_CHANGES

    def state(self) -> dict[str, Any]:
        mode, reason = self._mode()
        not_direct = self._why_not_direct(mode, reason)
        converted = [] if self._looked is None else list(self._looked.converted.values())
        state = {"torn": self._torn, "mode": mode, "reason": reason, "last": self._last, "not_direct": not_direct}
        return {**state, "converted": converted}

    def forget(self) -> None:
        self._reload.forget()
        self._layerwise = None
        self._known = []
        self._partly.clear()

    @property
    def _quantization(self) -> str | None:
        name: str | None = self._worker.model_config.quantization
        return name

    def checksum(self) -> dict[str, str]:
        require_awake()
        sums: dict[str, str] = {}
        for model in self._models():
            tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
            sums |= {name: fingerprint_of(tensor) for name, tensor in tensors if tensor.device.type != "meta"}
        return sums

    def _models(self) -> list[Any]:
        """The model, and the one that drafts for it."""
        worker = self._worker
        draft = worker.get_draft_model() if hasattr(worker, "get_draft_model") else None
        return [worker.get_model()] if draft is None else [worker.get_model(), draft]

    def _address(self, handles: dict[str, str]) -> str:
        from vllm.platforms import current_platform

        uuid = current_platform.get_device_uuid(self._worker.device.index)
        if uuid not in handles:
            raise ValueError(f"the daemon has no address for device {uuid}, only for {', '.join(sorted(handles)) or 'none'}")
        return handles[uuid]

    def _mode(self, looked: bool = False) -> tuple[Mode, str | None]:
        """How the next update is taken, and why not recorded.

        @param looked: `_reload` has just looked: where it has seen no change, what weights go to has the same forms
        """
        told = os.environ.get("CKPT_RELOAD")
        if told == "ordinary" or told == "layerwise":
            return cast(Mode, told), f"CKPT_RELOAD={told}"
        if self._layerwise is None and not (looked and self._reload.changes == self._unchanged) and self._has_looked():
            changed = changed_layers(self._models())
            known: Any = () if self._looked is None else self._looked.converted
            self._layerwise = next((where for layer, where in changed.items() if layer not in known), None)
            self._unchanged = self._reload.changes
        if self._layerwise is not None:
            return "layerwise", self._layerwise
        reason = self._why_not_recorded()
        if reason is None:
            return "recorded", None
        return ("ordinary" if self._quantization is None and not changed_layers(self._models()) else "layerwise"), reason

    def _why_not_recorded(self) -> str | None:
        if self._quantization in _RELOADS_ITSELF:
            return f"the model is quantised ({self._quantization})"
        if self._worker.vllm_config.parallel_config.enable_eplb:
            return "expert load balancing moves experts in place"
        if self._worker.device.type == "cuda" and not has_triton():
            return "triton is missing"
        return None

    def _update(self, address: str, mode: Mode, tally: Tally, seconds: float) -> None:
        models, worker = self._models(), self._worker

        with ExitStack() as stack:
            if mode == "layerwise":
                layerwise = stack.enter_context(LayerwiseReload(models, worker.model_config, self._partly))
                load, process = layerwise.load, layerwise.finish
            elif mode == "recorded" and self._looked is not None:
                some = LayerwiseReload(models, worker.model_config, self._partly, self._looked, self._reload.aside)
                layerwise = stack.enter_context(some)
                load, process = layerwise.load, layerwise.finish
            else:
                load, process = self._load, self._process
            update_weights_from_ipc(
                self._context,
                address,
                worker.device.index,
                run=load,
                post_hook=process,
                reload=self._reload if mode == "recorded" else None,
                limits=Limits(total=max(0.0, seconds)),
                tally=tally,
            )

    def _load(self, weights: Weights) -> None:
        for model in self._models():
            model.load_weights(weights)

    def _configured(self) -> AbstractContextManager[Any]:
        """What vLLM's processing asks for its configuration finds it, as when the model was loaded."""
        from vllm.config import set_current_vllm_config

        configured: AbstractContextManager[Any] = set_current_vllm_config(self._worker.vllm_config)
        return configured

    def _synchronize(self) -> None:
        synchronize(self._worker.device)

    def _process(self) -> None:
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        if self._looked is not None:
            LayerwiseReload(self._models(), self._worker.model_config, self._partly, self._looked).finish()
            return
        for model in self._models():
            process_weights_after_loading(model, self._worker.model_config, self._worker.device)
