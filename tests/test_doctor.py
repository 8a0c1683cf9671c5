"""The doctor: each illness is made, and must be named with its cure."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from portraitmatting import device, doctor
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.checkpoint.registry import FOLDER_VARIABLE, SUMS, sha256
from portraitmatting.cli import FAILED
from portraitmatting.commands.doctor import main
from portraitmatting.device import choose_device
from portraitmatting.doctor import Finding

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def wrongs(findings) -> list[str]:
    return [finding.wrong for finding in findings if finding.wrong]


def test_a_report_and_its_exit_code(monkeypatch, capsys):
    sick = [Finding("torch", "2.6"), Finding("opencv", "none", "cannot be\nimported")]
    monkeypatch.setattr("portraitmatting.commands.doctor.examine", lambda: sick)
    assert main([]) == FAILED
    assert capsys.readouterr().out == (
        "torch   2.6\nopencv  none\n\n1 wrong\n- cannot be\\nimported\n"
    )
    monkeypatch.setattr("portraitmatting.commands.doctor.examine", lambda: sick[:1])
    assert main([]) == 0
    assert capsys.readouterr().out == "torch  2.6\n\nnothing wrong\n"


def test_the_whole_examination_runs_here(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))  # the tests' own environment, but for this
    assert main([]) == FAILED
    out = capsys.readouterr().out
    names = ("portraitmatting", "python", "opencv", "devices", "numba threads", "[web]")
    for name in names:
        assert f"\n{name} " in f"\n{out}"
    assert doctor.installed("torch") in out
    assert "- no checkpoint named 'portraitmatting_swint'" in out


def test_a_missing_package(monkeypatch):
    versions = dict.fromkeys(doctor.PACKAGES, "1.0") | {"timm": None}
    monkeypatch.setattr(doctor, "installed", versions.get)
    assert wrongs(doctor.versions()) == ["timm is not installed: pip install timm"]


def test_requirements_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(doctor, "installed", {"torch": "2.1.0", "numpy": "2.2"}.get)
    wanted = ["torch>=2.6", "numpy>=2.0", "tomli>=2; python_version < '3'", "av>=15; extra == 'v'"]
    assert wrongs(doctor.unmet(wanted)) == ['torch is 2.1.0, needed is: pip install "torch>=2.6"']


def test_an_environment_with_nothing_in_it(monkeypatch, capsys):
    for module in ("torch", "cv2", "numba", "packaging"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert main([]) == FAILED
    out = capsys.readouterr().out
    for name in doctor.PACKAGES:
        assert f"- {name} is not installed: pip install {name}\n" in out
    assert "- cv2 cannot be imported" in out


def test_a_torchvision_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(
        doctor, "installed", {"torch": "2.14.1", "torchvision": "0.21.0", "timm": "1"}.get
    )

    def load(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return SimpleNamespace(__name__=name)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    (wrong,) = wrongs(doctor.imports())
    assert "torchvision 0.21.0 does not fit torch 2.14.1 (it is made for torch 2.6)" in wrong
    assert "timm needs" in wrong and "nms does not exist" in wrong
    assert wrong.endswith("pip install --force-reinstall torch torchvision")


GUI = "  GUI:                           QT5\n"
NO_GUI = "  GUI:                           NONE\n"


@pytest.mark.parametrize(
    ("there", "build", "message"),
    [
        (["opencv-python"], GUI, None),
        (["opencv-python-headless"], NO_GUI, "built without windows"),
        (["opencv-python", "opencv-python-headless"], GUI, "overwrite each other"),
    ],
)
def test_opencv(monkeypatch, there, build, message):
    monkeypatch.setattr(doctor, "installed", dict.fromkeys(there, "5.0").get)
    (finding,) = doctor.opencv(lambda: build)
    assert finding.value == ", ".join(f"{name} 5.0" for name in there)
    assert finding.wrong is None if message is None else message in finding.wrong


def test_opencv_without_its_system_libraries(monkeypatch):
    def load(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    (wrong,) = wrongs(doctor.opencv())
    assert wrong.endswith("apt-get install libgl1 libglib2.0-0")


def fake_torch(cuda: bool, version: str | None):
    def no(*_):
        return False

    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda, device_count=lambda: 1, get_device_name=lambda i: "A100"
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=no)),
        version=SimpleNamespace(cuda=version, hip=None),
    )


@pytest.mark.parametrize(
    ("cuda", "version", "sign", "message"),
    [
        (True, "12.8", "nvidia-smi", None),
        (False, None, None, None),
        (False, "12.8", None, None),
        (False, None, "nvidia-smi", "built without CUDA"),
        (False, "12.8", "nvidia-smi", "--gpus all"),
    ],
)
def test_an_idle_gpu(monkeypatch, cuda, version, sign, message):
    monkeypatch.setattr(device, "find_gpu", lambda: sign)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    build, finding = doctor.devices(fake_torch(cuda, version))
    assert build.value == (f"CUDA {version}" if version else "CPU")
    assert finding.value == ("cpu, cuda:0 (A100)" if cuda else "cpu")
    assert finding.wrong is None if message is None else message in finding.wrong


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/gpus/0000:01:00.0", "dev/nvidia0", "dev/dxg"])
def test_signs_of_a_gpu(tmp_path, monkeypatch, sign):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert device.find_gpu(tmp_path) is None
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).touch()
    assert sign.startswith(device.find_gpu(tmp_path)[1:])


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize(("output", "sign"), [("GPU 0: A100", "nvidia-smi"), ("No devices", None)])
def test_nvidia_smi(tmp_path, monkeypatch, output, sign):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.find_gpu(tmp_path) == sign


def test_the_layers_of_numba():
    numba = pytest.importorskip("numba")
    if numba.config.THREADING_LAYER not in ("default", "threadsafe", "safe", "forksafe"):
        pytest.skip("the environment asks for a layer")
    (good,) = doctor.numba_threads(lambda layer: layer != "tbb")
    assert good.value.endswith("(omp)") and good.wrong is None
    (poor,) = doctor.numba_threads(lambda layer: layer == "workqueue")
    assert poor.value.endswith("(workqueue)") and "libgomp1" in poor.wrong
    (none,) = doctor.numba_threads(lambda layer: False)
    assert "no threading layer" in none.wrong


@pytest.fixture
def shelf(tmp_path, monkeypatch, tiny_model):
    path = tmp_path / "portraitmatting_swint.safetensors"
    save_checkpoint(path, tiny_model, CheckpointInfo("a test", "none", 64))
    (tmp_path / SUMS).write_text(f"{sha256(path)}  {path.name}\n")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return path


def test_a_good_checkpoint(shelf):
    assert doctor.checkpoint() == [
        Finding("checkpoint", shelf.name),
        Finding("sha256", f"{sha256(shelf)} (as listed)"),
    ]
    (shelf.parent / SUMS).unlink()
    assert doctor.checkpoint()[1].value.endswith("(not listed)")
    assert wrongs(doctor.checkpoint()) == []


def test_a_pointer_in_place_of_the_weights(shelf):
    shelf.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    (wrong,) = wrongs(doctor.checkpoint())
    assert wrong.endswith("run `git lfs pull`")


def test_other_weights_than_listed(shelf):
    (shelf.parent / SUMS).write_text(f"{'0' * 64}  {shelf.name}\n")
    (wrong,) = wrongs(doctor.checkpoint())
    assert f"lists sha256 {'0' * 64}" in wrong
    assert doctor.checkpoint()[1].value.endswith("(not as listed)")


def test_a_truncated_checkpoint(shelf):
    shelf.write_bytes(shelf.read_bytes()[:-10])
    (wrong,) = wrongs(doctor.checkpoint())
    assert "damaged or truncated" in wrong


def test_a_folder_in_the_way_is_no_extra(tmp_path, monkeypatch):
    (tmp_path / "matting_extra").mkdir()
    (tmp_path / "matting_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = ("matting_extra", "matting_module", "matting_nothing")
    assert [doctor.importable(name) for name in names] == [False, True, False]


def test_extras_are_those_that_can_be_installed(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["optional-dependencies"]
    assert set(declared) - {"dev"} <= set(doctor.EXTRAS) == set(doctor.PURPOSES)
    for extra, modules in doctor.EXTRAS.items():
        for module in modules if extra in declared else ():
            assert any(wanted.startswith(module) for wanted in declared[extra])
    monkeypatch.setattr(doctor, "importable", lambda name: name != "gradio")
    findings = {finding.name: finding for finding in doctor.extras()}
    assert findings["[video]"].value == "installed"
    assert findings["[web]"].value.startswith(
        "not installed; for the page in a browser: pip install"
    )
    assert wrongs(findings.values()) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "message"),
    [
        ((12, 2), "13.0", r"driver 535\.104, for CUDA 12\.2, is too old .* CUDA 13\.0: .*/cu126$"),
        ((11, 4), "12.8", r"too old .* \"torch<2\.8\" .*/cu118$"),
        ((10, 1), "12.8", r"too old .*: update the driver$"),
        ((12, 2), "12.8", "--gpus all"),  # minor versions run each other's builds
        (None, "12.8", "--gpus all"),
    ],
)
def test_a_driver_too_old_for_this_pytorch(monkeypatch, caplog, driver, cuda, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "find_gpu", lambda: "nvidia-smi")
    monkeypatch.setattr(device, "driver_cuda", lambda: driver)
    monkeypatch.setattr(device, "_driver_version", lambda: " 535.104")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert re.search(message, device.why_gpu_is_idle(cuda))
    assert re.search(message, wrongs(doctor.devices(torch))[0])
    choose_device("auto")  # goes on, and says so
    assert re.search(message.removesuffix("$"), caplog.text) and "using the CPU" in caplog.text
    for hidden in ("", " ", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        caplog.clear()
        assert choose_device("auto").type == "cpu" and not caplog.text
        assert wrongs(doctor.devices(torch)) == []


def test_what_keeps_numba_from_working(monkeypatch, tmp_path):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert "NUMBA_DISABLE_JIT is set" in wrongs(doctor.numba_threads())[0]
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    monkeypatch.setattr(numba.config, "THREADING_LAYER", "tbb")
    assert "no threading layer tbb" in wrongs(doctor.numba_threads(lambda layer: layer != "tbb"))[0]
    monkeypatch.setattr(numba.config, "THREADING_LAYER", "fast")
    assert "'fast', which numba does not know" in wrongs(doctor.numba_threads())[0]


def test_where_numba_keeps_what_it_compiles(monkeypatch, tmp_path):
    pytest.importorskip("pymatting")
    from numba.core import caching

    assert wrongs(doctor.numba_cache()) == []
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert "set NUMBA_CACHE_DIR" in wrongs(doctor.numba_cache())[0]
