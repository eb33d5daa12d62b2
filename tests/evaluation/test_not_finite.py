"""A model whose weights hold NaN gets no score: every evaluation names the weight."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.data.formats import EmbeddingExample, GenerativeExample, Text
from grit_jax.errors import GritError
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.retrieval import evaluate_retrieval


@pytest.fixture(params=[np.nan, np.inf])
def broken(tiny_model, request):
    """The model with one number of one weight spoiled."""
    params = dict(tiny_model.params)
    params["final_norm"] = jnp.asarray(params["final_norm"]).at[3].set(request.param)
    return type(tiny_model)(tiny_model.config, params, tiny_model.tokenizer, tiny_model.chat)


def test_retrieval(broken, sentences):
    rows = [
        EmbeddingExample(Text(None, text), (Text(None, text + " again"),), ())
        for text in sentences[:4]
    ]
    with pytest.raises(GritError, match="not finite.*'final_norm'"):
        evaluate_retrieval(broken, rows, quiet=True)


def test_perplexity(broken, sentences):
    rows = [GenerativeExample(turns=(text, text)) for text in sentences[:4]]
    with pytest.raises(GritError, match="perplexity: the mean loss is nan.*'final_norm'"):
        evaluate_perplexity(broken, rows, quiet=True)


def test_a_perplexity_that_overflows(tiny_model, sentences):
    """Finite weights, but e to the mean loss is more than float64 holds."""
    params = dict(tiny_model.params)
    params["final_norm"] = jnp.asarray(params["final_norm"]) * 1e6
    config = dataclasses.replace(tiny_model.config, final_logit_softcapping=None)
    model = type(tiny_model)(config, params, tiny_model.tokenizer, tiny_model.chat)
    rows = [GenerativeExample(turns=(text, text)) for text in sentences[:4]]
    with pytest.raises(GritError, match=r"perplexity: the mean loss is \d+.*overflows"):
        evaluate_perplexity(model, rows, quiet=True)
