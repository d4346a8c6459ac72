"""The worker extension in a worker that has vLLM's names: what it answers, and which way it goes. `scripts/gpu-vllm` has a real
one."""

from __future__ import annotations

import os
import pickle
import sys
import types
import unittest
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from played_daemon import Daemon, DaemonTest, Messages, handle
from torch.multiprocessing import reductions

from ckpt_worker import Limits, WorkerExtension
from ckpt_worker import reload as reload_module
from ckpt_worker import vllm as vllm_module
from ckpt_worker.awake import Asleep
from ckpt_worker.frames import pack, unpack
from ckpt_worker.placement import Allocation, NotPlaced
from ckpt_worker.reload import HOOK_CHANGES

UUID = "GPU-0"
RING = 4096


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 8), requires_grad=False)
        self.loads = 0
        self.fails = False

    def load_weights(self, weights: Any) -> None:
        if self.fails:
            raise ValueError("no place for it")
        for _, tensor in weights:
            self.loads += 1
            self.weight.data.copy_(tensor)


class Layer:
    """What vLLM keeps of a module: the parameters as they were made."""

    def __init__(self, made: dict[str, torch.Tensor]):
        self.restore_metadata: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = (made, {})
        self.load_numel = 0
        self.loaded_weights: list[Any] = []

        self.load_numel_total: int | None = None
        self.kernel_tensors: Any = None

    def can_load(self) -> bool:
        return self.load_numel_total is not None

    def reset(self) -> None:
        self.load_numel_total = None


class Vllm:
    """The modules of it that the extension imports."""

    def __init__(self) -> None:
        self.made: dict[str, torch.Tensor] = {}
        self.steps: list[str] = []
        self.process = lambda _model: None
        self.layer: Layer | None = None
        layerwise = types.SimpleNamespace(get_layerwise_info=self.info_of, _place_kernel_tensors=self.place)
        reload = types.SimpleNamespace(
            initialize_layerwise_reload=lambda _model: self.steps.append("initialize"),
            finalize_layerwise_reload=lambda _model, _config: self.steps.append("finalize"),
        )
        utils = types.SimpleNamespace(process_weights_after_loading=lambda model, _config, _device: self.process(model))
        platform = types.SimpleNamespace(get_device_uuid=lambda _index: UUID)
        loader = "vllm.model_executor.model_loader"
        self.modules = {
            **{name: types.ModuleType(name) for name in ("vllm", "vllm.model_executor", loader)},
            f"{loader}.reload": reload,
            f"{loader}.reload.layerwise": layerwise,
            f"{loader}.reload.meta": types.SimpleNamespace(SKIP_TENSORS=set()),
            f"{loader}.utils": utils,
            "vllm.config": types.SimpleNamespace(set_current_vllm_config=lambda _config: nullcontext()),
            "vllm.platforms": types.SimpleNamespace(current_platform=platform),
        }

    def info_of(self, layer: Any) -> Layer:
        return self.layer or Layer(self.made if isinstance(layer, Model) else {})

    def place(self, _layer: Any, _info: Layer) -> None:
        self.steps.append("place")


class Worker(WorkerExtension):
    def __init__(self) -> None:
        self.model = Model()
        self.device = types.SimpleNamespace(index=0, type="cpu")
        self.model_config = types.SimpleNamespace(quantization=None)
        parallel = types.SimpleNamespace(enable_eplb=False)
        self.vllm_config = types.SimpleNamespace(parallel_config=parallel)

    def get_model(self) -> Model:
        return self.model

    def get_draft_model(self) -> None:
        return None


