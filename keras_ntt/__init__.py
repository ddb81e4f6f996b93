"""Sparse Keras models, without labels, for the edge.

The public names are listed in ``__init__.pyi``, grouped by job. Each is imported when it is first
used, so that ``keras-ntt --help`` does not wait for TensorFlow.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
