"""The trainer side of ckpt: registers a model's tensors without a file, and updates the engines.

    from ckpt_client import Daemon

    daemon = Daemon()
    daemon.register_tensors("policy", model.state_dict(), version="step 7")
    report = daemon.update("policy", update_url="http://localhost:19730/collective_rpc")

`register_tensors` and `update` of this module do the same with the daemon at its default socket, or at `$CKPT_DAEMON`.
"""

from .default import register_tensors, update
from .daemon import Daemon
from .errors import CkptError

__all__ = ["CkptError", "Daemon", "register_tensors", "update"]