class WorkerTest(DaemonTest):
    """A worker, and its updates through a ring."""

    def setUp(self) -> None:
        super().setUp()
        self.ring = torch.zeros(RING, dtype=torch.uint8)
        self.vllm = Vllm()
        self.handle = handle(RING)
        # not `patch.dict`, which would also forget what torch imports meanwhile
        for name, module in self.vllm.modules.items():
            sys.modules[name] = module  # type: ignore[assignment]
            self.addCleanup(sys.modules.pop, name)
        patch = mock.patch.object(reductions, "rebuild_cuda_tensor", self.rebuild)
        patch.start()
        self.addCleanup(patch.stop)
        self.worker = Worker()

    def rebuild(self, *_: Any) -> torch.Tensor:
        return self.ring[:]

    def one_list(self, version: float) -> Callable[[], bytes]:
        value = torch.full((8, 8), float(version))

        def message() -> bytes:
            self.ring[:256].copy_(value.view(-1).view(torch.uint8))
            return pickle.dumps([{"name": "weight", "dtype": value.dtype, "shape": value.shape, "offset": 0}])

        return message

    def update(self, version: float, messages: Messages | None = None) -> dict[str, Any]:
        end = pickle.dumps(None)
        whole: Messages = [self.handle, self.one_list(version), end, end]
        self.daemon = daemon = Daemon(self.context, self.address, messages or whole)
        daemon.start()
        answer = self.worker.update_weights_from_ipc({UUID: self.address})
        daemon.worker_left.set()
        daemon.join()
        return answer

    def expect(self, answer: dict[str, Any], **wanted: Any) -> None:
        self.assertEqual({name: answer[name] for name in wanted}, wanted)

    def held(self) -> float:
        return float(self.worker.model.weight.mean())


