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
parameters["training"]["optimizer"] |= json.loads(sys.argv[4])
data, job = DISCERNData.from_folder(folder, 32), folder + "/fresh"
model = DISCERN.from_json(parameters)
history = model.training(data, max_steps=5).history
model.save(job, epoch=5)
again = DISCERN.from_json(parameters)
again.restore_model(job)
after = again.training(data, max_steps=6).history
for key in ("loss", "val_loss"):
    history[key] += after[key]
print(json.dumps([model.wae_model.distribute_strategy.num_replicas_in_sync, history["loss"], history["val_loss"]]))
"""


def _train(folder: Path, distribute: str, seed: int = 0, **optimizer: bool) -> tuple[int, np.ndarray]:
    (folder / "fresh").mkdir(exist_ok=True)
    command = [sys.executable, "-c", _PROGRAM, str(folder), distribute, str(seed), json.dumps(optimizer)]
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


@pytest.mark.slow
def test_lookahead_on_two_devices(original_experiment: Path) -> None:
    devices, losses = _train(original_experiment, "mirrored", Lookahead=True)
    assert devices == 2
    assert losses.shape == (2, 6)
    assert losses[0][-1] < losses[0][0]
