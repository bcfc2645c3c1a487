"""What is sent is JSON that strict clients read."""

import math

import pytest

from sounding.server.http.streaming import sse, to_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_json_are_never_sent(value: float) -> None:
    for make in (to_json, sse):
        with pytest.raises(ValueError, match="JSON compliant"):
            make({"logprobs": [0.5, value]})
    assert to_json({"a": [0.5, "é"]}) == '{"a":[0.5,"é"]}'.encode()
