"""The layout: what each folder may import, where private names and other packages may stand.

`python -m pytest tests/project/test_layout.py -s` prints the levels, the arrows and the circles.
"""

from __future__ import annotations

import sys

from helpers import structure
from helpers.paths import ROOT

PACKAGE = ROOT / "keras_ntt"

# Folder -> the folders that it may import, in reading order.
MAY_IMPORT = {
    "core": set(),
    "layers": {"core"},
    "masks": {"core"},
    "ntk": {"core", "masks"},
    "litert": {"core", "masks"},
    "saliency": {"core", "ntk"},
    "selection": {"core", "masks", "saliency"},
    "pruning": {"core", "layers", "masks", "ntk", "saliency", "selection"},
    "compression": {"core", "masks", "litert", "pruning"},
    "plots": {"core", "masks", "litert", "pruning"},
    "keras2": {"core", "masks"},
    "tfmot": {"core", "masks", "selection", "pruning", "keras2"},
    "cli": {
        "core",
        "masks",
        "litert",
        "saliency",
        "selection",
        "pruning",
        "compression",
        "plots",
        "keras_ntt",
    },
    "layer_rules": {"ntk"},  # the public name of keras_ntt.ntk.layer_rules
}
# Package -> the modules that may import it; all may import numpy, keras and tensorflow.
EVERYWHERE = {"numpy", "keras", "tensorflow"}
ONLY_IN = {
    "lazy_loader": ("keras_ntt",),
    "matplotlib": ("keras_ntt.plots",),
    "click": ("keras_ntt.cli",),
    "tensorflow_datasets": ("keras_ntt.cli.sources",),
    "sklearn": ("keras_ntt.cli.jobs.digits",),
    "h5py": ("keras_ntt.masks.models_and_backups", "keras_ntt.keras2.load"),
    "tf_keras": ("keras_ntt.tfmot.wrappers", "keras_ntt.keras2.load"),
    "tensorflow_model_optimization": ("keras_ntt.tfmot.wrappers",),
    "flatbuffers": ("keras_ntt.litert.format.builder",),
    "compression": ("keras_ntt.litert.format.sizes",),  # of Python 3.14
    "ai_edge_litert": ("keras_ntt.litert.format.flatbuffer", "keras_ntt.litert.runtime"),
    "zstandard": ("keras_ntt.litert.format.sizes",),
}
PRIVATE_NAMES = "keras_ntt.core.host"


def folder(module):
    """Return the folder of a module of ours; ``keras_ntt`` for the package itself."""
    return module.split(".")[1] if "." in module else "keras_ntt"


def is_inside(module, places):
    return any(f"{module}.".startswith(f"{place}.") for place in places)


def faults(package):
    """Yield what a package has against the layout, a line each."""
    files = structure.sources(package)
    known = {name.split(".")[0] for name in sys.stdlib_module_names} | EVERYWHERE
    arrows = set()
    for file, module, line in structure.imports(files):
        if module.split(".")[0] == "keras_ntt":
            start, end = folder(file), folder(module)
            if start == "keras_ntt" or start == end:
                arrows |= {(file, module)} if file != module else set()
            elif end in MAY_IMPORT.get(start, ()):
                arrows.add((file, module))
            else:
                yield f"{file}:{line} imports {module}: {start} may not import {end}"
        elif module.split(".")[0] not in known:
            places = ONLY_IN.get(module.split(".")[0], ())
            if not is_inside(file, places):
                yield f"{file}:{line} imports {module}, which only {places or 'nobody'} may"
    for circle in structure.circles(arrows):
        yield f"a circle: {circle}"
    for file in files:
        if file.name != PRIVATE_NAMES:
            for line, words in structure.private_names(file):
                yield f"{file.name}:{line} has a private name: {words}"
        if file.is_package:
            for line, words in structure.logic_in_init(file):
                yield f"{file.name}:{line} has logic in __init__.py: {words}"


def folder_arrows(package):
    """Return the arrows between folders."""
    found = structure.imports(structure.sources(package))
    ours = [(folder(i.file), folder(i.module)) for i in found if i.module.startswith("keras_ntt")]
    return {(a, b) for a, b in ours if a != b and "keras_ntt" not in (a, b)}


def test_each_module_keeps_to_its_folder():
    assert list(faults(PACKAGE)) == []


def test_each_folder_has_a_row():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT) - {"layer_rules"}


def test_folders_are_eight_levels_high():
    arrows = folder_arrows(PACKAGE)
    circles = structure.circles(arrows)
    print(f"\nlevels {structure.levels(arrows)}, arrows {len(arrows)}, circles {len(circles)}")
    assert not circles
    assert structure.levels(arrows) <= 8
    assert len(arrows) <= 40


PLANTED = {
    "keras_ntt/core/loops.py": (
        "from keras_ntt.masks import apply\n",
        "core may not import masks",
    ),
    "keras_ntt/ntk/factors.py": ("import keras_ntt\n", "ntk may not import keras_ntt"),
    "keras_ntt/masks/filters.py": ("import matplotlib.pyplot\n", "imports matplotlib.pyplot"),
    "keras_ntt/selection/counts.py": (
        "from keras_ntt.selection import find_masks\n",
        "a circle",
    ),
    "keras_ntt/saliency/snip.py": ("x = keras.Model._flatten_layers\n", "private name"),
    "keras_ntt/saliency/grasp.py": ("x = getattr(keras, '_name')\n", "private name"),
    "keras_ntt/plots/style.py": ("import keras.src.ops\n", "private name"),
    "keras_ntt/litert/inspect.py": (
        "def late():\n    from tensorflow.python.util import nest\n",
        "private name",
    ),
    "keras_ntt/pruning/__init__.py": ("def prune():\n    pass\n", "logic in __init__"),
}


def test_planted_violations_are_found(tmp_path):
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    for file, (code, _) in PLANTED.items():
        planted = tmp_path / file
        planted.write_text(f"{planted.read_text(encoding='utf-8')}\n{code}", encoding="utf-8")
    found = list(faults(tmp_path / "keras_ntt"))
    assert len(found) == len(PLANTED)
    for _, message in PLANTED.values():
        assert any(message in fault for fault in found), message
