"""Sounding: the whole DeepSeek-V4 system, small enough to own.

    import sounding
    model = sounding.load("nano")
    print(model.complete("def area(width, height):\\n    return "))

Importing this imports nothing heavy; `load` does.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sounding.api import Model

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: that takes 50 ms."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sounding")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"


def load(name: str | Path | None = None) -> "Model":
    """Load a model: "nano", the shipped one, by default, or a folder with a checkpoint.

    Raises ValueError, saying what is missing or wrong, where there is none.
    """
    from sounding.api import load as load_model

    return load_model(name)
