"""One rule for names: a folder of its own that a server's URL can hold."""

import pytest

from aigc_tf.config.names import MAX_NAME_BYTES, check_name
from aigc_tf.errors import InputError


@pytest.mark.parametrize("name", ["a", "bert_sentiment", "v1.2-rc", "0", "_a", "größe", "a" * MAX_NAME_BYTES])
def test_letters_digits_and_three_signs_make_a_name(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *[
            (name, f"name is {name!r}; a name has")
            for name in ("", ".a", "-a", "a b", "a/b", "a\\b", "a:b", "a\n", "a*")
        ],
        ("reviews-formats", "name is 'reviews-formats', but a folder that ends in -formats holds the other formats"),
        ("a" * 300, "name has 300 bytes ('aaaaaaaaaaaaaaaaaaaa' ...); give one of at most 100."),
        ("ä" * 51, "name has 102 bytes"),
    ],
)
def test_what_no_folder_or_url_holds_is_refused(name, sentence):
    with pytest.raises(InputError) as caught:
        check_name(name)
    assert str(caught.value).startswith(sentence)
