"""What messages advise can be done: each call, argument, option and extra that they name exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys

import click
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import advice
from helpers.paths import ROOT

import keras_ntt
from keras_ntt.cli.program import program
from keras_ntt.saliency.names import SALIENCIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

MESSAGES = [m for m in advice.messages(ROOT / "keras_ntt") if "\n" not in m.text]
# Where the methods and attributes that messages name are found.
OWNERS = [
    *(keras.Model, keras.layers.Layer, keras.optimizers.Optimizer, keras.layers, keras.ops),
    *(tf.data.Dataset, tf.distribute.Strategy, np.ndarray, keras_ntt, keras_ntt.saliency),
    *(keras_ntt.PruningPolicy, keras_ntt.NeuralTangentTransfer, keras.models),
]
# Functions of the user's that messages speak of, and methods of interpreters in Python and C++.
ELSEWHERE_DEFINED = {
    *("get_prunable_weights", "measure", "prunable_weights"),
    *("reset_all_variables", "ResetVariableTensors", "Reset"),
}
# Arguments of others than this package that messages name, and who takes them.
ELSEWHERE = {
    "from_logits": keras.losses.CategoricalCrossentropy,
    "drop_remainder": tf.data.Dataset.batch,
    "padding": keras.layers.Conv2D,
    "strides": keras.layers.Conv2D,
    "reset_after": keras.layers.GRU,
    "stateful": keras.layers.LSTM,
    "custom_objects": keras.models.load_model,
    "backup_dir": keras.callbacks.BackupAndRestore,
    "log_dir": keras.callbacks.TensorBoard,
    "validation_split": keras.Model.fit,
    "sample_weight": keras.Model.fit,
}
# Words with an underscore that are no argument or attribute: packages, arrays in files, settings.
WORDS = {
    *("keras_ntt", "tf_keras", "mixed_bfloat16", "size_t", "time_major"),
    *("x_train", "x_test", "y_test", "should_prune", "pruning_params"),
}


def parameters(function):
    """Return the names of a callable's arguments, and whether it takes others."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # of a class made in C
        return set(), False
    return {p.name for p in found}, any(p.kind is p.VAR_KEYWORD for p in found)


def public_callables():
    """Yield what the package offers to call, methods of its classes included."""
    for holder in (keras_ntt, keras_ntt.saliency):
        for name in holder.__all__:
            found = getattr(holder, name)
            if callable(found):
                yield found
            if inspect.isclass(found):
                yield from (m for n, m in inspect.getmembers(found, callable) if n[0] != "_")


def tfmot_names():
    """Return the names of `keras_ntt.tfmot`, whose import needs further packages, by file."""
    text = (ROOT / "keras_ntt" / "tfmot" / "__init__.py").read_text()
    tree = ast.parse(text)
    places = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            places |= {alias.name: node.module for alias in node.names}
    return places


def arguments_in(folder):
    """Return the names of the arguments of a folder's functions, without importing it."""
    files = (ROOT / "keras_ntt" / folder).glob("*.py")
    nodes = [n for file in files for n in ast.walk(ast.parse(file.read_text()))]
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    return {a.arg for n in functions for a in (*n.args.args, *n.args.kwonlyargs)}


@pytest.fixture(scope="module")
def known():
    """The names of all arguments of the package."""
    found = set().union(*(parameters(f)[0] for f in public_callables()))
    # Folders that need further packages.
    found |= arguments_in("tfmot") | arguments_in("plots")
    return found | {p.name for c in program.commands.values() for p in c.params}


def resolved(name):
    """Return what a name in a message stands for, None if it is nothing that is known."""
    first, *rest = name.split(".")
    roots = {"keras_ntt": keras_ntt, "keras": keras, "tf": tf, "numpy": np, "np": np}
    if first in roots:
        found = roots[first]
        for part in rest:
            found = getattr(found, part, None)
        return found
    attribute = name.rpartition(".")[2]  # of a model, a data set, ...
    return next((getattr(o, attribute) for o in OWNERS if hasattr(o, attribute)), None)


