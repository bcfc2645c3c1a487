"""Token ids and prompts that no network can be given are refused with the value and the rule."""

import pytest

from sounding.engine.token_checks import check_prompt
from sounding.presets import tiny
from sounding.state.token_ids import require_tokens


@pytest.mark.parametrize("token", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    message = f"token id {token} is outside the model's vocabulary of 512"
    with pytest.raises(ValueError, match=message):
        require_tokens([1, token], 512)
    with pytest.raises(ValueError, match=message):
        check_prompt([1, token], 1, tiny())


def test_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        check_prompt([], 1, tiny())
    with pytest.raises(ValueError, match="exceed the 1048576 positions of the model"):
        check_prompt([1], 2**20, tiny())
    with pytest.raises(ValueError, match="exceed the 20 positions"):
        check_prompt([1], 20, tiny(), 20)
