"""The command prepare: what a task says of the data before it trains on them."""

import io

import pytest
from rich.console import Console

from aigc_tf.commands.prepare import prepare
from aigc_tf.config import DataConfig, ExperimentConfig, LossConfig, TokenizerConfig, TrainingConfig
from aigc_tf.data.batching.windows import check_size
from aigc_tf.errors import InputError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day"]


@pytest.fixture
def warnings(tmp_path):
    """Prepares texts and returns the data set and the warnings that were printed."""
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))

    def run(source, content, *, task="generate", said="max_length", loss=None, **fields):
        (tmp_path / source).write_text(content)
        data = DataConfig(sources=(str(tmp_path / source),), prepared_dir=str(tmp_path / "prepared"), **fields)
        tokenizer = TokenizerConfig(source=str(tmp_path / "vocab.txt"))
        output = io.StringIO()
        training = TrainingConfig(loss=loss or LossConfig())
        config = ExperimentConfig(name="task", task=task, data=data, tokenizer=tokenizer, training=training)
        prepared = prepare(config, overwrite=True, console=Console(file=output, width=200))
        shown = [line.removeprefix("Warning: ") for line in output.getvalue().splitlines() if said in line]
        return prepared, shown

    return run


def test_documents_shorter_than_a_window_are_warned_of_with_the_sentence_that_stops_training(warnings):
    text = "good day\n" * 10
    prepared, shown = warnings("a.txt", text, format="document", max_length=22)
    with pytest.raises(InputError, match=r"data.max_length is 22, but the training documents are 21 tokens") as refused:
        check_size(prepared.splits["train"].column("text"), 22)
    assert shown == [str(refused.value)]
    assert warnings("a.txt", text, format="document", max_length=21)[1] == []


def test_a_task_that_cuts_no_windows_does_not_warn(warnings):
    rows = "".join(f"good{' day' * number}\tgood\n" for number in range(20))
    fields = dict(max_length=200, column_names=("text", "label"))
    assert warnings("a.tsv", rows, task="classify", **fields)[1] == []
    assert warnings("a.tsv", rows, text_b_column="label", packing=True, **fields)[1] == []


def test_a_tokenizer_without_an_end_of_text_is_warned_of(warnings):
    _, [shown] = warnings("a.txt", "good day\n" * 10, said="end of text", format="document", max_length=8)
    assert shown.startswith("The tokenizer of the data is of kind 'wordpiece', which has no end of text;")


def test_class_weights_of_another_number_of_labels_are_warned_of(warnings):
    rows = "".join(f"good{' day' * number}\t{'ab'[number % 2]}\n" for number in range(20))
    fields = dict(task="classify", said="class_weights has", column_names=("text", "label"))
    _, [shown] = warnings("a.tsv", rows, loss=LossConfig(class_weights=(1.0, 2.0, 3.0)), **fields)
    assert shown.startswith("training.loss.class_weights has 3 numbers, but the data have 2 labels: a, b;")
    assert warnings("a.tsv", rows, loss=LossConfig(class_weights=(1.0, 2.0)), **fields)[1] == []
