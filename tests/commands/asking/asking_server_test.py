"""What `scripts/ask.py` sends to a server and prints, with a client of hand-made answers in the place of a server.

tests/serving/server_test.py asks real models by the same command.
"""

import dataclasses
import io
import json
import sys

import pytest

from aigc_tf.cli import asking as cli
from aigc_tf.cli import running
from aigc_tf.commands.asking import asking_server
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.clients.client import ModelAddress, Signature
from aigc_tf.serving.local.continuations import Continuation

TEXT = ("string", (-1,))
SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
OUTPUTS = ("text", "text_bytes", "token_ids", "num_tokens", "finish_reason", "log_probability", "prompt_cut")


class FakeClient:
    """Answers by a function of the inputs and keeps what it was asked."""

    address = ModelAddress(server="http://host:8501", model="m")

    def __init__(self, inputs, outputs, answer, classes=()):
        signature = Signature(inputs={name: TEXT for name in inputs}, outputs={name: TEXT for name in outputs})
        until = dataclasses.replace(signature, inputs={**signature.inputs, "stop": ("string", (-1, 4))})
        self._signatures = {"serving_default": signature, "defaults": signature, "generate_until": until}
        if classes:
            self._signatures["classify"] = signature
        self._answer, self._classes, self.asked = answer, classes, []

    def signatures(self):
        return self._signatures

    def predict(self, inputs, *, signature="serving_default"):
        self.asked.append((signature, inputs))
        return self._answer(inputs)

    def classify(self, examples, *, signature):
        return [[(name, 0.5) for name in self._classes] for _ in examples]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def ask(monkeypatch, capsys):
    def call(client, **options):
        monkeypatch.setattr(asking_server, "connect", lambda *args, **kwargs: client)
        given = {name: options.pop(name) for name in ("text", "text_b", "prompt") if name in options}
        asking_server.ask("http://host:8501", "m", given, **{"settings": {}, "timeout": 5, **options})
        return capsys.readouterr()

    return call


def classifier(**changes):
    def answer(inputs):
        is_good = ["good" in text for text in inputs["text"]]
        return {
            "label": ["pos" if good else "neg" for good in is_good],
            "probabilities": [[1 - g, 0 + g] for g in is_good],
        }

    given = {"inputs": ["text"], "outputs": ["label", "probabilities"], "answer": answer, "classes": ["neg", "pos"]}
    return FakeClient(**{**given, **changes})


def continued(inputs):
    """Continues `a` by `a!`, of two tokens; the third row of a request is refused."""
    rows = range(len(inputs["prompt"]))
    return {
        "text": [f"{prompt}!" for prompt in inputs["prompt"]],
        "text_bytes": [f"{prompt}!".encode() for prompt in inputs["prompt"]],
        "token_ids": [[7, 8, 0] for _ in rows],
        "num_tokens": [2 for _ in rows],
        "finish_reason": ["refused" if row == 2 else "end" for row in rows],
        "log_probability": [-1.5 for _ in rows],
        "prompt_cut": [3 if row else 0 for row in rows],
    }


def generator():
    return FakeClient(["prompt", *SETTINGS], OUTPUTS, continued)


def rows_of(printed):
    return [json.loads(line) for line in printed.splitlines()]


def test_texts_are_answered_as_predict_prints_them(ask):
    client = classifier()
    printed = ask(client, text=["so good", "é 中\n🙂"])
    assert rows_of(printed.out) == [
        {"text": "so good", "label": "pos", "probabilities": {"neg": 0, "pos": 1}},
        {"text": "é 中\n🙂", "label": "neg", "probabilities": {"neg": 1, "pos": 0}},
    ]
    assert client.asked == [("serving_default", {"text": ["so good", "é 中\n🙂"]})]  # one request


def test_several_labels_and_numbers_are_printed_as_predict_does(ask):
    several = classifier(
        outputs=["label", "predicted", "probabilities"],
        answer=lambda inputs: {"label": ["a|c"], "predicted": [[1, 0, 1]], "probabilities": [[0.9, 0.1, 0.6]]},
        classes=["a", "b", "c"],
    )
    [row] = rows_of(ask(several, text=["x"]).out)
    assert row == {"text": "x", "labels": ["a", "c"], "probabilities": {"a": 0.9, "b": 0.1, "c": 0.6}}
    number = classifier(outputs=["value"], answer=lambda inputs: {"value": [2.5]})
    assert rows_of(ask(number, text=["x"]).out) == [{"text": "x", "value": 2.5}]


def test_pairs_need_both_texts_and_single_texts_one(ask):
    pairs = classifier(inputs=["text", "text_b"])
    [row] = rows_of(ask(pairs, text=["good"], text_b=["b"]).out)
    assert row == {"text": "good", "text_b": "b", "label": "pos", "probabilities": {"neg": 0, "pos": 1}}
    assert pairs.asked == [("serving_default", {"text": ["good"], "text_b": ["b"]})]
    with pytest.raises(InputError, match="takes --text and --text_b, received --text;"):
        ask(pairs, text=["a"])
    with pytest.raises(InputError, match="takes --text, received --text and --text_b;"):
        ask(classifier(), text=["a"], text_b=["b"])


