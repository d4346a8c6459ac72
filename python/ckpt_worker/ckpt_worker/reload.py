"""What an engine's way of loading was recorded as, and when it is replayed."""

from __future__ import annotations

import gc
import hashlib
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from .copies import Copy
from .fingerprint import fingerprint
from .kernel import KernelReplay, has_triton
from .messages import Listed, ProtocolError
from .placement import Allocation, NotPlaced, PlacementMap, make_map
from .proof import prove
from .recorder import Form, ListRecording, Recorder
from .regions import Named, Regions, Views
from .replay import replay
from .unseen import MemoryBefore
from .watch import ContentWatch, watch_launches

Weights = list[tuple[str, torch.Tensor]]
Run = Callable[[Weights], object]
PostHook = Callable[[], object]

_LISTS_MAX = 65_536
_UPDATES_KEPT = 2
# of which the ring has room for so many
_EARLY_BUCKETS = 3
_UNSEEN = "the engine's memory is written by something that torch does not see"
_TOO_MANY = "there are too many lists"
ASIDE = "the engine converts its layer after each loading"
_NO_UPDATE = "no update has gone through"
_ELSEWHERE = "the engine's tensors are at other places since the last update"
_NEW_TENSORS = "the engine has tensors that it did not have when its loading was recorded"
HOOK_CHANGES = "the engine's processing after loading changes what was loaded"


@dataclass
class Tally:
    """Of one update: tensors that were replayed, loaded by the engine itself, and of the latter those that have to be, by
    reason."""

    replayed: int = 0
    ordinary: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    #: from each list's arrival to its reply, and what is processed before the next one
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
    #: the update that it was last part of
    used: int = 0
    #: behind the last byte of the ring that its copies read
    source_end: int = 0
    #: of its tensors, those that the engine has to be given in every update
    aside: tuple[Listed, ...] = ()
    #: how often it has taken something of them
    asides: int = 0


@dataclass(frozen=True)
class _Placed:
    """What has been found for the lists of an update: where their tensors belong and the generation of that memory, or why they
    have no places."""

    lists: list[ListRecording]
    found: tuple[PlacementMap, str] | str


