"""Watches whether something looks at the contents of an engine's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .kernel import has_triton
from .recorder import schema_arguments, storage_key, tensors_in


class ContentWatch(TorchDispatchMode):
    """A context. `read` afterwards: an operator of torch has read one of the storages, or a Triton kernel ran, whose arguments
    are not looked at."""

    def __init__(self, storages: Iterable[torch.UntypedStorage]):
        super().__init__()
        self._keys = {storage_key(storage) for storage in storages}
        self.read = False

    def __enter__(self) -> Any:
        self._hooks = _launch_hooks()
        if self._hooks is None:
            self.read = has_triton()
        else:
            self._hooks.add(self._launched)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._hooks is not None:
            self._hooks.remove(self._launched)
        super().__exit__(*error)

    def _launched(self, *_: Any, **__: Any) -> None:
        self.read = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        if not func.is_view and not self.read and not _onto_itself(func, args):
            for argument, value in schema_arguments(func, args, kwargs):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    self.read |= any(storage_key(one.untyped_storage()) in self._keys for one in tensors_in(value))
        return func(*args, **kwargs)


def _onto_itself(func: Any, args: Any) -> bool:
    """A copy to where it comes from, which torch leaves out. vLLM's `replace_parameter` makes such ones."""
    if func is not torch.ops.aten.copy_.default:
        return False
    to, source = args[0], args[1]
    places = [(one.data_ptr(), one.shape, one.stride(), one.dtype, one.device) for one in (to, source)]
    return bool(places[0] == places[1])


def _launch_hooks() -> Any:
    """What Triton calls before each kernel; None: there is none, or an old one."""
    if not has_triton():
        return None
    import triton

    hooks = getattr(getattr(getattr(triton, "knobs", None), "runtime", None), "launch_enter_hook", None)
    return hooks if hasattr(hooks, "add") else None
