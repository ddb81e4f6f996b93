"""Scores of weights: entries with higher scores are kept first."""

from __future__ import annotations

from keras_ntt.saliency.balanced import Balanced
from keras_ntt.saliency.base import NetworkSaliency, Subject, check_scores
from keras_ntt.saliency.data import Batches
from keras_ntt.saliency.grasp import GraSP
from keras_ntt.saliency.names import SALIENCIES, as_saliency
from keras_ntt.saliency.ntk_sap import NTKSAP
from keras_ntt.saliency.ntk_trace import NTKTrace
from keras_ntt.saliency.of_weights import magnitude
from keras_ntt.saliency.random import Random
from keras_ntt.saliency.snip import SNIP, LogitSNIP, LossGradient
from keras_ntt.saliency.synflow import SynFlow, SynFlowL2

__all__ = [
    "NTKSAP",
    "SALIENCIES",
    "SNIP",
    "Balanced",
    "Batches",
    "GraSP",
    "LogitSNIP",
    "LossGradient",
    "NTKTrace",
    "NetworkSaliency",
    "Random",
    "Subject",
    "SynFlow",
    "SynFlowL2",
    "as_saliency",
    "check_scores",
    "magnitude",
]
