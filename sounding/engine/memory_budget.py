"""Memory for sequence states: reserved before a sequence starts, released when it ends.

Reserving for the whole answer beforehand means that a sequence, once started, never lacks memory.
"""


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
