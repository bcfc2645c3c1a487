"""A checkpoint written as GGUF, read back by the gguf package.

Catches: a number that changed, nibbles in the wrong order, a tensor under the name of another, a
vocabulary that is shifted, a prompt template that renders other than the encoder.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import jinja2
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from sounding.loading import SHIPPED, open_checkpoint
from sounding.ops.matmul import Weight
from sounding.text.chat_template import CHAT_TEMPLATE
from sounding.text.encoding import encode
from sounding.text.tokenizer import Tokenizer
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.gguf import convert_to_gguf, mxfp4_blocks

ENCODING = Path(__file__).parent.parent / "vectors" / "encoding"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUFReader:
    path = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    report = convert_to_gguf(open_checkpoint("nano"), path)
    assert report.exact
    return gguf.GGUFReader(path)


def field(reader: gguf.GGUFReader, name: str) -> Any:
    found = reader.get_field(name)
    assert found is not None, name
    return found.contents()


def numbers(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    parameter = next(known for known in checkpoint.parameters if known.name == name)
    weight, scale = checkpoint.read_packed(parameter)
    if weight.dtype in (torch.int32, torch.int64):
        return weight.numpy()
    return Weight(weight, scale).dense(torch.float32).numpy()


PLACES = {
    "token_embd.weight": "embed.weight",
    "output_hc_fn.weight": "hc_head_fn",
    "blk.0.ffn_gate_tid2eid.weight": "layers.0.ffn.gate.tid2eid",
    "blk.1.exp_probs_b.bias": "layers.1.ffn.gate.bias",
    "blk.1.attn_q_b.weight": "layers.1.attn.wq_b.weight",
    "blk.1.attn_output_a.weight": "layers.1.attn.wo_a.weight",
    "blk.1.indexer.proj.weight": "layers.1.attn.indexer.weights_proj.weight",
    "blk.1.indexer_compressor_gate.weight": "layers.1.attn.indexer.compressor.wgate.weight",
    "blk.2.attn_compressor_ape.weight": "layers.2.attn.compressor.ape",
    "blk.5.ffn_down_shexp.weight": "layers.5.ffn.shared_experts.w2.weight",
    "blk.5.hc_ffn_scale.weight": "layers.5.hc_ffn_scale",
}


@pytest.mark.parametrize(("place", "name"), PLACES.items())
def test_tensors_hold_the_numbers_of_the_checkpoint(
    written: gguf.GGUFReader, place: str, name: str
) -> None:
    tensor = next(tensor for tensor in written.tensors if tensor.name == place)
    stored = tensor.data
    if tensor.tensor_type is not gguf.GGMLQuantizationType.I32:
        stored = dequantize(stored, tensor.tensor_type)
    assert np.array_equal(stored, numbers(open_checkpoint("nano"), name))


@pytest.mark.parametrize(("place", "linear"), [("gate", "w1"), ("down", "w2"), ("up", "w3")])
def test_experts_are_stacked_without_rounding(
    written: gguf.GGUFReader, place: str, linear: str
) -> None:
    checkpoint = open_checkpoint("nano")
    tensor = next(t for t in written.tensors if t.name == f"blk.3.ffn_{place}_exps.weight")
    assert tensor.tensor_type is gguf.GGMLQuantizationType.MXFP4
    stored = dequantize(tensor.data, tensor.tensor_type)
    for expert in range(checkpoint.config.n_routed_experts):
        name = f"layers.3.ffn.experts.{expert}.{linear}.weight"
        assert np.array_equal(stored[expert], numbers(checkpoint, name)), expert


def test_every_parameter_but_the_draft_block_has_a_place(written: gguf.GGUFReader) -> None:
    checkpoint = open_checkpoint("nano")
    main = [known for known in checkpoint.parameters if not known.name.startswith("mtp.")]
    experts = checkpoint.config.n_routed_experts
    in_files = sum(experts if "_exps." in tensor.name else 1 for tensor in written.tensors)
    assert in_files == len(main)


def test_codes_of_a_block_are_interleaved() -> None:
    codes = np.arange(16, dtype=np.uint8)[None] * 16 + 3  # numbers 3, 0, 3, 1, 3, 2 ...
    block = mxfp4_blocks(codes, np.array([[127]], np.uint8))
    values = dequantize(block, gguf.GGMLQuantizationType.MXFP4)
    even, odd = values[0, 0::2], values[0, 1::2]
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert even.tolist() == [1.5] * 16
    assert odd.tolist() == table + [-value for value in table]


def test_the_vocabulary_is_the_tokenizers(written: gguf.GGUFReader) -> None:
    tokenizer = Tokenizer.from_file(SHIPPED)
    tokens = field(written, "tokenizer.ggml.tokens")
    kinds = field(written, "tokenizer.ggml.token_type")
    assert len(tokens) == len(kinds) == open_checkpoint("nano").config.vocab_size
    assert all(tokens[number] == name for name, number in tokenizer.named.items())
    assert kinds[tokenizer.bos_id] == 3 and kinds[tokenizer.named["<think>"]] == 4
    assert field(written, "tokenizer.ggml.merges")[0].count(" ") == 1
    assert field(written, "tokenizer.ggml.fim_suf_token_id") == tokenizer.id_of("<｜fim▁hole｜>")


def test_sizes_are_the_configs(written: gguf.GGUFReader) -> None:
    config = open_checkpoint("nano").config
    assert field(written, "general.architecture") == "deepseek4"
    assert field(written, "deepseek4.attention.compress_ratios")[:6] == list(config.ratios)
    assert field(written, "deepseek4.block_count") == config.num_hidden_layers


def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
    """The template as programs render it: JSON with spaces and without escapes."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=True, **options)


