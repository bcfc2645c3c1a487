"""Sounding: the whole DeepSeek-V4 system, small enough to own.

    import sounding
    model = sounding.load("nano")
    print(model.complete("def area(width, height):\\n    return "))

Importing this imports nothing heavy; `load` does.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sounding.api import Model

__all__ = ["__version__", "load"]

try:
    __version__ = version("sounding")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def load(name: str | Path | None = None) -> "Model":
    """Load a model: "nano", the shipped one, by default, or a folder with a checkpoint.

    Raises ValueError, saying what is missing or wrong, where there is none.
    """
    from sounding.api import load as load_model

    return load_model(name)
