"""What an engine's way of loading was recorded as, and when it is replayed."""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .copies import Copy
from .fingerprint import fingerprint
from .kernel import KernelReplay, has_triton
from .messages import Listed
from .placement import Allocation, NotPlaced, PlacementMap, make_map
from .proof import prove
from .recorder import ListRecording, Recorder
from .regions import Regions, Tensors, Views
from .replay import replay
from .watch import ContentWatch

Weights = list[tuple[str, torch.Tensor]]
Run = Callable[[Weights], object]
PostHook = Callable[[], object]

_LISTS_MAX = 65_536
HOOK_CHANGES = "the engine's processing after loading changes what was loaded"


@dataclass
class Tally:
    """Of one update: tensors that were replayed, loaded by the engine itself, and of the latter those that have to be, by
    reason."""

    replayed: int = 0
    ordinary: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    #: from each list's arrival to its reply
    busy_seconds: float = 0.0
    #: the engine's processing after loading has begun
    hook: bool = False

    @property
    def tensors(self) -> int:
        return self.replayed + self.ordinary


@dataclass
class _Recorded:
    """A list, and its kernel where it has one."""

    recording: ListRecording
    kernel: KernelReplay | None = None


class Reload:
    """Takes the lists of one update after another.

    @param tensors: gives the model's parameters, buffers and other tensors that its weights may be loaded into
    @param indices: the contents of what says where a weight goes, an expert map for instance
    """

    def __init__(self, tensors: Tensors, indices: Callable[[], tuple[int, ...]] | None = None):
        self._regions = Regions(tensors)
        self._indices = indices or (lambda: ())
        self._recorded: dict[bytes, _Recorded] = {}
        # what they were recorded with
        self._views: dict[int, Views | None] = {}
        self._contents: tuple[int, ...] = ()
        # of the running update only: an engine may free its memory between two
        self._bytes: dict[int, torch.Tensor] = {}
        self._recorder: Recorder | None = None
        # of the last update, in its order
        self._lists: list[ListRecording] = []
        # recorded, and not yet seen to outlast the engine's processing, which a failed update does not reach
        self._unprocessed: list[Copy] = []
        # some tensor, by the processing
        self._moved = False
        # the processing looks at no weight, and has been done in this update already
        self._blind = False
        self._processed = False
        #: why nothing can be replayed
        self.refused: str | None = None
        self.tally = Tally()

    def forget(self) -> None:
        """Every list is recorded anew."""
        self._drop()
        self.refused = None

    def _drop(self) -> None:
        self._recorded.clear()
        self._views = {}
        self._unprocessed = []
        self._lists = []
        self._blind = False

    def begin(self, ring: torch.Tensor, tally: Tally) -> None:
        """An update begins: what was recorded holds only for the memory that it was recorded with.

        @param ring: all of its bytes
        @param tally: is filled
        """
        self.tally = tally
        self._lists = []
        self._processed = False
        if self._look(ring) or self._moved:
            # what could not be replayed may be with other tensors
            self._recorded = {body: one for body, one in self._recorded.items() if not one.recording.reasons}
        self._moved = False
        contents = self._indices()
        if self._regions.views(self._views) != self._views or contents != self._contents:
            self._drop()
        self._contents = contents
        self._recorder = Recorder(ring, self._regions.storages)

    def release(self) -> None:
        """The last list was taken, or the update has failed. Nothing of the ring is kept."""
        self._recorder = None
        self._bytes = {}

    def process(self, post_hook: PostHook) -> None:
        """Runs what the engine does to its weights after loading. When that changes what was loaded now, nothing is replayed:
        `refused` says so, and the engine may have loaded into what the hook had made of its tensors before.

        After the last list of an update has been loaded.
        """
        if self._unprocessed:
            self._process_first(post_hook)
        elif not self._processed or self.tally.ordinary:
            post_hook()
        # the update may have brought them; what was replayed brings none where there were none
        if self._contents or self.tally.ordinary:
            self._contents = self._indices()

    def _process_first(self, post_hook: PostHook) -> None:
        """After something has been recorded: looks at what the hook does."""
        copies, storages = self._unprocessed, self._regions.storages
        before = fingerprint(copies, self._regions.bytes())
        with ContentWatch([storages[number] for number in self._views if number in storages]) as watch:
            post_hook()
        self._moved |= self._regions.look()
        moved = self._regions.views(self._views) != self._views
        if moved or not torch.equal(before, fingerprint(copies, self._regions.bytes())):
            self.forget()
            self.refused = HOOK_CHANGES
        self._unprocessed = []
        self._blind = not watch.read and self.refused is None

    def process_early(self, post_hook: PostHook) -> None:
        """Between two lists, while the engine would only wait for the next: when it was seen not to look at any weight, the
        processing after loading may as well come before the last of them."""
        if self._blind and not self._unprocessed and not self.tally.ordinary:
            post_hook()
            self._processed = True

    def placement(self, allocation_of: Callable[[int], Allocation]) -> PlacementMap:
        """Where the tensors of the last update belong, while the engine's memory is what it was then.

        @raises NotPlaced: not all of them could be replayed, or something has moved since
        """
        if self.refused is not None:
            raise NotPlaced(self.refused)
        if self._unprocessed or not self._lists:
            raise NotPlaced("no update has gone through")
        self._moved |= self._regions.look()
        try:
            if self._regions.views(self._views) != self._views or self._indices() != self._contents:
                raise NotPlaced("the engine's tensors are at other places since the last update")
            return make_map(self._lists, allocation_of, self._regions.bytes())
        finally:
            self._regions.let_go()

    def generation(self) -> str:
        """Of the memory that the recordings hold for: another one where a tensor of theirs is elsewhere, or of another form, or
        an expert map says something else."""
        self._moved |= self._regions.look()
        self._regions.let_go()
        held = sorted((number, sorted(map(repr, views or ()))) for number, views in self._regions.views(self._views).items())
        return hashlib.sha256(repr((held, self._indices())).encode()).hexdigest()

    def end(self) -> None:
        """The update is over, however it went."""
        self.release()
        self._regions.let_go()

    def replays(self, body: bytes) -> bool:
        """Whether the list is one that is replayed.

        @param body: what it came in; equal bytes are an equal list
        """
        recorded = self._recorded.get(body)
        return recorded is not None and not recorded.recording.reasons

    def replay(self, body: bytes, ring: torch.Tensor) -> None:
        """Brings the tensors of a list that is replayed to where the engine had loaded them.

        @param ring: all of its bytes
        """
        assert self._recorder is not None, "the update has not begun"
        recorded = self._recorded[body]
        if recorded.kernel is None:
            replay(recorded.recording.copies, ring, self._bytes)
        else:
            recorded.kernel.run(ring)
        self._recorder.replayed(recorded.recording)
        self._lists.append(recorded.recording)
        self.tally.replayed += len(recorded.recording.tensors)

    def load(self, body: bytes, listed: Sequence[Listed], ring: torch.Tensor, run: Run) -> None:
        """Has the engine load a list that is not replayed.

        @param ring: all of its bytes
        """
        assert self._recorder is not None, "the update has not begun"
        weights: Weights = [(one.tensor.name, one.view(ring)) for one in listed]
        self.tally.ordinary += len(listed)
        if self.refused is not None:
            self.tally.reasons[self.refused] += 1
            run(weights)
            return
        known = self._recorded.get(body)
        if known is None:
            recording = self._record(body, listed, weights, ring, run)
        else:
            # watched all the same: it may read what was replayed
            recording = known.recording
            self._load(self._recorder.begin([one.tensor for one in listed]), weights, ring, run)
        self._lists.append(recording)
        self.tally.reasons.update(recording.reasons)

    def _record(self, body: bytes, listed: Sequence[Listed], weights: Weights, ring: torch.Tensor, run: Run) -> ListRecording:
        assert self._recorder is not None
        recording = self._recorder.begin([one.tensor for one in listed])
        # what has moved the tensors may not do it again
        if not self._load(recording, weights, ring, run):
            return recording
        prove(recording, ring, self._bytes)
        if len(self._recorded) < _LISTS_MAX:
            self._recorded[body] = _Recorded(recording, self._kernel(recording, ring))
            self._unprocessed += recording.copies
            self._views |= self._regions.views({copy.region for copy in recording.copies})
        return recording

    def _kernel(self, recording: ListRecording, ring: torch.Tensor) -> KernelReplay | None:
        if ring.device.type != "cuda" or recording.reasons or not has_triton():
            return None
        kernel = KernelReplay(recording.copies, self._bytes, ring)
        kernel.warm(ring)
        return kernel

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
        self._drop()
        self._recorder = Recorder(ring, self._regions.storages)
        return False

    def _look(self, ring: torch.Tensor) -> bool:
        """Whether the model's tensors are at other places than before."""
        moved = self._regions.look(ring)
        self._bytes = self._regions.bytes()
        return moved


def _uses(ring: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(ring.untyped_storage()._cdata))
