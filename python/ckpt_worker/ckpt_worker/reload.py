"""What an engine's way of loading was recorded as, and when it is replayed."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .copies import bytes_of
from .messages import Listed
from .proof import prove
from .recorder import ListRecording, Recorder
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


class Reload:
    """Takes the lists of one update after another.

    @param tensors: gives the model's parameters, buffers and other tensors that its weights may be loaded into
    """

    def __init__(self, tensors: Callable[[], Iterable[torch.Tensor]]):
        self._tensors = tensors
        self._recorded: dict[bytes, ListRecording] = {}
        self._generation: tuple[object, ...] | None = None
        # of the running update only: an engine may free its memory between two
        self._storages: list[torch.UntypedStorage] = []
        self._regions: list[torch.Tensor] = []
        self._recorder: Recorder | None = None
        self.tally = Tally()

    def forget(self) -> None:
        """Every list is recorded anew."""
        self._recorded.clear()
        self._generation = None

    def begin(self, ring: torch.Tensor) -> None:
        """An update begins: what was recorded holds only for the memory that it was recorded with.

        @param ring: all of its bytes
        """
        self.tally = Tally()
        self._look(ring)
        self._recorder = Recorder(ring, self._storages)

    def end(self) -> None:
        """The last list was taken, or the update has failed. Nothing of the ring is kept."""
        self._recorder = None
        self._storages, self._regions = [], []

    def take(self, body: bytes, listed: Sequence[Listed], ring: torch.Tensor, run: Run) -> None:
        """Brings the tensors of a list to where `run` brings them.

        @param body: what the list came in; equal bytes are an equal list
        @param ring: all of its bytes
        """
        assert self._recorder is not None, "the update has not begun"
        weights: Weights = [(one.tensor.name, one.view(ring)) for one in listed]
        recorded = self._recorded.get(body)
        if recorded is not None and not recorded.reasons:
            replay(recorded.copies, ring, self._regions)
            self._recorder.replayed(recorded)
            self.tally.replayed += len(listed)
            return
        if recorded is None:
            recorded = self._record(body, listed, weights, ring, run)
        else:
            # watched all the same: it may read what was replayed
            self._load(self._recorder.begin([one.tensor for one in listed]), weights, ring, run)
        self.tally.ordinary += len(listed)
        self.tally.reasons.update(recorded.reasons)

    def _record(self, body: bytes, listed: Sequence[Listed], weights: Weights, ring: torch.Tensor, run: Run) -> ListRecording:
        assert self._recorder is not None
        recording = self._recorder.begin([one.tensor for one in listed])
        # what has moved the tensors may not do it again
        if self._load(recording, weights, ring, run):
            prove(recording, ring, self._regions)
            if len(self._recorded) < _LISTS_MAX:
                self._recorded[body] = recording
        return recording

    def _load(self, recording: ListRecording, weights: Weights, ring: torch.Tensor, run: Run) -> bool:
        """The engine loads the list itself. False: it has made tensors or moved them, so what was noted is of memory that is
        not the model's any more."""
        assert self._recorder is not None
        uses = _uses(ring)
        with self._recorder:
            run(weights)
        self._recorder.finish()
        if _uses(ring) > uses:
            gc.collect()
        if _uses(ring) > uses:
            recording.foreign.append("the engine keeps views of the ring")
        if not self._look(ring):
            return True
        recording.foreign.append("loading has moved the engine's tensors")
        self._recorder = Recorder(ring, self._storages)
        return False

    def _look(self, ring: torch.Tensor) -> bool:
        """Whether the model's memory is another one than before; then everything is forgotten. A tensor of the model in the
        ring, which is written over, is taken out of it."""
        tensors = [tensor for tensor in self._tensors() if tensor.device.type != "meta"]
        for tensor in tensors:
            if tensor.untyped_storage()._cdata == ring.untyped_storage()._cdata:
                tensor.data = tensor.data.clone()
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
        generation = tuple(
            (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.untyped_storage().nbytes())
            for tensor in tensors
        )
        # equal generations have their storages in the same order
        self._storages = list(storages.values())
        self._regions = [bytes_of(storage) for storage in self._storages]
        if generation == self._generation:
            return False
        self._recorded.clear()
        self._generation = generation
        return True


def _uses(ring: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(ring.untyped_storage()._cdata))
