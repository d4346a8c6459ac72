"""The calls that a client of checkpoint-engine's HTTP API makes, in its order and with its bodies.

    python checkpoint_engine_client.py SOCKET UPDATE_URL FILE...

checkpoint-engine ships the server of these routes and no client for them, so the bodies are made by its own pydantic models'
field names and defaults (checkpoint_engine/api.py), and the metas are parsed and posted back with its own data types.
"""

import sys

import httpx
from checkpoint_engine.data_types import MemoryBufferMetaList
from pydantic import TypeAdapter


def main(socket, update_url, *files):
    client = httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://daemon", timeout=60)
    client.get("/v1/healthz").raise_for_status()
    name = "client-iter-0"
    client.post(f"/v1/checkpoints/{name}/files", json={"files": list(files)}).raise_for_status()
    again = client.post(f"/v1/checkpoints/{name}/files", json={"files": list(files)})
    assert again.status_code == 409, again.text
    client.post(f"/v1/checkpoints/{name}/gather-metas").raise_for_status()
    body = {"ranks": [], "update_url": update_url, "inference_group_ranks": [0, 1], "timeout": 60.0, "uds": None}
    client.post(f"/v1/checkpoints/{name}/update", json=body).raise_for_status()

    metas = TypeAdapter(dict[int, MemoryBufferMetaList]).validate_json(client.get("/v1/metas").raise_for_status().content)
    tensors = [meta for rank in metas.values() for buffer in rank.memory_buffer_metas_list for meta in buffer.metas]
    assert len(tensors) == 45, len(tensors)

    client.delete(f"/v1/checkpoints/{name}").raise_for_status()
    client.delete(f"/v1/checkpoints/{name}").raise_for_status()
    missing = client.post(f"/v1/checkpoints/{name}/update", json=body)
    assert missing.status_code == 404, missing.text

    posted = TypeAdapter(dict[int, MemoryBufferMetaList]).dump_json(metas)
    client.post("/v1/metas", content=posted, headers={"content-type": "application/json"}).raise_for_status()


if __name__ == "__main__":
    main(*sys.argv[1:])
