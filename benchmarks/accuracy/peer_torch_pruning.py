"""Channel pruning by Torch-Pruning, run by `channel_peers` in an environment of its own.

Reads a folder with ``task.json``, ``weights.npz`` and ``images.npz``; prints rows as JSON. The
ResNet-8 is written here once more, with the padding of TensorFlow.
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional


class ResNet8(nn.Module):
    """The network of MLPerf Tiny; layers have the names of the Keras model's."""

    def __init__(self, weights):
        super().__init__()
        for name in sorted({key.split(".")[0] for key in weights}):
            values = [
                torch.tensor(v) for k, v in sorted(weights.items()) if k.split(".")[0] == name
            ]
            setattr(self, name, _layer(name, values))

    def forward(self, x):
        """Return the logits of images ``[n, channels, height, width]``."""
        x = torch.relu(self._block(x, "", ""))
        y = torch.relu(self._block(x, "_1", "_1"))
        x = torch.relu(x + self._block(y, "_2", "_2"))
        y = torch.relu(self._block(x, "_3", "_3", stride=2))
        x = torch.relu(self._block(y, "_4", "_4") + self.conv2d_5(x))
        y = torch.relu(self._block(x, "_6", "_5", stride=2))
        x = torch.relu(self._block(y, "_7", "_6") + self.conv2d_8(x))
        return self.dense(x.mean(dim=(2, 3)))

    def _block(self, x, conv, norm, stride=1):
        x = functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return getattr(self, f"batch_normalization{norm}")(getattr(self, f"conv2d{conv}")(x))


def _layer(name, values):
    if name.startswith("batch_normalization"):
        layer = nn.BatchNorm2d(len(values[0]), eps=1e-3)
        held = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    elif name == "dense":
        layer = nn.Linear(*values[0].shape)
        values, held = [values[0].T, values[1]], (layer.weight, layer.bias)
    else:
        size, _, inputs, outputs = values[0].shape
        stride = 2 if name[6:] in ("_3", "_5", "_6", "_8") else 1
        layer = nn.Conv2d(inputs, outputs, size, stride)
        values, held = [values[0].permute(3, 2, 0, 1), values[1]], (layer.weight, layer.bias)
    with torch.no_grad():
        for mine, value in zip(held, values, strict=True):
            mine.copy_(value)
    return layer


def pruned(model, example, ratio):
    """Return a copy of a model without a fraction of each group's channels."""
    model = copy.deepcopy(model)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.dense],
    )
    pruner.step()
    return model


def cost_of(model, example):
    """Return the parameters as Keras counts them, and the products of kernels for one image."""
    parameters = sum(p.numel() for p in model.parameters())
    parameters += sum(b.numel() for n, b in model.named_buffers() if "running" in n)
    work = []

    def note(layer, _, output):
        work.append(layer.weight.numel() * output[0, 0].numel())

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return parameters, sum(work)


def main():
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "weights.npz") as weights:
        model = ResNet8(dict(weights)).eval()
    with np.load(folder / "images.npz") as images:
        calibration, x, y = (images[name] for name in ("calibration", "x", "y"))
    calibration = torch.tensor(calibration).permute(0, 3, 1, 2)
    example = calibration[:1]

    def fits(candidate):
        parameters, work = cost_of(candidate, example)
        limit = task["multiply_adds"]
        return parameters <= task["parameters"] if limit is None else work <= limit

    smaller = next(m for r in range(1, 64) if fits(m := pruned(model, example, r / 64)))
    rows = [row("group L2", model, x, y, example) | {"method": "dense, in PyTorch"}]
    rows.append(row("group L2", smaller, x, y, example))
    for layer in smaller.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a mean over the batches, which is one here
    smaller.train()
    with torch.no_grad():
        smaller(calibration)
    rows.append(row("group L2, statistics taken again", smaller.eval(), x, y, example))
    print(json.dumps(rows))


def row(method, model, x, y, example):
    """Return a row of figures."""
    found = []
    with torch.no_grad():
        for start in range(0, len(x), 500):
            batch = torch.tensor(x[start : start + 500]).float().permute(0, 3, 1, 2)
            found.append(model(batch).argmax(dim=-1).numpy())
    parameters, work = cost_of(model, example)
    accuracy = float((np.concatenate(found) == y).mean())
    return {
        "method": method,
        "parameters": parameters,
        "multiply_adds": work,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    main()
