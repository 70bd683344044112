"""Useful tokens a second of packed rows, beside batches padded to their longest example and length-grouped ones.

    python scripts/prepare.py --config=configs/gpt_chitchat_turns.py
    python scripts/prepare.py --config=configs/gpt_chitchat.py
    python benchmarks/packing.py

Two data sets of chat: pairs of turns, and whole dialogues (cut into pieces of a row's length where they are longer).
Each way of making batches trains the same network, of the configs' size, by the same function: forward, backward,
AdamW. A token is useful if it is no padding. The share of useful positions is that of a whole epoch; the speed is of
--rounds rounds, in each of which every way has its turn of --seconds, so that what else the machine does hits all
alike. Making the batches, which in training goes on beside it, is not in it. Padded and grouped batches have 16
examples, and besides as many as a packed batch has on average.
"""

import argparse
import datetime
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from aigc_tf.config import ModelConfig
from aigc_tf.data.batching.order import POSITIONS, StepBatch, TrainingOrder
from aigc_tf.data.batching.packed_batches import PackedDocumentSource
from aigc_tf.data.batching.packed_order import PackedOrder, cut_pieces
from aigc_tf.data.prepared.prepared import PreparedDataset, open_prepared
from aigc_tf.models.generators.generator import build_generator, model_inputs
from aigc_tf.training.step.losses import token_losses

CONFIG = ModelConfig(dropout=0.0, num_layers=4, hidden_dim=256, num_heads=4, intermediate_dim=1024)
WARM_UP_STEPS = 6

Orders = dict[str, tuple[Callable[[int], StepBatch], int]]
"""Way of making batches -> step -> batch, and the steps of an epoch."""


