"""Watches whether something looks at the contents of an engine's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .kernel import has_triton
from .recorder import is_plain_view, storage_key, tensors_in


class ContentWatch(TorchDispatchMode):
    """A context. `touched` afterwards: an operator of torch has read or written one of the storages, or a Triton kernel ran,
    whose arguments are not looked at."""

    def __init__(self, storages: Iterable[torch.UntypedStorage]):
        super().__init__()
        self._keys = {storage_key(storage) for storage in storages}
        self.touched = False

    def __enter__(self) -> Any:
        self._launches = watch_launches(self._launched)
        self._launches.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._launches.__exit__(*error)
        super().__exit__(*error)

    def _launched(self) -> None:
        self.touched = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not (func.is_view and is_plain_view(args, out)) and not _onto_itself(func, args):
            self.touched |= any(storage_key(one.untyped_storage()) in self._keys for one in tensors_in((args, kwargs)))
        return out


def _onto_itself(func: Any, args: Any) -> bool:
    """A copy to where it comes from, which torch leaves out. vLLM's `replace_parameter` makes such ones."""
    if func is not torch.ops.aten.copy_.default:
        return False
    to, source = args[0], args[1]
    places = [(one.data_ptr(), one.shape, one.stride(), one.dtype, one.device) for one in (to, source)]
    return bool(places[0] == places[1])


@contextmanager
def watch_launches(launched: Callable[[], object]) -> Iterator[None]:
    """Calls `launched` for each Triton kernel that runs meanwhile; at once, where Triton cannot tell."""
    if not has_triton():
        yield
        return
    import triton

    def on_launch(*_: Any, **__: Any) -> None:
        launched()

    hooks: Any = getattr(getattr(getattr(triton, "knobs", None), "runtime", None), "launch_enter_hook", None)
    if not hasattr(hooks, "add"):
        launched()
        yield
        return
    hooks.add(on_launch)
    try:
        yield
    finally:
        hooks.remove(on_launch)
