"""Numbers and text for people."""

from __future__ import annotations

from grit_jax.quickstart.report import wording


def test_numbers_as_text():
    numbers = (0.01234, 7.641, 31.24, 4321.4)
    assert [wording.decimal(v) for v in numbers] == ["0.0123", "7.64", "31.2", "4,321"]
    assert [wording.latency(v) for v in (0.0352, 0.352, 1.234)] == ["35.2 ms", "352 ms", "1.23 s"]
    assert [wording.duration(v) for v in (1.26, 59.7, 552, 3600, 7384)] == [
        "1.3 s",
        "1 min",
        "9 min 12 s",
        "1 h",
        "2 h 3 min",
    ]
    assert [wording.size(v) for v in (12, 34_500_000, 3e13)] == ["12 bytes", "34.5 MB", "30 TB"]
    assert [wording.millions(v) for v in (52_000, 912_345, 7.24e9)] == [
        "52,000",
        "0.912 million",
        "7.24 billion",
    ]


def test_plain_text_has_no_control_characters():
    assert wording.plain("a\r\nb\x1b[31m\x00\ud800\u202e") == "a\nb\ufffd[31m\ufffd?\ufffd"
