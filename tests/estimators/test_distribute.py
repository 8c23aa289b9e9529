"""One training on several devices of one machine, for real: on two logical CPU devices."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = """
import json, sys
import tensorflow as tf

folder, distribute, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
if distribute == "mirrored":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from discern import DISCERN, DISCERNData

parameters = json.load(open(folder + "/parameters.json"))
parameters["training"] |= {"distribute": distribute, "seed": seed, "XLA": True}
model = DISCERN.from_json(parameters)
history = model.training(DISCERNData.from_folder(folder, 32), max_steps=5)
print(json.dumps([model.strategy.num_replicas_in_sync, history.history["loss"], history.history["val_loss"]]))
"""


def _train(folder: Path, distribute: str, seed: int = 0) -> tuple[int, np.ndarray]:
    command = [sys.executable, "-c", _PROGRAM, str(folder), distribute, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, *losses = json.loads(done.stdout.splitlines()[-1])
    return devices, np.array(losses)


@pytest.mark.slow
def test_two_devices_learn_as_one(original_experiment: Path) -> None:
    alone, again = (_train(original_experiment, "none", seed)[1] for seed in (0, 1))
    devices, together = _train(original_experiment, "mirrored")
    assert devices == 2
    assert (np.abs(np.diff(together[0])) > 0).all()
    noise = np.abs(alone - again).max()
    assert np.abs(together - alone).max() <= 3 * noise
    assert together[0][-1] < 0.9 * together[0][0]