class Reload:
    """Takes the lists of one update after another.

    @param tensors: gives the model's parameters, buffers and other tensors that its weights may be loaded into, with names
    @param indices: the contents of what says where a weight goes, an expert map for instance
    @param strict: a hook that changes what was loaded is an error, because the engine has a better way for the next update
    @param standing: around calls of `tensors` and `indices` between which nothing changes
    """

    def __init__(
        self,
        tensors: Callable[[], Named],
        indices: Callable[[], tuple[int, ...]] | None = None,
        strict: bool = False,
        standing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._regions = Regions(tensors)
        self._indices = indices or (lambda: ())
        self._strict = strict
        self._standing = standing
        # of the list that is being loaded or replayed
        self._asides = 0
        self._updates = 0
        # that were there when something was recorded
        self._names: set[str] = set()
        self._recorded: dict[bytes, _Recorded] = {}
        # what they were recorded with
        self._views: dict[int, Views | None] = {}
        self._contents: tuple[int, ...] = ()
        # of the running update only: an engine may free its memory between two
        self._bytes: dict[int, torch.Tensor] = {}
        # what the engine's memory was like before something was recorded
        self._before: MemoryBefore | None = None
        self._recorder: Recorder | None = None
        # of the last update, in its order
        self._lists: list[ListRecording] = []
        # that has been processed, and none of its lists was dropped meanwhile
        self._whole = False
        self._dropped = False
        self._placed: _Placed | None = None
        # since it was given away
        self._holds_places = False
        # what the last whole look has found is what was recorded with
        self._fits = False
        # recorded, and not yet seen to outlast the engine's processing, which a failed update does not reach
        self._unprocessed: list[Copy] = []
        # some tensor, by the processing
        self._moved = False
        # the processing looks at no weight, and has been done in this update already
        self._blind = False
        self._processed = False
        #: how many looks at the engine's tensors have found them changed
        self.changes = 0
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
        self._dropped = True
        self._placed = None
        self._blind = False
        self._fits = False

    def begin(self, ring: torch.Tensor, tally: Tally) -> None:
        """An update begins: what was recorded holds only for the memory that it was recorded with.

        @param ring: all of its bytes
        @param tally: is filled
        """
        self.tally = tally
        self._lists = []
        self._whole = False
        self._processed = False
        self._updates += 1
        with self._standing():
            moved = self._look(ring)
            contents = self._indices()
        if moved or self._moved:
            # what could not be replayed may be with other tensors
            self._recorded = {body: one for body, one in self._recorded.items() if not one.recording.reasons}
        self._moved = False
        names = self._regions.names
        # one that was not there may be what a weight is for
        if not self._holds() or contents != self._contents or names - self._names:
            self._drop()
        self._dropped = False
        self._contents, self._names = contents, names
        self._recorder = Recorder(ring, self._regions.storages)

    def release(self) -> None:
        """The last list was taken, or the update has failed. Nothing of the ring is kept."""
        recorder, before = self._recorder, self._before
        if recorder is not None and before is not None and before.changed_beside(self._bytes, recorder.written):
            recorder.refuse_all(_UNSEEN)
        self._before = None
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
        # what was replayed brings none where there were none
        if self._contents or self.tally.ordinary:
            self._check_indices(self.tally.replayed > 0)
        self._whole = not self._dropped
        if self._strict and self.refused is not None:
            raise RuntimeError(f"{self.refused}: it is right only after the next update, which goes another way")

    def _process_first(self, post_hook: PostHook) -> None:
        """After something has been recorded: looks at what the hook does."""
        copies, storages = self._unprocessed, self._regions.storages
        before = fingerprint(copies, self._regions.bytes())
        with ContentWatch([storages[number] for number in self._views if number in storages]) as watch:
            post_hook()
        self._moved |= self._look_at_all()
        self._names |= self._regions.names
        if not self._holds() or not torch.equal(before, fingerprint(copies, self._regions.bytes())):
            self.forget()
            self.refused = HOOK_CHANGES
        self._unprocessed = []
        self._blind = not watch.touched and self.refused is None

    def _check_indices(self, brought: bool) -> None:
        """@param brought: weights went to recorded places in this update"""
        contents = self._indices()
        if contents == self._contents:
            return
        self._contents = contents
        self._drop()
        if brought:
            raise RuntimeError("the update has changed what says where weights go; they were brought to the places of before")

    def _holds(self) -> bool:
        """Whether everything that was recorded is of memory that is still the engine's."""
        return self._regions.views(self._views) == self._views

    def process_early(self, post_hook: PostHook, ring: torch.Tensor, body: bytes) -> bool:
        """Between two lists, while the engine would only wait for the next: when it was seen not to touch any weight, the
        processing after loading may as well come before the last of them. Whether it was done now.

        @param body: of the list that was just taken: the daemon goes on for a while where its bucket is small for the ring
        """
        if not self._blind or self._processed or self._unprocessed or self.tally.ordinary:
            return False
        recorded = self._recorded.get(body)
        if recorded is None or sum(one.bytes for one in recorded.recording.tensors) * _EARLY_BUCKETS > ring.numel():
            return False
        post_hook()
        self._processed = True
        # vLLM's makes some small tensors anew each time, which no weight is for
        if not self._regions.are_same(self._views) and self._look(ring) and not self._holds():
            self._drop()
            self._recorder, self._before = Recorder(ring, self._regions.storages), None
        return True

    @property
    def not_placed(self) -> str | None:
        """Why the tensors of the last update have no places, as far as is known without a look at the engine's memory."""
        if self.refused is not None:
            return self.refused
        if not self._whole or not self._lists:
            return _NO_UPDATE
        if any(recording.aside for recording in self._lists):
            return ASIDE
        placed = self._placed_lists()
        if placed is not None:
            return placed.found if isinstance(placed.found, str) else None
        return next((reason for recording in self._lists for reason in recording.reasons), None)

    def placement(self, allocation_of: Callable[[int], Allocation]) -> tuple[PlacementMap, str]:
        """Where the tensors of the last update belong, while the engine's memory is what it was then, and the generation of
        that memory, which is held until `let_go`. What was found is kept until the lists are others.

        @param allocation_of: is asked only where nothing is kept
        @raises NotPlaced: not all of them could be replayed, or something has moved since
        """
        reason = self.not_placed
        if reason is not None:
            raise NotPlaced(reason)
        found = self._changed(self._placed_lists() is None) or self._find_places(allocation_of)
        if isinstance(found, str):
            raise NotPlaced(found)
        self._holds_places = True
        return found

    def generation(self) -> str | None:
        """What `placement` has given, while all of it still holds; else None. As long as it is held, only its addresses are
        looked at, and `check_places` looks for what has come since."""
        placed = self._placed_lists()
        if placed is None or isinstance(placed.found, str) or self.not_placed is not None:
            return None
        holds = (self._holds_places and self._regions.unmoved) or self._changed() is None
        return placed.found[1] if holds else None

    def check_places(self) -> None:
        """While somebody else brings weights to their places.

        @raises RuntimeError: they belong elsewhere by now
        """
        changed = self._changed()
        if changed is not None:
            raise RuntimeError(f"while the daemon copied, {changed}")

    def let_go(self) -> None:
        """The engine may free its memory."""
        self._regions.let_go()
        self._holds_places = False

    @property
    def places(self) -> PlacementMap | None:
        """What `placement` has given last, while it is of the last update's lists."""
        placed = self._placed_lists()
        return None if placed is None or isinstance(placed.found, str) else placed.found[0]

    def write_constants(self) -> None:
        """What loading writes beside the weights of a placement, which has to be there before they are."""
        places = self.places
        if places is None or not places.constants:
            return
        self._moved |= self._look_at_all()
        for constant in places.constants:
            constant.write(self._regions.storages[constant.region])

    def process_placed(self, post_hook: PostHook) -> None:
        """As `process`, after somebody else has brought the weights to their places. Where the hook moves tensors, the next
        look at them finds it."""
        post_hook()
        if self._contents:
            self._check_indices(True)

    def process_placed_early(self, post_hook: PostHook) -> bool:
        """As `process_early`, while somebody else brings the weights. Whether it is done."""
        if self._blind:
            post_hook()
        return self._blind

    def _find_places(self, allocation_of: Callable[[int], Allocation]) -> tuple[PlacementMap, str] | str:
        """After a look at the engine's memory."""
        placed = self._placed_lists()
        if placed is not None:
            return placed.found
        found: tuple[PlacementMap, str] | str
        try:
            places = make_map(self._lists, allocation_of, self._regions.bytes())
            found = places, self._generation_of(places)
        except NotPlaced as error:
            found = str(error)
        self._placed = _Placed(self._lists, found)
        return found

    def _placed_lists(self) -> _Placed | None:
        """What was found before for these very lists."""
        placed = self._placed
        if placed is None or len(placed.lists) != len(self._lists) or not all(map(operator.is_, placed.lists, self._lists)):
            return None
        return placed

    def _generation_of(self, places: PlacementMap) -> str:
        """Another one where a tensor is elsewhere or of another form, or an expert map says something else."""
        held = sorted((number, sorted(map(repr, views or ()))) for number, views in self._views.items())
        return hashlib.sha256(repr((places.digest, held, self._contents)).encode()).hexdigest()

    def _changed(self, whole: bool = False) -> str | None:
        """What is not as it was when the lists were recorded. Looks at the engine's memory.

        @param whole: for somebody who goes on with what is found there
        """
        self._holds_places = False
        with self._standing():
            if whole or not self._regions.are_same(self._views):
                self._moved |= self._look_at_all()
            contents = self._indices()
        if contents != self._contents or not (self._fits or self._holds()):
            return _ELSEWHERE
        # one that was not there may be what a weight is for
        self._fits = self._fits or not self._regions.names - self._names
        return None if self._fits else _NEW_TENSORS

    def end(self) -> None:
        """The update is over, however it went."""
        self.release()
        self._regions.let_go()
        # another plan, or another ring: it will not come back
        old = self._updates - _UPDATES_KEPT
        self._recorded = {body: one for body, one in self._recorded.items() if one.used > old}

    def replays(self, body: bytes) -> bool:
        """Whether the list is one that is replayed.

        @param body: what it came in; equal bytes are an equal list
        """
        recorded = self._recorded.get(body)
        return recorded is not None and not recorded.recording.reasons

    @contextmanager
    def aside(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """The engine brings what these come from somewhere where it has to do so in every update: that is not recorded, and
        the engine is given it again when its list is replayed."""
        self._asides += 1
        with nullcontext() if self._recorder is None else self._recorder.aside(tensors):
            yield

    def replay(self, body: bytes, ring: torch.Tensor, run: Run) -> None:
        """Brings the tensors of a list that is replayed to where the engine had loaded them.

        @param ring: all of its bytes
        @param run: has the engine load those that were taken `aside`
        """
        assert self._recorder is not None, "the update has not begun"
        recorded = self._recorded[body]
        recording = recorded.recording
        recorded.used = self._updates
        if recorded.source_end > ring.numel():
            raise ProtocolError(f"the ring has {ring.numel()} bytes, the list's tensors end at {recorded.source_end}")
        # before the first byte is written
        self.tally.replayed += len(recording.tensors) - len(recorded.aside)
        for constant in recording.constants:
            constant.write(self._regions.storages[constant.region])
        if recorded.kernel is None:
            replay(recording.copies, ring, self._bytes)
        else:
            recorded.kernel.run(ring)
        self._load_aside(recorded, ring, run)
        self._recorder.replayed(recording)
        self._lists.append(recording)

    def _load_aside(self, recorded: _Recorded, ring: torch.Tensor, run: Run) -> None:
        if not recorded.aside:
            return
        self.tally.ordinary += len(recorded.aside)
        self.tally.reasons[ASIDE] += len(recorded.aside)
        self._asides = 0
        run([(one.tensor.name, one.view(ring)) for one in recorded.aside])
        if self._asides != recorded.asides:
            raise RuntimeError(f"the engine has taken {self._asides} weights of a list, and {recorded.asides} before")

    def load(self, body: bytes, listed: Sequence[Listed], ring: torch.Tensor, run: Run) -> None:
        """Has the engine load a list that is not replayed.

        @param ring: all of its bytes
        """
        assert self._recorder is not None, "the update has not begun"
        weights: Weights = [(one.tensor.name, one.view(ring)) for one in listed]
        # what the engine loads may make other lists ordinary
        self._placed = None
        self.tally.ordinary += len(listed)
        if self.refused is not None:
            self.tally.reasons[self.refused] += len(listed)
            try:
                run(weights)
            finally:
                self._look(ring)
            return
        known = self._recorded.get(body)
        if known is None:
            recording = self._record(body, listed, weights, ring, run)
        else:
            # watched all the same: it may read what was replayed
            recording = known.recording
            known.used = self._updates
            self._load(self._recorder.begin([one.tensor for one in listed]), weights, ring, run)
        self._lists.append(recording)
        self.tally.reasons.update(recording.reasons)
        if recording.aside:
            self.tally.reasons[ASIDE] += len(recording.aside)

    def _record(self, body: bytes, listed: Sequence[Listed], weights: Weights, ring: torch.Tensor, run: Run) -> ListRecording:
        assert self._recorder is not None
        if self._before is None:
            if ring.device.type == "cuda":
                # the engine's last step may still be writing, to its cache for instance
                torch.cuda.synchronize(ring.device)
            self._before = MemoryBefore(self._bytes)
        recording = self._recorder.begin([one.tensor for one in listed])
        recording.forms = tuple(Form(one.dtype, tuple(one.shape)) for one in listed)
        # what has moved the tensors may not do it again
        if not self._load(recording, weights, ring, run):
            return recording
        prove(recording, ring, self._bytes)
        if len(self._recorded) < _LISTS_MAX:
            end = max((copy.source_end for copy in recording.copies), default=0)
            kernel = self._kernel(recording, ring)
            aside = tuple(one for one in listed if one.tensor.name in recording.aside)
            self._recorded[body] = _Recorded(recording, kernel, self._updates, end, aside, self._asides)
            self._unprocessed += recording.copies
            written = {copy.region for copy in recording.copies} | {constant.region for constant in recording.constants}
            self._views |= self._regions.views(written)
        else:
            recording.foreign.append(_TOO_MANY)
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
        self._asides = 0
        try:
            with watch_launches(self._recorder.launched), self._recorder:
                run(weights)
            self._recorder.finish()
        finally:
            moved = self._look(ring)
        if _uses(ring) > uses:
            gc.collect()
        if _uses(ring) > uses:
            recording.foreign.append("the engine keeps views of the ring")
        if not moved:
            return True
        recording.foreign.append("loading has moved the engine's tensors")
        self._drop()
        self._recorder, self._before = Recorder(ring, self._regions.storages), None
        return False

    def _look_at_all(self, ring: torch.Tensor | None = None) -> bool:
        """See `Regions.look`."""
        self._holds_places = self._fits = False
        moved = self._regions.look(ring)
        self.changes += moved
        return moved

    def _look(self, ring: torch.Tensor) -> bool:
        """Whether the model's tensors are at other places than before."""
        moved = self._look_at_all(ring)
        self._bytes = self._regions.bytes()
        return moved


def _uses(ring: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(ring.untyped_storage()._cdata))