def exists(name):
    """Tell whether a dotted name of the package, or a module of it, exists."""
    if name.startswith("keras_ntt.tfmot"):
        rest = name.split(".")[2:]
        return not rest or rest[0] in tfmot_names()
    try:
        return resolved(name) is not None or importlib.import_module(name) is not None
    except ImportError:
        return False


def faults(message, known):
    """Yield what a message names that does not exist."""
    for name in advice.dotted(message.text):
        if not exists(name):
            yield f"{name} does not exist"
    for name, given in advice.calls(message.advice):
        if name in ELSEWHERE_DEFINED or name.startswith(
            ("keras_ntt.tfmot.", "tfmot.", "tfds.", "strategy.")
        ):
            continue
        found = resolved(name)
        if found is None:
            yield f"{name}() is unknown"
            continue
        takes, more = parameters(found)
        # What goes through **settings and the like is an argument of something else.
        wrong = [k for k in advice.keywords(given) if k not in takes and not (more and k in known)]
        if wrong and found is not np.savez:
            yield f"{name}() does not take {wrong}"
    for name in advice.arguments(message.advice):
        elsewhere = name in ELSEWHERE and name in parameters(ELSEWHERE[name])[0]
        layers = hasattr(keras.layers.Layer, name)
        if name not in known and not elsewhere and not layers and name not in WORDS:
            yield f"nothing takes {name}="
    for name in advice.identifiers(message.advice):
        elsewhere = name in ELSEWHERE
        there = name in known | WORDS | set(SALIENCIES) | set(tfmot_names()) or elsewhere
        attributes = [a for f in public_callables() for a in getattr(f, "__annotations__", {})]
        if not there and resolved(name) is None and name not in (*ELSEWHERE_DEFINED, *attributes):
            yield f"{name} is the name of nothing"
    for option in advice.options(message.text):
        if not any(option in p.opts for c in commands_of(message.module) for p in c.params):
            yield f"no command takes {option}"
    for name in advice.commands(message.text):
        if name not in program.commands:
            yield f"there is no command {name}"
    for package, extra in advice.extras(message.text):
        if package == "keras-ntt" and extra not in EXTRAS:
            yield f"there is no extra {extra}"


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def commands_of(module):
    """Return the commands that a module's messages may come from."""
    name = module.rpartition(".")[2]
    if module.startswith("keras_ntt.cli") and name in program.commands:
        return [program.commands[name]]
    return list(program.commands.values())


def test_there_are_messages():
    assert len(MESSAGES) > 400
    assert sum(bool(list(advice.calls(m.advice))) for m in MESSAGES) > 50


def test_each_message_names_what_exists(known):
    found = [
        f"{m.module}:{m.line}: {fault}" for m in MESSAGES for fault in sorted(faults(m, known))
    ]
    assert found == []


PLANTED = {
    "Pass representative_dta, some samples.": "representative_dta is the name of nothing",
    "Call keras_ntt.restore_mask(model).": "keras_ntt.restore_mask does not exist",
    "Call restore_masks(model, strict=True).": "restore_masks() does not take ['strict']",
    "Leave them out by filtres=.": "nothing takes filtres=",
    "Say --representative-data FILE.": "no command takes --representative-data",
    "Use keras-ntt convert for that.": "there is no command convert",
    "Install it: pip install 'keras-ntt[lite]'": "there is no extra lite",
}


@pytest.mark.parametrize("text", PLANTED)
def test_planted_mistakes_are_found(text, known):
    assert PLANTED[text] in list(faults(advice.Message("keras_ntt.core.checks", 1, text), known))


def examples():
    """Yield the examples of all help texts and of the documentation, a command each."""
    texts = [program.help, *(c.help for c in program.commands.values())]
    texts += [p.read_text() for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    texts += [p.read_text() for p in (ROOT / "tutorials").glob("*.ipynb")]
    for text in texts:
        for line in re.findall(r"^\s+keras-ntt ([a-z].*)$", text or "", re.MULTILINE):
            if not line.startswith("COMMAND"):
                yield line.partition("  #")[0].strip()


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_examples_are_taken_by_the_parser(line):
    name, *words = line.split()
    command = program.commands[name]
    if "--help" not in words:
        with command.make_context(name, words) as context:
            assert isinstance(context, click.Context)
