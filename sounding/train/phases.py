"""The schedule from dense to sparse attention. Source: docs/training.md 4.1.

| phase   | CSA layers read     | what trains                                       |
|---------|---------------------|---------------------------------------------------|
| dense   | every visible entry | everything but the indexer                        |
| indexer | every visible entry | the indexer alone, at `SparsityConfig.indexer_lr` |
| sparse  | selected entries    | the network by its losses, the indexer by its own |
"""

from typing import Literal

from sounding.model.attention import Selection
from sounding.train.run_config import SparsityConfig

Phase = Literal["dense", "indexer", "sparse"]

SELECTIONS: dict[Phase, Selection] = {
    "dense": Selection(dense=True),
    "indexer": Selection(dense=True, learn=True),
    "sparse": Selection(learn=True),
}
"""How CSA layers select entries while a phase trains."""


def phase_of(step: int, config: SparsityConfig) -> Phase:
    """The phase of step 0, 1, ..."""
    if step < config.dense_steps:
        return "dense"
    if step < config.dense_steps + config.indexer_steps:
        return "indexer"
    return "sparse"


def is_indexer(name: str) -> bool:
    """Whether the parameter of this name belongs to an indexer."""
    return ".indexer." in name
