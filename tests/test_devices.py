"""The table of chips tells apart the names that JAX gives."""

import pytest

from clipa_eqx.devices import DEVICES, find_device


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("TPU v5 lite", "TPU-v5e"),
        ("TPU v5", "TPU-v5p"),
        ("h200", "H200"),
    ],
)
def test_a_chip_is_found_by_what_jax_calls_it(kind, name):
    assert find_device(kind).name == name


def test_an_unknown_chip_has_no_row():
    assert find_device("cpu") is None
    assert find_device("NVIDIA A10G") is None


def test_short_names_differ_and_lead_to_their_row():
    assert [find_device(device.name) for device in DEVICES] == list(DEVICES)


def test_peaks_by_type():
    h200 = find_device("H200")
    assert h200.peak_flops("bfloat16") == 989e12
    assert h200.memory_bytes > 140e9
    with pytest.raises(ValueError, match="float32"):
        h200.peak_flops("int8")
