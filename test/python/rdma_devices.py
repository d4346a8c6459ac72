"""What checkpoint-engine's own functions say of hosts and settings: JSON in, JSON out."""

import json
import logging
import os
import sys

from checkpoint_engine import device_utils
from loguru import logger

logger.remove()
logging.disable()


def devices_of(case):
    device_utils._ibv_get_device_list = lambda: list(case["available"])
    for name, value in case["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    devices = device_utils._get_rdma_devices()
    ranks = case["ranks"]
    try:
        own = [device_utils._get_my_rdma_device(rank, ranks, devices).split(",") for rank in range(ranks)]
    except (AssertionError, RuntimeError):
        own = None
    return {"devices": devices, "own": own}


print(json.dumps([devices_of(case) for case in json.load(sys.stdin)]))
