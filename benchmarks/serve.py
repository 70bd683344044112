"""What a served model takes: throughput and latencies at several concurrencies, side by side with its peers.

    python benchmarks/serve.py --model=saved_models/gpt_shakespeare --concurrency=1,4,16 \
        --batching=/tmp/batching.config --peer_python=/tmp/peer/bin/python

asks, one row a request and as fast as the answers come,

- the exported model in this process, by its signature,
- a server: one that runs (--rest=http://host:8501, --grpc=grpc://host:8500), or else the double of TensorFlow Serving
  (docs/double.md), which it starts in a process of its own,
- with --peer_python transformers behind FastAPI on the same weights (benchmarks/transformers_server.py), in a process
  of its own; that Python needs torch, transformers, fastapi, uvicorn and sentencepiece.

Generators continue greedily, so that all of them make the same tokens. The time to the first token is the latency of
requests of one token; the time of a token is what is left of the latency over the other tokens. With --batching a small
grid of batching settings is tried at the highest concurrency, on the double, and the file of the one with the highest
throughput is written: `scripts/render_deployment.py --batching` takes it. Texts are sentences of docs/.

All take turns, so that whatever else the machine does falls on each of them. Prints one line of JSON a measurement
and a table.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import requests
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.errors import RunError
from aigc_tf.serving.clients.client import connect
from aigc_tf.serving.local.loading import load_exported
from aigc_tf.serving.modules.continuer import SETTINGS
from aigc_tf.serving.versions import latest_version

Ask = Callable[[str, int], int]
"""Sends a text and the number of new tokens wanted, and returns the number that came; 0 from a classifier."""
Make = Callable[[], contextlib.AbstractContextManager[Ask]]
"""Connects; each thread does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What one target took at one concurrency."""

    target: str
    concurrency: int
    new_tokens: int
    num_requests: int
    num_errors: int
    requests_per_second: float
    tokens_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    tokens_per_request: float


def read_texts() -> list[str]:
    """Returns sentences of the documentation, of 2 to 60 words."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    lines = re.sub(r"```.*?```", "", pages, flags=re.S).splitlines()
    prose = " ".join(line for line in lines if not line.startswith(("|", "#", "    ")))
    sentences = re.split(r"(?<=[.:;])\s+", re.sub(r"\s+", " ", prose))
    return [text for text in sentences if 2 <= len(text.split()) <= 60]


@dataclasses.dataclass
class Sample:
    """What the turns of one target at one concurrency gave."""

    seconds: float = 0.0
    latencies: list[float] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    def load(self, target: str, *, concurrency: int, new_tokens: int) -> Load:
        """Returns the figures."""
        if not self.latencies:
            raise SystemExit(f"{target} answered nothing: {self.errors[:1]}")
        percentiles = np.percentile(self.latencies, [50, 95, 99]) * 1000
        p50, p95, p99 = (round(float(value), 1) for value in percentiles)
        return Load(
            target=target,
            concurrency=concurrency,
            new_tokens=new_tokens,
            num_requests=len(self.latencies),
            num_errors=len(self.errors),
            requests_per_second=round(len(self.latencies) / self.seconds, 2),
            tokens_per_second=round(sum(self.tokens) / self.seconds, 1),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            tokens_per_request=round(statistics.mean(self.tokens), 2),
        )


def take_turn(sample: Sample, make: Make, texts: Iterator[str], *, concurrency: int, new_tokens: int, seconds: float):
    """Asks from as many threads as `concurrency` for some seconds, each the next text when it has its answer."""
    end = [0.0]
    start = threading.Barrier(concurrency, action=lambda: end.__setitem__(0, time.perf_counter() + seconds))

    def work() -> None:
        with make() as ask:
            ask(next(texts), new_tokens)  # opens the connection
            start.wait()
            while time.perf_counter() < end[0]:
                started = time.perf_counter()
                try:
                    sample.tokens.append(ask(next(texts), new_tokens))
                    sample.latencies.append(time.perf_counter() - started)
                except (RunError, requests.RequestException) as error:
                    sample.errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sample.seconds += seconds + time.perf_counter() - end[0]


def measure(targets: Mapping[str, Make], args: argparse.Namespace, *, concurrency: int, new_tokens: int) -> list[Load]:
    """Measures several targets by turns, so that whatever else the machine does falls on all of them."""
    samples = {name: Sample() for name in targets}
    texts = {name: iter(Texts()) for name in targets}
    options = {"concurrency": concurrency, "new_tokens": new_tokens}
    for turn in range(args.turns + 1):
        for name, make in targets.items():
            sample = samples[name] if turn else Sample()  # the first turn warms up
            take_turn(sample, make, texts[name], seconds=args.seconds / args.turns, **options)
    loads = []
    for name, sample in samples.items():
        loads.append(sample.load(name, **options))
        first_error = {"first_error": sample.errors[0]} if sample.errors else {}
        print(json.dumps(dataclasses.asdict(loads[-1]) | first_error), flush=True)
    return loads


