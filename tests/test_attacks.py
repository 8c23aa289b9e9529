"""The attacks of `benchmarks/attacks.py`, a few points each; the figures of docs/reliability.md come from more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parent.parent / "benchmarks" / "attacks.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
@pytest.mark.parametrize("attack", ["kill", "disk", "permissions", "limit", "interrupt", "links"])
def test_nothing_is_lost(attack: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ATTACKS), attack, "--points", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
