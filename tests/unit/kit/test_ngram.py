"""The n-gram classifier: deterministic features, gradients that learn, and a file that is refused when it is not one."""

import numpy as np
import pytest

from noria.kit.ngram import FORMAT, Ngram, decode, encode, features, softmax_step

ROWS = [("pay my bill", 0), ("the bill is due", 0), ("hello there", 1), ("hi, good morning", 1), ("你好", 1), ("账单", 0)]


def trained(steps=200):
    weights = np.zeros((513, 2), dtype=np.float32)
    data = [features(text, 512) for text, _ in ROWS]
    losses = [softmax_step(weights, data, [label for _, label in ROWS], 1.0) for _ in range(steps)]
    return Ngram(FORMAT, ("bill", "greet"), 512, 1, 4, weights.tobytes()), losses


def test_it_learns_and_its_first_loss_is_that_of_a_guess():
    model, losses = trained()
    assert losses[0] == pytest.approx(np.log(2))
    assert losses[-1] < 0.1
    assert [model.classify(text) for text, _ in ROWS] == [("bill", "greet")[label] for _, label in ROWS]
    assert model.classify("BILLS") == "bill"  # letters' case does not count


def test_features_have_length_one_and_do_not_depend_on_the_process():
    at, values = features("hello", 512)
    assert np.linalg.norm(values) == pytest.approx(1.0)
    assert list(at[:3]) == list(features("hello", 512)[0][:3])
    assert int(features("a", 1 << 30, 1, 1)[0].max()) == 0xAF63DC4C8601EC8C % (1 << 30)  # FNV-1a of "a", from its reference


def test_a_file_is_read_back_and_another_is_refused():
    model, _ = trained(1)
    assert decode(encode(model)) == model
    for data, words in [
        (b"nonsense", "no noria-ngram-1"),
        (encode(Ngram("other", ("a",), 1, 1, 1, b"\0" * 8)), "format"),
        (encode(Ngram(FORMAT, ("a", "b"), 512, 1, 4, b"\0" * 8)), "weights"),
    ]:
        with pytest.raises(ValueError, match=words):
            decode(data)
