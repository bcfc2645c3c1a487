"""Failures that are neither invalid input nor a bug.

    RuntimeError
      EngineFault        a request failed; its message gives the cause in one line
        DamagedModel     the weights do not compute numbers

Imports nothing, so that the command line can name them without loading an engine.
"""


class EngineFault(RuntimeError):
    """A request failed."""


class DamagedModel(EngineFault):
    """The network's logits are not finite: its weights are damaged."""

    def __init__(self, where: str) -> None:
        """`where` names the token of the logits."""
        super().__init__(
            f"the model is damaged: its logits {where} are not finite numbers; check its weights "
            "or download them again"
        )
