"""The worker extension of the measured server: ours, checkpoint-engine's, and what the measurement has to know."""

from __future__ import annotations

import os
from typing import Any

import torch
from checkpoint_engine.worker import VllmColocateWorkerExtension
from ckpt_worker import WorkerExtension


class MeasuredExtension(WorkerExtension, VllmColocateWorkerExtension):
    """Both extensions have the one method that daemons call; `measured_way` says whose it is."""

    def update_weights_from_ipc(self, zmq_handles: dict[str, str]) -> Any:
        if os.environ.get("MEASURED_WAY") in ("checkpoint-engine", "peer-worker"):
            return VllmColocateWorkerExtension.update_weights_from_ipc(self, zmq_handles)
        return WorkerExtension.update_weights_from_ipc(self, zmq_handles)

    def measured_way(self, way: str) -> None:
        """As `--ways` names it."""
        os.environ["MEASURED_WAY"] = way
        os.environ["CKPT_RELOAD"] = way if way in ("ordinary", "layerwise") else ""

    def measured_zero(self) -> None:
        """Whatever an update does not write is seen."""
        for parameter in self.get_model().parameters():
            parameter.data.zero_()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
