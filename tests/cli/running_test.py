"""What the door of every script does with errors."""

import sys

import pytest

from aigc_tf.cli.running import filled


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (
            ["--config=configs/a.py", "--workdir=r", "--config.name=my run"],
            "--config=configs/a.py --config.name='my run'",
        ),
        (["--config", "a b.py", "--debug"], "--config 'a b.py'"),
        (["--config.data.packing", "--config=a.py"], "--config.data.packing --config=a.py"),
        (["--config=a.py", "--noconfig.data.packing"], "--config=a.py --noconfig.data.packing"),
        (["--workdir=r"], "--config=..."),
    ],
)
def test_a_command_in_an_error_has_the_config_that_was_typed(monkeypatch, typed, shown):
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    again = "prepare the data again with `python scripts/prepare.py {} --overwrite`."
    assert filled(again.format("--config=...")) == again.format(shown)
