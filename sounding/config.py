"""A model's config as plain values, with the names of the published `config.json`.

Values are checked here; `config_file.py` reads them from JSON. Independent of tensors and files;
imports no other module of the package. Source: docs/architecture.md 1.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

WINDOW, CSA, HCA = 0, 4, 128  # the compression ratio names the kind of a layer

RATIO_NAMES = {WINDOW: "window", CSA: "CSA", HCA: "HCA"}

_OPTIONAL_SIZES = ("n_routed_experts", "n_activated_experts", "moe_intermediate_size", "n_blocks")

ExpertDtype = Literal["fp4", "fp8"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """YaRN, the only rotary scaling V4 uses; it applies to compressed layers at every length."""

    type: str = "yarn"
    factor: float = 16.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 65536

    def __post_init__(self) -> None:
        require_choice("rope_scaling.type", self.type, ("yarn",))
        for name in ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings"):
            _require_positive(f"rope_scaling.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """The storage of linears in a published checkpoint."""

    quant_method: str = "fp8"
    activation_scheme: str = "dynamic"
    fmt: str = "e4m3"
    scale_fmt: str | None = "ue8m0"  # Base checkpoints have float32 scales
    weight_block_size: tuple[int, int] = (128, 128)
    expert_dtype: ExpertDtype | None = None  # transformers keeps a copy here

    def __post_init__(self) -> None:
        prefix = "quantization_config"
        require_choice(f"{prefix}.quant_method", self.quant_method, ("fp8",))
        require_choice(f"{prefix}.activation_scheme", self.activation_scheme, ("dynamic",))
        require_choice(f"{prefix}.fmt", self.fmt, ("e4m3",))
        require_choice(f"{prefix}.scale_fmt", self.scale_fmt, ("ue8m0", None))
        require_choice(f"{prefix}.expert_dtype", self.expert_dtype, (*get_args(ExpertDtype), None))
        require_choice(f"{prefix}.weight_block_size", self.weight_block_size, ((128, 128),))


@dataclass(frozen=True, kw_only=True)
class DSparkConfig:
    """The DSpark drafter of a checkpoint: its keys are `dspark_` and the names of these fields.

    Raises ValueError naming the key for values no drafter can have.
    Source: docs/architecture.md 11.1.
    """

    block_size: int
    """Tokens drafted at once."""
    noise_token_id: int
    """Stands for the tokens of a block that are not known yet."""
    target_layer_ids: tuple[int, ...]
    """Layers whose outputs the drafter reads, in the order in which they are concatenated."""
    markov_rank: int
    n_routed_experts: int | None = None
    """Experts of a draft block; None: as many as a layer of the network has."""
    n_activated_experts: int | None = None
    """Experts per token of a draft block; None: as many as in the network."""
    moe_intermediate_size: int | None = None
    """Width of an expert of a draft block; None: as in the network."""
    n_blocks: int | None = None
    """Draft blocks; None: as many as `compress_ratios` lists, or one for each layer read."""
    beside: bool = False
    """True if the drafter lies beside the model in a file of its own: its parameters are under
    `drafter.` and the model keeps its MTP blocks. False: it has their place and their names."""

    def __post_init__(self) -> None:
        for name in ("block_size", "markov_rank"):
            _require_integer(f"dspark_{name}", getattr(self, name), minimum=1)
        _require_integer("dspark_noise_token_id", self.noise_token_id, minimum=0)
        for name in _OPTIONAL_SIZES:
            if getattr(self, name) is not None:
                _require_integer(f"dspark_{name}", getattr(self, name), minimum=1)
        layers = self.target_layer_ids
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(
                f"dspark_target_layer_ids = {list(layers)} must name at least one layer, each once"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a V4 network. Required fields have no sensible default; the rest are V4's own.

    Raises ValueError naming the field, its value and the rule for values no V4 network can have.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    compress_ratios: tuple[int, ...]
    """One entry per layer (0 window, 4 CSA, 128 HCA), then one 0 per draft block."""
    index_topk: int

    head_dim: int = 512
    qk_rope_head_dim: int = 64
    index_head_dim: int = 128
    index_n_heads: int = 64
    sliding_window: int = 128
    num_hash_layers: int = 3
    n_shared_experts: int = 1
    num_nextn_predict_layers: int = 1
    num_key_value_heads: int = 1
    routed_scaling_factor: float = 1.5
    scoring_func: str = "sqrtsoftplus"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    hidden_act: str = "silu"
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)
    max_position_embeddings: int = 1048576
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    torch_dtype: str | None = "bfloat16"
    model_type: str = "deepseek_v4"
    architectures: tuple[str, ...] | None = ("DeepseekV4ForCausalLM",)
    expert_dtype: ExpertDtype | None = None
    """Storage of routed experts. The first release lacks the key, so weights decide where they are
    at hand; without weights None means fp4 in a quantized checkpoint."""
    quantization_config: QuantizationConfig | None = None
    dspark: DSparkConfig | None = None
    """The dspark_* keys of refreshes that store a DSpark drafter in place of the MTP block."""

    def __post_init__(self) -> None:
        for name in _POSITIVE_INTEGERS:
            _require_integer(name, getattr(self, name), minimum=1)
        for name in ("num_hash_layers", "num_nextn_predict_layers"):
            _require_integer(name, getattr(self, name), minimum=0)
        for name in _POSITIVE_NUMBERS:
            _require_positive(name, getattr(self, name))
        for name, choices in _ONLY_CHOICES.items():
            require_choice(name, getattr(self, name), choices)
        self._require_consistent_widths()
        self._require_consistent_layers()
        if self.dspark is not None:
            self._require_consistent_drafter(self.dspark)

    def _require_consistent_widths(self) -> None:
        _require_multiple("qk_rope_head_dim", self.qk_rope_head_dim, 2, "2 (rotary pairs)")
        for name in ("head_dim", "index_head_dim"):
            if getattr(self, name) < self.qk_rope_head_dim:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must hold the rotary slice: at least "
                    f"qk_rope_head_dim = {self.qk_rope_head_dim}"
                )
        if self.index_head_dim & (self.index_head_dim - 1):
            raise ValueError(
                f"index_head_dim = {self.index_head_dim} must be a power of two (Hadamard rotation)"
            )
        _require_multiple(
            "num_attention_heads",
            self.num_attention_heads,
            self.o_groups,
            f"o_groups = {self.o_groups}",
        )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok = {self.num_experts_per_tok} must not exceed "
                f"n_routed_experts = {self.n_routed_experts}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name} = {token} must be a token id below vocab_size = {self.vocab_size}"
                )

    def _require_consistent_layers(self) -> None:
        if self.num_hash_layers > self.num_hidden_layers:
            raise ValueError(
                f"num_hash_layers = {self.num_hash_layers} must not exceed "
                f"num_hidden_layers = {self.num_hidden_layers}"
            )
        for layer, ratio in enumerate(self.compress_ratios):
            if ratio not in RATIO_NAMES:
                raise ValueError(
                    f"compress_ratios[{layer}] = {ratio} must be 0 (window), 4 (CSA) or 128 (HCA)"
                )
        if len(self.compress_ratios) < self.num_hidden_layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries; it needs one for each "
                f"of num_hidden_layers = {self.num_hidden_layers}, then a 0 for each draft block"
            )
        if any(self.compress_ratios[self.num_hidden_layers :]):
            raise ValueError(
                f"compress_ratios[{self.num_hidden_layers}:] = "
                f"{list(self.compress_ratios[self.num_hidden_layers :])} describes draft blocks "
                f"and must be all 0; num_hidden_layers = {self.num_hidden_layers} may be too small"
            )

    def _require_consistent_drafter(self, dspark: DSparkConfig) -> None:
        if dspark.noise_token_id >= self.vocab_size:
            raise ValueError(
                f"dspark_noise_token_id = {dspark.noise_token_id} must be a token id below "
                f"vocab_size = {self.vocab_size}"
            )
        for layer in dspark.target_layer_ids:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(
                    f"dspark_target_layer_ids = {list(dspark.target_layer_ids)} must be layers "
                    f"below num_hidden_layers = {self.num_hidden_layers}"
                )
        experts, picks = self.draft_experts, self.draft_experts_per_token
        if picks > experts:
            raise ValueError(
                f"dspark_n_activated_experts = {picks} must not exceed the {experts} experts of a "
                "draft block (dspark_n_routed_experts, or n_routed_experts without it)"
            )

    @property
    def ratios(self) -> tuple[int, ...]:
        """Compression ratio of each decoder layer, without the draft blocks' entries."""
        return self.compress_ratios[: self.num_hidden_layers]

    @property
    def num_mtp_layers(self) -> int:
        """MTP blocks of the network; a DSpark drafter under the same names is none."""
        in_their_place = self.dspark is not None and not self.dspark.beside
        return 0 if in_their_place else self.num_nextn_predict_layers

    @property
    def num_dspark_blocks(self) -> int:
        """Blocks of the DSpark drafter. Published configs count them in `compress_ratios` only:
        `num_nextn_predict_layers` stays 1 beside three blocks."""
        if self.dspark is None:
            return 0
        listed = 0 if self.dspark.beside else len(self.compress_ratios) - self.num_hidden_layers
        return self.dspark.n_blocks or listed or len(self.dspark.target_layer_ids)

    @property
    def dspark_prefix(self) -> str:
        """What the names of the DSpark drafter's parameters begin with."""
        beside = self.dspark is not None and self.dspark.beside
        return "drafter." if beside else "mtp."

    @property
    def draft_experts(self) -> int:
        """Routed experts of a draft block."""
        own = None if self.dspark is None else self.dspark.n_routed_experts
        return own or self.n_routed_experts

    @property
    def draft_experts_per_token(self) -> int:
        """Routed experts that a token visits in a draft block."""
        own = None if self.dspark is None else self.dspark.n_activated_experts
        return own or self.num_experts_per_tok

    @property
    def draft_expert_width(self) -> int:
        """Width of an expert in a draft block."""
        own = None if self.dspark is None else self.dspark.moe_intermediate_size
        return own or self.moe_intermediate_size

    @property
    def draft_block(self) -> "ModelConfig":
        """The same network with the experts of a draft block in place of its own."""
        return dataclasses.replace(
            self,
            dspark=None,
            n_routed_experts=self.draft_experts,
            num_experts_per_tok=self.draft_experts_per_token,
            moe_intermediate_size=self.draft_expert_width,
        )

    @property
    def linear_format(self) -> Literal["fp8"] | None:
        """Deployed format of the dense linears: None in an unquantized checkpoint."""
        return "fp8" if self.quantization_config else None

    @property
    def expert_format(self) -> ExpertDtype | None:
        """Deployed format of the routed experts: None in an unquantized checkpoint."""
        if self.quantization_config is None:
            return None
        return self.expert_dtype or self.quantization_config.expert_dtype or "fp4"

    def to_dict(self) -> dict[str, Any]:
        """The published `config.json`."""
        raw = dataclasses.asdict(self)
        dspark = raw.pop("dspark") or {}
        given = {key: value for key, value in dspark.items() if value is not None}
        given = {key: value for key, value in given.items() if value is not False}
        raw |= {f"dspark_{key}": value for key, value in given.items()}
        if not raw["mlp_bias"]:
            del raw["mlp_bias"]  # only transformers writes it
        for name in ("expert_dtype", "quantization_config"):
            if raw[name] is None:
                del raw[name]
        quantization = raw.get("quantization_config")
        if quantization is not None:
            quantization["weight_block_size"] = list(quantization["weight_block_size"])
            if quantization["expert_dtype"] is None:
                del quantization["expert_dtype"]
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in raw.items()
        }


_POSITIVE_INTEGERS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads q_lora_rank o_groups o_lora_rank "
    "moe_intermediate_size n_routed_experts num_experts_per_tok index_topk head_dim "
    "qk_rope_head_dim index_head_dim index_n_heads sliding_window hc_mult hc_sinkhorn_iters "
    "max_position_embeddings"
).split()
_POSITIVE_NUMBERS = (
    "routed_scaling_factor swiglu_limit hc_eps rms_norm_eps rope_theta compress_rope_theta "
    "initializer_range"
).split()
# Published fields that have one value in every V4: another value is another network.
_ONLY_CHOICES: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v4",),
    "n_shared_experts": (1,),
    "num_key_value_heads": (1,),
    "scoring_func": ("sqrtsoftplus",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "tie_word_embeddings": (False,),
    "expert_dtype": (*get_args(ExpertDtype), None),
}


def _require_integer(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} = {value!r} must be an integer of at least {minimum}")


def _require_positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value!r} must be a finite number above 0")


def _require_multiple(name: str, value: int, divisor: int, rule: str) -> None:
    if value % divisor:
        raise ValueError(f"{name} = {value} must be a multiple of {rule}")


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ValueError naming the choices if a value is none of them."""
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} = {value!r} must be {allowed}")
