"""A printed command can be pasted."""

import shlex
from pathlib import Path

import pytest

from aigc_tf.config.shell import shell_line


@pytest.mark.parametrize("path", ["runs/s1", "my run (2)", "it's", 'a"b', "$HOME", "a\nb", "~/x", "größe", "", "a=b"])
def test_a_shell_reads_the_words_that_were_given(path):
    words = ["python", "scripts/train.py", f"--workdir={path}", path, "--overwrite"]
    assert shlex.split(shell_line(*words)) == words


def test_of_a_flag_the_value_alone_is_quoted():
    assert shell_line("ask", "--model=a b", Path("c d")) == "ask --model='a b' 'c d'"
