"""The peer that benchmarks/serve.py compares with: transformers behind FastAPI, as most people serve a small model.

    pip install torch transformers fastapi uvicorn sentencepiece     # in an environment without TensorFlow
    python benchmarks/transformers_server.py --folder=saved_models/gpt_shakespeare-formats/1/hugging_face --port=8600

Texts in, labels or texts out, in float32, a thread for each request, no batching. Prints `ready` when it answers.
"""

import argparse
import json
import pathlib
import threading

import torch
import transformers
import uvicorn
from fastapi import FastAPI


def build_classifier(folder: pathlib.Path):
    """Returns what answers a classify request."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def answer(request: dict) -> dict:
        batch = tokenizer(request["texts"], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**batch).logits.softmax(-1)
        labels = [model.config.id2label[index] for index in probabilities.argmax(-1).tolist()]
        return {"labels": labels, "probabilities": probabilities.tolist()}

    return answer


def build_generator(folder: pathlib.Path):
    """Returns what answers a generate request: greedy continuations, with the key and value cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    end_id = model.config.eos_token_id
    if (folder / "spiece.model").exists():
        import sentencepiece

        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        encode, decode = tokenizer.encode, tokenizer.decode
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        encode, decode = (lambda text: tokenizer(text)["input_ids"]), tokenizer.decode

    def answer(request: dict) -> dict:
        ids = encode(request["prompt"])[-(model.config.n_positions - request["max_new_tokens"]) :]
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            done = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request["max_new_tokens"],
                do_sample=False,
                eos_token_id=end_id,
                pad_token_id=end_id,
            )[0, len(ids) :].tolist()
        done = done[: done.index(end_id)] if end_id in done else done
        return {"text": decode(done), "token_ids": done}

    return answer


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="Hugging Face folder of an export")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0, help="that one request may take; 0 for PyTorch's own number")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    is_generator = json.loads((args.folder / "config.json").read_text())["model_type"] == "gpt2"
    answer = (build_generator if is_generator else build_classifier)(args.folder)
    app = FastAPI()

    @app.get("/facts")
    def facts() -> dict:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {**versions, "threads": torch.get_num_threads()}

    @app.post("/ask")
    def ask(request: dict) -> dict:
        return answer(request)

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=args.port, log_level="error"))
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    server.run()


if __name__ == "__main__":
    main()
