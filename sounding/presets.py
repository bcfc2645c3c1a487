"""Shapes of models by name: the two published ones, a small one to train, a tiny one for tests."""

from sounding.config import ModelConfig, QuantizationConfig


def tiny() -> ModelConfig:
    """Every mechanism in 4.4 MB: the shape of the golden vectors, for tests."""
    return ModelConfig(
        vocab_size=512,
        hidden_size=128,
        moe_intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        head_dim=128,
        q_lora_rank=128,
        num_experts_per_tok=2,
        n_routed_experts=8,
        o_groups=2,
        o_lora_rank=64,
        index_n_heads=8,
        index_topk=16,
        compress_ratios=(0, 128, 4, 128, 4, 0),
        num_hash_layers=1,
        expert_dtype="fp4",
        quantization_config=QuantizationConfig(),
    )


def nano() -> ModelConfig:
    """The small model for code that one laptop can train and run.

    The window is wide for its size: what fills a gap is written after the text that follows it, and
    still has to see, token by token, the text before.
    """
    return ModelConfig(
        vocab_size=8192,
        hidden_size=384,
        moe_intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        head_dim=128,
        q_lora_rank=256,
        num_experts_per_tok=2,
        n_routed_experts=16,
        o_groups=2,
        o_lora_rank=128,
        index_n_heads=4,
        index_topk=128,
        sliding_window=512,
        compress_ratios=(0, 4, 128, 4, 128, 4, 0),
        num_hash_layers=1,
        expert_dtype="fp4",
        quantization_config=QuantizationConfig(),
    )


def flash() -> ModelConfig:
    """DeepSeek-V4-Flash, 284B parameters, 13B active."""
    return ModelConfig(
        vocab_size=129280,
        hidden_size=4096,
        moe_intermediate_size=2048,
        num_hidden_layers=43,
        num_attention_heads=64,
        q_lora_rank=1024,
        o_groups=8,
        o_lora_rank=1024,
        n_routed_experts=256,
        num_experts_per_tok=6,
        routed_scaling_factor=1.5,
        index_topk=512,
        compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
        expert_dtype="fp4",
        quantization_config=QuantizationConfig(),
    )


def pro() -> ModelConfig:
    """DeepSeek-V4-Pro, 1.6T parameters, 49B active."""
    return ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        moe_intermediate_size=3072,
        num_hidden_layers=61,
        num_attention_heads=128,
        q_lora_rank=1536,
        o_groups=16,
        o_lora_rank=1024,
        n_routed_experts=384,
        num_experts_per_tok=6,
        routed_scaling_factor=2.5,
        index_topk=1024,
        compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
        expert_dtype="fp4",
        quantization_config=QuantizationConfig(),
    )


PRESETS = {preset.__name__: preset for preset in (tiny, nano, flash, pro)}