class TestWorkerExtension(WorkerTest):
    def test_loads_then_replays_and_says_so(self) -> None:
        self.expect(self.update(1), ok=True, error=None, torn=False, mode="recorded", replayed=0, ordinary=1, reasons={})
        self.expect(self.update(2), ok=True, mode="recorded", replayed=1, ordinary=0)
        self.assertEqual((self.held(), self.worker.model.loads), (2.0, 1))
        self.worker.ckpt_forget()
        self.expect(self.update(3), ordinary=1)
        self.assertEqual(self.held(), 3.0)

    def test_as_checkpoint_engine_when_told(self) -> None:
        with mock.patch.dict(os.environ, {"CKPT_RELOAD": "ordinary"}):
            for version in (1, 2):
                answer = self.update(version)
                self.expect(answer, ok=True, mode="ordinary", ordinary=1, reasons={"CKPT_RELOAD=ordinary": 1})
        self.assertEqual(self.worker.model.loads, 2)

    def test_expert_load_balancing_is_no_time_for_replays(self) -> None:
        self.worker.vllm_config.parallel_config.enable_eplb = True
        self.expect(self.update(1), ok=True, mode="ordinary")

    def test_a_quantised_model_is_reloaded_layer_by_layer_out_of_copies(self) -> None:
        self.worker.model_config.quantization = "torchao"
        kept: list[torch.Tensor] = []
        self.worker.model.load_weights = lambda weights: kept.extend(tensor for _, tensor in weights)  # type: ignore[method-assign]
        answer = self.update(1)
        self.expect(answer, ok=True, mode="layerwise", ordinary=1, reasons={"the model is quantised (torchao)": 1})
        self.assertEqual(self.vllm.steps, ["initialize", "finalize"])
        self.assertNotEqual(kept[0].untyped_storage().data_ptr(), self.ring.untyped_storage().data_ptr())

    def test_a_parameter_of_another_form_than_it_was_made_with(self) -> None:
        self.update(1)
        self.vllm.made = {"weight": torch.zeros(8, 16)}
        state = self.worker.ckpt_state()
        self.expect(state, mode="layerwise", torn=False)
        self.assertIn("weight has another form", state["reason"])

    def test_a_layerwise_reload_that_fails_is_undone(self) -> None:
        self.worker.model_config.quantization = "torchao"
        self.worker.model.fails = True
        self.vllm.layer = Layer({})
        self.vllm.layer.load_numel_total, self.vllm.layer.kernel_tensors = 64, ({}, {})
        stop = pickle.dumps(RuntimeError("stop"))
        value = torch.zeros(8, 8)
        listed = pickle.dumps([{"name": "weight", "dtype": value.dtype, "shape": value.shape, "offset": 0}])
        answer = self.update(1, [self.handle, listed, stop])
        self.expect(answer, ok=False, phase="lists", torn=True, error="DaemonError: stop")
        self.assertEqual(self.vllm.steps, ["initialize", "place"])
        self.expect(self.worker.ckpt_state(), torn=True)
        self.worker.model.fails = False
        self.vllm.layer = None
        self.expect(self.update(2), ok=True, torn=False)

    def test_a_layer_that_gets_only_a_part_of_its_weights(self) -> None:
        """vLLM would make up the rest; what is never loaded, as padding, is as much in every update."""
        self.worker.model_config.quantization = "torchao"
        for version, numel, name, ok in (
            (1, 40, "weight", True),
            (2, 40, "weight", True),
            (3, 30, "weight", False),
            (4, 40, "bias", False),
        ):
            layer = self.vllm.layer = Layer({})
            layer.load_numel_total, layer.load_numel, layer.loaded_weights = 64, numel, [(name, None)]
            answer = self.update(version)
            self.expect(answer, ok=ok, torn=not ok)
            if not ok:
                self.assertRegex(answer["error"], "the update has (30 items of its weights|bias, but not weight)")

    def test_a_hook_that_changes_what_it_has_processed_has_weights_reloaded_layer_by_layer(self) -> None:
        self.vllm.process = lambda model: model.weight.data.add_(1)
        self.expect(self.update(1), ok=True, mode="layerwise", torn=False, reasons={HOOK_CHANGES: 1})

    def test_a_hook_that_changes_only_other_weights_has_the_next_update_go_layer_by_layer(self) -> None:
        def process(model: Model) -> None:
            if float(model.weight.mean()) != 0:
                model.weight.data.add_(1)

        self.vllm.process = process
        answer = self.update(1)
        self.expect(answer, ok=False, phase="hook", torn=True)
        self.assertIn("only after the next update", answer["error"])
        self.expect(self.update(2), ok=True, mode="layerwise", torn=False)

    def test_a_replay_that_fails_half_way_leaves_the_engine_torn(self) -> None:
        self.update(1)
        real = reload_module.replay

        def half(*arguments: Any) -> None:
            real(*arguments)
            raise RuntimeError("the second launch has failed")

        with mock.patch.object(reload_module, "replay", half):
            answer = self.update(2, [self.handle, self.one_list(2), pickle.dumps(RuntimeError("stop"))])
        self.expect(answer, ok=False, torn=True, phase="lists")

    def test_a_daemon_that_goes_on_after_a_list_that_has_failed(self) -> None:
        self.worker.model.fails = True
        end = pickle.dumps(None)
        self.expect(self.update(1, [self.handle, self.one_list(1), end, end]), ok=False, torn=True)

    def test_a_hook_that_fails_is_told_to_the_daemon_too(self) -> None:
        self.update(1)

        def process(_model: Model) -> None:
            raise ValueError("no scales")

        self.vllm.process = process
        engine = vars(self.worker)["_ckpt_engine"]
        looked = engine._known
        self.worker.ckpt_forget()
        engine._known = looked
        self.expect(self.update(2), ok=False, torn=True, phase="hook", error="ValueError: no scales")
        self.assertIn(b"no scales", self.daemon.replies[-1])

    def test_a_worker_whose_model_cannot_be_had(self) -> None:
        with mock.patch.object(self.worker, "get_model", side_effect=RuntimeError("no model")):
            answer = self.worker.update_weights_from_ipc({UUID: self.address})
        self.expect(answer, ok=False, phase="begin", torn=False, error="RuntimeError: no model")

    def test_an_engine_whose_weights_sleep_is_not_touched(self) -> None:
        self.update(1)
        weights = types.SimpleNamespace(tag="weights", is_asleep=True)
        cache = types.SimpleNamespace(tag="kv_cache", is_asleep=True)
        allocator = types.SimpleNamespace(pointer_to_data={1: weights, 2: cache})
        module = types.SimpleNamespace(CuMemAllocator=types.SimpleNamespace(instance=allocator))
        name = "vllm.device_allocator.cumem"
        sys.modules[name] = module  # type: ignore[assignment]
        self.addCleanup(sys.modules.pop, name)
        for way in (self.worker.update_weights_from_ipc, self.worker.ckpt_direct):
            answer = way({UUID: self.address})
            self.expect(answer, ok=False, phase="begin", torn=False)
            self.assertIn("wake them up first (POST /wake_up?tags=weights)", answer["error"])
        with self.assertRaises(Asleep):
            self.worker.ckpt_checksum()
        # its cache may sleep on
        weights.is_asleep = False
        self.expect(self.update(2), ok=True, replayed=1)
        # versions that do not say what sleeps, and engines without sleep mode
        del weights.is_asleep
        self.expect(self.update(3), ok=True)
        module.CuMemAllocator.instance = None
        self.expect(self.update(4), ok=True)
        self.assertEqual(self.held(), 4.0)

    def test_a_device_that_the_daemon_does_not_know(self) -> None:
        answer = self.worker.update_weights_from_ipc({"GPU-1": self.address})
        self.expect(answer, ok=False, phase="begin", torn=False)
        self.assertEqual(answer["error"], "ValueError: the daemon has no address for device GPU-0, only for GPU-1")

    def test_a_daemon_that_ends_the_update_before_a_list(self) -> None:
        answer = self.update(1, [self.handle, pickle.dumps(RuntimeError("another rank has failed"))])
        self.expect(answer, ok=False, phase="begin", torn=False, error="DaemonError: another rank has failed")

    def test_a_checksum_for_each_parameter(self) -> None:
        self.update(1)
        before = self.worker.ckpt_checksum()
        self.assertEqual(list(before), ["weight"])
        self.worker.model.weight.data[0, 0] = 2
        self.assertNotEqual(self.worker.ckpt_checksum(), before)

    def test_its_names_are_none_of_a_worker_of_vllm(self) -> None:
        names = {name for name in dir(WorkerExtension) if not name.startswith("__")}
        self.assertEqual(names, {"update_weights_from_ipc", "ckpt_state", "ckpt_direct", "ckpt_forget", "ckpt_checksum"})


