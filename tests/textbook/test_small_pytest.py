"""The stand-in agrees with pytest on what files of tests use."""

import pytest

from sounding.textbook import small_pytest as small


@pytest.mark.parametrize("library", [small, pytest])
def test_raises_behaves_as_in_pytest(library: object) -> None:
    raises = library.raises  # type: ignore[attr-defined]
    with raises(LookupError) as caught:
        raise KeyError("x")
    assert isinstance(caught.value, KeyError)
    with raises((TypeError, ValueError), match="b.d"):
        raise ValueError("so bad")
    failed = (AssertionError, pytest.fail.Exception)
    with pytest.raises(failed), raises(ValueError):
        pass
    with pytest.raises(AssertionError), raises(ValueError, match="^bad"):
        raise ValueError("so bad")
    with pytest.raises(KeyError), raises(ValueError):
        raise KeyError


@pytest.mark.parametrize("library", [small, pytest])
def test_approx_behaves_as_in_pytest(library: object) -> None:
    approx = library.approx  # type: ignore[attr-defined]
    third, off = 0.1 + 0.2, 1.001
    assert third == approx(0.3)
    assert [third, off] == approx([0.3, 1.001])
    assert [third, off] != approx([0.3, 1.0])
    assert off != approx(1.0)
    assert off == approx(1.0, rel=0.01)
    assert off == approx(1.0, abs=0.01)


def test_parametrize_crosses_its_rows() -> None:
    calls: list[tuple[int, int]] = []

    def collect(a: int, b: int, c: int) -> None:
        calls.append((a, b))

    inner = small.mark.parametrize("b, c", [(3, 0), (4, 0)])(collect)
    outer = small.mark.parametrize("a", [1, 2])(inner)
    for row in outer.cases:
        outer(**row)
    assert sorted(calls) == [(1, 3), (1, 4), (2, 3), (2, 4)]
