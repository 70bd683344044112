"""The baseline of configs/bert_reviews_zh.py: logistic regression on characters and pairs of them, same split.

    python scripts/prepare.py --config=configs/bert_reviews_zh.py
    python benchmarks/reviews_baseline.py

Prints one JSON line. Features are tf-idf weights of character n-grams that occur in two reviews at least; the strength
of the regularisation and the longest n-gram are chosen on the validation reviews.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from aigc_tf.data.prepared.prepared import open_prepared


def main() -> None:
    """Fits, chooses, prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prepared", default="prepared/bert_reviews_zh")
    data = open_prepared(arguments.parse_args().prepared)
    tokenizer = data.facts.encoder("text")
    texts, labels = {}, {}
    for name, split in data.splits.items():
        rows = split.column("text").rows(np.arange(split.num_examples))
        texts[name] = [tokenizer.decode(text) for text in rows]  # SentencePiece gives the very text back
        labels[name] = split.column("label").all()
    found = []
    for longest in (2, 3):
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, longest), min_df=2, sublinear_tf=True)
        train = vectors.fit_transform(texts["train"])
        for strength in (1.0, 3.0, 10.0, 30.0):
            model = LogisticRegression(C=strength, max_iter=1000).fit(train, labels["train"])
            accuracy = {
                name: float(model.score(vectors.transform(texts[name]), labels[name]))
                for name in ("validation", "test")
            }
            found.append({"longest_ngram": longest, "C": strength, "features": train.shape[1], **accuracy})
            print(json.dumps(found[-1]), file=sys.stderr)
    best = max(found, key=lambda row: row["validation"])
    examples = {name: len(rows) for name, rows in texts.items()}
    print(json.dumps(best | {"examples": examples, "scikit-learn": sklearn.__version__}))


if __name__ == "__main__":
    main()
