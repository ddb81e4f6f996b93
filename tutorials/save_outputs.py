"""Run notebooks of this folder from top to bottom and keep what they show.

    python tutorials/save_outputs.py [NAME ...]

The notebooks are the only source of the tutorials: edit them as notebooks. The tests run their
code with ``FAST = True``, and compare `digest` with the one that is saved here, so that saved
outputs are those of the code above them. Cells that install something are not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# What is logged whatever TF_CPP_MIN_LOG_LEVEL says.
NOTICE = re.compile(
    "I0000 |WARNING: All log messages before absl::InitializeLog|INFO:tensorflow:Assets written|"
    "INFO: Created TensorFlow Lite XNNPACK delegate|fully_quantize: "
)


def code_of(notebook: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the source and the tags of each cell with code."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in cells]


def installs(source: str) -> bool:
    """Tell whether a cell installs packages, which is not repeated where they are installed."""
    return source.startswith("%pip ")


def digest(notebook: dict[str, Any]) -> str:
    """Return a digest of a notebook's code that is run, without its texts and outputs."""
    code = [cell for cell in code_of(notebook) if not installs(cell[0])]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def drop_notices(notebook: dict[str, Any]) -> None:
    """Drop the lines that TensorFlow and LiteRT log when they start or convert, and no others."""
    for cell in notebook["cells"]:
        for output in list(cell.get("outputs", [])):
            if output["output_type"] != "stream":
                continue
            lines = "".join(output["text"]).splitlines(keepends=True)
            left = [line for line in lines if not NOTICE.match(line)]
            output["text"] = "".join(left) if isinstance(output["text"], str) else left
            if not "".join(left).strip():
                cell["outputs"].remove(output)


def save_outputs(path: Path) -> None:
    """Run a notebook in an empty folder and write its outputs into it.

    Args:
        path: The notebook.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    left_out = [cell for cell in notebook.cells if installs(cell.source)]
    for cell in left_out:
        cell.cell_type = "raw"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in left_out:
        cell.cell_type = "code"
    drop_notices(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "outputs_of": digest(json.loads(nbformat.writes(notebook))),
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a notebook; all by default")
    for name in parser.parse_args().names or sorted(p.stem for p in HERE.glob("*.ipynb")):
        print(name, flush=True)
        save_outputs(HERE / f"{Path(name).stem}.ipynb")
