"""Models that engines serve from a `config.json` alone, and files of their weights with random contents."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SHARD_BYTES = 4 * 2**30
_SCALE = 0.02

_BLOCK = 128
# of the Qwen3 models
_HEADS, _HEAD, _VOCABULARY = 32, 128, 151936

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Model:
    """`shapes`: of the checkpoint, in bfloat16 unless `dtypes` says otherwise."""

    name: str
    config: dict[str, Any]
    shapes: Shapes
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def quantised(self) -> bool:
        """vLLM makes something else of some weights: their layers go through its own reload."""
        return "quantization_config" in self.config

    def dtype(self, name: str) -> torch.dtype:
        return self.dtypes.get(name, torch.bfloat16)

    @property
    def bytes(self) -> int:
        return sum(self.dtype(name).itemsize * _items(shape) for name, shape in self.shapes)

    def write_config(self, folder: Path) -> Path:
        """A folder for `--load-format dummy`."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    def write_files(self, folder: Path, seed: int) -> list[Path]:
        """Safetensors files with random weights, made on the GPU."""
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator("cuda").manual_seed(seed)
        paths: list[Path] = []
        shard: dict[str, torch.Tensor] = {}
        size = 0
        for index, (name, shape) in enumerate(self.shapes):
            value = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) * _SCALE
            if name.endswith("_scale_inv"):
                value = value.abs() + _SCALE
            value = value.to(self.dtype(name))
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
    """Qwen3-30B-A3B with fewer layers: with the default 16.2 GB in 4,719 tensors."""
    kv_heads = 4
    config = {
        **_qwen3(layers, hidden, 3 * hidden, kv_heads),
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "num_experts": experts,
        "num_experts_per_tok": 8,
    }
    shapes: Shapes = [("model.embed_tokens.weight", (_VOCABULARY, hidden))]
    for layer in range(layers):
        shapes += _attention(f"model.layers.{layer}", hidden, kv_heads)
        mlp = f"model.layers.{layer}.mlp"
        shapes.append((f"{mlp}.gate.weight", (experts, hidden)))
        for expert in range(experts):
            shapes += _mlp(f"{mlp}.experts.{expert}", hidden, inner)
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (_VOCABULARY, hidden))]
    return Model("moe", config, shapes)


def qwen3_dense(layers: int = 36, hidden: int = 4096, inner: int = 12288) -> Model:
    """Qwen3-8B: with the default 16.4 GB in 399 tensors."""
    kv_heads = 8
    config = {
        **_qwen3(layers, hidden, inner, kv_heads),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
    }
    shapes: Shapes = [("model.embed_tokens.weight", (_VOCABULARY, hidden))]
    for layer in range(layers):
        shapes += _attention(f"model.layers.{layer}", hidden, kv_heads)
        shapes += _mlp(f"model.layers.{layer}.mlp", hidden, inner)
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (_VOCABULARY, hidden))]
    return Model("dense", config, shapes)


def _qwen3(layers: int, hidden: int, inner: int, kv_heads: int) -> dict[str, Any]:
    return {
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 40960,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "vocab_size": _VOCABULARY,
    }


def _attention(layer: str, hidden: int, kv_heads: int) -> Shapes:
    attention = f"{layer}.self_attn"
    return [
        (f"{layer}.input_layernorm.weight", (hidden,)),
        (f"{attention}.q_proj.weight", (_HEADS * _HEAD, hidden)),
        (f"{attention}.k_proj.weight", (kv_heads * _HEAD, hidden)),
        (f"{attention}.v_proj.weight", (kv_heads * _HEAD, hidden)),
        (f"{attention}.o_proj.weight", (hidden, _HEADS * _HEAD)),
        (f"{attention}.q_norm.weight", (_HEAD,)),
        (f"{attention}.k_norm.weight", (_HEAD,)),
        (f"{layer}.post_attention_layernorm.weight", (hidden,)),
    ]


