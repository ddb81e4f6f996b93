"""Predict, without running it, whether XNNPACK computes a LiteRT graph sparsely.

On ARM, WebAssembly, RISC-V and x86 without AVX, XNNPACK rewrites clusters of connected operators
to channel-first layout, for which it has sparse 1x1 convolutions. What it asks for:

- a hint: some weight comes through DENSIFY;
- an entry: a 3x3 convolution of stride 2 on 3 channels, zero-padded by 1 on each side explicitly;
- only compatible operators between the entry and an exit, a mean over height and width;
- zeros: more than two thirds of the weights of the cluster's 1x1 convolutions.

All released versions have a defect: once a graph has an exit anywhere, a cluster with a good
entry is rewritten even if an operator outside it reads its output, which then is channel-first
data taken for channel-last: silently wrong values, or the file does not load. Such graphs must
not be given the hint. Where one operator inside and one outside read the same output, XNNPACK
notices; that case is called wrong here too, which costs bytes at worst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_ntt.litert.xnnpack import nodes as nodes

NO_HINT = "no weight is unpacked by DENSIFY, which is what turns sparse inference on"


@dataclass(frozen=True)
class Verdict:
    """What XNNPACK will do with a model where its sparse inference is compiled in.

    Attributes:
        kind: ``"sparse"``, ``"dense"``, or ``"wrong"``: sparse with silently wrong outputs.
        reasons: Why, in words.
        sparsity: Fraction of zeros in the 1x1 convolutions that decide, or None without any.
        tensors: ``(graph, tensor)`` of the weights that are computed sparsely.
    """

    kind: str
    reasons: tuple[str, ...]
    sparsity: float | None = None
    tensors: frozenset[tuple[int, int]] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain numbers and strings."""
        return {"kind": self.kind, "reasons": list(self.reasons), "sparsity": self.sparsity}

    def __str__(self) -> str:
        """Return the verdict in one line."""
        share = "" if self.sparsity is None else f" ({self.sparsity:.1%} zeros)"
        return f"{self.kind}{share}: {'; '.join(self.reasons)}"


@dataclass
class _Cluster:
    members: list[nodes.Node]
    faults: list[str]
    zeros: float = 0
    weights: int = 0
    leaks: tuple[str, ...] = ()

    @property
    def is_sparse(self) -> bool:
        return not self.faults and 3 * self.zeros > 2 * self.weights


def predict(model: Any, *, hint: bool = False, sparsity: float | None = None) -> Verdict:
    """Predict what XNNPACK does with a model.

    Args:
        model: A ``ModelT``.
        hint: Take the hint for given, to see what would happen.
        sparsity: Take this fraction of zeros for given in all 1x1 convolutions.

    Returns:
        The verdict; of several graphs the worst counts.
    """
    verdicts = [
        _predict(nodes.Graph(model, number), hint, sparsity)
        for number in range(len(model.subgraphs))
    ]
    for kind in ("wrong", "sparse", "dense"):
        chosen = [v for v in verdicts if v.kind == kind]
        if chosen:
            tensors = frozenset[tuple[int, int]]().union(*(v.tensors for v in chosen))
            return Verdict(kind, chosen[0].reasons, chosen[0].sparsity, tensors)
    return Verdict("dense", ("the model has no graph",))


def _predict(graph: nodes.Graph, hint: bool, sparsity: float | None) -> Verdict:
    found = graph.nodes()
    exits = [n for n in found if n.role == "exit" and any(graph.is_inside(i) for i in n.inputs)]
    clusters = list(_clusters(graph, found, sparsity))
    running = [c for c in clusters if c.is_sparse]
    if not hint and not graph.has_hint():
        return Verdict("dense", (NO_HINT,), _share(clusters))
    if not exits:
        reasons = (*_why_no_exit(found), *_why_dense(clusters))
        return Verdict("dense", reasons, _share(clusters))
    leaks = tuple(leak for c in running for leak in c.leaks)
    if leaks:
        return Verdict("wrong", leaks, _share(running))
    if running:
        tensors = frozenset(
            (graph.number, n.weight) for c in running for n in c.members if n.weight_count
        )
        reason = "entry, 1x1 convolutions, exit and share of zeros are as XNNPACK needs them"
        return Verdict("sparse", (reason,), _share(running), tensors)
    return Verdict("dense", tuple(_why_dense(clusters)), _share(clusters))


def _share(clusters: list[_Cluster]) -> float | None:
    able = [c for c in clusters if c.weights and not c.faults]
    weights = sum(c.weights for c in able)
    return sum(c.zeros for c in able) / weights if weights else None


def _clusters(
    graph: nodes.Graph, found: list[nodes.Node], sparsity: float | None
) -> Iterator[_Cluster]:
    """Yield the groups of compatible nodes that feed each other."""
    leader = {id(n): n for n in found}

    def root(node: nodes.Node) -> nodes.Node:
        while leader[id(node)] is not node:
            node = leader[id(node)]
        return node

    for node in found:
        if node.role in ("inside", "exit"):
            for index in node.inputs:
                if graph.is_inside(index):
                    leader[id(root(node))] = root(graph.node_of(index))
    groups: dict[int, list[nodes.Node]] = {}
    for node in found:
        if node.role != "none":
            groups.setdefault(id(root(node)), []).append(node)
    for members in groups.values():
        yield _examine(graph, members, sparsity)


def _examine(graph: nodes.Graph, members: list[nodes.Node], sparsity: float | None) -> _Cluster:
    own = {id(n) for n in members}
    faults, leaks, zeros, weights = [], [], 0.0, 0
    for node in members:
        if node.role in ("inside", "exit"):
            for index in node.inputs:
                producer = graph.node_of(index)
                if producer is None:
                    faults.append(f"{node.name} reads an input of the graph")
                elif not graph.is_inside(index):
                    why = producer.why or "there channel-first computation ends"
                    faults.append(f"{node.name} reads {producer.name}: {why}")
        if node.role in ("inside", "entry"):
            leaks += [
                f"{node.name} is computed channel-first and read by {reader}"
                for reader in graph.readers_outside(node, own)
            ]
        weights += node.weight_count
        zeros += node.zeros if sparsity is None else sparsity * node.weight_count
    return _Cluster(members, faults, zeros, weights, tuple(leaks))


def _why_no_exit(found: list[nodes.Node]) -> Iterator[str]:
    if not any(node.role == "exit" for node in found):
        yield "no global average pooling over height and width ends the convolutions"


def _why_dense(clusters: list[_Cluster]) -> Iterator[str]:
    """Yield what keeps the clusters with 1x1 convolutions dense, each cause once."""
    said: set[str] = set()
    convolutional = [c for c in clusters if any(n.is_convolution for n in c.members)]
    with_weights = [c for c in convolutional if c.weights]
    if not with_weights:
        yield "there are no 1x1 convolutions that could be computed channel-first"
        return
    for cluster in with_weights:
        reasons = cluster.faults or [
            f"only {cluster.zeros / cluster.weights:.1%} of the 1x1 convolutions' weights are "
            "zero, and more than 66.7% must be"
        ]
        for reason in reasons if cluster.faults or not cluster.is_sparse else []:
            cause = reason.split(": ")[-1]
            if cause not in said:
                said.add(cause)
                yield reason
