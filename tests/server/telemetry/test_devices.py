"""Devices by NVML, and their absence. The library is stood in for: its names are NVML's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from headrace.server.telemetry.devices import Devices
from headrace.server.telemetry.families import Families


class NVMLError(Exception):
    pass


def raises(*_: Any) -> Any:
    raise NVMLError


def nvml(**changed: Any) -> Any:
    """A library with one device."""
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=25),
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=3, total=8),
        "nvmlDeviceGetPowerUsage": lambda _: 70_500,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: 9_000,
    }
    return SimpleNamespace(**(functions | changed))


def collected(devices: Devices, *, triton: bool = False) -> dict[str, Any]:
    families = Families()
    devices.collect(families, triton=triton)
    return {family.name: family.points[0] for family in families}


def test_figures_are_in_basic_units() -> None:
    found = collected(Devices(nvml()))
    labels = {"hw.id": "GPU-0", "hw.name": "0", "hw.type": "gpu"}
    assert found == {
        "hw.gpu.utilization": (labels, 0.25),
        "hw.gpu.memory.usage": (labels, 3),
        "hw.gpu.memory.limit": (labels, 8),
        "hw.power": (labels, 70.5),
        "hw.energy": (labels, 9.0),
    }


def test_what_a_device_does_not_have_is_left_out() -> None:
    found = collected(Devices(nvml(nvmlDeviceGetPowerUsage=raises)), triton=True)
    assert "hw.power" not in found
    assert "nv_gpu_power_usage" not in found
    assert found["nv_gpu_utilization"] == ({"gpu_uuid": "GPU-0"}, 0.25)


def test_without_a_driver_there_is_nothing() -> None:
    for devices in (Devices(None), Devices(nvml(nvmlInit=raises))):
        assert collected(devices) == {}
        devices.close()
