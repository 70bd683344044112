"""Texts of unlike length in one request: an exported classifier's graph beside one that pads all rows to the longest.

    python benchmarks/mixed_lengths.py --workdir=runs/bert_sentiment --prepared=prepared/bert_sentiment

Batches are test texts of the prepared data: drawn at random, all of one length, and short ones beside one of
`data.max_length`. Each number is the best of several runs that take turns, in milliseconds, and the processor time.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

from aigc_tf.commands.runs import config_of_run, load_model
from aigc_tf.data.prepared.prepared import open_prepared
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.modules import classifier_signatures
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec


def main() -> None:
    """Prints a line for each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/bert_sentiment")
    parser.add_argument("--prepared", default="prepared/bert_sentiment")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    config = config_of_run(args.workdir, None)
    model, _ = load_model(args.workdir, config, checkpoint="best", dtype="float32")
    data = open_prepared(args.prepared)
    tokenizer = data.facts.encoder("text")
    spec = ServingSpec(
        label_names=tuple(str(number) for number in range(model.output.shape[-1])),
        problem_type="single_label",
        is_pair=False,
        max_length=config.data.max_length,
        truncation="head",
    )
    tokenize = ClassifierModule(model, tokenizer, spec).signatures()["tokenize"].function
    shapes = {name: tf.TensorSpec([None, None], tf.int32) for name in model.input}
    padded = tf.function(lambda batch: model(batch, training=False), input_signature=[shapes])
    network = classifier_signatures.traced_once(lambda batch: model(batch, training=False), [shapes])
    grouped = tf.function(
        lambda batch: classifier_signatures._by_length(network, batch, num_outputs=model.output.shape[-1]),
        input_signature=[shapes],
    )

    split = data.splits["test"]
    texts = split.column("text").rows(np.arange(split.num_examples))
    texts.sort(key=len)
    middle, shortest, longest = len(texts) // 2, texts[: args.rows - 1], np.resize(texts[-1], spec.max_length)
    drawn = np.random.default_rng(0).choice(len(texts), args.rows, replace=False)
    batches = {
        "drawn at random": [texts[number] for number in drawn],
        "of one length": texts[middle : middle + args.rows],
        "one of the longest": [*shortest, longest],
        "one text": [texts[middle]],
    }
    for name, rows in batches.items():
        batch = model_inputs(model, tokenize({"text": tf.constant([tokenizer.decode(row) for row in rows])}))
        lengths = tf.reduce_sum(batch["padding_mask"], axis=1)
        batch = {key: value[:, : int(tf.reduce_max(lengths))] for key, value in batch.items()}
        difference = float(np.abs(padded(batch) - grouped(batch)).max())
        best = {"padded": (np.inf, np.inf), "grouped": (np.inf, np.inf)}
        for _ in range(args.repeats):
            for kind, function in (("padded", padded), ("grouped", grouped)):
                wall, processor = time.perf_counter(), time.process_time()
                function(batch)
                now = time.perf_counter() - wall, time.process_time() - processor
                best[kind] = tuple(map(min, best[kind], now))
        shape = f"{len(rows)} x {batch['token_ids'].shape[1]}, mean {np.mean(lengths):.0f}"
        times = ", ".join(f"{kind} {1000 * a:.0f} ms ({1000 * b:.0f} ms)" for kind, (a, b) in best.items())
        print(f"{name:20}{shape:20}{times}; logits differ by {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
