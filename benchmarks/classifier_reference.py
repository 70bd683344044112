"""The peer of configs/bert_sentiment.py: transformers and PyTorch on the same prepared data, batches and recipe.

    python scripts/prepare.py --config=configs/bert_sentiment.py
    pip install torch transformers        # the peer is no dependency of the project
    python benchmarks/classifier_reference.py --steps=972 --seed=0

Prints one JSON line: test accuracy of the last weights, training examples per second without evaluation, versions.
The batches are those of the project's own order (same seed, same padded lengths); computation is in bfloat16 by
torch.autocast where the processor multiplies it, AdamW, linear warm-up and decay, gradient clipped to norm 1.
"""

import argparse
import json
import pathlib
import sys
import time

sys.modules["triton"] = None  # its libraries crash beside TensorFlow's, and a CPU needs none of them

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from aigc_tf.data.batching.order import TrainingOrder, evaluation_batches
from aigc_tf.data.prepared.prepared import open_prepared
from aigc_tf.data.sources.samples import fetch_sample

CLS, SEP, MAX_LENGTH = 101, 102, 128


def main() -> None:
    """Trains, judges, prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prepared", default="prepared/bert_sentiment")
    arguments.add_argument("--steps", type=int, default=972)
    arguments.add_argument("--warmup", type=int, default=58)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True)
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    data = open_prepared(options.prepared)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(fetch_sample("minilm"), num_labels=2)
    seconds = train(model, data.splits["train"], options)
    result = {
        "examples_per_second": round(options.steps * 32 / seconds, 1),
        "train_seconds": round(seconds, 1),
        "test_accuracy": accuracy(model, data.splits["test"]) if options.evaluate else None,
        "seed": options.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


def train(model: torch.nn.Module, split: object, options: argparse.Namespace) -> float:
    """Trains in place; returns the wall seconds."""
    lengths = np.minimum(split.sizes + 2, MAX_LENGTH)
    order = TrainingOrder(lengths, seed=options.seed, global_batch_size=32, num_buckets=32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-5)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, options.warmup, options.steps)
    model.train()
    started = time.perf_counter()
    for step in range(options.steps):
        batch = order.batch(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(
                **pack(split, batch.example_ids, batch.shape["positions"]), labels=labels(split, batch.example_ids)
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99:
            rate = 32 * (step + 1) / (time.perf_counter() - started)
            print(f"step {step + 1}: loss {loss.item():.4f}, {rate:.1f} examples/s", file=sys.stderr)
    return time.perf_counter() - started


def accuracy(model: torch.nn.Module, split: object) -> float:
    """Share of right answers over a split."""
    lengths = np.minimum(split.sizes + 2, MAX_LENGTH)
    model.eval()
    right = 0
    for batch in evaluation_batches(lengths, batch_size=64, bucket_lengths=np.array([MAX_LENGTH])):
        ids = batch.example_ids[batch.weights > 0]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**pack(split, ids, int(lengths[ids].max()))).logits
        right += int((logits.argmax(-1) == labels(split, ids)).sum())
    return right / split.num_examples


def labels(split: object, ids: np.ndarray) -> torch.Tensor:
    """`(B,)` int64."""
    return torch.tensor(split.column("label").rows(ids).astype(np.int64))


def pack(split: object, ids: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """`(B, T)` token ids and mask, padded to `length`."""
    token_ids = np.zeros((len(ids), length), np.int64)
    for row, text in zip(token_ids, split.column("text").rows(ids), strict=True):
        text = text[: MAX_LENGTH - 2]
        row[: len(text) + 2] = [CLS, *text, SEP]
    token_ids = torch.tensor(token_ids)
    return {"input_ids": token_ids, "attention_mask": (token_ids != 0).long()}


if __name__ == "__main__":
    main()
