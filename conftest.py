"""Which modules pytest leaves out: those for packages that are not installed."""

import importlib.util

collect_ignore = []
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    collect_ignore.append("keras_ntt/tfmot")
