"""Log-probabilities of labels against the log-softmax of whole forward passes."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.requests import EmbedRequest, LabelRequest


def test_labels_after_packed_prompts(tiny_model, sentences):
    """Requests with labels of their own in one batch, beside embeddings."""
    prompts = [tiny_model.tokenizer.encode(text) for text in sentences[:12]]
    cases = [
        (prompts[:7], [5, 9]),
        (prompts[7:], [3, 1, 40, 200, 7]),
        ([], [4]),
        (prompts[:1], [8]),
    ]
    with tiny_model.engine(slots=1, context=64) as engine:
        requests = [LabelRequest(ids, labels) for ids, labels in cases]
        beside = engine.submit(EmbedRequest(prompts, [0] * len(prompts)))
        results = [pending.result(60) for pending in map(engine.submit, requests)]
        beside.result(60)
    for (ids, labels), got in zip(cases, results):
        assert got.shape == (len(ids), len(labels))
        for prompt, row in zip(ids, got):
            logits = np.asarray(tiny_model(np.asarray([prompt])).logits)[0, -1].astype(np.float64)
            expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            np.testing.assert_allclose(row, expected[labels], atol=1e-4)


def test_bad_labels_are_refused(tiny_model):
    with tiny_model.engine(slots=1, context=64) as engine:
        for labels, words in (([], "1 to 64 labels"), ([10**6], "outside"), ([1] * 65, "1 to 64")):
            with pytest.raises(GritError, match=words):
                engine.submit(LabelRequest([[1]], labels))
