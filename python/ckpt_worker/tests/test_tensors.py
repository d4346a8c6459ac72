"""Where a model's tensors are: what is kept of that is never older than the model."""

from __future__ import annotations

import gc
import random
import unittest
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ckpt_worker.tensors import ModelTensors, index_contents, model_tensors


def simply(models: list[torch.nn.Module | None]) -> list[tuple[str, int]]:
    """Names, and which object each is."""
    found = []
    for number, model in enumerate(models):
        for path, module in () if model is None else model.named_modules():
            for held in (module._parameters, module._buffers, vars(module)):
                found += [(f"{number}:{path}.{key}", id(one)) for key, one in held.items() if isinstance(one, torch.Tensor)]
    return found


class Plain:
    """Something that is no module, with an attribute."""

    def __init__(self, held: object):
        self.held = held


class Layer(torch.nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), float(seed)))
        self.register_parameter("bias", None)
        self.register_buffer("scale", torch.ones(1))
        self.expert_map = torch.tensor([seed, 1])
        self.physical_experts = Plain(torch.tensor([seed]))
        self.count = seed
        self.name = "layer"


def grown() -> torch.nn.Module:
    return torch.nn.Sequential(Layer(1), torch.nn.Sequential(Layer(2), Layer(3)), Layer(4))


class TestModelTensors(unittest.TestCase):
    def test_modules_that_stand_are_gone_over_once(self) -> None:
        models: list[torch.nn.Module | None] = [grown()]
        asked: list[None] = []

        def ask() -> list[torch.nn.Module | None]:
            asked.append(None)
            return models

        tensors = ModelTensors(ask)
        with tensors.standing():
            before = tensors()
            tensors.index_contents()
        once = len(asked)
        models[0] = Layer(5)
        after = tensors()
        self.assertEqual(1, once)
        self.assertNotEqual([name for name, _ in before], [name for name, _ in after])
        self.assertEqual([name for name, _ in model_tensors(Layer(5))], [name for name, _ in after])

    def test_a_scripted_module(self) -> None:
        model = torch.nn.Sequential(Layer(1), torch.jit.script(torch.nn.Linear(2, 2)))
        names = [name for name, _ in model_tensors(model)]
        self.assertEqual(names[-2:], ["0:1.weight", "0:1.bias"])

    def test_whatever_is_done_to_a_model(self) -> None:
        for seed in range(60):
            with self.subTest(seed=seed):
                self.check_changes(random.Random(seed))

    def check_changes(self, choose: random.Random) -> None:
        models: list[torch.nn.Module | None] = [grown(), None]
        tensors = ModelTensors(lambda: models)
        for _ in range(25):
            for _ in range(choose.randrange(3)):
                choose.choice(CHANGES)(choose, models)
            self.assertEqual([(name, id(one)) for name, one in tensors()], simply(models))
            self.assertEqual(tensors.index_contents(), index_contents(*models))
            self.assertEqual([name for name, _ in model_tensors(*models)], [name for name, _ in simply(models)])

    def test_nothing_of_the_model_is_kept(self) -> None:
        model = grown()
        tensors = ModelTensors(lambda: [model])
        self.assertEqual(len(tensors()), 12)
        held = [weakref.ref(model[1]), weakref.ref(model[0].weight), weakref.ref(model[0].expert_map)]
        del model[1], model[0].weight, model[0].expert_map
        gc.collect()
        self.assertEqual([one() for one in held], [None, None, None])

    def test_what_has_not_changed_is_not_gone_over(self) -> None:
        model = grown()
        walks = 0

        def named_modules(*arguments: Any, **options: Any) -> Iterator[tuple[str, torch.nn.Module]]:
            nonlocal walks
            walks += 1
            return torch.nn.Module.named_modules(model, *arguments, **options)

        tensors = ModelTensors(lambda: [model])
        object.__setattr__(model, "named_modules", named_modules)
        tensors()
        self.assertEqual(walks, 1)
        model[0].count += 1
        model[0].name = "another"
        model[1][0].weight = torch.nn.Parameter(torch.zeros(3))
        model[1][1].expert_map = torch.tensor([5])
        seen = [(name, id(one)) for name, one in tensors()]
        self.assertEqual(walks, 1)
        self.assertEqual(seen, simply([model]))

    def test_indices(self) -> None:
        model = grown()
        tensors = ModelTensors(lambda: [model])
        self.assertEqual(tensors.index_contents(), (1, 1, 1, 2, 1, 2, 3, 1, 3, 4, 1, 4))
        model[0].expert_map.fill_(7)
        model[2].physical_experts.held = torch.tensor([8, 9])
        model[1][0].physical_experts = Plain(torch.tensor([0.5]))
        self.assertEqual(tensors.index_contents(), (7, 7, 1, 2, 1, 3, 1, 3, 4, 1, 8, 9))


def modules_of(models: list[torch.nn.Module | None]) -> list[torch.nn.Module]:
    return [module for model in models if model is not None for module in model.modules()]


def layer_of(choose: random.Random, models: list[torch.nn.Module | None]) -> Any:
    layers = [module for module in modules_of(models) if isinstance(module, Layer)]
    return choose.choice(layers or [Layer(0)])


def parents_of(models: list[torch.nn.Module | None]) -> list[torch.nn.Module]:
    return [module for module in modules_of(models) if module._modules]


def set_attribute(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    name = choose.choice(["expert_map", "count", "name", "logical", "other", "physical_experts"])
    value = choose.choice([torch.tensor([choose.randrange(9)]), 3, "x", None, Plain(torch.tensor([4]))])
    object.__setattr__(layer_of(choose, models), name, value)


def delete_attribute(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    vars(layer_of(choose, models)).pop(choose.choice(["expert_map", "count", "name", "other"]), None)


def rename(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    """In the place of the old name."""
    layer = layer_of(choose, models)
    held = choose.choice([layer._parameters, layer._buffers])
    if held:
        old = choose.choice(list(held))
        items = [(f"{key}x" if key == old else key, value) for key, value in held.items()]
        held.clear()
        held.update(items)


def set_parameter(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    value = choose.choice([None, torch.nn.Parameter(torch.zeros(choose.randrange(1, 4)))])
    layer_of(choose, models)._parameters[choose.choice(["weight", "bias", "third"])] = value


def set_buffer(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    layer_of(choose, models)._buffers[choose.choice(["scale", "expert_scale"])] = choose.choice([None, torch.ones(2)])


def set_module(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    """A new one, one that is elsewhere too, or none."""
    parent = choose.choice(parents_of(models))
    others = [module for module in modules_of(models) if not module._modules]
    parent._modules[choose.choice(list(parent._modules))] = choose.choice([Layer(7), None, *others])
    if not any(parent._modules.values()):
        parent._modules["0"] = Layer(8)


def set_model(choose: random.Random, models: list[torch.nn.Module | None]) -> None:
    models[choose.randrange(2)] = choose.choice([grown(), Layer(5)])
    models[0] = models[0] if models[0] is not None and models[0]._modules else grown()


Change = Callable[[random.Random, list[torch.nn.Module | None]], None]
CHANGES: list[Change] = [set_attribute, delete_attribute, rename, set_parameter, set_buffer, set_module, set_model]


if __name__ == "__main__":
    unittest.main()
