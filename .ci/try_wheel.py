"""Try an installed wheel: what it declares is enough, and the README's quickstart runs.

python .ci/try_wheel.py core|quickstart
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent


def core() -> None:
    """Use the package with its required dependencies alone."""
    import keras
    import numpy as np

    import keras_ntt

    assert "click" not in sys.modules
    for name in ("sklearn", "matplotlib", "ai_edge_litert"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed"
    package = pathlib.Path(keras_ntt.__file__).resolve().parent
    assert package != HERE.parent / "keras_ntt", f"{package} is not the wheel"
    assert (package / "py.typed").exists()
    assert importlib.metadata.version("keras-ntt") == keras_ntt.__version__
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(9, "relu"), keras.layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    sparse = keras_ntt.prune_neural_tangent(model, x, sparsity=0.5, epochs=2, verbose=0)
    assert keras_ntt.sparsity_report(sparse).sparsity == 0.5


def quickstart() -> None:
    """Run the first Python block of the README."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block[1], "README.md", "exec"), {"__name__": "quickstart"})


if __name__ == "__main__":
    import keras_ntt

    {"core": core, "quickstart": quickstart}[sys.argv[1]]()
    print(
        f"keras_ntt {keras_ntt.__version__}: {sys.argv[1]} works on Python {sys.version.split()[0]}"
    )
