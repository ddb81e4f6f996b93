"""Replicas and workers of tf.distribute, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import keras
import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.long

HELPERS = ROOT / "tests" / "helpers"
PARTS = pytest.mark.skipif(
    keras.__version__.startswith("3.3."), reason="its replicas differ without pruning, too"
)


def start(*what, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, str(HELPERS / "distributed_child.py"), *what],
        env={**os.environ, "PYTHONPATH": path, **quiet, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def lines_of(process):
    try:
        output, complaints = process.communicate(timeout=900)
    finally:
        end(process)
    assert process.returncode == 0, complaints[-4000:]
    return output.splitlines()


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@PARTS
def test_a_mirrored_strategy():
    assert lines_of(start("mirrored")) == [
        "gradient of halves",
        "gradient of parts of other sizes",
        "gradient where a replica gets nothing",
        "copies",
        "averages of the weights",
        "divergence",
        "loss scale",
        "scopes",
        "loss of callbacks",
        "whole job",
    ]


def start_workers(*what):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    configs = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}} for i in (0, 1)
    ]
    return [start(*what, TF_CONFIG=json.dumps(config)) for config in configs]


@PARTS
def test_two_workers_have_the_same_masks_and_weights():
    processes = start_workers("worker")
    try:
        first, second = [lines_of(process) for process in processes]
    finally:
        for process in processes:
            end(process)
    assert first == second
    assert [line.split()[0] for line in first] == ["gradient", "transfer", "scheduled"]


@PARTS
@pytest.mark.soak
@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_workers_that_lose_one_end_with_an_error_and_go_on_when_all_are_started_again(
    tmp_path, lost
):
    undisturbed = [lines_of(p)[-1] for p in start_workers("lasting", str(tmp_path / "whole"))]
    assert undisturbed[0] == undisturbed[1]
    processes = start_workers("lasting", str(tmp_path / "killed"))
    try:
        for line in processes[lost].stdout:
            if line.startswith("epoch 4"):
                break
        processes[lost].send_signal(signal.SIGKILL)
        _, complaints = processes[1 - lost].communicate(timeout=900)
    finally:
        for process in processes:
            end(process)
    assert processes[1 - lost].returncode != 0
    assert re.search(
        "Collective ops is aborted|Unavailable|unavailable|connect|heartbeat", complaints
    )
    again = [lines_of(p) for p in start_workers("lasting", str(tmp_path / "killed"))]
    assert [lines[-1] for lines in again] == undisturbed
    assert all("epoch 4" not in lines for lines in again)
