"""Configs: every published variant is read, and what cannot be a V4 is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sounding.config import ModelConfig, QuantizationConfig, RopeScaling
from sounding.config_file import parse_config, to_transformers
from sounding.presets import PRESETS, flash, pro, tiny

VECTORS = Path(__file__).parent / "vectors" / "tiny"


def published(**changes: Any) -> dict[str, Any]:
    """Flash's config.json with changes; a value of ... removes the key."""
    raw = {**flash().to_dict(), **changes}
    return {key: value for key, value in raw.items() if value is not ...}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_both_written_forms(name: str) -> None:
    config = PRESETS[name]()
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    assert parse_config(json.loads(json.dumps(to_transformers(config)))) == config


def test_tiny_is_the_golden_config() -> None:
    raw = json.loads((VECTORS / "config.json").read_text())
    assert parse_config(raw) == tiny()
    assert tiny().to_dict() == raw


def test_published_layer_kinds() -> None:
    """Counts of docs/architecture.md 1.1."""
    assert [flash().ratios.count(kind) for kind in (0, 4, 128)] == [2, 21, 20]
    assert [pro().ratios.count(kind) for kind in (0, 4, 128)] == [0, 30, 31]


def test_first_release_without_expert_dtype() -> None:
    config = parse_config(published(expert_dtype=...))
    assert config.expert_dtype is None
    assert config.expert_format == "fp4"


def test_a_base_model_has_fp8_experts_and_float_scales() -> None:
    quantization = {**published()["quantization_config"], "scale_fmt": None}
    config = parse_config(published(expert_dtype="fp8", quantization_config=quantization))
    assert (config.linear_format, config.expert_format) == ("fp8", "fp8")


def test_a_config_without_quantization_has_no_formats() -> None:
    config = parse_config(published(expert_dtype=..., quantization_config=...))
    assert (config.linear_format, config.expert_format) == (None, None)


DSPARK = {
    "dspark_block_size": 5,
    "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256,
}


def test_a_dspark_config_has_no_mtp_layers_and_is_kept() -> None:
    ratios = [*flash().compress_ratios, 0, 0]
    raw = published(compress_ratios=ratios, **DSPARK)
    config = parse_config(raw)
    assert config.ratios == flash().ratios
    assert (config.num_mtp_layers, config.num_dspark_blocks) == (0, 3)
    assert config.to_dict() == raw
    assert parse_config(to_transformers(config)) == config


def test_dspark_blocks_without_entries_of_their_own() -> None:
    config = parse_config(published(compress_ratios=list(flash().ratios), **DSPARK))
    assert config.num_dspark_blocks == 3


def test_dspark_experts_of_its_own() -> None:
    """As in V4.1: a drafter with fewer experts than a layer of the network."""
    own = {"dspark_n_routed_experts": 128, "dspark_n_activated_experts": 3}
    config = parse_config(published(**DSPARK, **own))
    assert (config.draft_block.n_routed_experts, config.draft_block.num_experts_per_tok) == (128, 3)
    assert {key: config.to_dict()[key] for key in own} == own


def test_ratios_without_an_entry_for_the_draft() -> None:
    assert parse_config(published(compress_ratios=list(flash().ratios))).ratios == flash().ratios


def test_transformers_rope_without_scaling() -> None:
    config = dataclasses.replace(tiny(), rope_scaling=None)
    raw = to_transformers(config)
    assert raw["rope_parameters"]["compress"]["rope_type"] == "default"
    assert parse_config(raw) == config


def test_transformers_old_rope_key() -> None:
    """YaRN is called `type` in files that transformers copied from the published one."""
    raw = to_transformers(tiny())
    compress = raw["rope_parameters"]["compress"]
    compress["type"] = compress.pop("rope_type")
    assert parse_config(raw).rope_scaling == RopeScaling()


def quantization(**changes: Any) -> dict[str, Any]:
    return {"quantization_config": {**published()["quantization_config"], **changes}}


