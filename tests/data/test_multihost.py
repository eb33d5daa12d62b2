"""Batches that several hosts prepare together: those of one host, each text tokenised once."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.multihost import HostGroup
from grit_jax.data.pipeline import JointBatches

STEPS = 5
NEEDS = [
    BatchNeeds(),
    BatchNeeds(
        sample_blocks=True,
        prefix_generation=True,
        separate_sides=True,
        teacher_scores=True,
        teacher_rows=True,
        base_teacher=True,
        preference="dpo",
    ),
]


class Post:
    """What `Exchange` does, among threads."""

    def __init__(self, hosts: int):
        self.hosts, self.letters, self.came = hosts, {}, threading.Condition()
        self.bytes_sent = collections.Counter()

    def office(self, number: int):
        return Office(self, number)


class Office:
    def __init__(self, post: Post, number: int):
        self.post, self.number, self.hosts = post, number, post.hosts

    def __call__(self, key, letters):
        post, received = self.post, list(letters)
        with post.came:
            for host, letter in enumerate(letters):
                if host != self.number:
                    assert (key, host, self.number) not in post.letters, "a letter would be lost"
                    post.letters[key, host, self.number] = letter
                    post.bytes_sent[key.split("/")[-1]] += len(letter)
            post.came.notify_all()
            for host in range(self.hosts):
                if host != self.number:
                    place = (key, self.number, host)
                    assert post.came.wait_for(
                        functools.partial(post.letters.__contains__, place), timeout=600
                    )
                    received[host] = post.letters.pop(place)
        return received


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, 0

    def encode_parts(self, texts):
        self.texts += len(texts)
        return self.tokenizer.encode_parts(texts)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module")
def config(tmp_path_factory, sentences) -> DataConfig:
    folder = tmp_path_factory.mktemp("kinds")
    lines = {
        "embedding": [
            {
                "query": ["find it", sentences[n]],
                "pos": sentences[40 + n : 41 + n + n % 2],
                "neg": sentences[n % 5 : n % 5 + 3],
                "scores": [1.0] * (4 + n % 2),
            }
            for n in range(40)
        ],
        "generative": [{"text": sentences[n : n + 2 + 2 * (n % 2)]} for n in range(30)],
        "cached": [
            {"docs": sentences[n : n + 1 + n % 2], "text": sentences[n + 5 : n + 7]}
            for n in range(20)
        ],
        "preference": [
            {"prompt": sentences[n], "chosen": sentences[n + 1], "rejected": sentences[n + 2]}
            for n in range(15)
        ],
    }
    files = {}
    for kind, texts in lines.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
        files[kind] = [str(folder / f"{kind}.jsonl")]
    return DataConfig(
        **files,
        embedding_batch=12,
        generative_batch=9,
        cached_batch=7,
        preference_batch=6,
        preference_max_length=160,
        group_size=3,
        positives_per_query=2,
        query_max_length=64,
        passage_max_length=64,
        generative_max_length=160,
        document_max_length=64,
        row_multiple=4,
        probe_steps=2,
    )


def together(config, tokenizer, needs, hosts, rows):
    """What each host makes of every step, and how many texts it tokenised for that."""
    post = Post(hosts)

    def host(number):
        counting = Counting(tokenizer)
        group = HostGroup(post.office(number), rows)
        batches = JointBatches(config, counting, seed=3, num_steps=STEPS, needs=needs, hosts=group)
        before = counting.texts
        return [batches[step] for step in range(STEPS)], counting.texts - before

    with ThreadPoolExecutor(hosts) as pool:
        made = list(pool.map(host, range(hosts)))
    assert not post.letters
    return *zip(*made, strict=True), post


def in_parts(hosts):
    """Rows as devices have them: in `hosts` parts, one after the other."""
    return lambda height: np.arange(height) * hosts // height == np.arange(hosts)[:, None]


@pytest.mark.parametrize("needs", NEEDS, ids=["plain", "everything"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_every_host_has_its_rows_of_the_one_batch(config, tiny_tokenizer, needs, hosts):
    counting = Counting(tiny_tokenizer)
    alone = JointBatches(config, counting, seed=3, num_steps=STEPS, needs=needs)
    before = counting.texts
    wanted = [alone[step] for step in range(STEPS)]
    rows = in_parts(hosts)
    made, counts, _ = together(config, tiny_tokenizer, needs, hosts, rows)
    assert sum(counts) == counting.texts - before, "each text once"
    assert max(counts) < 1.2 * sum(counts) / hosts, counts
    differ = 0
    for number, batches in enumerate(made):
        for batch, want in zip(batches, wanted, strict=True):
            assert jax.tree.structure(batch) == jax.tree.structure(want)  # with all that is static
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(batch), jax.tree.leaves(want), strict=True
            ):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                if a.ndim == 2:
                    mine = rows(len(a))[number]
                    np.testing.assert_array_equal(a[mine], b[mine], err_msg=str(path))
                if path[-1].name in ("tokens", "targets"):
                    differ += not np.array_equal(a, b)
                else:  # what is counted and where texts are is the same everywhere
                    np.testing.assert_array_equal(a, b, err_msg=str(path))
    assert differ > hosts * STEPS, "nobody has all the texts"


def test_rows_that_every_host_holds_are_whole(config, tiny_tokenizer):
    """As where the mesh splits what is within a row, or rows do not divide evenly."""
    wanted = JointBatches(config, tiny_tokenizer, seed=3, num_steps=STEPS)
    made, _, post = together(
        config, tiny_tokenizer, BatchNeeds(), 3, lambda height: np.ones((3, height), bool)
    )
    for batches in made:
        for step, batch in enumerate(batches):
            jax.tree.map(np.testing.assert_array_equal, batch, wanted[step])
    assert post.bytes_sent["texts"] > 0


def test_fewer_texts_than_hosts(config, tiny_tokenizer):
    config = dataclasses.replace(
        config, embedding_batch=0, cached_batch=0, preference_batch=0, generative_batch=2
    )
    wanted = JointBatches(config, tiny_tokenizer, seed=3, num_steps=STEPS)
    made, counts, _ = together(config, tiny_tokenizer, BatchNeeds(), 4, in_parts(4))
    assert sorted(counts) == [0, 0, STEPS, STEPS]
    for step in range(STEPS):
        found = sum(
            batches[step].generative.rows.tokens * in_parts(4)(4)[n][:, None]
            for n, batches in enumerate(made)
        )
        np.testing.assert_array_equal(found, wanted[step].generative.rows.tokens)
