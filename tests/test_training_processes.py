"""Two processes do what one does: torchrun, gloo, on the CPU."""

import csv
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from portraitmatting.errors import PortraitmattingError
from portraitmatting.training import runtime
from portraitmatting.training.config import config_from_dict
from portraitmatting.training.loop import train
from portraitmatting.training.run_directory import RunDirectory
from portraitmatting.training.runtime import Processes, joined
from training_scenes import photo_folder, recipe, tiny_checkpoint, write_toml

ROOT = Path(__file__).parent.parent


def test_shares_are_disjoint_and_whole():
    shares = [Processes(rank, 3).share(12) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(12))
    with pytest.raises(
        PortraitmattingError, match="cannot be shared by 3 processes: use a multiple"
    ):
        Processes(0, 3).share(8)


def test_the_others_wait_longer_than_nccl_would(monkeypatch):
    """The first process validates while they wait; a GPU's backend gives up after ten minutes."""
    calls = []
    fake = SimpleNamespace(
        init_process_group=lambda backend: calls.append(backend),
        new_group=lambda backend, timeout: (backend, timeout),
        barrier=lambda group: calls.append(group),
        get_rank=lambda: 0,
        destroy_process_group=lambda: None,
    )
    monkeypatch.setattr(runtime, "dist", fake)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with joined(torch.device("cuda")) as processes:
        processes.wait()
    assert calls[0] == "nccl" and calls[1][0] == "gloo" and calls[1][1] >= timedelta(days=1)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed")
def test_two_processes_equal_one_with_both_shares(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    start = str(tiny_checkpoint(tmp_path / "tiny.safetensors"))
    values = recipe(photos, init_from=start, batch_size=4, steps=3, save_every=3, coarse_steps=1)
    values |= {"validation": str(photos), "validate_every": 3, "clip_grad": 0.5}
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
    train(tmp_path / "one", config_from_dict(values | {"grad_accum_steps": 2}))

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
