"""The notebook for newcomers: it runs, and what is committed of it is small and tells no tales."""

import base64
import importlib.util
import io
import json
import re

import PIL.Image
import pytest

from conftest import ROOT

PATH = ROOT / "examples" / "quickstart.ipynb"


def code_cells(notebook) -> list:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def images(cells) -> list[int]:
    """How many images each cell shows."""
    return [sum("image/png" in out.get("data", {}) for out in cell["outputs"]) for cell in cells]


@pytest.fixture(scope="module")
def committed():
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_it_runs_and_shows_what_the_committed_one_shows(committed):
    for module in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(module)
    spec = importlib.util.spec_from_file_location("execute", ROOT / "examples" / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    fresh = execute.execute(PATH)  # raises if a cell does
    execute.tidy(fresh)
    assert images(code_cells(fresh)) == images(code_cells(committed))
    assert "short side" in fresh.cells[2].outputs[0].text


def test_outputs_are_those_of_one_run(committed):
    counts = [cell["execution_count"] for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))
    shown = [cell["source"] for cell in code_cells(committed) if cell["outputs"]]
    silent = [cell["source"] for cell in code_cells(committed) if not cell["outputs"]]
    assert len(shown) >= 8 and silent == []
    assert sum(images(code_cells(committed))) >= 6


def test_outputs_are_small_and_name_no_machine(committed):
    assert PATH.stat().st_size < 1_000_000
    text = json.dumps([cell.get("outputs") for cell in committed["cells"]])
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|site-packages|stderr|Traceback", text)
    for cell in code_cells(committed):
        for output in cell["outputs"]:
            if encoded := output.get("data", {}).get("image/png"):
                image = PIL.Image.open(io.BytesIO(base64.b64decode("".join(encoded))))
                assert image.height <= 260


def test_images_it_reads_lie_beside_it(committed):
    sources = "".join("".join(cell["source"]) for cell in code_cells(committed))
    names = re.findall(r'read_image\("([^"]+)"\)', sources)
    assert names and all((PATH.parent / name).is_file() for name in names)
