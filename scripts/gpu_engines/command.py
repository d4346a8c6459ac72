"""What the commands have in common that measure a real engine."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import MODELS, Model

_LOG_CHARACTERS = 3000


def common_options(description: str | None) -> argparse.ArgumentParser:
    """Which model, how often, and where things go."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=sorted(MODELS), default="moe")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks, each with a GPU of its own")
    parser.add_argument("--dir", default="/dev/shm", help="where the files go, and the logs")
    parser.add_argument("--json", type=Path, help="write the rows there")
    return parser


def model_of(options: argparse.Namespace) -> Model:
    return MODELS[options.model](**({} if options.layers is None else {"layers": options.layers}))


@contextmanager
def working_folder(prefix: str, options: argparse.Namespace) -> Iterator[Path]:
    """It is removed in the end, also of a process that is terminated; the ends of its logs are printed before."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=options.dir))
    try:
        yield folder
    finally:
        for log in folder.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-_LOG_CHARACTERS:]}", file=sys.stderr)
        shutil.rmtree(folder)
