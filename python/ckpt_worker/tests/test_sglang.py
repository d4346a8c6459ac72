"""A stand-in of the form of SGLang 0.5.16: `weight_updater.py` makes a worker for each update, with a context of its own, which
hands `model.load_weights` and a hook that logs what it raises to the function that it has imported."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
import types
import unittest
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import zmq
from played_daemon import Daemon, DaemonTest, Messages, handle
from torch.multiprocessing import reductions

from ckpt_worker import DaemonGone, Limits, Tally
from ckpt_worker.found import reload_of
from ckpt_worker.sglang import plugin, take_update, take_updates_with
from ckpt_worker.sglang_experts import expert_places

EXPERTS, ROWS, COLUMNS = 4, 6, 8
NAMES = [f"layers.0.mlp.experts.{expert}.{part}" for expert in range(EXPERTS) for part in ("gate", "up")]
MISSING: Any = object()
LOGGER = logging.getLogger("sglang.srt.checkpoint_engine.checkpoint_engine_worker")
LOCATION, ARGUMENTS, WORKER = "sglang.srt.eplb.expert_location", "sglang.srt.server_args", "checkpoint_engine.worker"


@contextmanager
def modules(found: dict[str, Any]) -> Iterator[None]:
    """What is imported meanwhile stays, unlike with `mock.patch.dict`."""
    before = {name: sys.modules.get(name, MISSING) for name in found}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not MISSING:
                sys.modules[name] = module


class Locations:
    """Of `ExpertLocationMetadata` what loading looks at, and what goes with it."""

    def __init__(self, physical: list[int]):
        logical = [physical.index(expert) for expert in range(EXPERTS)]
        self.physical_to_logical_map_cpu = torch.tensor([physical])
        self.logical_to_all_physical_map_cpu = torch.tensor([logical]).unsqueeze(-1)


class Process:
    """What SGLang keeps beside its models."""

    def __init__(self) -> None:
        self.locations: Any = Locations(list(range(EXPERTS)))
        self.arguments: Any = types.SimpleNamespace(enable_eplb=False)

    def get_arguments(self) -> Any:
        if self.arguments is None:
            raise ValueError("Global server args is not set yet!")
        return self.arguments

    @contextmanager
    def running(self) -> Iterator[None]:
        location, arguments = types.ModuleType(LOCATION), types.ModuleType(ARGUMENTS)
        vars(location)["get_global_expert_location_metadata"] = lambda: self.locations
        vars(arguments)["get_global_server_args"] = self.get_arguments
        with modules({"sglang": types.ModuleType("sglang"), LOCATION: location, ARGUMENTS: arguments}):
            yield


class Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Unquantised:
    """Nothing to do for a CUDA device; a model may have one that fails, which SGLang only logs."""

    def __init__(self) -> None:
        self.processed = 0
        self.fails = False

    def process_weights_after_loading(self, _layer: torch.nn.Module) -> None:
        self.processed += 1
        if self.fails:
            raise ValueError("no processing")


class Experts(torch.nn.Module):
    def __init__(self, process: Process):
        super().__init__()
        self.process = process
        self.quant_method = Unquantised()
        self.w13_weight = torch.nn.Parameter(torch.zeros(EXPERTS, 2 * ROWS, COLUMNS), requires_grad=False)

    def weight_loader(self, param: torch.nn.Parameter, loaded: torch.Tensor, shard: str, expert: int) -> None:
        places = [expert]
        if self.process.locations is not None:
            places = self.process.locations.logical_to_all_physical_map_cpu[0, expert].tolist()
        for place in places:
            data = param.data[place].narrow(0, ROWS if shard == "up" else 0, ROWS)
            data.copy_(loaded.narrow(0, 0, ROWS))


class Model(torch.nn.Module):
    """As `Qwen3MoeForCausalLM`: it gets an attribute with the first load."""

    def __init__(self, process: Process):
        super().__init__()
        self.experts = Experts(process)
        self.loads = 0

    def load_weights(self, weights: Any, is_mtp: bool = False) -> None:  # noqa: ARG002
        params = dict(self.named_parameters())
        for name, loaded in weights:
            self.loads += 1
            *_, expert, part = name.split(".")
            self.experts.weight_loader(params["experts.w13_weight"], loaded, part, int(expert))
        if not hasattr(self, "routed_experts_weights_of_layer"):
            self.routed_experts_weights_of_layer = types.SimpleNamespace(creator=lambda: 0, value=None)


class Extension:
    """As `SGLangCheckpointEngineWorkerExtensionImpl`."""

    def __init__(self, model: Model):
        self.model = model

    def post_hook(self) -> None:
        try:
            for _, module in self.model.named_modules():
                quant_method = getattr(module, "quant_method", None)
                if quant_method is not None:
                    quant_method.process_weights_after_loading(module)
        except Exception as error:
            LOGGER.warning("the hook has failed: %s", error)

    def update(self, address: str) -> None:
        worker = importlib.import_module(WORKER)
        context: zmq.Context[Any] = zmq.Context()
        try:
            worker.update_weights_from_ipc(context, address, device_id=0, run=self.model.load_weights, post_hook=self.post_hook)
        finally:
            context.destroy()


class TestSglang(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.process = Process()
        for context in (self.process.running(), modules({WORKER: None, "checkpoint_engine": None})):
            context.__enter__()
            self.addCleanup(context.__exit__, None, None, None)
        self.model = Model(self.process)
        self.tally = Tally()
        self.limits = Limits(total=20.0, grace=0.2)
        take_updates_with(self._measured)
        self.ring = torch.zeros(16_384, dtype=torch.uint8)
        self.handle = handle(self.ring.numel())
        patch = mock.patch.object(reductions, "rebuild_cuda_tensor", lambda *_: self.ring[:])
        patch.start()
        self.addCleanup(patch.stop)

    def _measured(self, *arguments: Any, **options: Any) -> None:
        self.tally = Tally()
        take_update(*arguments, tally=self.tally, limits=self.limits, **options)

    def messages(self, seed: int) -> tuple[Messages, dict[str, torch.Tensor]]:
        """Two lists, and what they bring."""
        generator = torch.Generator().manual_seed(seed)
        contents = {name: torch.randn(ROWS, COLUMNS, generator=generator) for name in NAMES}
        half = len(NAMES) // 2

        def list_of(names: list[str]) -> bytes:
            listed = []
            for number, name in enumerate(names):
                value = contents[name]
                data = value.view(-1).view(torch.uint8)
                self.ring[256 * number : 256 * number + data.numel()].copy_(data)
                listed.append({"name": name, "dtype": value.dtype, "shape": value.shape, "offset": 256 * number})
            return pickle.dumps(listed)

        lists: Messages = [lambda: list_of(NAMES[:half]), lambda: list_of(NAMES[half:])]
        return [self.handle, *lists, pickle.dumps(None), pickle.dumps(None)], contents

    def update(self, seed: int, model: Model | None = None) -> None:
        """Expects that the model then holds what was sent."""
        model = model or self.model
        messages, contents = self.messages(seed)
        daemon = Daemon(self.context, self.address, messages)
        daemon.start()
        try:
            Extension(model).update(self.address)
        finally:
            daemon.worker_left.set()
            daemon.join()
        self.assertEqual(daemon.replies, [b""] * 5)
        held = model.experts.w13_weight
        for name, value in contents.items():
            *_, expert, part = name.split(".")
            place = int(expert)
            if self.process.locations is not None:
                place = int(self.process.locations.logical_to_all_physical_map_cpu[0, place, 0])
            self.assertTrue(torch.equal(held[place].narrow(0, ROWS if part == "up" else 0, ROWS), value), name)

    def expect(self, replayed: int, ordinary: int) -> None:
        self.assertEqual((self.tally.replayed, self.tally.ordinary), (replayed, ordinary))

    def test_its_model_is_recognised_and_replayed(self) -> None:
        # `DynamicGradMode` is one or the other
        for mode in (nullcontext, torch.no_grad, torch.inference_mode):
            with self.subTest(mode=mode), mode():
                model = Model(self.process)
                for seed in range(3):
                    self.update(seed, model)
                    self.expect(*((0, 8) if seed == 0 else (8, 0)))
                self.assertEqual((model.loads, model.experts.quant_method.processed), (8, 3))

    def test_experts_that_go_elsewhere_are_recorded_anew(self) -> None:
        self.update(0)
        self.update(1)
        self.expect(8, 0)
        places = expert_places()
        self.process.locations = Locations([2, 0, 3, 1])
        self.assertNotEqual(expert_places(), places)
        self.update(2)
        self.expect(0, 8)
        self.update(3)
        self.expect(8, 0)

    def test_in_place_too(self) -> None:
        # `ExpertLocationMetadata.update` writes into the tensors that are there
        self.update(0)
        other = Locations([1, 0, 2, 3])
        self.process.locations.physical_to_logical_map_cpu.copy_(other.physical_to_logical_map_cpu)
        self.process.locations.logical_to_all_physical_map_cpu.copy_(other.logical_to_all_physical_map_cpu)
        self.update(1)
        self.expect(0, 8)

    def test_a_model_without_experts(self) -> None:
        self.process.locations = None
        self.assertEqual(expert_places(), ())
        self.update(0)
        self.update(1)
        self.expect(8, 0)

    def test_while_experts_may_move_and_where_it_is_not_told_all_is_ordinary(self) -> None:
        self.update(0)
        for arguments, locations in (
            (types.SimpleNamespace(enable_eplb=True), self.process.locations),
            (None, self.process.locations),
            (types.SimpleNamespace(enable_eplb=False), types.SimpleNamespace(other_maps=True)),
        ):
            with self.subTest(arguments=arguments, locations=locations):
                before = self.process.arguments, self.process.locations
                self.process.arguments, self.process.locations = arguments, locations
                self.assertIsNone(reload_of(self.model.load_weights))
                self.process.arguments, self.process.locations = before
        with modules({LOCATION: types.ModuleType(LOCATION)}):
            self.assertIsNone(reload_of(self.model.load_weights))
        self.assertIsNotNone(reload_of(self.model.load_weights))

    def test_a_hook_that_fails_fails_the_update(self) -> None:
        """SGLang logs it, where its level has warnings, and answers 200."""
        self.update(0)
        self.addCleanup(LOGGER.setLevel, logging.NOTSET)
        for level, shown in ((logging.WARNING, 1), (logging.ERROR, 0)):
            with self.subTest(level=level):
                LOGGER.setLevel(level)
                self.model.experts.quant_method.fails = True
                logged = Logged()
                logging.getLogger().addHandler(logged)
                replies = self.failing_update(1)
                logging.getLogger().removeHandler(logged)
                self.assertIn(b"RuntimeError: the hook has failed: no processing", replies[-1])
                self.assertEqual(len(logged.records), shown)
                self.assertEqual((LOGGER.level, LOGGER.filters), (level, []))
        # which the next one heals
        self.model.experts.quant_method.fails = False
        self.update(2)

    def failing_update(self, seed: int) -> list[bytes]:
        """Returns what the worker has replied."""
        messages, _ = self.messages(seed)
        daemon = Daemon(self.context, self.address, messages)
        daemon.start()
        try:
            with self.assertRaisesRegex(RuntimeError, "the hook has failed: no processing"):
                Extension(self.model).update(self.address)
        finally:
            daemon.worker_left.set()
            daemon.join()
        return daemon.replies

    def test_the_draft_model_has_recordings_of_its_own(self) -> None:
        draft = Model(self.process)
        for seed in range(2):
            for model in (self.model, draft):
                self.update(seed, model)
                self.expect(*((0, 8) if seed == 0 else (8, 0)))

    def test_a_second_conversation_that_nobody_answers_ends(self) -> None:
        """SGLang opens the address again for its draft model, and answers its HTTP request only when that has returned."""
        self.limits = Limits(total=1.0, grace=0.2)
        self.update(0)
        with self.assertRaises((TimeoutError, DaemonGone)):
            Extension(Model(self.process)).update(self.address)

    def test_the_plugin_takes_the_place_of_checkpoint_engine(self) -> None:
        for there in (False, True):
            with self.subTest(there=there):
                theirs = types.ModuleType(WORKER)
                vars(theirs)["update_weights_from_ipc"] = vars(theirs)["more"] = print
                package = types.ModuleType("checkpoint_engine")
                found = {"checkpoint_engine": package, WORKER: theirs} if there else {"checkpoint_engine": None, WORKER: None}
                with modules(found):
                    plugin()
                    worker = importlib.import_module(WORKER)
                    self.assertIs(worker.update_weights_from_ipc, take_update)
                    self.assertEqual(hasattr(worker, "more"), there)


if __name__ == "__main__":
    unittest.main()
