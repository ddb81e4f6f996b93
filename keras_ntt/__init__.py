"""Prune Keras models before training, without labels, by Neural Tangent Transfer."""

from keras_ntt import saliency
from keras_ntt.adversarial import ProjectedGradient
from keras_ntt.at_init import prune_at_init, saliency_scores
from keras_ntt.callbacks import PruningSummaries, UpdatePruningStep
from keras_ntt.compaction import remove_dead_units
from keras_ntt.dynamics import TrainingDynamics, effective_gradient_flow
from keras_ntt.edge import EdgeAdvice, edge_mobilenet, explain_edge_latency
from keras_ntt.export import (
    ExportError,
    ExportReport,
    FileReport,
    export_tflite,
    inspect_tflite,
    tflite_predict,
)
from keras_ntt.granet import GraNet
from keras_ntt.latency_policy import PruneForLatencyOnXNNPack
from keras_ntt.layer_rules import register_layer_rule
from keras_ntt.loss import ntt_loss
from keras_ntt.low_magnitude import prune_low_magnitude, prune_scope
from keras_ntt.mask_files import load_masks, save_masks
from keras_ntt.ntk import empirical_ntk
from keras_ntt.objective import NTTLoss
from keras_ntt.policies import KernelPolicy, PruningPolicy
from keras_ntt.pruning import prune_neural_tangent
from keras_ntt.report import SparsityReport, sparsity_report
from keras_ntt.schedules import ConstantSparsity, NTTSchedule, PolynomialDecay, PruningSchedule
from keras_ntt.sniper import SNIPER
from keras_ntt.sparse_model import apply_masks, get_masks, strip_pruning
from keras_ntt.transfer import NeuralTangentTransfer
from keras_ntt.unheld import restore_masks

__version__ = "0.1.0"

__all__ = [
    "SNIPER",
    "ConstantSparsity",
    "EdgeAdvice",
    "ExportError",
    "ExportReport",
    "FileReport",
    "GraNet",
    "KernelPolicy",
    "NTTLoss",
    "NTTSchedule",
    "NeuralTangentTransfer",
    "PolynomialDecay",
    "ProjectedGradient",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "SparsityReport",
    "TrainingDynamics",
    "UpdatePruningStep",
    "apply_masks",
    "edge_mobilenet",
    "effective_gradient_flow",
    "empirical_ntk",
    "explain_edge_latency",
    "export_tflite",
    "get_masks",
    "inspect_tflite",
    "load_masks",
    "ntt_loss",
    "prune_at_init",
    "prune_low_magnitude",
    "prune_neural_tangent",
    "prune_scope",
    "register_layer_rule",
    "remove_dead_units",
    "restore_masks",
    "saliency",
    "saliency_scores",
    "save_masks",
    "sparsity_report",
    "strip_pruning",
    "tflite_predict",
]