class Texts:
    """Sentences for ever, for several threads."""

    def __init__(self) -> None:
        self._texts, self._numbers = read_texts(), itertools.count()

    def __iter__(self) -> "Texts":
        return self

    def __next__(self) -> str:
        return self._texts[next(self._numbers) % len(self._texts)]


def inputs_of(text: str, new_tokens: int, task: str) -> dict[str, list]:
    """Returns the inputs of the text signature for one row, greedy."""
    if task == "classify":
        return {"text": [text]}
    settings = dataclasses.asdict(GenerationConfig(max_new_tokens=new_tokens, temperature=0.0))
    return {"prompt": [text], **{name: [settings[name]] for name in SETTINGS}}


def by_client(address: str, name: str, task: str) -> Make:
    """A client of a server of TensorFlow Serving's protocols."""

    @contextlib.contextmanager
    def make() -> Iterator[Ask]:
        with connect(address, name, timeout=120) as client:

            def ask(text: str, new_tokens: int) -> int:
                outputs = client.predict(inputs_of(text, new_tokens, task))
                return int(outputs["num_tokens"][0]) if task == "generate" else 0

            yield ask

    return make


def by_signature(folder: str, task: str) -> Make:
    """The exported model, in this process."""
    model = load_exported(folder)
    signature = model.signatures["serving_default"]
    kinds = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}

    def ask(text: str, new_tokens: int) -> int:
        inputs = inputs_of(text, new_tokens, task)
        outputs = signature(**{name: tf.constant(value, kinds[name]) for name, value in inputs.items()})
        return int(outputs["num_tokens"][0]) if task == "generate" else int(0 * outputs["logits"].numpy().size)

    ask.model = model  # type: ignore[attr-defined]  it owns the variables
    return lambda: contextlib.nullcontext(ask)


