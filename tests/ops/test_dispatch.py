"""An op calls the twin of the device that its arguments are on, or its reference.

Devices here are `meta` tensors, which every machine has and no kernel serves.
"""

import pytest
import torch
from torch import Tensor

from sounding.ops import dispatch
from sounding.ops.dispatch import DeviceKernels, op, use_backend

META = torch.ones(2, device="meta")
CPU = torch.ones(2)


@pytest.fixture(autouse=True)
def meta_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = DeviceKernels((torch.float32,), lambda: True)
    monkeypatch.setitem(dispatch.KERNELS, "meta", kernels)


def named(label: str, x: Tensor) -> str:
    return f"twin {label}"


def trained(label: str, x: Tensor) -> str:
    return f"trained {label}"


def unserved(label: str, x: Tensor) -> str:
    result: str = NotImplemented
    return result


@op(
    twins={"meta": f"{__name__}:named"},
    training={"meta": f"{__name__}:trained"},
    device_of=lambda label, x: x,
)
def describe(label: str, x: Tensor) -> str:
    return f"reference {label}"


def test_the_twin_of_the_device_is_called() -> None:
    assert describe("a", META) == "twin a"
    assert describe("a", CPU) == "reference a"
    with use_backend("training"):
        assert describe("a", META) == "trained a"
    with use_backend("reference"):
        assert describe("a", META) == "reference a"


def test_dtypes_that_kernels_lack_go_to_the_reference() -> None:
    assert describe("a", META.double()) == "reference a"


def test_kernels_that_were_not_built_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = DeviceKernels((torch.float32,), lambda: False)
    monkeypatch.setitem(dispatch.KERNELS, "meta", absent)
    assert describe("a", META) == "reference a"


def test_a_twin_may_leave_arguments_to_the_reference() -> None:
    @op(twins={"meta": f"{__name__}:unserved"}, device_of=lambda label, x: x)
    def partly(label: str, x: Tensor) -> str:
        return f"reference {label}"

    assert partly("a", META) == "reference a"


def test_without_a_choice_the_first_argument_decides() -> None:
    @op(twins={"meta": f"{__name__}:first"})
    def by_first(x: Tensor, other: Tensor) -> str:
        return "reference"

    assert by_first(META, CPU) == "twin"
    assert by_first(CPU, META) == "reference"


def first(x: Tensor, other: Tensor) -> str:
    return "twin"