def test_the_quantization_that_transformers_writes() -> None:
    """`FineGrainedFP8Config` of transformers 5.23, as `save_pretrained` wrote it."""
    written = {
        "activation_scheme": "dynamic",
        "dequantize": False,
        "expert_dtype": None,
        "modules_to_convert": None,
        "modules_to_not_convert": None,
        "quant_method": "fp8",
        "scale_fmt": "float",
        "weight_block_size": [128, 128],
    }
    config = parse_config(published(expert_dtype="fp8", quantization_config=written))
    assert config.quantization_config == QuantizationConfig(scale_fmt=None)


@pytest.mark.parametrize(
    "changes",
    [
        quantization(modules_to_not_convert=[], dequantize=None),
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"type": "yarn", "rope_type": "yarn", "attention_factor": 1.0}},
        {"rope_scaling": {"rope_type": "yarn", "attention_factor": None, "mscale": None}},
        {"eos_token_id": [1]},
        {"_attn_implementation_autoset": True, "unsloth_fixed": True, "pretraining_tp": 1},
        {"auto_map": {"AutoConfig": "x.Y"}, "ep_size": 1, "ignore_keys_at_rope_validation": []},
    ],
)
def test_what_other_programs_add_changes_nothing(changes: dict[str, Any]) -> None:
    assert parse_config(published(**changes)) == parse_config(published())


