"""Memory for sequence states: reserved before a sequence starts, released when it ends.

Reserving for the whole answer beforehand means that a sequence, once started, never lacks memory.
"""

from sounding.config import CSA, ModelConfig


class StatePool:
    """A limit in bytes on the sum of all reservations."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0

    def fits(self, num_bytes: int) -> bool:
        """True if `num_bytes` are free."""
        return self.reserved_bytes + num_bytes <= self.limit_bytes

    def reserve(self, num_bytes: int) -> None:
        """Take bytes that `fits` has found free."""
        assert self.fits(num_bytes)
        self.reserved_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Release reserved bytes."""
        self.reserved_bytes -= num_bytes
        assert self.reserved_bytes >= 0


def state_bytes(
    config: ModelConfig, num_tokens: int, *, number_bytes: int, rewind_tokens: int = 0
) -> int:
    """Bytes of a `growing_state` after `num_tokens`, its MTP blocks' included."""

    def compressor(ratio: int, width: int) -> int:
        groups = 2 if ratio == CSA else 1
        kept = min(num_tokens, groups * ratio + rewind_tokens)
        return num_tokens // ratio * width + kept * 2 * groups * width

    window = min(num_tokens, config.sliding_window + rewind_tokens) * config.head_dim
    numbers = window * (len(config.ratios) + config.num_mtp_layers)
    for ratio in config.ratios:
        if ratio:
            numbers += compressor(ratio, config.head_dim)
        if ratio == CSA:
            numbers += compressor(ratio, config.index_head_dim)
    return numbers * number_bytes