def test_a_file_is_asked_in_requests_of_eight_rows_and_answered_in_a_file(ask, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"good {row}\n" for row in range(20)))
    client = classifier()
    printed = ask(client, input_path=str(tmp_path / "texts.csv"), output_path=str(tmp_path / "out.jsonl"))
    assert [len(inputs["text"]) for _, inputs in client.asked] == [8, 8, 4]
    answers = rows_of((tmp_path / "out.jsonl").read_text())
    assert [row["text"] for row in answers] == [f"good {row}" for row in range(20)]
    assert printed.out == ""
    assert printed.err.startswith(f"20 answers in {tmp_path}/out.jsonl, ")


def test_a_server_that_takes_fewer_rows_gets_fewer(ask, tmp_path):
    asked = []

    def answer(inputs):
        asked.append(len(inputs["text"]))
        if asked[-1] > 3:
            raise InputError(f"Task size {asked[-1]} is larger than maximum input batch size 3.")
        return {"value": [float(text) for text in inputs["text"]]}

    (tmp_path / "texts.txt").write_text("".join(f"{row}\n" for row in range(10)))
    printed = ask(classifier(outputs=["value"], answer=answer), input_path=str(tmp_path / "texts.txt"))
    assert asked == [8, 3, 3, 2, 2]  # the eight that were read in threes, then the two that are left
    assert [row["value"] for row in rows_of(printed.out)] == list(range(10))


def test_another_refusal_is_not_taken_for_that(ask):
    def answer(inputs):
        raise InputError("Task size 9 is larger than maximum input batch size 8.")

    with pytest.raises(InputError, match="batch size 8"):
        ask(classifier(answer=answer), text=["a"])


def test_an_answer_that_is_no_number_is_told(ask):
    client = classifier(outputs=["value"], answer=lambda inputs: {"value": [float("nan")]})
    with pytest.raises(RunError, match="give no finite answer to 'x'"):
        ask(client, text=["x"])


def test_prompts_are_continued_by_the_models_own_settings(ask):
    client = generator()
    printed = ask(client, prompt=["a", "b"])
    assert client.asked == [("defaults", {"prompt": ["a", "b"]})]
    assert printed.out == f"aa!\n{'-' * 20}\nbb!\n{'-' * 20}\n"
    assert "This prompt is too long: 3 tokens cut off its beginning.\n" in printed.err
    assert "2 continuations of 4 tokens in " in printed.err
    assert ask(client, prompt=["a"]).out == "aa!\n"


def test_settings_are_sent_for_every_row_and_each_prompt_has_its_seed(ask):
    client = generator()
    ask(client, prompt=[str(number) for number in range(9)], settings={"temperature": 0.5, "seed": 2**63 - 2})
    (signature, first), (_, second) = client.asked
    assert signature == "serving_default"
    assert set(first) == {"prompt", *SETTINGS}
    assert first["temperature"] == [0.5] * 8
    assert first["top_p"] == first["max_new_tokens"] == [-1] * 8  # the export's own
    assert first["seed"] == [2**63 - 2, 2**63 - 1, *range(-(2**63), -(2**63) + 6)]
    assert second["seed"] == [-(2**63) + 6]


def test_stop_strings_go_with_every_row(ask):
    client = generator()
    ask(client, prompt=["a", "b"], settings={"stop": ("\n\n", "END")})
    [(signature, inputs)] = client.asked
    assert signature == "generate_until"
    assert inputs["stop"] == [["\n\n", "END", "", ""]] * 2
    assert (inputs["temperature"], inputs["seed"]) == ([-1, -1], [0, 1])
    with pytest.raises(InputError, match="There are 5 --stop; a request has at most 4"):
        ask(client, prompt=["a"], settings={"stop": tuple("abcde")})


