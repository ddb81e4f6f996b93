"""Sparse reinforcement learning: DQN on CartPole, dense and sparse in six ways.

    pip install '.[rl]'
    python examples/sparse_dqn.py --steps 20000 --seeds 2

The setting is that of Graesser et al. ("The state of sparse training in deep reinforcement
learning", ICML 2022): a network of 4-512-512-2, Erdős-Rényi densities, what is kept initialized
for its own number of connections. The score is the mean return of the episodes that end in the
last tenth of the steps; its interval is Student's of 95 % over the seeds. Runs whose rows the file
of results has are not repeated. The policies are written as LiteRT files, with their size.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import gymnasium
import keras
import numpy as np
import tensorflow as tf

import keras_ntt

WIDTH, BATCH, MEMORY, DISCOUNT = 512, 128, 100_000, 0.99
METHODS = ("dense", "small dense", "static", "SET", "RigL", "pruning")
# Student's quantiles for intervals of 95 %, by the number of seeds.
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def network(width: int) -> keras.Model:
    """Return a network from states to the values of the two actions."""
    dense = keras.layers.Dense
    stack = [dense(width, "relu"), dense(width, "relu"), dense(2)]
    return keras.Sequential([keras.Input((4,)), *stack])


def small_width(sparsity: float) -> int:
    """Return the width at which a dense network has as many weights as the sparse one keeps."""
    kept = (1 - sparsity) * (WIDTH**2 + 6 * WIDTH)
    return max(round((math.sqrt(36 + 4 * kept) - 6) / 2), 1)


def initialize(model: keras.Model, seed: int) -> None:
    """Draw what is kept again, for the connections that each unit has."""
    rng, masks = np.random.default_rng(seed), keras_ntt.get_masks(model)
    for variable in model.trainable_variables:
        mask = masks.get(variable.path)
        if mask is not None:
            fan = mask.sum(axis=0, keepdims=True) + mask.sum(axis=1, keepdims=True)
            limit = np.sqrt(6 / np.maximum(fan, 1))  # of variance 2 / fan
            variable.assign(np.where(mask, rng.uniform(-limit, limit), 0).astype("float32"))


def prepare(method: str, sparsity: float, updates: int, seed: int) -> tuple[keras.Model, list]:
    """Return the network of a method, and its callbacks."""
    if method in ("dense", "small dense"):
        return network(WIDTH if method == "dense" else small_width(sparsity)), []
    model = network(WIDTH)
    every, end = max(updates // 100, 1), max(round(0.75 * updates), 2)
    if method == "pruning":
        shapes = [tuple(layer.kernel.shape) for layer in model.layers]
        densities = keras_ntt.erdos_renyi(shapes, 1 - sparsity)
        for layer, density in zip(model.layers, densities, strict=True):
            if density < 1:
                times = {"begin_step": updates // 5, "end_step": end, "frequency": every}
                schedule = keras_ntt.PolynomialDecay(0.0, 1 - float(density), **times)
                keras_ntt.prune_low_magnitude(layer, schedule)
        return model, []
    model = keras_ntt.prune_at_init(
        model, sparsity=sparsity, saliency="random", allocation="erk", seed=seed, verbose=0
    )
    initialize(model, seed)
    if method == "static":
        return model, []
    kind = keras_ntt.SET if method == "SET" else keras_ntt.RigL
    exchange = kind(drop_fraction=0.5, anneal="cosine", end_step=end, frequency=every, seed=seed)
    return model, [exchange]


def learn(method: str, sparsity: float, seed: int, steps: int, every: int) -> tuple[dict, object]:
    """Train a policy, and return its returns and itself."""
    keras.utils.set_random_seed(seed)
    policy, callbacks = prepare(method, sparsity, steps // every, seed)
    target = network(policy.layers[0].units)
    target.set_weights(policy.get_weights())  # zeros included
    policy.compile(keras.optimizers.Adam(1e-3, weight_decay=1e-6))
    policy.optimizer.build(policy.trainable_variables)
    hooks = keras.callbacks.CallbackList(callbacks, model=policy)
    hooks.on_train_begin()
    hooks.on_epoch_begin(0)
    huber = keras.losses.Huber()

    @tf.function
    def update(s, a, r, s2, ended):
        values = r + DISCOUNT * (1 - ended) * tf.reduce_max(target(s2), axis=1)
        with tf.GradientTape() as tape:
            found = tf.gather(policy(s, training=True), a, batch_dims=1)
            loss = huber(values, found)
        weights = policy.trainable_variables
        policy.optimizer.apply(tape.gradient(loss, weights), weights)

    act = tf.function(lambda s: tf.argmax(policy(s), axis=1))
    rng = np.random.default_rng(seed)
    size = min(MEMORY, steps)
    memory = (
        *(np.zeros((size, 4), "float32"), np.zeros(size, "int32"), np.zeros(size, "float32")),
        *(np.zeros((size, 4), "float32"), np.zeros(size, "float32")),
    )
    world = gymnasium.make("CartPole-v1")
    state, total, returns = world.reset(seed=seed)[0], 0.0, []
    for step in range(steps):
        chance = max(0.01, 1 - step / (0.1 * steps))
        action = rng.integers(2) if rng.random() < chance else int(act(state[None])[0])
        after, reward, ended, stopped, _ = world.step(int(action))
        for place, value in zip(memory, (state, action, reward, after, ended), strict=True):
            place[step % size] = value
        state, total = after, total + reward
        if ended or stopped:
            returns.append((step, total))
            state, total = world.reset()[0], 0.0
        if step >= BATCH and step % every == 0:
            some = rng.integers(0, min(step + 1, size), BATCH)
            hooks.on_train_batch_begin(step)
            update(*(tf.constant(place[some]) for place in memory))
            hooks.on_train_batch_end(step)
        if step % max(steps // 200, 1) == 0:
            target.set_weights(policy.get_weights())
    hooks.on_train_end()
    last = [r for step, r in returns if step >= 0.9 * steps] or [total]
    row = {"method": method, "sparsity": sparsity, "seed": seed, "steps": steps}
    return {**row, "score": statistics.mean(last), "returns": returns}, policy


def interval(scores: list[float]) -> str:
    """Return a mean and the interval of it.

    >>> interval([1.0, 3.0])
    '2 ± 13'
    """
    if len(scores) == 1:
        return f"{scores[0]:.0f}"
    half = STUDENT.get(len(scores), 2.0) * statistics.stdev(scores) / math.sqrt(len(scores))
    return f"{statistics.mean(scores):.0f} ± {half:.0f}"


def draw(rows: list[dict], path: Path) -> None:
    """Draw the returns over the steps, means over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5))
    for name in dict.fromkeys((row["method"], row["sparsity"]) for row in rows):
        same = [row for row in rows if (row["method"], row["sparsity"]) == name]
        grid, curves = np.linspace(0, same[0]["steps"], 60), []
        for row in same:
            when, value = np.array(row["returns"] or [(0, 0.0)]).T
            smooth = np.convolve(value, np.ones(10) / 10, mode="same")
            curves.append(np.interp(grid, when, smooth))
        label = name[0] if name[0] == "dense" else f"{name[0]}, {name[1]:.0%}"
        axis.plot(grid, np.mean(curves, axis=0), label=label)
    axis.set_xlabel("steps of the world")
    axis.set_ylabel("return")
    axis.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, print the table, and write rows, picture and policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the world")
    parser.add_argument("--every", type=int, default=1, help="steps between two updates")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--output", type=Path, default=Path("sparse_dqn"), help="a folder")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    cells = [
        (method, sparsity)
        for method in options.methods
        for sparsity in (options.sparsities if method != "dense" else [0.0])
    ]
    for seed in range(options.seeds):
        for method, sparsity in cells:
            key = {"method": method, "sparsity": sparsity, "seed": seed, "steps": options.steps}
            if any(key.items() <= row.items() for row in rows):
                continue
            begun = time.perf_counter()
            row, policy = learn(method, sparsity, seed, options.steps, options.every)
            if seed == 0:
                path = options.output / f"{method.replace(' ', '_')}_{sparsity:g}.tflite"
                row["bytes"] = keras_ntt.export_tflite(policy, path, target="size").size
            rows.append({**row, "seconds": round(time.perf_counter() - begun)})
            print({k: v for k, v in rows[-1].items() if k != "returns"}, flush=True)
            file.write_text(json.dumps(rows) + "\n")
            keras.backend.clear_session()
    print("method        sparsity  return of the last tenth  bytes")
    for method, sparsity in cells:
        same = [r for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)]
        size = next((r["bytes"] for r in same if "bytes" in r), "")
        print(f"{method:12}  {sparsity:8.0%}  {interval([r['score'] for r in same]):>24}  {size}")
    draw(rows, options.output / "returns.png")


if __name__ == "__main__":
    main()