class Opened:
    """The model's memory, as another process would open it."""

    def __init__(self, model: Model):
        self._model = model
        self.asked = 0
        self.reason: str | None = None

    def allocation_of(self, _: int) -> Allocation:
        self.asked += 1
        if self.reason is not None:
            raise NotPlaced(self.reason)
        storage = self._model.weight.untyped_storage()
        return Allocation(b"h" * 64, storage.data_ptr(), storage.nbytes())


class TestDirect(WorkerTest):
    """Updates by a daemon that copies into the model itself."""

    FIELDS = ("ok", "error", "phase", "torn", "mode", "placed", "seconds")
    DONE: dict[str, Any] = {"ok": True, "error": None, "phase": None, "torn": False, "mode": "direct", "placed": True}
    LEFT = {**DONE, "placed": False}
    LOOK = pack({"type": "look", "map": None})
    LEAVE = pack({"type": "leave", "reason": "no map"})
    UNTOUCHED = pack({"type": "leave", "reason": "another rank", "untouched": True})
    END = pack({"type": "end"})

    def setUp(self) -> None:
        super().setUp()
        self.opened = Opened(self.worker.model)
        patch = mock.patch.object(vllm_module, "CudaMemory", lambda: self.opened)
        patch.start()
        self.addCleanup(patch.stop)
        short = mock.patch.object(vllm_module, "Limits", lambda total: Limits(total=min(total, 5.0), grace=0.2))
        short.start()
        self.addCleanup(short.stop)

    def begin(self) -> bytes:
        return pack({"type": "begin", "generation": unpack(self.daemon.replies[0])[0]["generation"]})

    def copies(self, version: float) -> Callable[[], bytes]:
        def message() -> bytes:
            self.worker.model.weight.data.fill_(version)
            return self.END

        return message

    def direct(self, messages: Messages) -> dict[str, Any]:
        self.daemon = daemon = Daemon(self.context, self.address, messages)
        daemon.start()
        answer = self.worker.ckpt_direct({UUID: self.address})
        daemon.worker_left.set()
        daemon.join()
        self.assertEqual(tuple(answer), self.FIELDS)
        return answer

    def refused(self, words: str) -> None:
        """The daemon asks and is told why not; nothing has changed."""
        state = self.worker.ckpt_state()
        answer = self.direct([self.LOOK, self.LEAVE])
        self.expect(answer, **{**self.LEFT, "torn": state["torn"]})
        head, body = unpack(self.daemon.replies[0])
        self.assertEqual((sorted(head), head["ok"], body), (["ok", "reason"], False, b""))
        self.assertRegex(head["reason"], words)
        self.assertIs(self.worker.ckpt_state()["last"], state["last"])

    def test_after_an_update_through_the_ring_the_next_may_be_placed(self) -> None:
        steps: list[float] = []
        self.vllm.process = lambda model: steps.append(float(model.weight.mean()))
        self.expect(self.update(1), ok=True, ordinary=1, not_direct=None)
        steps.clear()
        answer = self.direct([self.LOOK, self.begin, self.copies(2)])
        self.expect(answer, **self.DONE)
        self.assertEqual(([unpack(reply)[0]["ok"] for reply in self.daemon.replies], steps), ([True] * 3, [2.0]))
        self.expect(self.worker.ckpt_state(), torn=False, mode="recorded", last=answer, not_direct=None)
        self.assertEqual(self.worker.model.loads, 1)
        self.expect(self.direct([self.LOOK, self.begin, self.copies(3)]), **self.DONE)
        self.assertEqual(self.opened.asked, 1)
        self.expect(self.update(4), ok=True, replayed=1, not_direct=None)
        self.assertEqual(self.held(), 4.0)

    def test_forms_that_are_known_are_not_looked_at_again(self) -> None:
        self.update(1)
        self.direct([self.LOOK, self.begin, self.copies(2)])
        # which asks for them itself
        self.worker.ckpt_state()
        with mock.patch.object(vllm_module, "changed_layers", side_effect=AssertionError("again")):
            self.expect(self.direct([self.LOOK, self.begin, self.copies(3)]), **self.DONE)

    def test_not_before_an_update_has_gone_through_the_ring(self) -> None:
        self.expect(self.worker.ckpt_state(), not_direct="no update has gone through")
        self.refused("no update has gone through")
        self.update(1)
        self.worker.ckpt_forget()
        self.expect(self.worker.ckpt_state(), not_direct="no update has gone through")
        self.refused("no update has gone through")

    def test_not_where_lists_are_not_recorded(self) -> None:
        parallel = self.worker.vllm_config.parallel_config
        self.update(1)
        parallel.enable_eplb = True
        words = "expert load balancing moves experts in place"
        self.refused(words)
        self.expect(self.update(2), mode="ordinary", not_direct=words)
        parallel.enable_eplb = False
        with mock.patch.dict(os.environ, {"CKPT_RELOAD": "ordinary"}):
            self.expect(self.worker.ckpt_state(), not_direct="CKPT_RELOAD=ordinary")
            self.refused("CKPT_RELOAD=ordinary")
        self.worker.model_config.quantization = "torchao"
        self.refused("the model is quantised")

    def test_not_what_is_no_copy(self) -> None:
        model = self.worker.model
        model.load_weights = lambda weights: [model.weight.data.copy_(one * 2) for _, one in weights]  # type: ignore[method-assign]
        answer = self.update(1)
        self.assertIn(answer["not_direct"], answer["reasons"])
        self.assertIn("is no copy", answer["not_direct"])
        self.refused("is no copy")

    def test_a_reason_that_the_map_was_refused_for_is_remembered(self) -> None:
        self.opened.reason = "memory that cannot be exported: sleep mode"
        self.expect(self.update(1), not_direct=None)
        self.refused("cannot be exported")
        self.expect(self.worker.ckpt_state(), not_direct=self.opened.reason)
        self.refused("cannot be exported")
        self.expect(self.update(2), ok=True, replayed=1, not_direct=self.opened.reason)
        self.assertEqual(self.opened.asked, 1)

    def test_a_parameter_that_has_appeared(self) -> None:
        self.update(1)
        self.worker.model.new = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
        self.refused("did not have when its loading was recorded")

    def test_a_daemon_that_leaves_before_it_has_copied(self) -> None:
        last = self.update(1)
        for messages in ([self.LEAVE], [self.LOOK, self.LEAVE], [self.LOOK, self.begin, self.UNTOUCHED]):
            self.expect(self.direct(messages), **self.LEFT)  # type: ignore[arg-type]
            self.assertIs(self.worker.ckpt_state()["last"], last)
        self.expect(self.worker.ckpt_state(), torn=False, not_direct=None)
        self.assertEqual(self.held(), 1.0)

    def test_a_daemon_that_says_nothing_sensible_before_it_begins(self) -> None:
        self.update(1)
        answer = self.direct([pickle.dumps(RuntimeError("stop"))])
        self.expect(answer, ok=False, phase="begin", torn=False, placed=False)
        self.assertIn("ProtocolError", answer["error"])
        self.expect(self.worker.ckpt_state(), torn=False, not_direct=None)

    def test_memory_that_changes_before_the_daemon_begins(self) -> None:
        def begin() -> bytes:
            self.worker.model.weight.data = self.worker.model.weight.data.clone()
            return self.begin()

        self.update(1)
        self.expect(self.direct([self.LOOK, begin, self.LEAVE]), **self.LEFT)
        self.assertEqual(unpack(self.daemon.replies[1])[0], {"ok": False, "reason": "the engine's memory has changed"})
        self.expect(self.worker.ckpt_state(), torn=False)

    def test_one_that_fails_leaves_the_engine_torn_until_one_goes_through_the_ring(self) -> None:
        stop = pack({"type": "leave", "reason": "a file cannot be read"})
        for messages, error in (
            ([self.LOOK, self.begin, stop], "DaemonError: a file cannot be read"),
            ([self.LOOK, self.begin, pickle.dumps(RuntimeError("stop"))], "ProtocolError: .*"),
            ([self.LOOK, self.begin], "DaemonGone: .*"),
        ):
            self.expect(self.update(1), ok=True, torn=False, not_direct=None)
            answer = self.direct(messages)  # type: ignore[arg-type]
            self.expect(answer, ok=False, phase="copies", torn=True, placed=False)
            self.assertRegex(answer["error"], error)
            self.expect(self.worker.ckpt_state(), torn=True, last=answer, not_direct="the last update has failed half way")
            self.refused("failed half way")

    def test_processing_that_fails(self) -> None:
        def process(_model: Model) -> None:
            raise ValueError("no scales")

        self.update(1)
        self.vllm.process = process
        answer = self.direct([self.LOOK, self.begin, self.copies(2)])
        self.expect(answer, ok=False, error="ValueError: no scales", phase="hook", torn=True, placed=False)
        self.assertEqual(unpack(self.daemon.replies[2])[0], {"ok": False, "reason": "ValueError: no scales", "torn": True})
        self.expect(self.worker.ckpt_state(), torn=True)

    def test_an_update_through_the_ring_that_has_failed(self) -> None:
        self.update(1)
        answer = self.worker.update_weights_from_ipc({"GPU-1": self.address})
        self.expect(answer, ok=False, torn=False, not_direct="the last update has failed")
        self.refused("the last update has failed")
        answer = self.update(2, [self.handle, self.one_list(2), pickle.dumps(RuntimeError("stop"))])
        self.expect(answer, ok=False, torn=True, not_direct="the last update has failed half way")
        self.expect(self.update(3), ok=True, not_direct=None)

    def test_does_not_raise(self) -> None:
        answer = self.worker.ckpt_direct({"GPU-1": self.address})
        self.expect(answer, ok=False, phase="begin", torn=False, placed=False)
        self.assertEqual(answer["error"], "ValueError: the daemon has no address for device GPU-0, only for GPU-1")
        self.update(1)
        with mock.patch.object(self.worker, "get_model", side_effect=RuntimeError("no model")):
            answer = self.direct([self.LOOK])
        self.expect(answer, ok=False, error="RuntimeError: no model", phase="begin", torn=False)
        self.assertEqual(unpack(self.daemon.replies[0])[0], {"ok": False, "reason": "RuntimeError: no model"})

    def test_its_whole_time_is_limited(self) -> None:
        self.update(1)
        # a daemon that is gone would be waited for longer
        patient = mock.patch.object(vllm_module, "Limits", Limits)
        with patient, mock.patch.object(vllm_module, "_TOTAL_SECONDS", 0.5):
            answer = self.direct([self.LOOK, self.begin])
        self.expect(answer, ok=False, phase="copies", torn=True)
        self.assertIn("TimeoutError", answer["error"])
        self.assertLess(answer["seconds"], 5)


if __name__ == "__main__":
    unittest.main()
