"""Two processes do what one does: torchrun, gloo, on the CPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import config_from_dict
from portraitmatting.training.loop import train
from portraitmatting.training.processes import Processes
from portraitmatting.training.run_directory import RunDirectory
from training_scenes import photo_folder, recipe, tiny_checkpoint, write_toml

ROOT = Path(__file__).parent.parent


def test_shares_are_disjoint_and_whole():
    shares = [Processes(rank, 3).share(12) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(12))
    with pytest.raises(
        PortraitmattingError, match="cannot be shared by 3 processes: use a multiple"
    ):
        Processes(0, 3).share(8)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed")
def test_two_processes_equal_one_with_both_shares(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    start = str(tiny_checkpoint(tmp_path / "tiny.safetensors"))
    values = recipe(photos, start=start, batch_size=4, steps=3, save_every=3)
    values |= {"validation": str(photos), "validate_every": 3, "clip": 0.5}
    config = write_toml(tmp_path / "recipe.toml", values)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "portraitmatting", "train", "run", tmp_path / "two", "--config", config),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Pieces of two samples each, as the two processes had: dropout draws the same then.
    train(tmp_path / "one", config_from_dict(values | {"accumulate": 2}))

    one, two = (RunDirectory(tmp_path / name).latest() for name in ("one", "two"))
    for part in ("model", "ema", "coarse"):
        for name, value in one[part].items():
            torch.testing.assert_close(value, two[part][name], atol=2e-5, rtol=1e-3)
    logs = []
    for name in ("one", "two"):
        with (tmp_path / name / "log.csv").open(newline="") as file:
            logs.append([[float(r["total"]), float(r["gradient"])] for r in csv.DictReader(file)])
    assert len(logs[0]) == 3
    np.testing.assert_allclose(*logs, rtol=1e-3)
