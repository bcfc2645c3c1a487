"""Where requests go: to the longest prefix, bounded by load."""

from sounding.cluster.prefix_index import PrefixIndex, prefix_blocks

PROMPT = list(range(100))
IDLE = {"a": 0, "b": 0}


def test_a_prompt_goes_where_its_prefix_went() -> None:
    index = PrefixIndex()
    index.record("b", prefix_blocks(PROMPT))
    assert index.order(IDLE, prefix_blocks([*PROMPT, 7, 8])) == ["b", "a"]
    assert index.order(IDLE, prefix_blocks([9, *PROMPT])) == ["a", "b"]


def test_the_longest_prefix_wins() -> None:
    index = PrefixIndex()
    index.record("a", prefix_blocks(PROMPT[:64]))
    index.record("b", prefix_blocks(PROMPT))
    assert index.order(IDLE, prefix_blocks(PROMPT))[0] == "b"
    assert index.matched("a", prefix_blocks(PROMPT)) == 2
    assert index.matched("b", prefix_blocks(PROMPT)) == 3


def test_blocks_differ_where_anything_before_them_does() -> None:
    assert prefix_blocks(PROMPT)[:2] == prefix_blocks(PROMPT[:70])
    assert not set(prefix_blocks(PROMPT)) & set(prefix_blocks([1, *PROMPT[1:]]))
    assert not set(prefix_blocks(PROMPT)) & set(prefix_blocks(PROMPT, "adapter"))
    assert prefix_blocks([1, 2, 3]) == []


def test_a_replica_with_more_than_its_share_comes_last() -> None:
    index = PrefixIndex()
    blocks = prefix_blocks(PROMPT)
    index.record("a", blocks)
    assert index.order({"a": 3, "b": 0}, blocks) == ["a", "b"]  # little load is no reason to move
    assert index.order({"a": 9, "b": 2}, blocks) == ["b", "a"]
    assert index.order({"a": 9, "b": 8}, blocks) == ["a", "b"]


def test_without_a_prefix_the_least_load_decides() -> None:
    assert PrefixIndex().order({"a": 2, "b": 1, "c": 3}, []) == ["b", "a", "c"]


def test_a_replica_that_is_gone_holds_nothing() -> None:
    index = PrefixIndex()
    blocks = prefix_blocks(PROMPT)
    index.record("a", blocks)
    index.record("b", blocks)
    index.keep_only({"a"})
    assert index.matched("b", blocks) == 0
    assert index.matched("a", blocks) == 3
    index.keep_only(set())
    assert len(index) == 0


def test_the_blocks_unused_for_longest_are_forgotten_the_last_of_a_prompt_first() -> None:
    index = PrefixIndex(most_blocks=4)
    old, new = prefix_blocks(PROMPT), prefix_blocks([5, *PROMPT[1:65]])
    index.record("a", old)
    index.record("a", new)
    assert len(index) == 4
    assert index.matched("a", old) == 2
    assert index.matched("a", new) == 2
