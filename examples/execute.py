#!/usr/bin/env python3
"""Run quickstart.ipynb and keep its outputs in it: python examples/execute.py"""

import base64
import io
import os
from pathlib import Path
from typing import Any

import nbformat
import PIL.Image
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parent / "quickstart.ipynb"
_TALLEST = 260


def execute(path: Path) -> Any:
    """The notebook with fresh outputs, run from its own folder; raises if a cell does."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # The package beside the notebook, whichever is installed.
    client.execute(env={**os.environ, "PYTHONPATH": str(path.parent.parent)})
    return notebook


def tidy(notebook: Any) -> None:
    """Leave what a reader looks at: no warnings (they name this machine's folders), small images,
    and no text beside them."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for output in cell.outputs:
                if image := output.get("data", {}).get("image/png"):
                    output.data = {"image/png": _shrink(image)}
                    output.metadata = {}


def _shrink(encoded: str) -> str:
    image = PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
    image.thumbnail((image.width, _TALLEST))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


if __name__ == "__main__":
    done = execute(QUICKSTART)
    tidy(done)
    nbformat.write(done, QUICKSTART)
