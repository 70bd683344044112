"""What export prints can be pasted into a shell, whatever the folder is called."""

import shlex

import pytest

from aigc_tf.commands import export
from aigc_tf.config import DataConfig, ExperimentConfig


@pytest.mark.parametrize(
    ("task", "second", "script", "flags"),
    [
        ("classify", "", "predict", ["--text=..."]),
        ("classify", "other", "predict", ["--text=...", "--text_b=..."]),
        ("generate", "", "generate", ["--prompt=..."]),
        ("generate", "answer", "generate", ["--prompt=..."]),
    ],
)
def test_the_commands_that_follow_an_export_can_be_pasted(task, second, script, flags, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(name="toy", task=task, data=DataConfig(text_b_column=second))
    export._print_what_comes_next("it's (mine)/toy", config)
    printed = capsys.readouterr().out.replace("\\\n", "")
    lines = [line.partition(":") for line in printed.splitlines()[1:]]
    commands = {label: shlex.split(line) for label, _, line in lines}
    assert commands == {
        "Ask it": ["python", f"scripts/{script}.py", "--model=it's (mine)/toy", *flags],
        "Serve it": [
            *["tensorflow_model_server", "--rest_api_port=8501", "--model_name=toy"],
            f"--model_base_path={tmp_path}/it's (mine)/toy",
        ],
        "Ask the server": [*["python", "scripts/ask.py", "--server=http://localhost:8501", "--model=toy", *flags]],
        "Deploy it": [
            *["python", "scripts/render_deployment.py", "--model=it's (mine)/toy", "--output=deploy/toy"],
        ],
    }
