"""Answers are in their file whole or not at all, and those of an interrupted run in another."""

import os
import threading

import pytest

from aigc_tf.commands.asking.answers import count, open_output, read_questions, with_progress
from aigc_tf.errors import InputError, RunError


def write_and_raise(write, error):
    write("a line\n")
    raise error


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("old")
    with open_output(str(path)) as write:
        write("new\n")
        assert path.read_text() == "old"
    assert path.read_text() == "new\n"
    assert os.listdir(tmp_path) == ["answers.jsonl"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError), open_output(str(path)) as write:
        write_and_raise(write, ValueError)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["answers.jsonl"]


def test_an_interrupted_run_keeps_its_answers_beside_and_says_where(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), open_output(str(path)) as write:
        write_and_raise(write, KeyboardInterrupt)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("answers.jsonl.partial-")
    assert kept.read_text() == "a line\n"
    assert capsys.readouterr().err == f"\nThe answers so far are in {kept}.\n"
    with pytest.raises(KeyboardInterrupt), open_output(str(path)) as write:
        write_and_raise(write, KeyboardInterrupt)
    assert len(list(tmp_path.iterdir())) == 2  # the first are still there


def test_what_fails_besides_writing_is_no_fault_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError), open_output(str(tmp_path / "answers.jsonl")) as write:
        write_and_raise(write, FileNotFoundError("prompts.csv"))
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed_and_a_pipe_written_to(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with open_output(str(tmp_path / "link")) as write:
        write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with open_output(str(tmp_path / "pipe")) as write:
        write("y")
    reader.join(timeout=10)
    assert read == ["y"]
    with open_output("/dev/null") as write:
        write("z")
    assert not os.path.isfile("/dev/null")


def test_a_disk_that_is_full_is_one_sentence():
    full = r"Cannot write /dev/full: No space left on device\."
    with pytest.raises(RunError, match=full), open_output("/dev/full") as write:
        write("x")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=r"--output .*x cannot be written: No such file"),
        open_output(str(tmp_path / "none" / "x")),
    ):
        pass


def test_without_a_terminal_progress_shows_nothing(capsys):
    assert list(with_progress(iter("ab"), total=2, what="Answering")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_numbers_of_things_read_as_they_are_said():
    assert [count(number, "token") for number in (0, 1, 1200)] == ["0 tokens", "1 token", "1,200 tokens"]


def test_a_question_has_as_many_values_as_the_model_takes(tmp_path):
    (tmp_path / "questions.csv").write_text("b,a,c\n2,1,3\n")
    names = ("x", "y", "z")
    [question] = read_questions(str(tmp_path / "questions.csv"), names, ("a", "b", "c"))
    assert question == {"x": "1", "y": "2", "z": "3"}
    (tmp_path / "questions.txt").write_text("1\n")
    with pytest.raises(InputError, match=r"one value a line, but the model takes 3; .*'a' and 'b' and 'c'"):
        list(read_questions(str(tmp_path / "questions.txt"), names, ("a", "b", "c")))