def test_a_rope_of_the_default_type_is_no_scaling() -> None:
    assert parse_config(published(rope_scaling={"rope_type": "default"})).rope_scaling is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"hiden_size": 4096},
        "the model config has an unknown key 'hiden_size'; did you mean 'hidden_size'?",
    ),
    "unknown nested key": (
        {"rope_scaling": {"type": "yarn", "faktor": 16}},
        "rope_scaling has an unknown key 'faktor'; did you mean 'factor'?",
    ),
    "unlike every known key": ({"rank": 8}, "the model config has an unknown key 'rank'; known"),
    "two types": (
        {"rope_scaling": {"type": "yarn", "rope_type": "linear"}},
        "rope_scaling has the type 'yarn' and the rope_type 'linear'; they must be the same",
    ),
    "scaled cosines": (
        {"rope_scaling": {"type": "yarn", "attention_factor": 1.2}},
        "rope_scaling.attention_factor = 1.2 is not supported; it must be None or 1 or 1.0",
    ),
    "modules left out": (
        quantization(modules_to_not_convert=["head"]),
        "quantization_config.modules_to_not_convert = ['head'] is not supported",
    ),
    "several ends": ({"eos_token_id": [1, 2]}, "eos_token_id = (1, 2) must be"),
    "missing": ({"hidden_size": ...}, "the model config lacks hidden_size"),
    "no integer": ({"hidden_size": 4096.5}, "hidden_size = 4096.5 must be int"),
    "boolean for integer": ({"o_groups": True}, "o_groups = True must be int"),
    "string": ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6' must be float"),
    "not positive": ({"q_lora_rank": 0}, "q_lora_rank = 0 must be an integer of at least 1"),
    "not finite": (
        {"rope_theta": float("nan")},
        "rope_theta = nan must be a finite number above 0",
    ),
    "foreign model": (
        {"model_type": "deepseek_v3"},
        "model_type = 'deepseek_v3' must be 'deepseek_v4'",
    ),
    "foreign scoring": (
        {"scoring_func": "sigmoid"},
        "scoring_func = 'sigmoid' must be 'sqrtsoftplus'",
    ),
    "foreign ratio": (
        {"compress_ratios": [2] * 44},
        "compress_ratios[0] = 2 must be 0 (window), 4 (CSA) or 128 (HCA)",
    ),
    "too few ratios": (
        {"compress_ratios": [0] * 40},
        "compress_ratios has 40 entries; it needs one for each of num_hidden_layers = 43",
    ),
    "compressed draft": (
        {"compress_ratios": [0] * 43 + [4]},
        "describes draft blocks and must be all 0; num_hidden_layers = 43 may be too small",
    ),
    "heads and groups": (
        {"o_groups": 7},
        "num_attention_heads = 64 must be a multiple of o_groups = 7",
    ),
    "odd rotary": ({"qk_rope_head_dim": 63}, "qk_rope_head_dim = 63 must be a multiple of 2"),
    "small head": (
        {"index_head_dim": 32},
        "index_head_dim = 32 must hold the rotary slice: at least qk_rope_head_dim = 64",
    ),
    "Hadamard": ({"index_head_dim": 96}, "index_head_dim = 96 must be a power of two"),
    "experts": (
        {"num_experts_per_tok": 300},
        "num_experts_per_tok = 300 must not exceed n_routed_experts = 256",
    ),
    "hash layers": (
        {"num_hash_layers": 44},
        "num_hash_layers = 44 must not exceed num_hidden_layers = 43",
    ),
    "token": (
        {"eos_token_id": 200000},
        "eos_token_id = 200000 must be a token id below vocab_size = 129280",
    ),
    "rope kind": (
        {"rope_scaling": {"type": "linear"}},
        "rope_scaling.type = 'linear' must be 'yarn'",
    ),
    "block size": (
        {"quantization_config": {"weight_block_size": [64, 64]}},
        "quantization_config.weight_block_size = (64, 64) must be (128, 128)",
    ),
    "expert format": ({"expert_dtype": "int4"}, "expert_dtype = 'int4' must be"),
    "drafter's unknown key": (
        {**DSPARK, "dspark_blok_size": 5},
        "unknown key 'dspark_blok_size'; did you mean 'dspark_block_size'?",
    ),
    "drafter as one key": ({"dspark": {}}, "unknown key 'dspark'; use its keys dspark_*"),
    "drafter lacks keys": (
        {"dspark_block_size": 5, "dspark_markov_rank": 256},
        "the model config lacks dspark_noise_token_id, dspark_target_layer_ids",
    ),
    "drafter's type": ({**DSPARK, "dspark_block_size": 5.0}, "dspark_block_size = 5.0 must be int"),
    "drafter's block": (
        {**DSPARK, "dspark_block_size": 0},
        "dspark_block_size = 0 must be an integer of at least 1",
    ),
    "drafter's noise": (
        {**DSPARK, "dspark_noise_token_id": 129280},
        "dspark_noise_token_id = 129280 must be a token id below vocab_size = 129280",
    ),
    "drafter's layers": (
        {**DSPARK, "dspark_target_layer_ids": [41, 42, 43]},
        "dspark_target_layer_ids = [41, 42, 43] must be layers below num_hidden_layers = 43",
    ),
    "drafter's layer twice": (
        {**DSPARK, "dspark_target_layer_ids": [42, 42]},
        "dspark_target_layer_ids = [42, 42] must name at least one layer, each once",
    ),
    "drafter without layers": (
        {**DSPARK, "dspark_target_layer_ids": []},
        "dspark_target_layer_ids = [] must name at least one layer, each once",
    ),
    "drafter's experts": (
        {**DSPARK, "dspark_n_routed_experts": 4},
        "dspark_n_activated_experts = 6 must not exceed the 4 experts of a draft block",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_cannot_be_run_are_refused_with_the_rule(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        parse_config(published(**changes))
    assert message in str(caught.value)


TRANSFORMERS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layer type": ({"layer_types": ["full_attention"]}, "layer_types[0] = 'full_attention' must"),
    "rate": (
        {"compress_rates": {"compressed_sparse_attention": 8}},
        "compress_rates.compressed_sparse_attention = 8 must be 4",
    ),
    "order of experts": (
        {"mlp_layer_types": ["moe", "hash_moe", "moe", "moe", "moe"]},
        "must be hash_moe layers, then moe layers",
    ),
    "rope": ({"rope_parameters": {"main": {}}}, "must have the entries 'main'"),
}


@pytest.mark.parametrize("case", TRANSFORMERS_REFUSED)
def test_refusals_in_the_transformers_form(case: str) -> None:
    changes, message = TRANSFORMERS_REFUSED[case]
    with pytest.raises(ValueError) as caught:
        parse_config({**to_transformers(tiny()), **changes})
    assert message in str(caught.value)


def test_mscale_is_refused() -> None:
    raw = to_transformers(tiny())
    raw["rope_parameters"]["compress"]["attention_factor"] = 1.277
    with pytest.raises(ValueError, match=r"attention_factor = 1.277 must be 1.0"):
        parse_config(raw)


def test_not_an_object() -> None:
    with pytest.raises(ValueError, match="must be a JSON object, not list"):
        parse_config([])


def test_nothing_changes_a_config() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().hidden_size = 1  # type: ignore[misc]
    assert isinstance(tiny(), ModelConfig)
