"""What an exported model takes in memory where no Python of TensorFlow's is: beside the rule of deployment folders.

    python benchmarks/served_memory.py saved_models/bert_sentiment/1 saved_models/gpt_shakespeare/1

The stand-in for the server loads the model and answers batches of 1, 8 and 32 of the longest rows; its resident memory
is read after each, and the largest it ever was at the end.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import numpy as np

from aigc_tf.serving.deployment.deployment import Version, required_memory
from aigc_tf.serving.process.other_process import StandIn, bytes_array

MIB = 2**20
ROWS = (1, 8, 32)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="versions of exported models")
    folders = [Path(folder) for folder in parser.parse_args().folders]
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}\n")
    print("| | folder | loaded | " + " | ".join(f"{rows} rows" for rows in ROWS) + " | largest | by the rule |")
    print("|---|" + "---|" * (len(ROWS) + 4))
    for folder in folders:
        print(_row(folder), flush=True)


def _row(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with StandIn(folder) as model:
        measured = [_memory(model.pid, "VmRSS")]
        for rows in ROWS:
            model.call("serving_default", _inputs(model.signatures["serving_default"]["inputs"], manifest, rows))
            measured.append(_memory(model.pid, "VmRSS"))
        largest = _memory(model.pid, "VmHWM")
    version = Version(label="stable", number=1, folder="1", num_bytes=num_bytes, manifest=manifest)
    cells = [num_bytes // MIB, *measured, largest, required_memory([version], rows=ROWS[-1]) // MIB]
    return f"| {folder} | " + " | ".join(f"{cell} MiB" for cell in cells) + " |"


def _inputs(wanted: dict, manifest: dict, rows: int) -> dict[str, np.ndarray]:
    settings = {**manifest.get("generation", {}), "max_new_tokens": manifest["max_length"]}
    inputs = {}
    for name, fact in wanted.items():
        if fact["dtype"] == "string":
            inputs[name] = bytes_array(["word " * (200 if manifest["task"] == "classify" else 20)] * rows)
        else:
            inputs[name] = np.full([rows], settings[name], fact["dtype"])
    return inputs


def _memory(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) // 1024


if __name__ == "__main__":
    main()
