"""The models that a run kept: its checkpoints and milestones on disk, found without PyTorch."""

import re
from pathlib import Path
from typing import Any

from sounding.files import parse_json

CHECKPOINTS_NAME, MILESTONES_NAME = "checkpoints", "milestones"
MODEL_NAME, STATE_NAME = "model", "state.json"
_FOLDER = re.compile(r"step-(\d{8})")


def steps(root: Path) -> list[int]:
    """The steps saved under `root`, ascending."""
    if not root.is_dir():
        return []
    found = (_FOLDER.fullmatch(path.name) for path in root.iterdir())
    return sorted(int(match[1]) for match in found if match)


def read_state_file(folder: Path) -> dict[str, Any]:
    """The state beside a saved model. Raises ValueError or OSError naming the file."""
    return parse_json((folder / STATE_NAME).read_bytes(), str(folder / STATE_NAME))


def saved_models(run: Path) -> list[tuple[int, int, Path]]:
    """Step, tokens and model folder of every saved step; a milestone where a step is both."""
    found: dict[int, tuple[int, int, Path]] = {}
    for root in (run / CHECKPOINTS_NAME, run / MILESTONES_NAME):
        for step in steps(root):
            folder = root / f"step-{step:08d}"
            if not (folder / MODEL_NAME).is_dir():
                continue  # several processes saved their parts alone
            state = read_state_file(folder)
            found[step] = step, int(state["tokens"]), folder / MODEL_NAME
    return [found[step] for step in sorted(found)]
