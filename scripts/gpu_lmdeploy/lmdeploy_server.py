"""A real LMDeploy with its PyTorch backend as a process, and its routes. Facts of LMDeploy 0.18.0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from server import EngineServer

# nothing that is compiled when the server starts
_ARGUMENTS = (
    "--backend pytorch --model-name measured --session-len 2048 --max-batch-size 8 --cache-max-entry-count 0.2 "
    "--max-prefill-token-num 2048 --disable-metrics --eager-mode"
)
_TOKENS = 24
_PROMPTS = ([104, 101, 108, 108, 111], [1, 2, 3], [*range(40, 90)], [7] * 30)
_BYTES = 256
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

Answers = list[list[int]]


class LmdeployServer(EngineServer):
    """@param model: folder with a `config.json`, files, and what `write_tokenizer` writes"""

    def __init__(self, model: Path, port: int, log: Path, arguments: list[str]):
        command = [sys.executable, "-m", "lmdeploy", "serve", "api_server", str(model), "--server-name", "127.0.0.1"]
        command += ["--server-port", str(port), *_ARGUMENTS.split(), *arguments]
        # its check of the environment imports everything it could use
        env = {"LMDEPLOY_ENABLE_CHECK_ENV": "0", "TRANSFORMERS_OFFLINE": "1"}
        super().__init__("LMDeploy", port, "/health", command, env, [], log)

    def answers(self) -> Answers:
        """The likeliest tokens after some prompts: a few wrong weights make others of them."""
        bodies = ({"input_ids": prompt, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True} for prompt in _PROMPTS)
        return [self.post("/generate", body)["output_ids"] for body in bodies]


def write_tokenizer(folder: Path) -> None:
    """LMDeploy does not start without one: the bytes, each a token."""
    vocabulary = {_letter(byte): byte for byte in range(_BYTES)}
    added = [{"id": _BYTES + at, "content": word, "special": True, **_PLAIN} for at, word in enumerate(_SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {**_NO_MERGES, "vocab": vocabulary},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _SPECIAL[2], "pad_token": _SPECIAL[0]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_NO_MERGES = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "merges": [],
}


def _letter(byte: int) -> str:
    """Byte-level tokenizers write bytes that cannot be seen as letters from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    return chr(256 + [other for other in range(_BYTES) if other not in visible].index(byte))
