"""Devices by NVML, and their absence. What stands in for it is a module with its names, and, under
NVIDIA's own binding, a library with the driver's."""

from __future__ import annotations

import ctypes
import pathlib
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

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


def test_a_device_that_cannot_be_opened_is_left_out() -> None:
    def handle(index: int) -> int:
        if index == 0:
            raise NVMLError
        return index

    devices = Devices(nvml(nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=handle))
    assert len(devices) == 1
    assert collected(devices)["hw.power"][0]["hw.id"] == "GPU-1"


# What NVIDIA's driver has, as far as it is asked: functions and structures of nvml.h.
LIBRARY = r"""
#include <string.h>
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "not supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)1;
    return index == 0 ? 0 : 2;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    strncpy(uuid, "GPU-17", length);
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization *use) {
    use->gpu = 25;
    use->memory = 10;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *info) {
    info->total = 8; info->free = 5; info->used = 3;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = 70500;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    return 3; /* NVML_ERROR_NOT_SUPPORTED */
}
"""


@pytest.fixture
def driver(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """NVIDIA's own binding, on a library that stands in for the driver's."""
    pynvml = pytest.importorskip("pynvml")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "nvml.c").write_text(LIBRARY)
    built = tmp_path / "nvml.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", built, tmp_path / "nvml.c"],
        check=True,
        capture_output=True,
    )
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(built)))
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return pynvml


def test_the_real_binding_is_called_as_it_wants_to_be(driver: Any) -> None:
    devices = Devices(driver)
    found = collected(devices, triton=True)
    labels = {"hw.id": "GPU-17", "hw.name": "0", "hw.type": "gpu"}
    assert {name: value for name, value in found.items() if name.startswith("hw.")} == {
        "hw.gpu.utilization": (labels, 0.25),
        "hw.gpu.memory.usage": (labels, 3),
        "hw.gpu.memory.limit": (labels, 8),
        "hw.power": (labels, 70.5),
    }
    assert found["nv_gpu_memory_total_bytes"] == ({"gpu_uuid": "GPU-17"}, 8)
    devices.close()
    assert collected(devices) == {}