def test_continuations_of_a_file_have_the_keys_of_generate(ask, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    printed = ask(generator(), input_path=str(tmp_path / "prompts.txt"))
    first, _, third = rows_of(printed.out)
    assert list(first) == ["prompt", *(field.name for field in dataclasses.fields(Continuation))]
    assert first == {
        "prompt": "a",
        "text": "a!",
        "token_ids": [7, 8],
        "finish_reason": "end",
        "log_probability": -1.5,
        "prompt_cut": 0,
    }
    assert third["finish_reason"] == "refused"
    assert "Refused: the prompt is too long for the model, or a stop string has more than 256 bytes." in printed.err


def test_prompts_are_lines_of_standard_input_where_none_is_given(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\\nb\n"))
    client = generator()
    ask(client)
    assert client.asked == [("defaults", {"prompt": ["a\nb"]})]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(InputError, match="There is no prompt, and nothing on standard input"):
        ask(client)


def test_what_the_model_does_not_take_is_told(ask):
    with pytest.raises(InputError, match="the model 'm' takes --prompt, received --text; give one"):
        ask(generator(), text=["a"])
    with pytest.raises(InputError, match="the model 'm' takes --text, received --prompt; give one"):
        ask(classifier(), prompt=["a"])
    with pytest.raises(InputError, match="the model 'm' takes no --top_k; leave it out"):
        ask(classifier(), text=["a"], settings={"top_k": 1})
    with pytest.raises(InputError, match="the model 'm' takes --text; give it, or a file with --input"):
        ask(classifier())
    with pytest.raises(InputError, match="the model 'm' takes --image, received --text"):
        ask(classifier(inputs=["image"]), text=["a"])


def test_a_model_of_any_other_kind_answers_with_its_outputs(ask, tmp_path):
    client = classifier(inputs=["x"], outputs=["y"], answer=lambda inputs: {"y": [2 * x for x in inputs["x"]]})
    client.signatures()["serving_default"].inputs["x"] = ("float32", (-1,))
    (tmp_path / "numbers.csv").write_text("x\n1.5\n2\n")
    printed = ask(client, input_path=str(tmp_path / "numbers.csv"))
    assert rows_of(printed.out) == [{"x": "1.5", "y": 3.0}, {"x": "2", "y": 4.0}]
    (tmp_path / "numbers.csv").write_text("x\none\n")
    with pytest.raises(InputError, match="x is 'one'; a number fits here"):
        ask(client, input_path=str(tmp_path / "numbers.csv"))


def test_probabilities_without_names_of_classes_are_answered_as_they_are(ask, tmp_path):
    def answer(inputs):
        return {"probabilities": [[0.25, 0.75] for _ in inputs["x"]], "value": [1.0 for _ in inputs["x"]]}

    client = classifier(inputs=["x"], outputs=["probabilities", "value"], answer=answer, classes=())
    (tmp_path / "xs.csv").write_text("x\na\n")
    printed = ask(client, input_path=str(tmp_path / "xs.csv"))
    assert rows_of(printed.out) == [{"x": "a", "probabilities": [0.25, 0.75], "value": 1.0}]


def test_the_file_of_the_texts_is_not_overwritten(ask, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a\n")
    with pytest.raises(InputError, match="is the file of the questions"):
        ask(classifier(), input_path=str(path), output_path=str(path))


# ------------------------------------------------------------------------------------------------------------ the flags

FLAGS = ("server", "served", "version", "label", "timeout", "text", "text_b", "prompt", *SETTINGS)
FLAGS += ("input", "output", "overwrite")
TO = ["--server=http://host:8501", "--model=m"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the script's command; returns exit status, standard error and how the server would have been asked."""
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(asking_server, "ask", lambda *args, **options: asked.append((args, options)))

    def call(*arguments):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["scripts/ask.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            running.run(cli.ask, flags=FLAGS, description="Asks.")
        return int(stopped.value.code or 0), capsys.readouterr().err, asked

    return call


def test_flags_become_what_the_server_is_asked(run):
    status, _, [(address, options)] = run(*TO, "--text=a", "--text", "--b", "--version=3", "--timeout=2.5")
    assert (status, address) == (0, ("http://host:8501", "m", {"text": ["a", "--b"]}))
    assert (options["version"], options["label"], options["timeout"]) == (3, "", 2.5)
    _, _, [(address, options)] = run(*TO, "--prompt=", "--label=canary", "--top_k=0", "--seed=4")
    assert (address[2], options["label"]) == ({"prompt": [""]}, "canary")
    assert options["settings"] == {"top_k": 0, "seed": 4}
    assert (options["timeout"], options["version"]) == (60.0, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model=m", "--text=a"], "--server is missing: Address of the server: http://host:8501"),
        (["--server=http://h", "--text=a"], "--model is missing: Name of the model on the server."),
        ([*TO, "--text=a", "--prompt=b"], "Give the questions with --text or --prompt (once for each), or a file"),
        ([*TO, "--text=a", "--text_b=b", "--text_b=c"], "there are 1 --text and 2 --text_b."),
        ([*TO, "--input=none.txt"], "There is no file none.txt."),
        ([*TO, "--text=a", "--output=no/out.jsonl"], "cannot be written: there is no folder no."),
        ([*TO, "--text=a", "--version=new"], "flag --version=new: a whole number such as 1000 fits here."),
        ([*TO, "--text=a", "--timeout=long"], "flag --timeout=long: a number such as 5e-5 fits here."),
        ([*TO, "--prompt=a", "--top_p=2"], "--top_p is 2.0; it must be in (0, 1]."),
        ([*TO, "--text=a", "--sever=x"], "There is no flag --sever. Did you mean --server?"),
    ],
)
def test_a_flag_that_does_not_fit_is_told_before_anything_is_asked(run, arguments, sentence):
    status, errors, asked = run(*arguments)
    assert (status, asked) == (2, [])
    assert sentence in errors
    assert errors.count("\n") == 1
