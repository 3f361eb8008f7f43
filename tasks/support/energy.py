"""Energy from the counters that chips have: NVML's for GPUs, RAPL's for processors. Without one, no figure.

They count what the chip used, for whomever: what else ran on it meanwhile is in the figure.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SAMPLE_SECONDS = 60.0
"""RAPL's counter starts over after some 200 kJ, minutes of a busy server: it has to be read more often."""

Counters = Callable[[], Mapping[str, float]]
"""Gives energy so far by chip (joules), each since a time of its own."""


class EnergyMeter:
    """Energy since it was made.

    Args:
        gpus: counters of GPUs, by NVML's name of each.
        powercap: where Linux shows the counters of processors.
    """

    def __init__(self, gpus: Counters | None = None, powercap: Path = POWERCAP) -> None:
        self._gpus = gpus or nvml_joules
        self._before = self._gpus()
        self._packages = Packages(powercap)

    def gpu_joules(self, uuids: Iterable[str]) -> float | None:
        """Energy of these GPUs; None unless each has a counter."""
        now, used = self._gpus(), list(uuids)
        if not used or any(uuid not in now or uuid not in self._before for uuid in used):
            return None
        return sum(now[uuid] - self._before[uuid] for uuid in used)

    def cpu_joules(self) -> float | None:
        """Energy of all processors of this machine; None where their counters cannot be read."""
        return self._packages.joules()


class Packages:
    """RAPL's counters, one a processor. They start over at a value that the kernel tells."""

    def __init__(self, folder: Path, sample_seconds: float = SAMPLE_SECONDS) -> None:
        self._ranges: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        self._microjoules = 0
        self._lock = threading.Lock()
        try:
            for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's go by this name, too
                if (zone / "name").read_text().startswith("package"):
                    self._last[zone] = int((zone / "energy_uj").read_text())
                    self._ranges[zone] = int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            self._last = {}  # some are for root alone: a part would pass for the whole
        if self._last:
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(sample_seconds,), name="energy", daemon=True).start()

    def joules(self) -> float | None:
        if not self._last:
            return None
        try:
            self._sample()
        except (OSError, ValueError):
            return None
        return self._microjoules / 1e6

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            try:
                self._sample()
            except (OSError, ValueError):
                self._last = {}
                return

    def _sample(self) -> None:
        with self._lock:
            for zone, before in self._last.items():
                now = int((zone / "energy_uj").read_text())
                self._microjoules += now - before + (self._ranges[zone] if now < before else 0)
                self._last[zone] = now


def nvml_joules() -> dict[str, float]:
    """Energy so far of every GPU that counts it (joules), by NVML's name; empty without NVIDIA's driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    if nvml.nvmlInit_v2():
        return {}
    try:
        return dict(_counted(nvml))
    finally:
        nvml.nvmlShutdown()


def _counted(nvml: ctypes.CDLL) -> Iterable[tuple[str, float]]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return
    for index in range(count.value):
        device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        millijoules = ctypes.c_ulonglong()
        if not (
            nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
            or nvml.nvmlDeviceGetUUID(device, name, len(name))
            or nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
        ):
            yield name.value.decode(), millijoules.value / 1e3
