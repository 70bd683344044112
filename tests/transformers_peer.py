"""What transformers makes of a Hugging Face folder, in a process of its own: PyTorch and TensorFlow crash in one.

python tests/transformers_peer.py CLASS FOLDER TEXT < inputs.npz > outputs.json
"""

import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest


def ask_transformers(auto_class, folder, inputs, text):
    """Returns the logits of `inputs` and the tokens of a text; skips the test where transformers is not installed."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is no dependency")
    content = io.BytesIO()
    np.savez(content, **inputs)
    command = [sys.executable, __file__, auto_class, str(folder), text]
    done = subprocess.run(command, input=content.getvalue(), capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    answer = json.loads(done.stdout)
    return np.array(answer["logits"]), answer["tokens"]


def main():
    import torch
    import transformers

    auto_class, folder, text = sys.argv[1:]
    inputs = np.load(io.BytesIO(sys.stdin.buffer.read()))
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**{name: torch.tensor(inputs[name]).long() for name in inputs.files}).logits
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text).tokens()
    print(json.dumps({"logits": logits.double().tolist(), "tokens": tokens}))


if __name__ == "__main__":
    main()
