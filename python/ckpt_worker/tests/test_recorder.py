"""Engines in small: what they do with the tensors of a list, and what becomes of other contents that are replayed."""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable, Sequence

import torch

from ckpt_worker.copies import bytes_of
from ckpt_worker.proof import prove
from ckpt_worker.recorder import ListRecording, Recorder, Tensor
from ckpt_worker.replay import replay

Given = dict[str, torch.Tensor]
Load = Callable[[Given], None]


class Ring:
    """A ring with tensors that lie there as a daemon lays them, behind some bytes that are nobody's."""

    def __init__(self, shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]], lead: int = 0):
        self.tensors: list[Tensor] = []
        self._shapes = shapes
        end = 0
        for name, (dtype, shape) in shapes.items():
            size = torch.empty(0, dtype=dtype).element_size() * torch.Size(shape).numel()
            self.tensors.append(Tensor(name, end, size))
            end += -(-size // 256) * 256
        self._memory = torch.zeros(lead + max(end, 256), dtype=torch.uint8)
        self.bytes = self._memory[lead:]

    def fill(self, seed: int) -> Given:
        """Random contents, and views of them."""
        self.bytes.random_(0, 256, generator=torch.Generator().manual_seed(seed))
        given: Given = {}
        for tensor in self.tensors:
            dtype, shape = self._shapes[tensor.name]
            given[tensor.name] = self.bytes[tensor.offset : tensor.offset + tensor.bytes].view(dtype).view(shape)
        return given


class Engine:
    """Parameters, and a way of loading them that a test gives it."""

    def __init__(self, parameters: Sequence[torch.Tensor], load: Load):
        self.load = load
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in parameters}
        self.storages = list(storages.values())
        self.regions = [bytes_of(storage) for storage in self.storages]

    def record(self, ring: Ring, seed: int) -> ListRecording:
        given = ring.fill(seed)
        recorder = Recorder(ring.bytes, dict(enumerate(self.storages)))
        recording = recorder.begin(ring.tensors)
        with recorder:
            self.load(given)
        recorder.finish()
        prove(recording, ring.bytes, dict(enumerate(self.regions)))
        return recording

    def contents(self) -> list[torch.Tensor]:
        return [region.clone() for region in self.regions]

    def clear(self) -> None:
        for region in self.regions:
            region.zero_()