def ways_of(data: PreparedDataset, *, length: int, num_rows: int) -> Orders:
    """Returns the ways of making batches of the training split of a data set."""
    lengths = data.splits["train"].sizes + 1  # the end of text
    example_ids, starts, sizes = cut_pieces(lengths, length=length)
    packed = PackedOrder(lengths, length=length, seed=0, global_batch_size=num_rows)
    per_step = round(len(sizes) * num_rows / packed.num_examples)  # pieces of a packed batch
    ways: Orders = {f"packed, {num_rows} rows of {length}": (packed.batch, packed.num_examples // num_rows)}
    for name, num_buckets in (("random, padded to the longest", 1), ("length-grouped", 32)):
        for size in sorted({16, per_step}):
            order = TrainingOrder(sizes, seed=0, global_batch_size=size, num_buckets=num_buckets)

            def batch_at(step: int, order: TrainingOrder = order, is_grouped: bool = num_buckets > 1) -> StepBatch:
                batch = order.batch(step)
                pieces = batch.example_ids
                longest = batch.shape[POSITIONS] if is_grouped else int(sizes[pieces].max())
                return StepBatch(example_ids[pieces, None], batch.weights, {POSITIONS: longest}, starts[pieces, None])

            ways[f"{name}, {size} examples"] = batch_at, len(sizes) // size
    return ways


def read_batch(data: PreparedDataset, batch: StepBatch, *, end_id: int) -> dict[str, tf.Tensor]:
    """Returns the rows of a batch; where a row holds one example, without what keeps several apart."""
    source = PackedDocumentSource(
        data.splits["train"],
        lambda step: batch,
        end_id=end_id,
        texts=data.schema.text_names,
        length=batch.shape[POSITIONS],
        num_segments=batch.example_ids.shape[1],
        global_batch_size=len(batch.example_ids),
    )
    rows = source.rows(0, shard=0, num_shards=1)
    names = ["token_ids", "labels", "weights"]
    if batch.example_ids.shape[1] > 1:
        names += ["positions", "document_ids"]
    return {name: tf.constant(rows[name]) for name in names}


def useful_share(batch_at: Callable[[int], StepBatch], steps: int, lengths: np.ndarray, row_length: int) -> float:
    """Returns the share of an epoch's positions that are no padding."""
    tokens = positions = 0
    for step in range(steps):
        batch = batch_at(step)
        tokens += tokens_of(batch, lengths, row_length)
        positions += len(batch.example_ids) * batch.shape[POSITIONS]
    return tokens / positions


def tokens_of(batch: StepBatch, lengths: np.ndarray, row_length: int) -> int:
    """Returns the tokens of a batch that are no padding."""
    ids, starts = batch.example_ids, batch.starts
    return int(np.where(ids >= 0, np.minimum(lengths[ids] - starts, row_length), 0).sum())


def build_step(data: PreparedDataset, *, length: int, dtype: str) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Returns a training step of a network with random weights."""
    vocabulary_size = data.facts.encoder("text").vocabulary_size
    model = build_generator(CONFIG, vocabulary_size=vocabulary_size, max_length=length, dtype=dtype)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = token_losses(batch["labels"], model(model_inputs(model, batch), training=True))
            loss = tf.reduce_sum(losses * batch["weights"]) / tf.reduce_sum(batch["weights"])
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply([tf.convert_to_tensor(gradient) for gradient in gradients], model.trainable_variables)
        return loss

    return step


def measure(data: PreparedDataset, ways: Orders, args: argparse.Namespace) -> dict[str, float]:
    """Returns the useful tokens a second of each way: those of all its turns over the seconds of all."""
    end_id = data.facts.encoder("text").end_of_text_id
    step = build_step(data, length=args.length, dtype=args.dtype)
    lengths = data.splits["train"].sizes + 1
    places = dict.fromkeys(ways, 0)
    tokens, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)

    def take_turn(name: str, limit: float, count: int) -> None:
        batch_at, _ = ways[name]
        spent = 0.0
        while spent < limit or count > 0:
            batch = batch_at(places[name])
            rows = read_batch(data, batch, end_id=end_id)
            started = time.perf_counter()
            step(rows).numpy()
            spent += time.perf_counter() - started
            places[name], count = places[name] + 1, count - 1
            tokens[name] += tokens_of(batch, lengths, args.length)
        seconds[name] += spent

    for name in ways:
        take_turn(name, 0.0, WARM_UP_STEPS)  # traces, and lets the allocator see long and short batches
    tokens, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for _ in range(args.rounds):
        for name in ways:
            take_turn(name, args.seconds, 0)
    return {name: tokens[name] / seconds[name] for name in ways}


def main() -> None:
    """Prints a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="prepared/gpt_chitchat_turns")
    parser.add_argument("--dialogues", default="prepared/gpt_chitchat")
    parser.add_argument("--length", type=int, default=512, help="positions of a packed row")
    parser.add_argument("--rows", type=int, default=4, help="packed rows of a batch")
    parser.add_argument("--dtype", default="mixed_bfloat16", help="or float32")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each way in each round")
    args = parser.parse_args()
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    print(
        f"{os.cpu_count()} cores of {processor}; TensorFlow {tf.__version__}, Keras {keras.__version__}; "
        f"{datetime.date.today()}; {args.dtype}, load {os.getloadavg()[0]:.1f}"
    )
    for title, folder in (("pairs of turns", args.pairs), ("whole dialogues", args.dialogues)):
        data = open_prepared(folder)
        lengths = data.splits["train"].sizes + 1
        ways = ways_of(data, length=args.length, num_rows=args.rows)
        speeds = measure(data, ways, args)
        print(f"\n{title}: {len(lengths):,} of {lengths.mean():.1f} tokens on average, the longest {lengths.max()}")
        print(f"{'':48}{'useful share':>14}{'tokens/s':>10}{'packed / this':>15}")
        fastest = speeds[next(iter(ways))]
        for name, speed in speeds.items():
            share = useful_share(*ways[name], lengths, args.length)
            print(f"{name:48}{share:14.1%}{speed:10,.0f}{fastest / speed:15.2f}")


if __name__ == "__main__":
    main()
