"""What an engine's way of loading was recorded as, and when it is replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .copies import Copy, bytes_of
from .messages import Listed
from .proof import prove
from .recorder import Recorder
from .replay import replay

Weights = list[tuple[str, torch.Tensor]]
Run = Callable[[Weights], object]

_LISTS_MAX = 65_536


@dataclass
class Tally:
    """Of one update: tensors that were replayed, loaded by the engine itself, and of the latter those that have to be, by
    reason."""

    replayed: int = 0
    ordinary: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Recorded:
    """What one list is replayed with; None: the engine has to load it, for these reasons."""

    copies: tuple[Copy, ...] | None
    reasons: tuple[str, ...]


class Reload:
    """Takes the lists of one update after another.

    @param tensors: gives the model's parameters, buffers and other tensors that its weights may be loaded into
    """

    def __init__(self, tensors: Callable[[], Iterable[torch.Tensor]]):
        self._tensors = tensors
        self._recorded: dict[bytes, _Recorded] = {}
        self._generation: tuple[object, ...] | None = None
        self._storages: list[torch.UntypedStorage] = []
        self.tally = Tally()

    def forget(self) -> None:
        """Every list is recorded anew."""
        self._recorded.clear()
        self._generation = None

    def begin(self) -> None:
        """An update begins: what was recorded holds only for the memory that it was recorded with."""
        self.tally = Tally()
        self._look()

    def take(self, body: bytes, listed: Sequence[Listed], ring: torch.Tensor, run: Run) -> None:
        """Brings the tensors of a list to where `run` brings them.

        @param body: what the list came in; equal bytes are an equal list
        @param ring: all of its bytes
        """
        weights: Weights = [(one.tensor.name, one.view(ring)) for one in listed]
        recorded = self._recorded.get(body)
        if recorded is None:
            return self._record(body, listed, weights, ring, run)
        if recorded.copies is None:
            run(weights)
            return self._count(len(listed), recorded)
        replay(recorded.copies, ring, [bytes_of(storage) for storage in self._storages])
        return self._count(len(listed), recorded, replayed=True)

    def _record(self, body: bytes, listed: Sequence[Listed], weights: Weights, ring: torch.Tensor, run: Run) -> None:
        recorder = Recorder(ring, self._storages)
        recording = recorder.begin([one.tensor for one in listed])
        with recorder:
            run(weights)
        recorder.finish()
        if self._look():
            # the engine has made tensors or moved them: what was noted is of memory that is not the model's any more
            recorded = _Recorded(None, ("loading has moved the engine's tensors",))
        else:
            prove(recording, ring, [bytes_of(storage) for storage in self._storages])
            reasons = tuple(recording.ordinary.values())
            recorded = _Recorded(None if reasons else tuple(recording.copies), reasons)
        if len(self._recorded) < _LISTS_MAX:
            self._recorded[body] = recorded
        self._count(len(listed), recorded)

    def _count(self, tensors: int, recorded: _Recorded, replayed: bool = False) -> None:
        if replayed:
            self.tally.replayed += tensors
        else:
            self.tally.ordinary += tensors
        self.tally.reasons.update(recorded.reasons)

    def _look(self) -> bool:
        """Whether the model's memory is another one than before; then everything is forgotten."""
        tensors = [tensor for tensor in self._tensors() if tensor.device.type != "meta"]
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
        generation = tuple(
            (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.untyped_storage().nbytes())
            for tensor in tensors
        )
        if generation == self._generation:
            return False
        self._recorded.clear()
        self._generation = generation
        self._storages = list(storages.values())
        return True
