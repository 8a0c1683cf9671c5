"""The page for owners of a GPU: refused in one line without one, complete with one."""

import pytest
import torch

from benchmarks import gpu
from portraitmatting import PRESETS


def test_without_a_gpu_it_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: device 'cuda'")


def test_the_page_names_device_speed_and_stages(capsys):
    gpu.report("cpu", seconds=0, tiny=True)
    page = capsys.readouterr().out
    assert "cpu (" in page
    for word in (
        *PRESETS,
        "images/s, batch 16",
        "frames/s",
        "prepare",
        "network",
        "colours",
        "read a JPEG file",
        "write a PNG file",
        "memory",
    ):
        assert word in page