def _mlp(path: str, hidden: int, inner: int) -> Shapes:
    return [
        (f"{path}.gate_proj.weight", (inner, hidden)),
        (f"{path}.up_proj.weight", (inner, hidden)),
        (f"{path}.down_proj.weight", (hidden, inner)),
    ]


def qwen3_moe_fp8(layers: int = 2, experts: int = 16, hidden: int = 1024, inner: int = 512) -> Model:
    """A small one in FP8 with a scale for each block of 128 x 128."""
    model = qwen3_moe(layers, experts, hidden, inner)
    shapes: Shapes = []
    dtypes: dict[str, torch.dtype] = {}
    for name, shape in model.shapes:
        shapes.append((name, shape))
        if not name.endswith("_proj.weight"):
            continue
        dtypes[name] = torch.float8_e4m3fn
        scale = f"{name}_scale_inv"
        dtypes[scale] = torch.float32
        shapes.append((scale, tuple(-(-size // _BLOCK) for size in shape)))
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [_BLOCK, _BLOCK]}
    kept = [f"model.layers.{layer}.mlp.gate" for layer in range(layers)]
    config = {**model.config, "quantization_config": {**quantization, "modules_to_not_convert": ["lm_head", *kept]}}
    return replace(model, name="moe-fp8", config=config, shapes=shapes, dtypes=dtypes)


def qwen3_moe_fp8_large(layers: int = 12) -> Model:
    """As large as `qwen3_moe`: with the default 8.7 GB in 9,375 tensors."""
    return replace(qwen3_moe_fp8(layers, 128, 2048, 768), name="moe-fp8-large")


def deepseek_moe(layers: int = 3) -> Model:
    """A small one of DeepSeek-V3's kind: multi-head latent attention, and experts from the second layer on."""
    hidden, heads, vocabulary, experts, inner, dense_inner = 1024, 16, 32000, 16, 512, 2048
    q_rank, kv_rank, nope, rope, v_head = 512, 512, 128, 64, 128
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": dense_inner,
        "kv_lora_rank": kv_rank,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": inner,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": heads,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": q_rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": v_head,
        "vocab_size": vocabulary,
    }
    shapes: Shapes = [("model.embed_tokens.weight", (vocabulary, hidden))]
    dtypes: dict[str, torch.dtype] = {}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        attention = f"{path}.self_attn"
        shapes += [
            (f"{path}.input_layernorm.weight", (hidden,)),
            (f"{attention}.q_a_proj.weight", (q_rank, hidden)),
            (f"{attention}.q_a_layernorm.weight", (q_rank,)),
            (f"{attention}.q_b_proj.weight", (heads * (nope + rope), q_rank)),
            (f"{attention}.kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden)),
            (f"{attention}.kv_a_layernorm.weight", (kv_rank,)),
            (f"{attention}.kv_b_proj.weight", (heads * (nope + v_head), kv_rank)),
            (f"{attention}.o_proj.weight", (hidden, heads * v_head)),
            (f"{path}.post_attention_layernorm.weight", (hidden,)),
        ]
        if layer == 0:
            shapes += _mlp(f"{path}.mlp", hidden, dense_inner)
            continue
        bias = f"{path}.mlp.gate.e_score_correction_bias"
        dtypes[bias] = torch.float32
        shapes += [(f"{path}.mlp.gate.weight", (experts, hidden)), (bias, (experts,))]
        shapes += _mlp(f"{path}.mlp.shared_experts", hidden, inner)
        for expert in range(experts):
            shapes += _mlp(f"{path}.mlp.experts.{expert}", hidden, inner)
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]
    return Model("mla", config, shapes, dtypes)


MODELS = {
    "moe": qwen3_moe,
    "dense": qwen3_dense,
    "moe-fp8": qwen3_moe_fp8,
    "moe-fp8-large": qwen3_moe_fp8_large,
    "mla": deepseek_moe,
}
