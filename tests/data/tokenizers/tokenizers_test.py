"""A tokenizer gives the same ids eagerly, in a graph, saved and exported; bad sources are one sentence."""

import concurrent.futures
import json

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import TokenizerConfig
from aigc_tf.data.tokenizers import tokenizers
from aigc_tf.data.tokenizers.sentence_piece import SentencePiece, train_model
from aigc_tf.data.tokenizers.tokenizers import INFO_FILE, Tokenizer, build_tokenizer, load_tokenizer
from aigc_tf.data.tokenizers.vocabularies import Vocabulary
from aigc_tf.data.tokenizers.wordpiece import WordPiece
from aigc_tf.errors import InputError
from aigc_tf.serving.gate.op_gate import graph_ops

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS = (*SPECIAL, "the", "The", "fox", "##es", "cafe", ",")
TEXTS = ["The foxes,", "", "café", "[SEP]", "half \ud83d", "🦊\0"]


def word_piece(*, lowercase=True, tokens=TOKENS):
    return Tokenizer(WordPiece(Vocabulary(tokens, lowercase, strip_accents=lowercase)))


def no_texts():
    raise AssertionError("texts are read for training only")


def rows(tokenizer, texts=TEXTS):
    return [row.tolist() for row in tokenizer.encode(texts)]


def test_encoding_gives_int32_rows_without_special_tokens():
    encoded = word_piece().encode(["The foxes,", "", "café fox"])
    assert [row.tolist() for row in encoded] == [[5, 7, 8, 10], [], [9, 7]]
    assert {row.dtype for row in encoded} == {np.dtype(np.int32)}
    assert word_piece().encode([]) == []
    assert rows(word_piece(), (text for text in ["fox"])) == [[7]]
    assert len(word_piece().encode(["fox"] * 5000)) == 5000


def test_the_graph_gives_the_ids_of_eager_calls():
    tokenizer = word_piece()
    texts = tf.constant([text.encode(errors="ignore") for text in TEXTS])
    traced = tf.function(tokenizer.tokenize)(texts)
    assert traced.to_list() == tokenizer.tokenize(texts).to_list() == rows(tokenizer)
    mapped = tf.data.Dataset.from_tensors(texts).map(tokenizer.tokenize)
    assert next(iter(mapped)).to_list() == rows(tokenizer)


def test_threads_may_share_a_tokenizer():
    tokenizer = word_piece()
    texts = [["the foxes"] * size for size in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tokenizer.encode, texts))
    assert [[row.tolist() for row in batch] for batch in found] == [[[5, 7, 8]] * size for size in range(40)]


def test_decoding_leaves_special_tokens_out_and_refuses_unknown_ids():
    tokenizer = word_piece()
    assert tokenizer.decode(np.array([2, 5, 7, 8, 3, 0])) == "the foxes"
    for wrong in (-1, len(TOKENS)):
        with pytest.raises(ValueError, match=rf"in \[0, 11\), received {wrong}"):
            tokenizer.decode([5, wrong])


def test_a_saved_tokenizer_is_loaded_unchanged(tmp_path):
    for lowercase in (True, False):
        tokenizer = word_piece(lowercase=lowercase)
        tokenizer.save(tmp_path / str(lowercase))
        loaded = load_tokenizer(tmp_path / str(lowercase))
        assert rows(loaded) == rows(tokenizer)
        assert loaded.sha256() == tokenizer.sha256()
        assert (loaded.vocabulary, loaded.lowercase, loaded.strip_accents) == (TOKENS, lowercase, lowercase)


def test_the_hash_tells_vocabularies_and_settings_apart():
    hashes = {
        word_piece().sha256(),
        word_piece(lowercase=False).sha256(),
        word_piece(tokens=(*TOKENS, "x")).sha256(),
        Tokenizer(WordPiece(Vocabulary(TOKENS, True, strip_accents=False))).sha256(),
    }
    assert len(hashes) == 4
    # What was written by an earlier version must be found again: a change here needs a new _VERSION.
    assert word_piece().sha256() == "8a34249bdfdd942cdf626566441ec32c88c723f256b632c3db84b2d730cd6066"


