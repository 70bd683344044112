"""How much memory and time preparing takes for a text file of N GB.

    python benchmarks/prepare_memory.py --gigabytes=1

Writes a TSV file of that size into a temporary folder, prepares it in a child process with a WordPiece vocabulary of
some 4,000 entries, and prints the child's peak resident memory above what it was after the imports, and MB/s. The
folder needs about 1.6 times the size.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "ai", "ou")]
_VOCABULARY_SIZE = 4000


def write_text(path: Path, num_bytes: int) -> None:
    """Writes lines `label <tab> text` of 2 to 60 words: a million random ones, then again with other numbers."""
    rng = random.Random(0)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(50_000)]
    labels = ("negative", "neutral", "positive")
    lines = [f"{rng.choice(labels)}\t{' '.join(rng.choices(words, k=rng.randint(2, 60)))}" for _ in range(100_000)]
    with open(path, "w", encoding="utf-8") as file:
        written = file.write("label\ttext\n")
        number = 0
        while written < num_bytes:
            written += file.write("".join(f"{line} {number}\n" for line in lines))
            number += 1


def write_vocabulary(path: Path) -> None:
    """Writes special tokens, letters, digits and syllables, as words and as continuations."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    )
    tokens.update(dict.fromkeys([*_SYLLABLES, *(f"##{syllable}" for syllable in _SYLLABLES)]))
    while len(tokens) < _VOCABULARY_SIZE:
        tokens["".join(rng.choices(_SYLLABLES, k=2))] = None
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")


def _memory(field: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark runs on Linux.")


def prepare_in_this_process(folder: Path) -> dict[str, float]:
    """Prepares the text in a folder and returns what it took."""
    import tensorflow as tf

    from aigc_tf.commands.prepare import prepare
    from aigc_tf.config import DataConfig, ExperimentConfig, TokenizerConfig

    tf.constant(0).numpy()  # makes the runtime, which is not ours to count
    config = ExperimentConfig(
        name="benchmark",
        task="classify",
        data=DataConfig(sources=(str(folder / "text.tsv"),), prepared_dir=str(folder)),
        tokenizer=TokenizerConfig(source=str(folder / "vocab.txt")),
    )
    before, started = _memory("VmRSS"), time.perf_counter()
    prepared = prepare(config)
    seconds = time.perf_counter() - started
    examples = sum(split["examples"] for split in prepared.info["splits"].values())
    return {"before": before, "peak": _memory("VmHWM") - before, "seconds": seconds, "examples": examples}


def main() -> None:
    """Makes the text, prepares it in a child process and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the text")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        result = prepare_in_this_process(Path(arguments.child))
        (Path(arguments.child) / "result.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_text(folder / "text.tsv", int(arguments.gigabytes * 1e9))
        write_vocabulary(folder / "vocab.txt")
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, __file__, f"--child={folder}"], env=environment, check=True)
        result = json.loads((folder / "result.json").read_text())
        megabytes = (folder / "text.tsv").stat().st_size / 1e6
    print(f"\n{megabytes:,.0f} MB of text, {result['examples']:,} examples, {result['seconds']:.0f} s:")
    print(f"  {megabytes / result['seconds']:.1f} MB/s with {os.cpu_count()} processors")
    print(f"  peak memory {result['peak'] / 1e6:.0f} MB above the {result['before'] / 1e6:.0f} MB after the imports")


if __name__ == "__main__":
    main()
