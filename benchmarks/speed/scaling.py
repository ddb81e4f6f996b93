"""How a transfer scales with workers: steps a second, bytes that are sent, and what is to expect.

    python -m benchmarks.speed.scaling

Workers are processes of this machine, each with one thread, connected by its loopback interface.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

from benchmarks.common.paths import RESULTS, ROOT

LINKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "PCIe 4.0 x16": 25e9, "NVLink 4": 450e9}
"""Bytes a second and direction that a worker can send: nominal figures, nothing measured."""
STEPS = (0.001, 0.01, 0.1)
"""Seconds of a step without communication, for which the table on paper is computed."""
REPLICAS = (2, 8, 64)


def main() -> None:
    """Measure one, two, ... workers; print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--networks", nargs="+", default=["lenet-300-100", "lenet-5-caffe"])
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each")
    parser.add_argument("--batch", type=int, default=64, help="samples of each worker")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_work(options.worker, options.steps, options.batch)), flush=True)
        return
    found: dict[str, Any] = {"batch_of_a_worker": options.batch, "networks": {}}
    for network in options.networks:
        rows = {n: measure(network, n, options.steps, options.batch) for n in options.workers}
        sent = max(row["bytes_reduced"] for row in rows.values())
        found["networks"][network] = {"workers": rows, "on_paper": on_paper(sent)}
        alone = rows[options.workers[0]]
        for n, row in rows.items():
            print(
                f"{network:16}{n:3} workers{row['steps_a_second']:8.1f} steps/s"
                f"{row['samples_a_second']:10.0f} samples/s"
                f"{row['samples_a_second'] / alone['samples_a_second']:7.2f} x"
                f"{row['bytes_reduced']:12,} bytes a step"
            )
    from benchmarks.common.table import machine

    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


def measure(network: str, workers: int, steps: int, batch: int) -> dict[str, Any]:
    """Run a transfer on some workers and return what the first of them measured.

    Args:
        network: The network, of `networks.NETWORKS`.
        workers: The number of processes.
        steps: Timed steps.
        batch: Samples of each worker in a batch.

    Returns:
        Steps and samples a second, and the bytes that a step sums over all workers.

    Raises:
        RuntimeError: If a worker fails.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for i in range(workers):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        if workers > 1:
            environment["TF_CONFIG"] = json.dumps(cluster)
        command = [sys.executable, "-m", "benchmarks.speed.scaling", "--worker", network]
        command += ["--steps", str(steps), "--batch", str(batch)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(complaints[-2000:] for _, complaints in outputs))
    return json.loads(outputs[0][0].splitlines()[-1])


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def on_paper(size: int) -> list[dict[str, Any]]:
    """Return the efficiency that links allow a step of some length, nothing overlapping.

    A ring of R replicas sends 2 (R - 1) / R times the size through each link.

    Args:
        size: Bytes that a step sums over all replicas.

    Returns:
        A row a link, time of a step and number of replicas: the share of the time that is not
        communication.
    """
    rows = []
    for link, speed in LINKS.items():
        for seconds in STEPS:
            for replicas in REPLICAS:
                sending = 2 * (replicas - 1) / replicas * size / speed
                share = seconds / (seconds + sending)
                rows.append(
                    {"link": link, "step": seconds, "replicas": replicas, "efficiency": share}
                )
    return rows


def reduced_bytes(definition: Any) -> int:
    """Return the bytes of the tensors that a graph sums over all workers.

    Args:
        definition: A ``GraphDef``, whose functions are looked into: each is counted once.
    """
    import tensorflow as tf

    total = 0
    for nodes in (definition.node, *(f.node_def for f in definition.library.function)):
        for node in nodes:
            if not node.op.startswith("CollectiveReduce"):
                continue
            shapes = node.attr["_output_shapes"].list.shape
            if not shapes:
                raise ValueError(f"The size of {node.name} is not in the graph")
            entries = tf.TensorShape(shapes[0]).num_elements()
            total += entries * tf.as_dtype(node.attr["T"].type).size
    return total


def _work(name: str, steps: int, batch: int) -> dict[str, Any]:
    """Take the steps of one worker."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras
    import numpy as np

    import keras_ntt
    from benchmarks.common import networks

    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        student = networks.build(networks.NETWORKS[name])
        transfer = keras_ntt.NeuralTangentTransfer(
            student, pruning_schedule=keras_ntt.NTTSchedule(0.97, 100), seed=0
        )
        transfer.compile(keras.optimizers.Adam(5e-4))
    samples = batch * replicas
    x = np.random.default_rng(0).standard_normal((samples, *student.input_shape[1:]))
    data = tf.data.Dataset.from_tensors(x.astype("float32")).repeat()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Each worker makes its own samples, as where each has its own files.
    own = tf.data.Dataset.from_tensors(x[:batch].astype("float32")).repeat().with_options(options)
    batches = iter(strategy.experimental_distribute_dataset(own if replicas > 1 else data))
    transfer._state.begin()
    transfer._plan.look_ahead(0)
    step = tf.function(lambda one: strategy.run(transfer.train_step, args=(one,)))
    first = next(batches)
    graph = step.get_concrete_function(first).graph
    for _ in range(5):
        step(first)
    begin = time.perf_counter()
    for _ in range(steps):
        logs = step(next(batches))
    keras.tree.map_structure(np.asarray, strategy.experimental_local_results(logs["loss"]))
    seconds = (time.perf_counter() - begin) / steps
    return {
        "steps_a_second": 1 / seconds,
        "samples_a_second": samples / seconds,
        "trained_bytes": sum(4 * int(np.prod(v.shape)) for v in transfer.trainable_variables),
        "bytes_reduced": reduced_bytes(graph.as_graph_def(add_shapes=True)),
    }


if __name__ == "__main__":
    main()
