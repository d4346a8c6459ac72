"""Models that vLLM serves from a `config.json` alone, and files of their weights with random contents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SHARD_BYTES = 4 * 2**30
_SCALE = 0.02

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Model:
    """`shapes`: of the checkpoint, all in bfloat16."""

    name: str
    config: dict[str, Any]
    shapes: Shapes

    @property
    def bytes(self) -> int:
        return 2 * sum(_items(shape) for _, shape in self.shapes)

    def write_config(self, folder: Path) -> Path:
        """A folder for `--load-format dummy`."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    def write_files(self, folder: Path, seed: int) -> list[Path]:
        """Safetensors files with random weights, made on the GPU."""
        folder.mkdir(parents=True)
        generator = torch.Generator("cuda").manual_seed(seed)
        paths: list[Path] = []
        shard: dict[str, torch.Tensor] = {}
        size = 0
        for index, (name, shape) in enumerate(self.shapes):
            value = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) * _SCALE
            shard[name] = value.cpu()
            size += value.nbytes
            if size >= _SHARD_BYTES or index == len(self.shapes) - 1:
                paths.append(folder / f"model-{len(paths):05}.safetensors")
                save_file(shard, paths[-1])
                shard, size = {}, 0
        return paths


def _items(shape: tuple[int, ...]) -> int:
    items = 1
    for size in shape:
        items *= size
    return items


def qwen3_moe(layers: int = 12, experts: int = 128, hidden: int = 2048, inner: int = 768) -> Model:
    """Qwen3-30B-A3B with fewer layers: with the default 15.2 GB in 4,719 tensors."""
    heads, kv_heads, head, vocabulary = 32, 4, 128, 151936
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": head,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "max_position_embeddings": 40960,
        "mlp_only_layers": [],
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "num_attention_heads": heads,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }
    shapes: Shapes = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        shapes += _attention(f"model.layers.{layer}", hidden, heads, kv_heads, head)
        mlp = f"model.layers.{layer}.mlp"
        shapes.append((f"{mlp}.gate.weight", (experts, hidden)))
        for expert in range(experts):
            shapes += _mlp(f"{mlp}.experts.{expert}", hidden, inner)
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]
    return Model("moe", config, shapes)


def qwen3_dense(layers: int = 36, hidden: int = 4096, inner: int = 12288) -> Model:
    """Qwen3-8B: with the default 16.4 GB in 399 tensors."""
    heads, kv_heads, head, vocabulary = 32, 8, 128, 151936
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "head_dim": head,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 40960,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }
    shapes: Shapes = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        shapes += _attention(f"model.layers.{layer}", hidden, heads, kv_heads, head)
        shapes += _mlp(f"model.layers.{layer}.mlp", hidden, inner)
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]
    return Model("dense", config, shapes)


def _attention(layer: str, hidden: int, heads: int, kv_heads: int, head: int) -> Shapes:
    attention = f"{layer}.self_attn"
    return [
        (f"{layer}.input_layernorm.weight", (hidden,)),
        (f"{attention}.q_proj.weight", (heads * head, hidden)),
        (f"{attention}.k_proj.weight", (kv_heads * head, hidden)),
        (f"{attention}.v_proj.weight", (kv_heads * head, hidden)),
        (f"{attention}.o_proj.weight", (hidden, heads * head)),
        (f"{attention}.q_norm.weight", (head,)),
        (f"{attention}.k_norm.weight", (head,)),
        (f"{layer}.post_attention_layernorm.weight", (hidden,)),
    ]


def _mlp(path: str, hidden: int, inner: int) -> Shapes:
    return [
        (f"{path}.gate_proj.weight", (inner, hidden)),
        (f"{path}.up_proj.weight", (inner, hidden)),
        (f"{path}.down_proj.weight", (hidden, inner)),
    ]


MODELS = {"moe": qwen3_moe, "dense": qwen3_dense}