def by_peer(address: str, task: str) -> Make:
    """A client of benchmarks/transformers_server.py."""

    @contextlib.contextmanager
    def make() -> Iterator[Ask]:
        with requests.Session() as session:

            def ask(text: str, new_tokens: int) -> int:
                content = {"texts": [text]} if task == "classify" else {"prompt": text, "max_new_tokens": new_tokens}
                response = session.post(f"{address}/ask", json=content, timeout=120)
                response.raise_for_status()
                return len(response.json().get("token_ids", ()))

            yield ask

    return make


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(command: list[str], *, last_line: str) -> Iterator[None]:
    """Runs a server from the line that says that it answers until the block ends."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout)
        if not any(last_line in line for line in lines):
            raise SystemExit(f"{command[1:3]} ended with {process.wait()}")
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def started_double(folder: pathlib.Path, *, batching: str = "") -> Iterator[tuple[str, str]]:
    """Runs the double of the server and yields its addresses."""
    rest, grpc = free_port(), free_port()
    command = [sys.executable, "-m", "aigc_tf.serving.double", f"--rest_api_port={rest}", f"--port={grpc}"]
    command += [f"--model_name={folder.name}", f"--model_base_path={folder}", "--rest_api_timeout_in_ms=120000"]
    command += ["--enable_batching", f"--batching_parameters_file={batching}"] if batching else []
    with started(command, last_line="Exporting HTTP/REST API"):
        yield f"http://127.0.0.1:{rest}", f"grpc://127.0.0.1:{grpc}"


def batching_text(*, size: int, timeout: int, threads: int) -> str:
    """Returns a batching file."""
    sizes = [2**power for power in range(size.bit_length())]
    return (
        f"max_batch_size {{ value: {size} }}\nbatch_timeout_micros {{ value: {timeout} }}\n"
        f"max_enqueued_batches {{ value: {8 * threads} }}\nnum_batch_threads {{ value: {threads} }}\n"
        + "".join(f"allowed_batch_sizes: {size}\n" for size in sizes)
    )


def try_batching(args: argparse.Namespace, base: pathlib.Path, task: str) -> None:
    """Tries a grid of batching settings at the highest concurrency and writes the best file."""
    alone = "no batches"
    texts = {
        f"batches of {size}, {timeout} us, {threads} threads": batching_text(
            size=size, timeout=timeout, threads=threads
        )
        for size, (timeout, threads) in itertools.product((4, 16), ((0, 2), (5000, 1), (5000, 2)))
    }
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = {}
        for number, (name, text) in enumerate({alone: "", **texts}.items()):
            file = scratch / f"{number}.config"
            file.write_text(text)
            rest, _ = stack.enter_context(started_double(base, batching=str(file) if text else ""))
            targets[name] = by_client(rest, base.name, task)
        loads = measure(targets, args, concurrency=args.concurrency[-1], new_tokens=args.new_tokens)
    best = max(loads, key=lambda load: load.requests_per_second)
    if best.target == alone:
        print("no batches did best; no file was written", flush=True)
        return
    note = (
        f"# {best.target}: the best of {len(texts)} settings at {best.concurrency} requests at a time, by "
        f"benchmarks/serve.py on the\n# double of the server: {best.requests_per_second} requests a second, p99 "
        f"{best.p99_ms} ms; without batches {loads[0].requests_per_second} and {loads[0].p99_ms} ms.\n"
    )
    pathlib.Path(args.batching).write_text(note + texts[best.target])


def print_table(loads: list[Load]) -> None:
    """Prints the measurements as Markdown, one row for each target and concurrency."""
    firsts = {(load.target, load.concurrency): load for load in loads if load.new_tokens == 1}
    print("\n| asked | at a time | requests/s | tokens/s | p50 | p95 | p99 | first token | per token |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        if load.new_tokens == 1:
            continue
        first = firsts.get((load.target, load.concurrency))
        cells = [load.requests_per_second, load.tokens_per_second or "", *[f"{value} ms" for value in _times(load)]]
        cells += [f"{value} ms" for value in _token_times(load, first)] if first else ["", ""]
        print(f"| {load.target} | {load.concurrency} | " + " | ".join(map(str, cells)) + " |")


def _times(load: Load) -> list[float]:
    return [load.p50_ms, load.p95_ms, load.p99_ms]


def _token_times(load: Load, first: Load) -> list[float]:
    return [first.p50_ms, round((load.p50_ms - first.p50_ms) / max(load.tokens_per_request - 1, 1), 2)]


def main() -> None:
    """Measures and prints."""
    args = _read_flags()
    folder = pathlib.Path(latest_version(args.model)).resolve()
    base = folder.parent
    task = json.loads((folder / "manifest.json").read_text())["task"]
    loads: list[Load] = []
    with contextlib.ExitStack() as stack:
        targets = _start_targets(args, folder, task, stack)
        for concurrency in args.concurrency:
            for new_tokens in (args.new_tokens, 1) if task == "generate" else (args.new_tokens,):
                loads += measure(targets, args, concurrency=concurrency, new_tokens=new_tokens)
    if args.batching:
        try_batching(args, base, task)
    print_table(loads)


def _start_targets(
    args: argparse.Namespace, folder: pathlib.Path, task: str, stack: contextlib.ExitStack
) -> dict[str, Make]:
    base = folder.parent
    targets = {"in this process": by_signature(str(folder), task)}
    kind, addresses = "server", (args.rest, args.grpc)
    if not any(addresses):
        kind, addresses = "double", stack.enter_context(started_double(base))
    for protocol, address in zip(("REST", "gRPC"), addresses, strict=True):
        if address:
            targets[f"{kind}, {protocol}"] = by_client(address, base.name, task)
    for threads in args.peer_threads if args.peer_python else ():
        port, formats = free_port(), base.parent / f"{base.name}-formats" / folder.name / "hugging_face"
        command = [args.peer_python, "benchmarks/transformers_server.py", f"--folder={formats}", f"--port={port}"]
        stack.enter_context(started([*command, f"--threads={threads}"], last_line="ready"))
        facts = requests.get(f"http://127.0.0.1:{port}/facts", timeout=60).json()
        print(json.dumps(facts), flush=True)
        targets[f"transformers, FastAPI, {facts['threads']} threads"] = by_peer(f"http://127.0.0.1:{port}", task)
    return targets


def _read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="exported model")
    add("--rest", default="", help="address of a running server; its model has the folder's name")
    add("--grpc", default="", help="address of a running server")
    add("--concurrency", default=[1, 4, 16], type=lambda text: [int(one) for one in text.split(",")])
    add("--seconds", default=12.0, type=float, help="of each measurement, in all its turns")
    add("--new_tokens", default=64, type=int)
    add("--peer_python", default="", help="a Python with torch, transformers, fastapi, uvicorn, sentencepiece")
    add(
        "--peer_threads",
        default=[0],
        type=lambda text: [int(one) for one in text.split(",")],
        help="of PyTorch; 0: its own",
    )
    add("--batching", default="", help="file for the best batching settings")
    add("--turns", default=4, type=int, help="in which the targets are measured one after another")
    return parser.parse_args()


if __name__ == "__main__":
    main()