def golden() -> list[tuple[list[dict[str, Any]], bool, str]]:
    """The golden conversations that the template covers, and what the encoder makes of them."""
    found = []
    for line in (ENCODING / "encode.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        roles = {message["role"] for message in row["messages"]}
        fields = {key for message in row["messages"] for key in message}
        kwargs = row["kwargs"]
        covered = roles <= {"system", "user", "assistant"} and fields <= {
            "role",
            "content",
            "reasoning_content",
        }
        if covered and set(kwargs) <= {"thinking_mode"} and row["messages"][-1]["role"] == "user":
            found.append((row["messages"], kwargs["thinking_mode"] == "thinking", row["expected"]))
    return found


def test_the_template_renders_golden_conversations() -> None:
    rows = golden()
    assert len(rows) >= 5
    for messages, thinking, expected in rows:
        assert rendered(messages, enable_thinking=thinking) == expected


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "See <what> it's like",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}
CALL = {
    "type": "function",
    "id": "1",
    "function": {
        "name": "look",
        "arguments": {"path": "a 'b'\n\"c\".py", "deep": {"n": [1, None]}},
    },
}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_template_renders_tools_as_the_encoder(thinking: bool, system: str) -> None:
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "What is in it?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "é"},
        {"role": "tool", "tool_call_id": "1", "content": "more"},
        {"role": "user", "content": "And?"},
    ]
    encoded = [dict(message) for message in talk]
    text = json.dumps(CALL["function"]["arguments"])  # type: ignore[index]
    as_text = {**CALL, "function": {"name": "look", "arguments": text}}
    encoded[1]["tool_calls"] = [as_text, as_text]
    first = {"role": "system", "content": system}
    expected = encode([{**first, "tools": [TOOL]}, *encoded], "thinking" if thinking else "chat")
    given = [first, *talk] if system else talk
    assert rendered(given, tools=[TOOL], enable_thinking=thinking) == expected


@pytest.mark.parametrize(
    ("name", "message"), [("model", "ends in .gguf"), ("folder.gguf", "is a folder")]
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ValueError, match=message):
        convert_to_gguf(open_checkpoint("nano"), tmp_path / name)


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        convert_to_gguf(open_checkpoint("nano"), path)
    assert path.read_text() == "mine"
    convert_to_gguf(open_checkpoint("nano"), path, overwrite=True)
    assert path.stat().st_size > 1 << 20
    assert list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_of_another_split_is_refused(tmp_path: Path) -> None:
    for source in SHIPPED.iterdir():
        if source.name != "tokenizer.json":
            (tmp_path / source.name).symlink_to(source)
    layout = json.loads((SHIPPED / "tokenizer.json").read_text("utf-8"))
    layout["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout), "utf-8")
    with pytest.raises(ValueError, match="splits text by other rules"):
        convert_to_gguf(Checkpoint(tmp_path), tmp_path / "out.gguf")