class TestRecorder(unittest.TestCase):
    def check(self, engine: Engine, ring: Ring, ordinary: Sequence[str] = (), ignored: Sequence[str] = ()) -> ListRecording:
        """Records, and compares a replay of other contents with an ordinary load of them, from zeros."""
        recording = engine.record(ring, 1)
        self.assertEqual(sorted(recording.ordinary), sorted(ordinary), recording.ordinary)
        self.assertEqual(sorted(recording.ignored), sorted(ignored))
        if ordinary:
            return recording
        engine.clear()
        engine.load(ring.fill(2))
        wanted = engine.contents()
        engine.clear()
        replay(recording.copies, ring.bytes, dict(enumerate(engine.regions)))
        for region, (has, want) in enumerate(zip(engine.contents(), wanted)):
            self.assertTrue(torch.equal(has, want), f"region {region} differs")
        return recording

    def test_what_is_taken_aside_is_not_looked_at(self) -> None:
        ring = torch.arange(32, dtype=torch.float32).view(torch.uint8)
        model = torch.zeros(16)
        recorder = Recorder(ring, {1: model.untyped_storage()})
        recording = recorder.begin([Tensor("a", 0, 64), Tensor("b", 64, 64)])
        with recorder:
            model.copy_(ring[:64].view(torch.float32))
            with recorder.aside([ring[64:].view(torch.float32)]):
                recorder.launched()
                model.add_(ring[64:].view(torch.float32))
        recorder.finish()
        self.assertEqual((recording.aside, recording.reasons, len(recording.copies)), ({"b"}, [], 1))
        recorder.launched()
        self.assertEqual(len(recording.reasons), 1)

    def test_a_parameter_is_one_copy_wherever_the_ring_begins(self) -> None:
        for lead in (0, 512):
            ring = Ring({"w": (torch.bfloat16, (64, 32)), "v": (torch.float32, (7,))}, lead)
            w, v = torch.zeros(64, 32, dtype=torch.bfloat16), torch.zeros(7)
            engine = Engine([w, v], lambda given, w=w, v=v: (w.copy_(given["w"]), v.data.copy_(given["v"])))  # type: ignore[misc]
            recording = self.check(engine, ring)
            self.assertEqual([(copy.run, copy.shape) for copy in recording.copies], [(64 * 32 * 2, ()), (28, ())])

    def test_fused_and_sliced_parameters(self) -> None:
        """qkv in one parameter; rank 1 of two: rows of the first dimension, and of the second one."""
        names = ("q", "k", "v")
        ring = Ring({**{n: (torch.bfloat16, (32, 16)) for n in names}, "o": (torch.bfloat16, (16, 64))})
        qkv, o = torch.zeros(3 * 16, 16, dtype=torch.bfloat16), torch.zeros(16, 32, dtype=torch.bfloat16)

        def load(given: Given) -> None:
            for i, name in enumerate(names):
                qkv.narrow(0, 16 * i, 16).copy_(given[name].narrow(0, 16, 16))
            o.copy_(given["o"].narrow(1, 32, 32))

        recording = self.check(Engine([qkv, o], load), ring)
        self.assertEqual([copy.shape for copy in recording.copies], [(), (), (), (16,)])

    def test_experts_transposed_and_gathered_on_the_way(self) -> None:
        ring = Ring({f"e.{i}.{p}": (torch.bfloat16, (8, 12)) for i in range(4) for p in "gud"})
        w13, w2 = torch.zeros(4, 16, 12, dtype=torch.bfloat16), torch.zeros(4, 12, 8, dtype=torch.bfloat16)

        def load(given: Given) -> None:
            for i in range(4):
                fused = torch.cat([given[f"e.{i}.g"], given[f"e.{i}.u"]], dim=0)
                w13[i].copy_(fused)
                w2[i].copy_(given[f"e.{i}.d"].t().contiguous())

        self.check(Engine([w13, w2], load), ring)

    def test_temporaries_of_temporaries(self) -> None:
        ring = Ring({"a": (torch.float16, (6, 4)), "b": (torch.float16, (6, 4))})
        w = torch.zeros(4, 2, 6, dtype=torch.float16)

        def load(given: Given) -> None:
            stacked = torch.stack([given["a"], given["b"]])  # 2, 6, 4
            staged = torch.empty(2, 4, 6, dtype=torch.float16)
            staged.copy_(stacked.transpose(1, 2))
            w.copy_(staged.clone().permute(1, 0, 2).flip(2))

        self.check(Engine([w], load), ring)

    def test_reshaped_parts_in_another_order(self) -> None:
        """Heads that are interleaved pairwise, as rotary embeddings want them."""
        ring = Ring({"q": (torch.bfloat16, (32, 8))})
        q = torch.zeros(32, 8, dtype=torch.bfloat16)
        engine = Engine([q], lambda given: q.copy_(given["q"].view(4, 2, 4, 8).transpose(1, 2).reshape(32, 8)))
        self.check(engine, ring)

    def test_what_is_computed_is_ordinary(self) -> None:
        shape = (torch.float32, (8, 8))
        w, low, total = torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.bfloat16), torch.zeros(8, 8)

        def scale(given: Given) -> None:
            w.copy_(given["a"] * 2)

        def scale_in_place(given: Given) -> None:
            staged = given["a"].clone()
            staged.mul_(2)
            w.copy_(staged)

        def convert(given: Given) -> None:
            low.copy_(given["a"])

        def convert_before(given: Given) -> None:
            low.copy_(given["a"].to(torch.bfloat16))

        def add(given: Given) -> None:
            total.add_(given["a"])

        def put(given: Given) -> None:
            w[torch.arange(8)] = given["a"]

        def from_the_host(given: Given) -> None:
            w.fill_(given["a"][0, 0].item())

        def by_branch(given: Given) -> None:
            if not torch.equal(given["a"], given["a"] + 0):
                w.copy_(given["a"])

        def half(given: Given) -> None:
            staged = torch.zeros(8, 8)
            staged[:4].copy_(given["a"][:4])
            w.copy_(staged)

        for load in (scale, scale_in_place, convert, convert_before, add, put, from_the_host, by_branch, half):
            with self.subTest(load.__name__):
                ring = Ring({"a": shape, "b": shape})
                self.check(Engine([w, low, total], load), ring, ordinary=["a"], ignored=["b"])

    def test_what_is_changed_or_read_again_in_place_is_ordinary(self) -> None:
        shape = (torch.float32, (8, 8))
        w, v = torch.zeros(8, 8), torch.zeros(8, 8)

        def scale_by_one(given: Given) -> None:
            w.copy_(given["a"])
            w.mul_(1.0)  # what it is next time, nobody knows

        def copy_on(given: Given) -> None:
            w.copy_(given["a"])
            v.copy_(w)

        def derive(given: Given) -> None:
            w.copy_(given["a"])
            v.data = w + 1

        def erase(given: Given) -> None:
            w.copy_(given["a"])
            w[3].zero_()

        for load in (scale_by_one, copy_on, derive, erase):
            with self.subTest(load.__name__):
                ring = Ring({"a": shape, "b": shape})
                self.check(Engine([w, v], load), ring, ordinary=["a"], ignored=["b"])

    def test_padding_is_a_constant_and_anything_else_that_is_written_is_foreign(self) -> None:
        ring = Ring({"a": (torch.float32, (6, 4))})
        w, other = torch.zeros(8, 4), torch.ones(8, 4)

        def pad(given: Given) -> None:
            w[:6].copy_(given["a"])
            w[6:].fill_(0)

        self.assertEqual(self.check(Engine([w], pad), ring).reasons, [])

        def flush(given: Given) -> None:
            w[:6].copy_(given["a"])
            w[6:].copy_(other[6:])

        recording = Engine([w], flush).record(ring, 1)
        self.assertEqual(recording.ordinary, {})
        self.assertEqual(len(recording.foreign), 1)

    def test_what_the_mode_does_not_see_is_found_by_the_proof(self) -> None:
        ring = Ring({"a": (torch.float32, (8,)), "b": (torch.float32, (8,))})
        w, v = torch.zeros(8), torch.zeros(8)

        def load(given: Given) -> None:
            w.copy_(given["a"])
            v.copy_(given["b"])
            w.numpy()[3] = 5  # as a kernel of another library would

        recording = self.check(Engine([w, v], load), ring, ordinary=["a"])
        self.assertIn("does not hold", recording.ordinary["a"])
        self.assertEqual(len(recording.copies), 1)

    def test_what_the_engine_keeps_elsewhere_is_ordinary(self) -> None:
        ring = Ring({"a": (torch.float32, (8,)), "b": (torch.float32, (8,))})
        w, kept = torch.zeros(8), []

        def load(given: Given) -> None:
            w.copy_(given["b"].clone())
            kept.append(given["a"].clone())
            cycle = [given["b"].clone()]  # nobody keeps it, though nobody has freed it yet
            cycle.append(cycle)  # type: ignore[arg-type]

        recording = self.check(Engine([w], load), ring, ordinary=["a"])
        self.assertIn("keeps it", recording.ordinary["a"])

    def test_tied_weights_and_weights_written_twice(self) -> None:
        ring = Ring({"embed": (torch.bfloat16, (16, 8)), "head": (torch.bfloat16, (16, 8))})
        tied = torch.zeros(16, 8, dtype=torch.bfloat16)
        recording = self.check(
            Engine([tied], lambda given: (tied.copy_(given["embed"]), tied.view(16, 8).copy_(given["head"]))),  # type: ignore[arg-type]
            ring,
        )
        self.assertEqual(len(recording.copies), 1)

    def test_a_part_that_is_written_over_is_ordinary(self) -> None:
        ring = Ring({"a": (torch.bfloat16, (16, 8)), "b": (torch.bfloat16, (4, 8))})
        w = torch.zeros(16, 8, dtype=torch.bfloat16)
        self.check(Engine([w], lambda given: (w.copy_(given["a"]), w[4:8].copy_(given["b"]))), ring, ordinary=["a"])  # type: ignore[arg-type]

    def test_columns_that_lie_between_each_other_are_no_overlap(self) -> None:
        ring = Ring({"a": (torch.uint8, (16, 3)), "b": (torch.uint8, (16, 5))})
        w = torch.zeros(16, 8, dtype=torch.uint8)
        self.check(Engine([w], lambda given: (w[:, :3].copy_(given["a"]), w[:, 3:].copy_(given["b"]))), ring)  # type: ignore[arg-type]

    def test_random_chains_of_views_and_copies(self) -> None:
        for seed in range(150):
            with self.subTest(seed=seed):
                self._random_chain(random.Random(seed))

    def _random_chain(self, rng: random.Random) -> None:
        dtype = rng.choice([torch.uint8, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
        shape = tuple(rng.choice([1, 2, 3, 4, 6]) for _ in range(rng.randint(1, 4)))
        seed = rng.random()

        def run(tensor: torch.Tensor) -> torch.Tensor:
            inner = random.Random(seed)
            for _ in range(inner.randint(0, 6)):
                dim = inner.randrange(tensor.dim()) if tensor.dim() else 0
                step = inner.choice(["t", "narrow", "clone", "reshape", "stage", "cat", "step", "flip"])
                if step == "t" and tensor.dim() > 1:
                    tensor = tensor.transpose(dim, (dim + 1) % tensor.dim())
                elif step == "narrow" and tensor.dim() and tensor.shape[dim] > 1:
                    tensor = tensor.narrow(dim, 1, tensor.shape[dim] - 1)
                elif step == "clone":
                    tensor = tensor.contiguous() if inner.random() < 0.5 else tensor.clone()
                elif step == "reshape":
                    tensor = tensor.reshape(-1) if tensor.dim() else tensor
                elif step == "stage":
                    staged = torch.empty(tensor.numel() + 4, dtype=tensor.dtype)[2 : 2 + tensor.numel()].view(tensor.shape)
                    staged.copy_(tensor)
                    tensor = staged
                elif step == "cat" and tensor.dim() and tensor.dtype != torch.float8_e4m3fn:
                    tensor = torch.cat([tensor, tensor], dim=dim)
                elif step == "step" and tensor.dim() and tensor.shape[dim] > 2:
                    tensor = tensor[(slice(None),) * dim + (slice(None, None, 2),)]
                elif step == "flip" and tensor.dim() and tensor.dtype not in (torch.float8_e4m3fn,):
                    tensor = tensor.flip(dim)
            return tensor

        ring = Ring({"x": (dtype, shape)})
        result = run(ring.fill(0)["x"])
        target = torch.empty(result.numel() + 8, dtype=dtype)[3 : 3 + result.numel()].view(result.shape)
        target = target.transpose(0, -1) if result.dim() > 1 and result.shape[0] == result.shape[-1] else target
        self.check(Engine([target], lambda given: target.copy_(run(given["x"]))), ring)  # type: ignore[arg-type]


if __name__ == "__main__":
    unittest.main()