def test_a_changed_or_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer: aigc_tf_tokenizer.json is missing; prepare .*\.$"):
        load_tokenizer(tmp_path)
    word_piece().save(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join((*TOKENS, "new")))
    with pytest.raises(InputError, match=r"was changed since it was saved; prepare the data again\.$"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(InputError, match="There is no file"):
        load_tokenizer(tmp_path)
    for content in ("[]", '{"kind": "other"}'):
        (tmp_path / INFO_FILE).write_text(content)
        with pytest.raises(InputError, match="does not describe a tokenizer"):
            load_tokenizer(tmp_path)


def build(source, *, model_source="", **settings):
    return build_tokenizer(TokenizerConfig(source=source, **settings), model_source, no_texts)


def test_a_vocabulary_file_follows_the_config(tmp_path):
    (tmp_path / "my_vocabulary.txt").write_text("\n".join(TOKENS))
    assert rows(build(str(tmp_path / "my_vocabulary.txt")), ["The"]) == [[5]]
    assert rows(build(str(tmp_path / "my_vocabulary.txt"), lowercase=False), ["The"]) == [[6]]


def test_a_hugging_face_folder_follows_its_own_settings(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert rows(build(str(tmp_path), lowercase=True), ["The"]) == [[6]]
    assert rows(build("", model_source=str(tmp_path)), ["The"]) == [[6]]


def test_a_sample_is_resolved_to_its_folder(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
    monkeypatch.setattr(tokenizers, "resolve_sample", {"sample:tiny": str(tmp_path)}.__getitem__)
    assert build("sample:tiny").vocabulary == TOKENS


def test_a_run_folder_and_a_saved_tokenizer_are_taken_as_they_are(tmp_path):
    word_piece(lowercase=False).save(tmp_path / "run" / "encoders" / "text")
    (tmp_path / "run" / "config.json").write_text("{}")
    for source in (tmp_path / "run", tmp_path / "run" / "encoders" / "text"):
        assert rows(build(str(source)), ["The"]) == [[6]]


def test_a_keras_nlp_preset_of_bert_is_our_word_piece(tmp_path):
    tokenizer = keras_nlp.models.BertTokenizer(vocabulary=list(TOKENS), lowercase=True)
    arguments = dict(num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=2, max_sequence_length=8)
    keras_nlp.models.BertBackbone(vocabulary_size=len(TOKENS), **arguments).save_to_preset(tmp_path)
    tokenizer.save_to_preset(tmp_path)
    built = build("", model_source=str(tmp_path))
    assert (built.kind, built.vocabulary, built.lowercase) == ("wordpiece", TOKENS, True)
    assert rows(built, ["The café"]) == [[5, 9]]


def test_a_vocabulary_is_trained_on_the_texts():
    texts = ["the fox, the foxes, the fox"] * 3
    config = TokenizerConfig(source="train", vocabulary_size=100)
    tokenizer = build_tokenizer(config, "ignored", lambda: texts)
    (row,) = tokenizer.encode(["the fox"])
    assert [tokenizer.vocabulary[index] for index in row] == ["the", "fox"]
    assert tokenizer.sha256() == build_tokenizer(config, "", lambda: iter(texts)).sha256()


def test_sentencepiece_is_trained_on_the_texts_and_read_from_its_file(tmp_path):
    texts = ["the fox, the foxes,\nthe Fox\u2581"] * 3
    config = TokenizerConfig(source="train", vocabulary_size=275)
    tokenizer = build_tokenizer(config, "ignored", lambda: iter(texts), kind="sentencepiece")
    assert (tokenizer.kind, tokenizer.vocabulary, tokenizer.lowercase) == ("sentencepiece", (), False)
    assert [tokenizer.decode(row) for row in tokenizer.encode(texts)] == texts
    tokenizer.save(tmp_path)
    for source in (tmp_path / "spiece.model", tmp_path):
        assert build(str(source)).sha256() == tokenizer.sha256()


def test_an_export_archive_of_keras_keeps_the_model_of_sentencepiece(tmp_path):
    model = train_model(["the fox, the foxes,\nthe Fox"], size=270)
    tokenizer = Tokenizer(SentencePiece(model, "test"))
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint("serve", serve_function(tokenizer))
    archive.write_out(str(tmp_path / "model"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model")).serve(tf.constant(["the Foxes", "", "\u2581"]))
    expected = tokenizer.encode(["the Foxes", "", "\u2581"])
    assert served["ids"].numpy().tolist() == np.concatenate(expected).tolist()
    assert served["lengths"].numpy().tolist() == list(map(len, expected))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"tokenizer.source and model.source are both empty; set tokenizer.source to 'train'"),
        ("bert_tiny_en_uncase", "is not a file, a folder or a KerasNLP preset. Did you mean 'bert_tiny_en_uncased'"),
        ("qqq", "'qqq' is not a file, a folder or a KerasNLP preset"),
        ("{}/vocap.txt", "There is no file or folder .* Did you mean 'vocab.txt'"),
        ("{}/no/vocab.txt", "the folder .* is missing too"),
        ("vocab.tx.txt", "There is no file or folder"),
        ("{}", "holds no WordPiece tokenizer, no byte pairs of GPT-2 and no preset"),
        ("sample:no_such_sample", "There is no sample 'no_such_sample'"),
        ("{}/vocab.txt", r"lacks \[PAD\]"),
        ("{}/vocab.model", r"vocab\.model is not a SentencePiece model; give the \.model file"),
        ("{}/vocab2.model", "There is no file or folder .* Did you mean 'vocab.model'"),
    ],
)
def test_a_wrong_source_is_one_sentence(tmp_path, source, message):
    (tmp_path / "vocabularies").mkdir()
    if source != "{}":
        (tmp_path / "vocab.txt").write_text("a\nb\n")
        (tmp_path / "vocab.model").write_text("a\nb\n")
    with pytest.raises(InputError, match=message) as error:
        build(source.format(tmp_path))
    assert "\n" not in str(error.value)


def serve_function(tokenizer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        ids = tokenizer.tokenize(text)
        return {"ids": ids.values, "lengths": ids.row_lengths()}

    return serve


@pytest.mark.parametrize(
    ("lowercase", "custom"),
    [(True, {"FastWordpieceTokenizeWithOffsets", "NormalizeUTF8"}), (False, {"FastWordpieceTokenizeWithOffsets"})],
)
def test_a_saved_model_needs_no_op_of_tf_text_but_these(tmp_path, lowercase, custom):
    module = tf.Module()
    module.tokenizer = word_piece(lowercase=lowercase)
    tf.saved_model.save(module, str(tmp_path), signatures=serve_function(module.tokenizer))
    ops = {op for op in graph_ops(tmp_path) if not hasattr(tf.raw_ops, op)}
    assert ops == custom  # both are in TensorFlow Serving since 2.16; look before adding one
    assert not {op for op in graph_ops(tmp_path) if "Table" in op or "Py" in op}
    assert len(tf.saved_model.load(str(tmp_path)).signatures) == 1


def test_an_export_archive_of_keras_keeps_what_the_tokenizer_needs(tmp_path):
    tokenizer = word_piece()
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint("serve", serve_function(tokenizer))
    archive.write_out(str(tmp_path / "model"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model")).serve(tf.constant(["The foxes", "", "fox"]))
    assert (served["ids"].numpy().tolist(), served["lengths"].numpy().tolist()) == ([5, 7, 8, 7], [3, 0, 1])
