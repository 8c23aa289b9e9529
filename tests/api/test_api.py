from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def test_documented_api_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Every documented name has its documented parameters and defaults; see `data/check_api.py`."""
    spec = importlib.util.spec_from_file_location("check_api", Path(__file__).with_name("check_api.py"))
    assert spec is not None
    assert spec.loader is not None
    check_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_api)

    code = check_api.main()

    assert code == 0, capsys.readouterr().out
