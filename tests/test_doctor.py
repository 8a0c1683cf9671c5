"""The doctor: each illness is made, and must be named with its cure."""

import sys
from types import SimpleNamespace

import pytest

from conftest import ROOT
from portraitmatting.checkpoint import (
    FOLDER_VARIABLE,
    SUMS,
    CheckpointInfo,
    save_checkpoint,
    sha256,
)
from portraitmatting.cli import FAILED
from portraitmatting.commands.doctor import main
from portraitmatting.doctor import environment, machine, shelves
from portraitmatting.doctor.finding import Finding

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
    assert environment.installed("torch") in out
    assert "- no checkpoint named 'portraitmatting_swint'" in out


def test_a_missing_package(monkeypatch):
    versions = dict.fromkeys(environment.PACKAGES, "1.0") | {"timm": None}
    monkeypatch.setattr(environment, "installed", versions.get)
    assert wrongs(environment.versions()) == ["timm is not installed: pip install timm"]


def test_requirements_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(environment, "installed", {"torch": "2.1.0", "numpy": "2.2"}.get)
    wanted = ["torch>=2.6", "numpy>=2.0", "tomli>=2; python_version < '3'", "av>=15; extra == 'v'"]
    assert wrongs(environment.unmet(wanted)) == [
        'torch is 2.1.0, needed is: pip install "torch>=2.6"'
    ]


def test_an_environment_with_nothing_in_it(monkeypatch, capsys):
    for module in ("torch", "cv2", "numba", "packaging"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(environment, "installed", lambda name: None)
    assert main([]) == FAILED
    out = capsys.readouterr().out
    for name in environment.PACKAGES:
        assert f"- {name} is not installed: pip install {name}\n" in out
    assert "- cv2 cannot be imported" in out


def test_a_torchvision_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(
        environment, "installed", {"torch": "2.14.1", "torchvision": "0.21.0", "timm": "1"}.get
    )

    def load(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return SimpleNamespace(__name__=name)

    monkeypatch.setattr(environment.importlib, "import_module", load)
    (wrong,) = wrongs(environment.imports())
    assert "torchvision 0.21.0 does not fit torch 2.14.1 (it is made for torch 2.6)" in wrong
    assert "timm needs" in wrong and "nms does not exist" in wrong
    assert wrong.endswith("pip install --force-reinstall torch torchvision")


GUI = "  GUI:                           QT5\n"
NO_GUI = "  GUI:                           NONE\n"


@pytest.mark.parametrize(
    ("there", "build", "said"),
    [
        (["opencv-python"], GUI, None),
        (["opencv-python-headless"], NO_GUI, "built without windows"),
        (["opencv-python", "opencv-python-headless"], GUI, "overwrite each other"),
    ],
)
def test_opencv(monkeypatch, there, build, said):
    monkeypatch.setattr(environment, "installed", dict.fromkeys(there, "5.0").get)
    (finding,) = environment.opencv(lambda: build)
    assert finding.found == ", ".join(f"{name} 5.0" for name in there)
    assert finding.wrong is None if said is None else said in finding.wrong


def test_opencv_without_its_system_libraries(monkeypatch):
    def load(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(environment.importlib, "import_module", load)
    (wrong,) = wrongs(environment.opencv())
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
    ("cuda", "version", "sign", "said"),
    [
        (True, "12.8", "nvidia-smi", None),
        (False, None, None, None),
        (False, "12.8", None, None),
        (False, None, "nvidia-smi", "built without CUDA"),
        (False, "12.8", "nvidia-smi", "--gpus all"),
    ],
)
def test_a_gpu_that_lies_idle(monkeypatch, cuda, version, sign, said):
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: sign)
    build, finding = machine.devices(fake_torch(cuda, version))
    assert build.found == (f"CUDA {version}" if version else "CPU")
    assert finding.found == ("cpu, cuda:0 (A100)" if cuda else "cpu")
    assert finding.wrong is None if said is None else said in finding.wrong


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/gpus/0000:01:00.0", "dev/nvidia0", "dev/dxg"])
def test_signs_of_a_gpu(tmp_path, monkeypatch, sign):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert machine.nvidia_gpu(tmp_path) is None
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).touch()
    assert sign.startswith(machine.nvidia_gpu(tmp_path)[1:])


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize(("says", "found"), [("GPU 0: A100", "nvidia-smi"), ("No devices", None)])
def test_nvidia_smi(tmp_path, monkeypatch, says, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpu(tmp_path) == found


def test_the_layers_of_numba():
    numba = pytest.importorskip("numba")
    if numba.config.THREADING_LAYER not in ("default", "threadsafe", "safe", "forksafe"):
        pytest.skip("the environment asks for a layer")
    (good,) = machine.numba_threads(lambda layer: layer != "tbb")
    assert good.found.endswith("(omp)") and good.wrong is None
    (poor,) = machine.numba_threads(lambda layer: layer == "workqueue")
    assert poor.found.endswith("(workqueue)") and "libgomp1" in poor.wrong
    (none,) = machine.numba_threads(lambda layer: False)
    assert "no threading layer" in none.wrong


@pytest.fixture
def shelf(tmp_path, monkeypatch, tiny_model):
    path = tmp_path / "portraitmatting_swint.safetensors"
    save_checkpoint(path, tiny_model, CheckpointInfo("a test", "none", 64))
    (tmp_path / SUMS).write_text(f"{sha256(path)}  {path.name}\n")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return path


def test_a_good_checkpoint(shelf):
    assert shelves.checkpoint() == [
        Finding("checkpoint", shelf.name),
        Finding("sha256", f"{sha256(shelf)} (as listed)"),
    ]
    (shelf.parent / SUMS).unlink()
    assert shelves.checkpoint()[1].found.endswith("(not listed)")
    assert wrongs(shelves.checkpoint()) == []


def test_a_pointer_in_place_of_the_weights(shelf):
    shelf.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    (wrong,) = wrongs(shelves.checkpoint())
    assert wrong.endswith("run `git lfs pull`")


def test_other_weights_than_listed(shelf):
    (shelf.parent / SUMS).write_text(f"{'0' * 64}  {shelf.name}\n")
    (wrong,) = wrongs(shelves.checkpoint())
    assert f"lists sha256 {'0' * 64}" in wrong
    assert shelves.checkpoint()[1].found.endswith("(not as listed)")


def test_a_truncated_checkpoint(shelf):
    shelf.write_bytes(shelf.read_bytes()[:-10])
    (wrong,) = wrongs(shelves.checkpoint())
    assert "damaged or truncated" in wrong


def test_a_folder_in_the_way_is_no_extra(tmp_path, monkeypatch):
    (tmp_path / "matting_extra").mkdir()
    (tmp_path / "matting_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = ("matting_extra", "matting_module", "matting_nothing")
    assert [environment.importable(name) for name in names] == [False, True, False]


def test_extras_are_those_that_can_be_installed(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["optional-dependencies"]
    assert set(declared) - {"dev"} <= set(environment.EXTRAS) == set(environment.PURPOSES)
    for extra, modules in environment.EXTRAS.items():
        for module in modules if extra in declared else ():
            assert any(wanted.startswith(module) for wanted in declared[extra])
    monkeypatch.setattr(environment, "importable", lambda name: name != "gradio")
    found = {finding.name: finding for finding in environment.extras()}
    assert found["[video]"].found == "installed"
    assert found["[web]"].found.startswith("not installed; for the page in a browser: pip install")
    assert wrongs(found.values()) == []
