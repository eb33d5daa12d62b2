"""One rule for lengths: a default is lowered to the context, a request beyond it is an error."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.text.length import MAX_LENGTH, DefaultLength, length_limit, warn_truncated


@pytest.mark.parametrize(
    ("length", "context", "expected"),
    [(MAX_LENGTH, 128, 128), (MAX_LENGTH, 4096, 512), (512, 512, 512), (np.int64(7), 128, 7)],
)
def test_a_default_is_lowered_and_a_request_is_kept(length, context, expected):
    assert length_limit(length, context) == expected


def test_a_request_beyond_the_context_names_both_numbers():
    with pytest.raises(GritError, match="max_length is 512 tokens.*context is 128"):
        length_limit(512, 128)


@pytest.mark.parametrize("length", [None, 10.0, "10", True, 0, -3, [5], np.float32(4)])
def test_anything_but_a_positive_whole_number_is_an_error(length):
    with pytest.raises(GritError, match="max_length must be"):
        length_limit(length, 128)


def test_a_default_shows_as_its_number():
    assert str(MAX_LENGTH) == f"{MAX_LENGTH}" == "512" and repr(DefaultLength(7)) == "7"


def test_what_is_cut_is_one_line():
    with pytest.warns(UserWarning, match=r"^3 of 200 texts were cut to 512 tokens \(max_length\)$"):
        warn_truncated(3, 200, 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_truncated(0, 200, 512)
