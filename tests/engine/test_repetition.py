"""When an answer that goes round in circles is ended."""

import itertools

import pytest

from sounding.engine.repetition import RepetitionGuard


def tokens_until_ended(piece: list[int], limit: int = 256) -> int:
    guard = RepetitionGuard(limit)
    return next(count for count, token in enumerate(itertools.cycle(piece), 1) if guard.push(token))


def test_one_token_is_ended_before_a_client_takes_it_for_a_fault() -> None:
    """litellm (1.110) raises at 100 equal chunks of a stream and asks again."""
    assert tokens_until_ended([7]) < 100
    assert tokens_until_ended([7], limit=8) == 9


@pytest.mark.parametrize("piece", [[1, 2], [1, 1, 2], list(range(32))])
def test_longer_pieces_have_the_whole_limit(piece: list[int]) -> None:
    assert tokens_until_ended(piece) == 256 + len(piece)


def test_what_stops_repeating_begins_anew() -> None:
    guard = RepetitionGuard(256)
    assert not any(guard.push(token) for _ in range(9) for token in [*([7] * 60), 8, 9])
