"""Arithmetic that a processor has no instructions for is named before hours are spent on it."""

import logging

import pytest
import torch

from sounding.train.numerics import warn_of_slow_products

FIELDS = {"train.dtype": "bfloat16", "optimizer.muon_dtype": "float32"}


def test_slow_products_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(device: str, supported: bool, **fields: str) -> str:
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_of_slow_products(FIELDS | fields, torch.device(device))
        return caplog.text

    assert "--set train.dtype=float32" in told("cpu", False)
    assert "muon_dtype" not in told("cpu", False)
    assert told("cpu", True) == told("cuda", False) == ""
    assert told("cpu", False, **{"train.dtype": "float32"}) == ""
