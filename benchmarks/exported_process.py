"""An exported model in the process that stands in for the server: how fast it decodes, and whether its memory grows.

    python benchmarks/exported_process.py --model=saved_models/gpt_shakespeare --workdir=runs/demo/gpt_shakespeare

With --workdir, of a generator, new tokens a second of the run's live model, as scripts/generate.py has it, and of the
export, on the same prompts in batches of 8, greedy; they take turns, and have to say the same. Then --num_requests
single requests; the memory of the process is read after a tenth of them and after all. Prints lines of JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from serve import inputs_of, read_texts

from aigc_tf.commands.runs import config_of_run, load_model
from aigc_tf.config import GenerationConfig
from aigc_tf.data.prepared.facts import read_facts
from aigc_tf.serving.local.text_generator import TextGenerator
from aigc_tf.serving.process.other_process import StandIn, bytes_array
from aigc_tf.serving.versions import latest_version


def compare_decoding(args: argparse.Namespace, folder: str) -> None:
    """Prints new tokens a second of the run's live model and of the export, in batches of 8, taking turns."""
    settings = GenerationConfig(max_new_tokens=args.new_tokens, temperature=0.0)
    config = config_of_run(args.workdir, None)
    model, _ = load_model(args.workdir, config, checkpoint="best", dtype="float32")
    tokenizer = read_facts(args.workdir).encoder("text")
    live = TextGenerator(model, tokenizer, max_length=config.data.max_length)
    prompts = [text[:80] for text in read_texts()[:8]]
    rows = [inputs_of(text, args.new_tokens, "generate") for text in prompts]
    speeds: dict[str, list[float]] = {"live": [], "exported": []}
    with StandIn(folder) as exported:
        kinds = {name: value["dtype"] for name, value in exported.signatures["serving_default"]["inputs"].items()}
        inputs = {
            name: bytes_array([row[name][0] for row in rows])
            if kind == "string"
            else np.array([row[name][0] for row in rows], kind.replace("float", "float32"))
            for name, kind in kinds.items()
        }
        for turn in range(args.turns + 1):
            began = time.perf_counter()
            answers = list(live.generate(prompts, settings=settings, batch_size=8))
            seconds = time.perf_counter() - began
            outputs, exported_seconds = exported.timed_call("serving_default", inputs)
            count = sum(len(answer.token_ids) for answer in answers)
            if [answer.text for answer in answers] != [text.decode() for text in outputs["text"]]:
                raise SystemExit("live model and export say different things")
            if turn:  # the first traces
                speeds["live"].append(count / seconds)
                speeds["exported"].append(count / exported_seconds)
    ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
    found = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    print(json.dumps({"decoding": found, "ratio": round(ratio, 3), "turns": args.turns, "tokens": count}), flush=True)


def watch_memory(args: argparse.Namespace, folder: str, task: str) -> None:
    """Prints the memory of the process that has the model after a tenth of the requests and after all."""
    texts, count = read_texts(), args.num_requests
    found = {}
    with StandIn(folder, num_threads=2) as model:
        for first in range(0, count, 100):
            rows = [inputs_of(texts[n % len(texts)], 4, task) for n in range(first, first + 100)]
            replies = [model.submit({"inputs": row}) for row in rows]
            if not all("outputs" in reply.result(timeout=120) for reply in replies):
                raise SystemExit(f"a request failed: {replies[0].result()}")
            if first + 100 in (count // 10, count):
                status = pathlib.Path(f"/proc/{model.pid}/status").read_text()
                found[first + 100] = round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)
    print(json.dumps({"resident_mib_after": found}), flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="exported model")
    parser.add_argument("--workdir", default="", help="its run, of a generator")
    parser.add_argument("--new_tokens", default=64, type=int)
    parser.add_argument("--turns", default=11, type=int)
    parser.add_argument("--num_requests", default=10_000, type=int, help="a multiple of 1000; 0 for none")
    args = parser.parse_args()
    folder = latest_version(args.model)
    task = json.loads((pathlib.Path(folder) / "manifest.json").read_text())["task"]
    if args.workdir:
        compare_decoding(args, folder)
    if args.num_requests:
        watch_memory(args, folder, task)


if __name__ == "__main__":
    main()
