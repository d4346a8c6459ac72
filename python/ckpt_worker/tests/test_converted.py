"""Models some of whose layers are converted after loading: only those are reloaded by vLLM in every update. With vLLM's own
reload where it is installed."""

from __future__ import annotations

import pickle
import sys
import types
import unittest
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import mock

import played_vllm
import torch
from played_daemon import Daemon, DaemonTest, Messages, handle
from torch.multiprocessing import reductions

from ckpt_worker import WorkerExtension
from ckpt_worker.converted import look_at_layers
from ckpt_worker.reload import ASIDE

RING = 65_536
EXPERTS, HIDDEN, INNER = 4, 8, 6

if find_spec("vllm") is not None:
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
    from vllm.model_executor.model_loader.utils import Attention
    from vllm.platforms import current_platform

    STAND_INS: dict[str, Any] = {}
else:
    from played_vllm import Attention, QuantizeMethodBase, record_metadata_for_reloading

    current_platform = None
    STAND_INS = played_vllm.stand_ins()


class Method(QuantizeMethodBase):  # type: ignore[misc]
    def create_weights(self, layer: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def apply(self, layer: Any, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Requantised(Method):
    """Weights and scales of other values, in the same form."""

    def process_weights_after_loading(self, layer: Any) -> None:
        power = torch.exp2(torch.ceil(torch.log2(layer.scale.data)))
        layer.weight.data.mul_(layer.scale.data / power)
        replace(layer, "scale", power)
        self.config = types.SimpleNamespace(scale=layer.scale, sums=[layer.weight.data.sum()])
        layer.largest = float(layer.weight.max())


class Packed(Method):
    """The weights of another form."""

    def process_weights_after_loading(self, layer: Any) -> None:
        replace(layer, "weight", layer.weight.data.t().contiguous().reshape(-1, 4))


class Shuffled(Method):
    """Experts as they came; what runs knows the tensor of their scales."""

    def process_weights_after_loading(self, layer: Any) -> None:
        replace(layer, "w13", layer.w13.data)
        replace(layer, "w13_scale", layer.w13_scale.data)
        self.config = types.SimpleNamespace(scale=layer.w13_scale)


class Moving(Method):
    """The memory of the weights, under the same parameter."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight.data = layer.weight.data * 2


class Deciding(Method):
    """Converts some contents."""

    def process_weights_after_loading(self, layer: Any) -> None:
        if layer.weight.max() > 1:
            layer.weight.data.mul_(0.5)


class Failing(Method):
    """Half way."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight.data.mul_(2)
        layer.steps.append("begun")
        layer.half = layer.weight * 1
        raise AssertionError("shape")


class Looking(Method):
    """Makes something of the weights, which stay what they are."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.largest, layer.seen = layer.weight.max(), [layer.weight]


class Indexed(Method):
    """Of which other contents must not be tried."""

    def process_weights_after_loading(self, layer: Any) -> None:
        assert layer.order.max() < 4, "the device would be gone"


class Wrapping(Method):
    """Runs what another method has processed."""

    def __init__(self, old: Method):
        self.old_quant_method = old


def replace(layer: Any, name: str, data: torch.Tensor) -> None:
    parameter = torch.nn.Parameter(data, requires_grad=False)
    parameter.weight_loader = getattr(layer, name).weight_loader  # type: ignore[attr-defined]
    setattr(layer, name, parameter)


# vLLM gives it by the name `param`
def whole(param: Any, loaded: torch.Tensor) -> None:
    param.data.copy_(loaded)


def of_expert(param: Any, loaded: torch.Tensor, expert: int, shard: int) -> None:
    # vLLM's processing makes parameters anew that have only their loader
    assert param.kind == "block", "the parameter does not know how it is loaded"
    size = param.shape[1] // 2
    param.data[expert].narrow(0, shard * size, size).copy_(loaded)


def layer_of(method: Method | None, loader: Callable[..., None] = whole, **tensors: torch.Tensor) -> torch.nn.Module:
    layer = torch.nn.Module()
    for name, tensor in tensors.items():
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        parameter.weight_loader = loader  # type: ignore[attr-defined]
        parameter.kind = "block"  # type: ignore[attr-defined]
        layer.register_parameter(name, parameter)
    if method is not None:
        layer.quant_method = method
    return layer


class Derived(Attention):  # type: ignore[misc]
    """Makes something of another layer's weights, in place, as MLA does."""

    def __init__(self, of: torch.nn.Module):
        torch.nn.Module.__init__(self)
        object.__setattr__(self, "of", of)
        # for a cache of another type, which this model does not have
        scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        scale.weight_loader = whole  # type: ignore[attr-defined]
        self.prob_scale = scale
        self.made = torch.zeros(HIDDEN, HIDDEN)

    def process_weights_after_loading(self, _dtype: Any) -> None:
        self._parameters.pop("prob_scale", None)
        self.made.copy_(self.of.weight.data * 2 + self.of.scale.data)


Derived.__abstractmethods__ = frozenset()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = layer_of(None, weight=torch.zeros(16, HIDDEN))
        self.qkv = layer_of(Requantised(), weight=torch.zeros(HIDDEN, HIDDEN), scale=torch.zeros(HIDDEN, 1))
        self.out = layer_of(Packed(), weight=torch.zeros(HIDDEN, HIDDEN))
        shape = EXPERTS, 2 * INNER, HIDDEN
        self.experts = layer_of(Shuffled(), of_expert, w13=torch.zeros(*shape), w13_scale=torch.zeros(EXPERTS, 2, 1))
        self.attention = Derived(self.qkv)
        record_metadata_for_reloading(self)
        self.loads: list[str] = []

    def load_weights(self, weights: Any) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            self.loads.append(name)
            layer, *expert, leaf = name.split(".")
            parameter: Any = parameters[f"{layer}.{leaf}"]
            parameter.weight_loader(parameter, tensor, *map(int, expert))

    def process(self) -> None:
        for layer in (self.qkv, self.out, self.experts):
            layer.quant_method.process_weights_after_loading(layer)
        self.attention.process_weights_after_loading(None)

    def held(self) -> dict[str, torch.Tensor]:
        derived = {"made": self.attention.made, "known": self.experts.quant_method.config.scale}
        return {**dict(self.named_parameters()), **derived}


def weights_of(version: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(version)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (16, HIDDEN), "qkv.weight": (HIDDEN, HIDDEN)}
    for expert in range(EXPERTS):
        for shard in range(2):
            shapes[f"experts.{expert}.{shard}.w13"] = (INNER, HIDDEN)
            shapes[f"experts.{expert}.{shard}.w13_scale"] = (1, 1)
    # the layers' tensors are not all in one list
    shapes |= {"qkv.scale": (HIDDEN, 1), "out.weight": (HIDDEN, HIDDEN)}
    return {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()}


def started(version: int) -> Model:
    """As a server that was started with these weights."""
    model = Model()
    model.load_weights(weights_of(version).items())
    model.process()
    return model


def converted_layers(model: Model) -> dict[torch.nn.Module, str]:
    return dict(look_at_layers([model], torch.device("cpu")).converted)


class Worker(WorkerExtension):
    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = types.SimpleNamespace(index=0, type="cpu")
        self.model_config = types.SimpleNamespace(quantization="fp8", dtype=torch.float32)
        self.vllm_config = types.SimpleNamespace(parallel_config=types.SimpleNamespace(enable_eplb=False))

    def get_model(self) -> Model:
        return self.model


class TestConverted(DaemonTest):
    CONVERTED = ("qkv.weight", "qkv.scale", "out.weight")

    def setUp(self) -> None:
        super().setUp()
        for name, module in STAND_INS.items():
            sys.modules[name] = module
            self.addCleanup(sys.modules.pop, name)
        if current_platform is not None:
            known = mock.patch.object(type(current_platform), "get_device_uuid", lambda *_: played_vllm.UUID, create=True)
            known.start()
            self.addCleanup(known.stop)
        self.ring = torch.zeros(RING, dtype=torch.uint8)
        patch = mock.patch.object(reductions, "rebuild_cuda_tensor", lambda *_: self.ring[:])
        self.handle = handle(RING)
        patch.start()
        self.addCleanup(patch.stop)
        self.worker = Worker(started(100))

    def listed(self, tensors: dict[str, torch.Tensor]) -> Callable[[], bytes]:
        def message() -> bytes:
            items, offset = [], 0
            for name, tensor in tensors.items():
                self.ring[offset : offset + tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
                items.append({"name": name, "dtype": tensor.dtype, "shape": tensor.shape, "offset": offset})
                offset += -(-tensor.nbytes // 256) * 256
            return pickle.dumps(items)

        return message

    def update(self, version: int, per_list: int = 7, without: tuple[str, ...] = (), stop: int | None = None) -> dict[str, Any]:
        """@param stop: after so many lists the daemon gives up"""
        weights = [(name, tensor) for name, tensor in weights_of(version).items() if name not in without]
        lists = [self.listed(dict(weights[i : i + per_list])) for i in range(0, len(weights), per_list)]
        end = pickle.dumps(None)
        messages: Messages = [self.handle, *lists, end, end]
        if stop is not None:
            messages = [self.handle, *lists[:stop], pickle.dumps(RuntimeError("stop"))]
        self.worker.model.loads.clear()
        daemon = Daemon(self.context, self.address, messages)
        daemon.start()
        answer = self.worker.update_weights_from_ipc({played_vllm.UUID: self.address})
        daemon.worker_left.set()
        daemon.join()
        return answer

    def expect(self, answer: dict[str, Any], **wanted: Any) -> None:
        self.assertEqual({name: answer[name] for name in wanted}, wanted)

    def is_as_started(self, version: int) -> None:
        has, wanted = self.worker.model.held(), started(version).held()
        self.assertEqual(list(has), list(wanted))
        different = [name for name, tensor in wanted.items() if not torch.equal(has[name], tensor)]
        self.assertEqual(different, [])

    def test_only_what_is_converted_is_loaded_again(self) -> None:
        model = self.worker.model
        addresses = {name: tensor.data_ptr() for name, tensor in model.held().items()}
        tensors = len(weights_of(0))
        for version in range(4):
            answer = self.update(version)
            self.expect(answer, ok=True, error=None, torn=False, mode="recorded")
            self.expect(answer, replayed=0 if version == 0 else tensors - 3, reasons={ASIDE: 3})
            self.assertEqual(model.loads if version else list(self.CONVERTED), list(self.CONVERTED))
            self.is_as_started(version)
        self.assertEqual({name: tensor.data_ptr() for name, tensor in model.held().items()}, addresses)
        self.assertEqual(answer["not_direct"], ASIDE)

    def test_a_list_of_each_size(self) -> None:
        for per_list in (1, 2, 3, 5, 64):
            self.update(1, per_list)
            self.expect(self.update(2, per_list), ok=True, replayed=len(weights_of(0)) - 3)
            self.is_as_started(2)

    def test_what_is_tried_leaves_everything(self) -> None:
        model = started(7)
        model.moving = layer_of(Moving(), weight=torch.ones(4, 4))
        model.deciding = layer_of(Deciding(), weight=torch.full((4, 4), 4.0))
        model.failing = layer_of(Failing(), weight=torch.ones(4, 4))
        model.failing.steps = []
        loaded = {name: (one, one.data_ptr(), one.detach().clone()) for name, one in model.named_parameters()}
        known = {layer: (dict(vars(layer)), dict(vars(getattr(layer, "quant_method", layer)))) for layer in model.modules()}
        sums, scale = model.qkv.quant_method.config.sums[0].clone(), model.qkv.quant_method.config.scale.clone()
        generator = torch.get_rng_state()
        reasons = converted_layers(model)
        self.assertEqual(set(reasons), {model.qkv, model.out, model.attention, model.moving, model.deciding, model.failing})
        self.assertIn("cannot be tried: AssertionError: shape", reasons[model.failing])
        self.assertEqual(model.failing.steps, [])
        self.assertEqual(
            {name: id(one) for name, one in model.named_parameters()}, {name: id(one[0]) for name, one in loaded.items()}
        )
        for name, (one, address, contents) in loaded.items():
            self.assertEqual(one.data_ptr(), address, name)
            self.assertTrue(torch.equal(one, contents), name)
        for layer, (own, of_method) in known.items():
            self.assertEqual({key: id(one) for key, one in vars(layer).items()}, {key: id(one) for key, one in own.items()})
            now = vars(getattr(layer, "quant_method", layer))
            self.assertEqual({key: id(one) for key, one in now.items()}, {key: id(one) for key, one in of_method.items()})
        self.assertTrue(torch.equal(model.qkv.quant_method.config.sums[0], sums))
        self.assertTrue(torch.equal(model.qkv.quant_method.config.scale, scale))
        self.assertTrue(torch.equal(torch.get_rng_state(), generator))

    def test_what_cannot_be_put_back_leaves_the_engine_torn(self) -> None:
        with mock.patch("ckpt_worker.kept._State.restore", side_effect=RuntimeError("the device is gone")):
            answer = self.update(1, stop=0)
        self.expect(answer, ok=False, phase="begin", torn=True)
        self.assertIn("cannot be put back", answer["error"])

    def test_a_method_that_knows_too_much_is_not_tried(self) -> None:
        model = started(7)
        model.experts.quant_method.cache = torch.zeros(2**20)
        with mock.patch("ckpt_worker.kept._BYTES_MAX", 2**20):
            self.assertIn("too much memory", converted_layers(model)[model.experts])

    def test_a_first_update_that_ends_before_its_lists_has_changed_nothing(self) -> None:
        before = {name: one.clone() for name, one in self.worker.model.held().items()}
        scale = self.worker.model.qkv.quant_method.config.scale.clone()
        self.expect(self.update(1, stop=0), ok=False, phase="begin", torn=False)
        self.assertTrue(all(torch.equal(one, before[name]) for name, one in self.worker.model.held().items()))
        self.assertTrue(torch.equal(self.worker.model.qkv.quant_method.config.scale, scale))

    def test_no_other_contents_are_tried_of_indices(self) -> None:
        model = started(7)
        model.extra = layer_of(Indexed(), order=torch.zeros(4, dtype=torch.int32))
        self.assertIn("no floating-point", converted_layers(model)[model.extra])

    def test_a_layer_that_is_quantised_while_it_is_loaded(self) -> None:
        model = started(7)
        model.experts._already_called_process_weights_after_loading = True
        self.assertIn("while it is loaded", converted_layers(model)[model.experts])

    def test_a_layer_whose_method_was_wrapped_since(self) -> None:
        experts = self.worker.model.experts
        experts.quant_method = Wrapping(experts.quant_method)
        for version in (1, 2):
            self.expect(self.update(version), ok=True, ordinary=20 if version == 1 else 3)
            self.assertTrue(torch.equal(experts.w13, started(version).experts.w13))

    def test_a_converted_layer_whose_method_was_wrapped_since(self) -> None:
        for quantization in ("fp8", None):
            with self.subTest(quantization=quantization):
                model = self.worker.model = started(7)
                self.worker.model_config.quantization = quantization
                model.qkv.quant_method = Wrapping(model.qkv.quant_method)
                before = {name: one.clone() for name, one in model.held().items()}
                answer = self.update(1, stop=0)
                self.expect(answer, ok=False, phase="begin", torn=False)
                self.assertIn("would not process it again", answer["error"])
                self.assertTrue(all(torch.equal(one, before[name]) for name, one in model.held().items()))

    def test_a_converted_layer_that_gets_only_a_part(self) -> None:
        self.update(1)
        answer = self.update(2, without=("qkv.scale",))
        self.expect(answer, ok=False, torn=True)
        self.assertIn("qkv: the update has weight, but not scale", answer["error"])
        self.expect(self.update(3), ok=True, torn=False)
        self.is_as_started(3)

    def test_an_update_that_ends_half_way(self) -> None:
        for stop in (0, 1, 2):
            with self.subTest(stop=stop):
                self.update(1)
                self.expect(self.update(2, stop=stop), ok=False, torn=stop > 0)
                self.expect(self.update(3), ok=True, torn=False)
                self.is_as_started(3)

    def test_weights_that_the_engine_takes_no_more(self) -> None:
        self.update(1)
        model = self.worker.model
        real = model.load_weights

        def some(weights: Any) -> None:
            real([(name, tensor) for name, tensor in weights if name != "out.weight"])

        with mock.patch.object(model, "load_weights", some):
            answer = self.update(2)
        self.expect(answer, ok=False, torn=True)
        self.assertIn("the engine has taken 1 weights of a list, and 2 before", answer["error"])

    def test_a_model_that_loads_a_converted_layer_in_its_own_way(self) -> None:
        """What it copies into the tensors that stand for the layer meanwhile would go nowhere."""
        model = self.worker.model

        def own(weights: Any) -> None:
            for name, tensor in weights:
                if name == "out.weight":
                    model.out.weight.data.copy_(tensor)
                else:
                    Model.load_weights(model, [(name, tensor)])

        for told in ("", "layerwise"):
            with mock.patch.object(model, "load_weights", own), mock.patch.dict("os.environ", {"CKPT_RELOAD": told}):
                answer = self.update(2)
            self.expect(answer, ok=False, torn=True)
            self.assertIn("in a way that vLLM's reload does not see", answer["error"])
        self.expect(self.update(3), ok=True, torn=False)
        self.is_as_started(3)

    def test_a_converted_layer_that_two_models_have(self) -> None:
        draft = Model()
        draft.qkv = self.worker.model.qkv
        with mock.patch.object(self.worker, "get_draft_model", lambda: draft, create=True):
            self.expect(self.update(1, stop=0), ok=False, phase="begin", torn=False)
            self.assertIn("two models have it", self.worker.ckpt_state()["last"]["error"])

    def test_another_layer_that_two_models_have(self) -> None:
        draft = Model()
        draft.process()
        draft.embed = embed = self.worker.model.embed
        running = embed.weight
        with mock.patch.object(self.worker, "get_draft_model", lambda: draft, create=True):
            for version in (1, 2):
                self.expect(self.update(version), ok=True)
        self.assertIs(embed.weight, running)
        self.is_as_started(2)

    def test_what_is_made_of_weights_that_stay_what_they_are(self) -> None:
        model = self.worker.model
        model.embed.quant_method = Looking()
        running = model.embed.weight
        for version in (1, 2, 3):
            self.expect(self.update(version), ok=True)
            self.assertEqual(model.embed.largest, weights_of(version)["embed.weight"].max())
            self.assertIs(model.embed.seen[0], running)

    def test_a_direct_update_converts_nothing_again(self) -> None:
        """Of an update without weights of converted layers all may be placed."""
        self.update(1)
        for version in (2, 3):
            answer = self.update(version, without=self.CONVERTED)
            self.expect(answer, ok=True, not_direct=None if version == 3 else answer["not_direct"])
        before = {name: one.clone() for name, one in self.worker.model.held().items()}
        vars(self.worker)["_ckpt_engine"]._process()
        self.assertTrue(all(torch.equal(one, before[name]) for name, one in self.worker.model.held().items()))

    def test_nothing_is_processed_before_the_last_list(self) -> None:
        """Though nothing of what was recorded is looked at."""
        plain = mock.patch.object(Requantised, "process_weights_after_loading", lambda *_: None)
        blind = mock.patch.object(Derived, "process_weights_after_loading", lambda *_: None)
        with plain, blind:
            self.worker.model = started(50)
            for version in (1, 2, 3):
                self.expect(self.update(version), ok=True, ordinary=20 if version == 1 else 1)
                self.is_as_started(version)

    def test_a_reload_by_vllm_itself_in_between(self) -> None:
        """Its method then knows other tensors than those that run."""
        self.update(1)
        experts = self.worker.model.experts
        experts.quant_method.config = types.SimpleNamespace(scale=experts.w13_scale.detach().clone())
        self.expect(self.update(2), ok=True, replayed=len(weights_of(0)) - 3)
        self.is_as_started(2)

    def test_a_layer_whose_processing_looks_at_no_weight_is_not_processed_again(self) -> None:
        self.update(1)
        known = self.worker.model.experts.quant_method.config
        self.update(2)
        self.assertIs(self.worker.model.experts.quant_method.config, known)

    def test_another_model_is_looked_at_anew(self) -> None:
        self.update(1)
        self.worker.model = started(50)
        self.expect(self.update(2), ok=True, replayed=0)
        self.is_as_started(2)
        self.expect(self.update(3), ok=True, replayed=len(weights_of(0)) - 3)
        self.is_as_started(3)

    def test_layer_by_layer_when_told(self) -> None:
        self.update(0)
        self.update(1)
        for version in (2, 3):
            with mock.patch.dict("os.environ", {"CKPT_RELOAD": "layerwise"}):
                answer = self.update(version)
            self.expect(answer, ok=True, mode="layerwise", replayed=0)
            same = {name for name in self.worker.model.held() if name != "known"}
            wanted = started(version).held()
            for name in same:
                self.assertTrue(torch.equal(self.worker.model.held()[name], wanted[name]), name)
        self.expect(self.update(4), ok=True, mode="recorded")
        self.is_as_started(4)

    def test_after_everything_was_forgotten(self) -> None:
        self.update(1)
        self.worker.ckpt_forget()
        for version in (2, 3):
            self.expect(self.update(version), ok=True, replayed=0 if version == 2 else len(weights_of(0)) - 3)
            self.is_as_started(version)

    def test_what_runs_is_what_ran(self) -> None:
        running = dict(self.worker.model.named_parameters())
        for version, stop in ((1, None), (2, None), (3, 1), (4, 3), (5, None)):
            self.expect(self.update(version, stop=stop), ok=stop is None)
            for name, parameter in self.worker.model.named_parameters():
                self.assertIs(parameter, running[name], name)

    def test_every_layer_as_it_was_loaded_may_be_placed(self) -> None:
        with mock.patch.object(Requantised, "process_weights_after_loading", lambda *_: None):
            model = self.worker.model = Model()
            model.out = layer_of(None, weight=torch.zeros(HIDDEN, HIDDEN))
            record_metadata_for_reloading(model)
            model.experts.quant_method.process_weights_after_loading(model.experts)
            model.attention.process_weights_after_loading(None)
            self.expect(self.update(1), ok=True, reasons={}, not_direct=None)
            self.assertEqual(set(converted_layers(model)), {model.attention})


if __name__ == "__main__":
    unittest.main()
