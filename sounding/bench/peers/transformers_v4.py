"""The V4 of the `transformers` library behind the interface of our networks."""

from collections.abc import Sequence
from pathlib import Path

import torch


class Peer:
    """The V4 of the `transformers` library as a runner, in bfloat16."""

    def __init__(self, folder: Path) -> None:
        """Load a checkpoint from `convert --to transformers`. Raises ValueError without the
        library."""
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ValueError(
                "transformers, the library to compare with, is not installed: "
                "pip install 'sounding[dev]'"
            ) from error
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._cache: object = None

    def start(self) -> None:
        self._cache = None

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> int:
        ids = torch.tensor(list(tokens))
        output = self._model(
            ids[None], past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())
