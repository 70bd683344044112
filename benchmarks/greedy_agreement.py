"""Whether three programs continue the same prompts greedily by the same tokens.

    python benchmarks/greedy_agreement.py --workdir=runs/demo/gpt_shakespeare --model=saved_models/gpt_shakespeare

The three are scripts/generate.py on the run, the exported model in a process without TensorFlow's Python and with XLA
off, and transformers on the Hugging Face folder beside the export, which is left out where it is not installed (pip
install torch transformers). Prompts are pieces of the test data at even distances. Prints one JSON line: for each
program how many prompts it continues as the run does, and the first token in which one does not.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from aigc_tf.commands.runs import config_of_run, open_prepared_of
from aigc_tf.config import GenerationConfig
from aigc_tf.data.prepared.facts import read_facts
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.serving.local.continuations import settings_of
from aigc_tf.serving.process.other_process import StandIn, bytes_array
from aigc_tf.serving.versions import latest_version, read_manifest

Rows = list[list[int]]

# In a process of its own: PyTorch and TensorFlow crash in one.
TRANSFORMERS = """
import json, sys
import torch, transformers
request = json.load(sys.stdin)
model = transformers.AutoModelForCausalLM.from_pretrained(request["folder"]).eval()
rows = []
for ids in request["prompts"]:
    prompt = torch.tensor([ids])
    room = min(request["new_tokens"], request["max_length"] - len(ids))
    done = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=room, do_sample=False,
        eos_token_id=request["end_id"], pad_token_id=request["end_id"])[0, len(ids):].tolist()
    rows.append(done[: done.index(request["end_id"])] if request["end_id"] in done else done)
print(json.dumps([transformers.__version__, rows]))
"""


def choose_prompts(workdir: str, tokenizer: Tokenizer, *, count: int, num_tokens: int) -> list[str]:
    """Returns pieces of the test data, at even distances."""
    prepared = open_prepared_of(config_of_run(workdir, None))
    split = prepared.splits.get("test", prepared.splits["train"])
    documents = split.column("text").rows(np.arange(split.num_examples))
    tokens = np.concatenate(documents)
    starts = np.linspace(0, len(tokens) - num_tokens, count).astype(int)
    return [tokenizer.decode(tokens[start : start + num_tokens]) for start in starts]


def by_script(workdir: str, prompts: list[str], *, new_tokens: int) -> Rows:
    """Continues by scripts/generate.py."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("prompts.jsonl", "answers.jsonl")]
        with open(files[0], "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": prompt}) + "\n" for prompt in prompts)
        command = [sys.executable, str(ROOT / "scripts" / "generate.py"), f"--model={workdir}", f"--input={files[0]}"]
        command += [f"--output={files[1]}", "--temperature=0", f"--max_new_tokens={new_tokens}"]
        subprocess.run([*command, "--repetition_penalty=1"], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        with open(files[1], encoding="utf-8") as file:
            return [json.loads(line)["token_ids"] for line in file]


def by_export(folder: str, prompts: list[str], *, new_tokens: int) -> Rows:
    """Continues by the exported model in another process, one prompt a request."""
    settings = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0)
    values = {name: value.numpy() for name, value in settings_of(settings, 1)._asdict().items()}
    with StandIn(folder) as model:
        outputs = [model.call("serving_default", {"prompt": bytes_array([prompt]), **values}) for prompt in prompts]
    return [row["token_ids"][0, : row["num_tokens"][0]].tolist() for row in outputs]


def by_transformers(folder: str, prompts: Rows, **request: Any) -> tuple[str, Rows]:
    """Continues by transformers; returns its version too."""
    content = json.dumps({"folder": folder, "prompts": prompts, **request})
    command = [sys.executable, "-c", TRANSFORMERS]
    done = subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    version, rows = json.loads(done.stdout.splitlines()[-1])
    return version, rows


def compare(expected: Rows, found: Rows) -> dict[str, Any]:
    """Counts the rows that are equal, and says where the first other one parts."""
    unlike = [row for row, (one, other) in enumerate(zip(expected, found, strict=True)) if one != other]
    result: dict[str, Any] = {"identical": len(expected) - len(unlike), "of": len(expected)}
    if unlike:
        pairs = zip(expected[unlike[0]], found[unlike[0]], strict=False)
        at = next((i for i, (one, other) in enumerate(pairs) if one != other), "its end")
        result["first_difference"] = {"prompt": unlike[0], "token": at}
    return result


def main() -> None:
    """Continues, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=64)
    options = parser.parse_args()
    folder = latest_version(options.model)
    manifest = read_manifest(folder, question="prompt")
    tokenizer = read_facts(options.workdir).encoder("text")
    prompts = choose_prompts(options.workdir, tokenizer, count=options.prompts, num_tokens=options.prompt_tokens)
    expected = by_script(options.workdir, prompts, new_tokens=options.new_tokens)
    report: dict[str, Any] = {"tokens": sum(map(len, expected))}
    report["export"] = compare(expected, by_export(folder, prompts, new_tokens=options.new_tokens))
    if all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        model_folder, version = os.path.split(folder)
        ids = [row.tolist() for row in tokenizer.encode(prompts)]
        release, found = by_transformers(
            f"{model_folder}-formats/{version}/hugging_face",
            ids,
            new_tokens=options.new_tokens,
            max_length=manifest["max_length"],
            end_id=tokenizer.end_of_text_id,
        )
        report[f"transformers {release}"] = compare(expected, found)
    else:
        report["transformers"] = "not installed"
    print(json.dumps(report))


if __name__ == "__main__":
    main()
