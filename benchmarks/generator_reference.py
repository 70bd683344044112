"""The peer of configs/gpt_shakespeare.py: transformers and PyTorch on the same prepared data, windows and recipe.

    python scripts/prepare.py --config=configs/gpt_shakespeare.py
    pip install torch transformers        # the peer is no dependency of the project
    python benchmarks/generator_reference.py --steps=720

Prints one JSON line: bits per byte of the test works (float32, windows that do not overlap, as scripts/evaluate.py),
training tokens per second without evaluation, versions. Sizes, seed, order of the windows, AdamW, warm-up, cosine decay
and clipping are those of the config; initial weights and dropout (none) are transformers' GPT-2 of these sizes.
Computation is in bfloat16 by torch.autocast. Training ends after --seconds, if that comes before the last step.
"""

import argparse
import json
import math
import pathlib
import sys
import time

sys.modules["triton"] = None  # its libraries crash beside TensorFlow's, and a CPU needs none of them

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from aigc_tf.config.files import load_config
from aigc_tf.data.batching.windows import WindowOrder, WindowSource, num_targets, window_batches
from aigc_tf.data.prepared.prepared import open_prepared
from aigc_tf.training.optimizers.optimizers import learning_rate

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "gpt_shakespeare.py"


def main() -> None:
    """Trains, judges, prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prepared", default="prepared/gpt_shakespeare")
    arguments.add_argument("--steps", type=int, default=0, help="0: as the config has it")
    arguments.add_argument("--seconds", type=float, default=math.inf)
    arguments.add_argument("--learning_rate", type=float, default=0.0, help="0: as the config has it")
    options = arguments.parse_args()
    config = load_config(str(CONFIG))
    config.training.num_steps = options.steps or config.training.num_steps
    config.training.optimizer.learning_rate = options.learning_rate or config.training.optimizer.learning_rate
    torch.manual_seed(config.training.seed)
    data = open_prepared(options.prepared)
    tokenizer = data.facts.encoder("text")
    sizes = config.model
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=tokenizer.vocabulary_size,
            n_positions=config.data.max_length,
            n_embd=sizes.hidden_dim,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            n_inner=sizes.intermediate_dim,
            resid_pdrop=sizes.dropout,
            embd_pdrop=sizes.dropout,
            attn_pdrop=sizes.dropout,
            bos_token_id=tokenizer.end_of_text_id,
            eos_token_id=tokenizer.end_of_text_id,
        )
    )
    steps, seconds = train(model, data.splits["train"], config, tokenizer.end_of_text_id, options.seconds)
    tokens = steps * config.training.global_batch_size * config.data.max_length
    result = {
        "steps": steps,
        "tokens": tokens,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "test_bits_per_byte": bits_per_byte(model, data, config, tokenizer.end_of_text_id),
        "learning_rate": config.training.optimizer.learning_rate,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


def train(model: torch.nn.Module, split: object, config: object, end_id: int, limit: float) -> tuple[int, float]:
    """Trains in place; returns steps and wall seconds."""
    training, length = config.training, config.data.max_length
    documents = split.column("text")
    order = WindowOrder(
        num_targets(documents),
        length=length,
        seed=training.seed,
        global_batch_size=training.global_batch_size,
    )
    source = WindowSource(
        documents, order.batch, end_id=end_id, length=length, global_batch_size=training.global_batch_size
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": training.optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=training.optimizer.learning_rate,
        betas=(training.optimizer.beta_1, training.optimizer.beta_2),
        eps=training.optimizer.epsilon,
    )
    model.train()
    started = time.perf_counter()
    for step in range(training.num_steps):
        if time.perf_counter() - started >= limit:
            return step, time.perf_counter() - started
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rate(step, training))
        batch = source.rows(step, shard=0, num_shards=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(torch.from_numpy(batch["token_ids"]).long()).logits
        labels = torch.from_numpy(batch["labels"]).long().flatten()
        weights = torch.from_numpy(batch["weights"]).flatten()
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99:
            speed = np.prod(batch["token_ids"].shape) * (step + 1) / (time.perf_counter() - started)
            print(f"step {step + 1}: loss {loss.item():.4f}, {speed:,.0f} tokens/s", file=sys.stderr)
    return training.num_steps, time.perf_counter() - started


def bits_per_byte(model: torch.nn.Module, data: object, config: object, end_id: int) -> float:
    """Over the test works, in float32."""
    documents, length, size = data.splits["test"].column("text"), config.data.max_length, config.evaluation.batch_size
    batches = window_batches(num_targets(documents), length=length, batch_size=size)
    source = WindowSource(documents, batches.__getitem__, end_id=end_id, length=length, global_batch_size=size)
    model.eval()
    total = 0.0
    for step in range(len(batches)):
        batch = source.rows(step, shard=0, num_shards=1)
        with torch.no_grad():
            logits = model(torch.from_numpy(batch["token_ids"]).long()).logits
        labels = torch.from_numpy(batch["labels"]).long().flatten()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none").numpy()
        total += float((losses.astype(np.float64) * batch["weights"].ravel()).sum())
    return total / math.log(2) / data.utf8_bytes("test")


if __name__ == "__main__":
    main()
