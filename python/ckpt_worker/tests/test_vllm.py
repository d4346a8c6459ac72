"""The worker extension in a worker that has vLLM's names: what it answers, and which way it goes. `scripts/gpu-vllm` has a real
one."""

from __future__ import annotations

import os
import pickle
import sys
import types
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from played_daemon import Daemon, DaemonTest, Messages, handle
from torch.multiprocessing import reductions

from ckpt_worker import WorkerExtension
from ckpt_worker import reload as reload_module
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
            f"{loader}.utils": utils,
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


class TestWorkerExtension(DaemonTest):
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
        self.worker.model_config.quantization = "fp8"
        kept: list[torch.Tensor] = []
        self.worker.model.load_weights = lambda weights: kept.extend(tensor for _, tensor in weights)  # type: ignore[method-assign]
        answer = self.update(1)
        self.expect(answer, ok=True, mode="layerwise", ordinary=1, reasons={"the model is quantised (fp8)": 1})
        self.assertEqual(self.vllm.steps, ["initialize", "finalize"])
        self.assertNotEqual(kept[0].untyped_storage().data_ptr(), self.ring.untyped_storage().data_ptr())

    def test_a_parameter_of_another_form_than_it_was_made_with(self) -> None:
        self.vllm.made = {"weight": torch.zeros(8, 16)}
        state = self.worker.ckpt_state()
        self.expect(state, mode="layerwise", torn=False, last=None)
        self.assertIn("weight has another form", state["reason"])

    def test_a_layerwise_reload_that_fails_is_undone(self) -> None:
        self.worker.model_config.quantization = "fp8"
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
        self.worker.model_config.quantization = "fp8"
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
        self.worker.ckpt_forget()
        self.worker.ckpt_state()
        vars(self.worker)["_ckpt_engine"]._processed_again = True
        self.expect(self.update(2), ok=False, torn=True, phase="hook", error="ValueError: no scales")
        self.assertIn(b"no scales", self.daemon.replies[-1])

    def test_a_worker_whose_model_cannot_be_had(self) -> None:
        with mock.patch.object(self.worker, "get_model", side_effect=RuntimeError("no model")):
            answer = self.worker.update_weights_from_ipc({UUID: self.address})
        self.expect(answer, ok=False, phase="begin", torn=False, error="RuntimeError: no model")

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
        self.assertEqual(names, {"update_weights_from_ipc", "ckpt_state", "ckpt_forget", "ckpt_checksum"})


if __name__ == "__main__":
    unittest.main()
