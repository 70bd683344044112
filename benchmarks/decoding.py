"""New tokens a second of the decoding loop, beside KerasNLP's own generation with a GPT-2 of the same size.

    python benchmarks/decoding.py --batch_size=8 --new_tokens=64

Both have random weights of the same shapes, the same prompts and no end of text, so that each row gets all its tokens.
KerasNLP's generation is compiled by XLA, as it is by default, and is run without XLA besides. Each number is the best
of several runs, without the first, which traces and compiles. `--limit` is what is asked for where fewer tokens come in
the end: the first lines show what it costs to have room for all of them from the start, in runs that take turns. The
last lines show what choosing a token costs alone, with a model that looks its logits up in a table.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_nlp
import numpy as np
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.generation.decoding import Growth, advance, collect, first_length, generate, start
from aigc_tf.generation.sampling import Settings, make_settings
from aigc_tf.models.generators.generator import build_generator, cache_positions, decoder_step, empty_cache

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.1": {"min_p": 0.1},
    "greedy, penalty 1.2": {"temperature": 0.0, "repetition_penalty": 1.2},
}


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
    """Returns the time of the fastest call after a first one."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def take_turns(
    functions: dict[str, Callable[[Settings], Any]], settings: Settings, repeats: int
) -> dict[str, tuple[float, float]]:
    """Returns the least time and processor time of each function, of calls that take turns after a first one."""
    best = {name: (np.inf, np.inf) for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            wall, processors = time.perf_counter(), time.process_time()
            function(settings)
            now = time.perf_counter() - wall, time.process_time() - processors
            if turn:
                best[name] = (min(best[name][0], now[0]), min(best[name][1], now[1]))
    return best


def ours(args: argparse.Namespace, prompts: np.ndarray, *, grows: bool = True) -> Callable[[Settings], tf.Tensor]:
    """Returns generation by this package: settings -> token ids."""
    config = ModelConfig(
        num_layers=args.layers, hidden_dim=args.width, num_heads=args.heads, intermediate_dim=4 * args.width
    )
    capacity = prompts.shape[1] + args.limit
    model = build_generator(config, vocabulary_size=args.vocabulary_size, max_length=capacity)
    lengths = tf.fill([len(prompts)], prompts.shape[1])
    growth = Growth(*cache_positions(model)) if grows else None

    @tf.function
    def run(settings: Settings) -> tf.Tensor:
        cache = empty_cache(model, len(prompts), first_length(prompts.shape[1], capacity) if grows else capacity)
        step = lambda *arguments: decoder_step(model, *arguments)  # noqa: E731
        state = start(step, tf.constant(prompts), lengths, cache, settings, capacity=capacity, end_id=-1)
        state = advance(step, state, settings, args.new_tokens - 1, end_id=-1, growth=growth)
        return collect(state).token_ids

    return run


def theirs(args: argparse.Namespace, prompts: np.ndarray, *, jit: bool) -> Callable[[], Any]:
    """Returns greedy generation by KerasNLP."""
    length = prompts.shape[1] + args.new_tokens
    backbone = keras_nlp.models.GPT2Backbone(
        vocabulary_size=args.vocabulary_size,
        num_layers=args.layers,
        num_heads=args.heads,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        max_sequence_length=length,
    )
    model = keras_nlp.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=jit)
    inputs = {
        "token_ids": np.pad(prompts, [(0, 0), (0, args.new_tokens)]),
        "padding_mask": np.repeat([[1] * prompts.shape[1] + [0] * args.new_tokens], len(prompts), axis=0),
    }
    return lambda: model.generate(inputs, stop_token_ids=None)


def table_only(args: argparse.Namespace) -> Callable[[Settings], tf.Tensor]:
    """Returns generation by a model that costs next to nothing."""
    rng = np.random.default_rng(0)
    table = tf.constant(rng.normal(size=(64, args.vocabulary_size)) * 3, tf.float32)
    ones = tf.ones([args.batch_size], tf.int32)

    def step(token_ids: tf.Tensor, cache: Any, index: tf.Tensor, num_tokens: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tf.gather(table, token_ids[:, -1] % 64), cache

    @tf.function
    def run(settings: Settings) -> tf.Tensor:
        cache = tf.zeros([args.batch_size, 1])
        capacity = args.new_tokens + 1
        return generate(step, ones[:, tf.newaxis], ones, cache, settings, capacity=capacity, end_id=-1).token_ids

    return run


def main() -> None:
    """Prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch_size": 8, "prompt_tokens": 32, "new_tokens": 64, "layers": 6, "width": 384, "heads": 12}
    for name, default in {**sizes, "vocabulary_size": 50257, "repeats": 5, "limit": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.limit = max(args.limit, args.new_tokens)
    shape = (args.batch_size, args.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, args.vocabulary_size, shape).astype(np.int32)
    count = args.batch_size * args.new_tokens

    run, whole = ours(args, prompts), ours(args, prompts, grows=False)
    greedy = make_settings(args.batch_size, max_new_tokens=args.limit, temperature=0.0)
    print(f"{args}\nMilliseconds of a call, and of the processors, prompt included:")
    for name, (wall, processors) in take_turns({"grows": run, "whole": whole}, greedy, args.repeats).items():
        print(f"  greedy, cache {name:14}{1000 * wall:10.0f}{1000 * processors:10.0f}", flush=True)
    print("New tokens a second, prompt included in the time:")
    for name, values in SETTINGS.items():
        settings = make_settings(args.batch_size, max_new_tokens=args.limit, **values)
        print(f"  ours, {name:22}{count / seconds_of(lambda s=settings: run(s), args.repeats):10.0f}")
    for jit in (True, False):
        name = "KerasNLP, greedy, XLA" if jit else "KerasNLP, greedy, no XLA"
        print(f"  {name:28}{count / seconds_of(theirs(args, prompts, jit=jit), args.repeats):10.0f}")

    print("Milliseconds a step to choose the tokens:")
    choose = table_only(args)
    for name, values in SETTINGS.items():
        settings = make_settings(args.batch_size, max_new_tokens=args.new_tokens, **values)
        seconds = seconds_of(lambda s=settings: choose(s), args.repeats)
        print(f"  {name:28}{1000 * seconds / args.new_tokens:10.2f}")


if __name__ == "__main__":
    main()
