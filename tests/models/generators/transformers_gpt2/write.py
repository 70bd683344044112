"""Writes this folder: a small GPT-2 as transformers saves it, and what transformers computes with it.

    pip install torch transformers        # of no test, which read what is written here
    python tests/models/transformers_gpt2/write.py

Weights are random and large, so that every part of the network shows in the logits.
"""

import json
from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).parent
PROMPTS = [[5, 17, 2, 30, 11, 8, 0, 21], [3], [9, 9, 9, 9], [31, 1, 14, 7, 26, 12]]
NEW_TOKENS = 8


def main() -> None:
    """Writes config.json, model.safetensors and expected.json."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=24, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
        model.save_pretrained(FOLDER)
        rows = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            greedy = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
            )
            logits = model(ids).logits[0].double().tolist()
            rows.append({"prompt": prompt, "logits": logits, "greedy": greedy[0, len(prompt) :].tolist()})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (FOLDER / "expected.json").write_text(json.dumps({"versions": versions, "rows": rows}) + "\n")
    (FOLDER / "generation_config.json").unlink()


if __name__ == "__main__":
    main()
