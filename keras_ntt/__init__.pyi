from . import layer_rules, saliency
from .compression.compress import compress
from .compression.report import CompressionReport
from .core.channels.groups import ChannelGroup, ChannelGroups, channel_groups
from .core.channels.rules.table import register_channel_rule
from .keras2.load import load_model
from .layers.monarch import MonarchDense
from .layers.ternary import random_ternary_features
from .litert.export import export_tflite
from .litert.inspect import FileReport, inspect_tflite
from .litert.report import ExportReport
from .litert.runtime.predict import tflite_predict
from .litert.runtime.run import ExportError
from .litert.shrink import shrink_tflite
from .litert.xnnpack.edge import EdgeAdvice, edge_mobilenet, explain_edge_latency
from .litert.xnnpack.policy import PruneForLatencyOnXNNPack
from .masks.apply import apply_masks, get_masks, strip_pruning
from .masks.compaction import remove_dead_units
from .masks.difference import load_difference, save_difference
from .masks.files import load_masks, save_masks
from .masks.frozen import freeze_entries, trained_entries
from .masks.kept_updates import kept_gradients
from .masks.models_and_backups import BackupAndRestore, save_model
from .masks.policies import KernelPolicy, PrunableLayer, PruningPolicy
from .masks.report import SparsityReport, sparsity_report
from .masks.restore import restore_masks
from .ntk.empirical import empirical_ntk
from .ntk.layer_rules.base import register_layer_rule
from .ntk.linearized import Prediction, predict_training
from .pruning.at_init import prune_at_init, saliency_scores
from .pruning.channels.prune import prune_channels
from .pruning.dynamic import SET, RigL
from .pruning.dynamics import (
    TrainingDynamics,
    effective_gradient_flow,
    ntk_alignment,
    ntk_distance,
)
from .pruning.entropy_penalty import EntropyPenalty
from .pruning.freeze import freeze_at_init
from .pruning.granet import GraNet
from .pruning.low_magnitude import prune_low_magnitude, prune_scope
from .pruning.neural_tangent.adversarial import ProjectedGradient
from .pruning.neural_tangent.ntt_loss import ntt_loss
from .pruning.neural_tangent.objective import NTTLoss
from .pruning.neural_tangent.prune import prune_neural_tangent
from .pruning.neural_tangent.transfer import NeuralTangentTransfer
from .pruning.post_training.batch_norm import reestimate_batch_norm
from .pruning.post_training.choose_samples import choose_samples
from .pruning.post_training.prune import prune_post_training
from .pruning.scheduled_mask import advance_pruning
from .pruning.sniper import SNIPER
from .pruning.sparse_gan import SparseGAN
from .pruning.summaries import PruningSummaries, UpdatePruningStep
from .pruning.to_monarch import to_monarch
from .selection.allocations import erdos_renyi
from .selection.counts import keep_count
from .selection.named_patterns import as_pattern
from .selection.patterns import is_pruned_m_by_n
from .selection.schedules import (
    ConstantSparsity,
    NTTSchedule,
    PolynomialDecay,
    PruningSchedule,
)

__version__: str

__all__ = [  # noqa: RUF022, grouped by job
    # Compress a trained model
    "compress",
    "CompressionReport",
    "prune_post_training",
    "reestimate_batch_norm",
    "choose_samples",
    # Prune while training with labels
    "prune_low_magnitude",
    "prune_scope",
    "advance_pruning",
    "GraNet",
    "RigL",
    "SparseGAN",
    "SET",
    "SNIPER",
    "EntropyPenalty",
    "UpdatePruningStep",
    "PruningSummaries",
    # Prune before training
    "prune_at_init",
    "saliency_scores",
    "saliency",
    # Freeze instead of pruning: few entries are trained, stored and sent
    "freeze_at_init",
    "freeze_entries",
    "trained_entries",
    "save_difference",
    "load_difference",
    # Neural Tangent Transfer
    "prune_neural_tangent",
    "NeuralTangentTransfer",
    "ProjectedGradient",
    "ntt_loss",
    "NTTLoss",
    # Which weights, how many, in what pattern, when
    "PruningPolicy",
    "PrunableLayer",
    "KernelPolicy",
    "PruneForLatencyOnXNNPack",
    "as_pattern",
    "erdos_renyi",
    "is_pruned_m_by_n",
    "keep_count",
    "PruningSchedule",
    "ConstantSparsity",
    "PolynomialDecay",
    "NTTSchedule",
    # Masks in models and in files
    "get_masks",
    "apply_masks",
    "strip_pruning",
    "restore_masks",
    "kept_gradients",
    "save_masks",
    "load_masks",
    "save_model",
    "load_model",
    "BackupAndRestore",
    "sparsity_report",
    "SparsityReport",
    # Smaller models: whole channels removed
    "prune_channels",
    "channel_groups",
    "ChannelGroup",
    "ChannelGroups",
    "register_channel_rule",
    "remove_dead_units",
    "to_monarch",
    "MonarchDense",
    # Deploy: LiteRT files
    "export_tflite",
    "ExportReport",
    "ExportError",
    "shrink_tflite",
    "inspect_tflite",
    "FileReport",
    "tflite_predict",
    "explain_edge_latency",
    "EdgeAdvice",
    "edge_mobilenet",
    # The tangent kernel, and training as it predicts it
    "empirical_ntk",
    "ntk_alignment",
    "ntk_distance",
    "predict_training",
    "Prediction",
    "effective_gradient_flow",
    "TrainingDynamics",
    "random_ternary_features",
    "layer_rules",
    "register_layer_rule",
]
