"""Failures that are neither the caller's mistake nor a mistake in the program's text.

    RuntimeError
      EngineFault        a request could not be answered; its text says why in one line
        DamagedModel     the weights do not compute numbers

Imports nothing, so that the command line can name them without loading an engine.
"""


class EngineFault(RuntimeError):
    """A request could not be answered."""


class DamagedModel(EngineFault):
    """The network's logits are not finite: its weights are damaged."""

    def __init__(self, where: str) -> None:
        """`where` says of which token the logits are."""
        super().__init__(
            f"the model is damaged: its logits {where} are not finite numbers; check its weights "
            "or download them again"
        )
