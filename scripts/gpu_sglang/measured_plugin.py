"""SGLang's plugin for the measured server: each update goes to checkpoint-engine's worker or to ours, as a file says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: a folder: the way of the next update in the file `way`, as `--ways` names it; what became of it in `tally.<device>`
FOLDER = "MEASURED_FOLDER"


def plugin() -> None:
    """SGLang calls it in each of its processes."""
    from checkpoint_engine import worker
    from ckpt_worker.sglang import take_updates_with

    take_updates_with(_measured(worker.update_weights_from_ipc))


def _measured(theirs: Callable[..., None]) -> Callable[..., None]:
    def update_weights_from_ipc(zmq_ctx: Any, zmq_handle: str, device_id: int, *, run: Any, post_hook: Any = None) -> None:
        from ckpt_worker import Tally
        from ckpt_worker import update_weights_from_ipc as ours

        folder = Path(os.environ[FOLDER])
        way = (folder / "way").read_text()
        if way == "checkpoint-engine":
            theirs(zmq_ctx, zmq_handle, device_id, run=run, post_hook=post_hook)
            return
        os.environ["CKPT_RELOAD"] = "ordinary" if way == "ordinary" else ""
        tally = Tally()
        try:
            ours(zmq_ctx, zmq_handle, device_id, run=run, post_hook=post_hook, tally=tally)
        finally:
            counts = {"replayed": tally.replayed, "ordinary": tally.ordinary, "busy_seconds": tally.busy_seconds}
            (folder / f"tally.{device_id}").write_text(json.dumps({**counts, "reasons": tally.reasons}))

    return update_weights_from_ipc
