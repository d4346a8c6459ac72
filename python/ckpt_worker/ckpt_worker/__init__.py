"""The engine side of ckpt: takes updates as checkpoint-engine's worker does, and replays what it has recorded of the engine's
own loading.

    from ckpt_worker import update_weights_from_ipc

    update_weights_from_ipc(zmq.Context.instance(), address, 0, run=model.load_weights)
"""

from .conversation import DaemonGone, Limits
from .messages import DaemonError, ProtocolError
from .reload import Reload, Tally
from .tensors import index_contents, model_tensors
from .update import update_weights_from_ipc
from .vllm import WorkerExtension

__all__ = [
    "DaemonError",
    "DaemonGone",
    "Limits",
    "ProtocolError",
    "Reload",
    "Tally",
    "WorkerExtension",
    "index_contents",
    "model_tensors",
    "update_weights_from_ipc",
]
