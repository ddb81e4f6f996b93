"""Pictures of transfers, kernels, masks and files.

Each function takes plain numbers or this package's objects and returns a Matplotlib figure, which
is drawn apart from pyplot: nothing is shown, and no setting of Matplotlib is changed. Notebooks
show a figure that is a cell's value. Matplotlib is imported when a picture is drawn (``pip install
'keras-ntt[plots]'``).

Colours are those of Okabe & Ito, which the colour-blind can tell apart; dashes and markers tell
the same curves apart in grey. Titles say what the data show, unless ``title=`` says something
else.
"""

from keras_ntt.plots.candidates import size_by_agreement
from keras_ntt.plots.curves import accuracy_by_sparsity, training_curves, transfer_curves
from keras_ntt.plots.files import latency_by_sparsity, size_by_sparsity
from keras_ntt.plots.kernels import eigenvalue_spectra, kernel_matrices
from keras_ntt.plots.masks import mask_maps, sparsity_by_layer
from keras_ntt.plots.parts import bytes_by_part

__all__ = [
    "accuracy_by_sparsity",
    "bytes_by_part",
    "eigenvalue_spectra",
    "kernel_matrices",
    "latency_by_sparsity",
    "mask_maps",
    "size_by_agreement",
    "size_by_sparsity",
    "sparsity_by_layer",
    "training_curves",
    "transfer_curves",
]
