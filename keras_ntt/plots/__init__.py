"""Pictures of transfers, kernels, masks and files.

Each function takes plain numbers or objects of this package and returns a Matplotlib figure. It is
drawn without pyplot: nothing is shown, and no setting of Matplotlib is changed. A notebook shows
the figure if it is the value of a cell. Matplotlib is imported when a picture is drawn
(``pip install 'keras-ntt[plots]'``).

Colours are those of Okabe & Ito, which colour-blind people can distinguish; dashes and markers
distinguish the curves in grey. Titles state what the data show, unless ``title=`` is passed.
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
