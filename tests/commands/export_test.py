"""What export prints can be pasted into a shell, whatever the folder is called."""

import shlex

import pytest

from aigc_tf.commands import export
from aigc_tf.config import ExperimentConfig


@pytest.mark.parametrize(
    ("task", "script", "flag"), [("classify", "predict", "text"), ("generate", "generate", "prompt")]
)
def test_the_commands_that_follow_an_export_can_be_pasted(task, script, flag, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    export._print_what_comes_next("it's (mine)/toy", ExperimentConfig(name="toy", task=task))
    printed = capsys.readouterr().out.replace("\\\n", "")
    lines = [line.partition(":") for line in printed.splitlines()[1:]]
    commands = {label: shlex.split(line) for label, _, line in lines}
    assert commands == {
        "Ask it": ["python", f"scripts/{script}.py", "--model=it's (mine)/toy", f"--{flag}=..."],
        "Serve it": [
            *["tensorflow_model_server", "--rest_api_port=8501", "--model_name=toy"],
            f"--model_base_path={tmp_path}/it's (mine)/toy",
        ],
        "Ask the server": [
            *["python", "scripts/ask.py", "--server=http://localhost:8501", "--model=toy", f"--{flag}=..."]
        ],
        "Deploy it": [
            *["python", "scripts/render_deployment.py", "--model=it's (mine)/toy", "--output=deploy/toy"],
        ],
    }
