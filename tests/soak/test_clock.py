"""The time of day that a soak sets."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.soak.clock import Clock, available

TOLD = """
import datetime, sys, time
for _ in sys.stdin:
    begun = time.monotonic()
    time.sleep(0.05)
    slept = time.monotonic() - begun
    print(time.time(), datetime.datetime.now().timestamp(), slept, flush=True)
"""


@pytest.mark.skipif(not available(), reason="needs Linux and a C compiler")
@pytest.mark.parametrize("seconds", [86_400, -3_600])
def test_a_live_process_sees_the_jump_and_still_sleeps_as_long(tmp_path, seconds):
    clock = Clock(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD],
        env={**os.environ, **clock.variables()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask():
        process.stdin.write("\n")
        process.stdin.flush()
        return [float(word) for word in process.stdout.readline().split()]

    try:
        for shift in (0, seconds, 0):
            clock.set(shift)
            told, dated, slept = ask()
            assert told == pytest.approx(time.time() + shift, abs=30)
            assert dated == pytest.approx(told, abs=5)
            assert 0.05 <= slept < 10
    finally:
        process.communicate()
