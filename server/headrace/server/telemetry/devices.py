"""What NVIDIA's driver says of its devices; nothing where there is no driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from headrace.server.telemetry.families import Families, Kind, Labels

try:
    import pynvml
except ModuleNotFoundError:  # an extra
    pynvml = None


class Devices:
    """The devices of this machine, read by NVML. Without its library or a device there are none.

    A figure that a device does not have, as small ones have no power meter, is left out.
    """

    def __init__(self, nvml: Any = pynvml) -> None:
        """`nvml`: the pynvml module, or what stands in for it; None for no devices."""
        self._nvml = nvml
        self._handles: list[tuple[Any, str, str]] = []
        if nvml is None:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            self._nvml = None
            return
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # one that we may not open, or that is lost
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((handle, nvml.nvmlDeviceGetUUID(handle), str(index)))

    def __len__(self) -> int:
        return len(self._handles)

    def collect(self, families: Families, *, triton: bool) -> None:
        """`hw.*`, of OpenTelemetry's semantic conventions for hardware; `nv_*` where asked for."""
        for handle, uuid, index in self._handles:
            labels = {"hw.id": uuid, "hw.name": index, "hw.type": "gpu"}
            for name, unit, help_, read in self._figures(handle):
                with contextlib.suppress(self._nvml.NVMLError):
                    value = read()
                    counter = name == "hw.energy"
                    add = families.counter if counter else families.gauge
                    add(name, unit, help_).add(labels, value)
                    if triton:
                        _as_triton(families, name, {"gpu_uuid": uuid}, value)

    def _figures(self, handle: Any) -> list[tuple[str, str, str, Callable[[], float]]]:
        nvml = self._nvml
        use = nvml.nvmlDeviceGetUtilizationRates
        memory = nvml.nvmlDeviceGetMemoryInfo
        return [
            ("hw.gpu.utilization", "1", "Share of time that it ran", lambda: use(handle).gpu / 100),
            ("hw.gpu.memory.usage", "By", "Memory in use", lambda: memory(handle).used),
            ("hw.gpu.memory.limit", "By", "Memory", lambda: memory(handle).total),
            ("hw.power", "W", "Power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            (
                "hw.energy",
                "J",
                "Energy since the driver was loaded",
                lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            ),
        ]

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml, self._handles = None, []


_TRITON = {
    "hw.gpu.utilization": "nv_gpu_utilization",
    "hw.gpu.memory.usage": "nv_gpu_memory_used_bytes",
    "hw.gpu.memory.limit": "nv_gpu_memory_total_bytes",
    "hw.power": "nv_gpu_power_usage",
    "hw.energy": "nv_energy_consumption",
}


def _as_triton(families: Families, name: str, labels: Labels, value: float) -> None:
    families.declare(_TRITON[name], Kind.UNTYPED, "", "As Triton names it").add(labels, value)
