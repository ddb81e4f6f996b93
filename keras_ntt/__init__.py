"""Prune Keras models before training, without labels, by Neural Tangent Transfer."""

from keras_ntt.callbacks import PruningSummaries, UpdatePruningStep
from keras_ntt.export import ExportError, ExportReport, export_tflite, tflite_predict
from keras_ntt.latency_policy import PruneForLatencyOnXNNPack
from keras_ntt.low_magnitude import prune_low_magnitude, prune_scope
from keras_ntt.mask_files import load_masks, save_masks
from keras_ntt.ntk import empirical_ntk
from keras_ntt.objective import NTTLoss, ntt_loss
from keras_ntt.policies import PruningPolicy
from keras_ntt.pruning import prune_neural_tangent
from keras_ntt.report import SparsityReport, sparsity_report
from keras_ntt.schedules import ConstantSparsity, NTTSchedule, PolynomialDecay, PruningSchedule
from keras_ntt.sparse_model import apply_masks, get_masks, strip_pruning
from keras_ntt.transfer import NeuralTangentTransfer
from keras_ntt.unheld import restore_masks

__version__ = "0.1.0"

__all__ = [
    "ConstantSparsity",
    "ExportError",
    "ExportReport",
    "NTTLoss",
    "NTTSchedule",
    "NeuralTangentTransfer",
    "PolynomialDecay",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "SparsityReport",
    "UpdatePruningStep",
    "apply_masks",
    "empirical_ntk",
    "export_tflite",
    "get_masks",
    "load_masks",
    "ntt_loss",
    "prune_low_magnitude",
    "prune_neural_tangent",
    "prune_scope",
    "restore_masks",
    "save_masks",
    "sparsity_report",
    "strip_pruning",
    "tflite_predict",
]
