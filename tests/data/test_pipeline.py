"""The whole pipeline: batches as a function of the step, resuming, and what became of every
example."""

import collections
import dataclasses
import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from grit_jax.config import load_config
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.pipeline import JointBatches, make_iterator
from grit_jax.data.preparation import prepare
from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    words = ["amber", "river", "stone", "paper", "quiet", "engine", "window", "forest"]

    def text(n, length=6):
        return " ".join(words[(n * 7 + i * i) % 8] for i in range(1 + n % length)) + f" {n}"

    def embedding(name, count):
        return [
            {
                "query": [f"find {name}", text(n)],
                "pos": [["", f"{name} {n} good {i}"] for i in range(1 + n % 2)],
                "neg": [["", f"{name} {n} bad {i}"] for i in range(3)],
            }
            for n in range(count)
        ]

    return {
        "one": write(folder / "one.jsonl", embedding("one", 37)),
        "two": write(folder / "two.jsonl", embedding("two", 22)),
        "chat": write(
            folder / "chat.jsonl", [{"text": [text(n), f"answer {n}"]} for n in range(21)]
        ),
        "plain": write(folder / "plain.jsonl", [{"text": f"plain {n}"} for n in range(5)]),
        "rag": write(
            folder / "rag.jsonl",
            [{"docs": [text(n, 20)], "text": [f"why {n}?", f"so {n}"]} for n in range(13)],
        ),
    }


@pytest.fixture(scope="module")
def config(files):
    return DataConfig(
        embedding=[files["one"], files["two"]],
        generative=[files["chat"], files["plain"]],
        cached=[files["rag"]],
        embedding_batch=8,
        generative_batch=4,
        cached_batch=4,
        group_size=3,
        query_max_length=32,
        passage_max_length=64,
        generative_max_length=128,
        document_max_length=64,
        row_multiple=2,
        prefetch=2,
    )


@pytest.fixture(scope="module")
def batches(config, tiny_tokenizer):
    return JointBatches(config, tiny_tokenizer, GRIT, seed=3, num_steps=60)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def texts(batch, places, tokenizer):
    result = []
    for place in places.tolist():
        r, s = divmod(place, batch.segments_per_row)
        result.append(tokenizer.decode(batch.rows.tokens[r, batch.rows.segments[r] == s + 1]))
    return result


def test_contrastive_batches(batches, tiny_tokenizer):
    for step in range(20):
        batch = batches[step].embedding
        queries, passages = (
            texts(batch, p, tiny_tokenizer) for p in (batch.queries, batch.passages)
        )
        assert len(queries) == 8 and len(passages) == 24
        where = batches.ids(step)["embedding"]
        for i, (query, place) in enumerate(zip(queries, where, strict=True)):
            path, line = place.rsplit(":", 1)
            example = json.loads(Path(path).read_text().splitlines()[int(line) - 1])
            assert query == f"<|user|>\n{example['query'][0]}\n<|embed|>\n{example['query'][1]}"
            positive, *negatives = passages[3 * i : 3 * i + 3]
            assert positive in [f"<|embed|>\n{text}" for _, text in example["pos"]]
            assert len(set(negatives)) == 2
            assert set(negatives) <= {f"<|embed|>\n{text}" for _, text in example["neg"]}


def test_pooled_tokens_are_the_texts(batches, tiny_tokenizer):
    batch = batches[5].embedding
    for place in batch.queries.tolist():
        r, s = divmod(place, batch.segments_per_row)
        here = batch.rows.segments[r] == s + 1
        text = tiny_tokenizer.decode(batch.rows.tokens[r, here])
        assert (
            tiny_tokenizer.decode(batch.rows.tokens[r, here & batch.pool[r]])
            == text.split("<|embed|>\n")[1]
        )


def test_generative_and_cached_batches(batches, tiny_tokenizer):
    batch = batches[7]
    assert batch.generative.sequences == batch.cached.text.sequences == 4
    for i, place in enumerate(batches.ids(7)["cached"]):
        number = int(place.rsplit(":", 1)[1]) - 1
        text = batch.cached.text
        r = int(np.flatnonzero(((text.sequence == i) & (text.targets > 0)).any(1))[0])
        answer = text.rows.tokens[r, (text.sequence[r] == i) & (text.targets[r] > 0)]
        assert tiny_tokenizer.decode(answer, skip_special=False) == f"so {number}</s>"


def test_every_example_is_seen(batches):
    seen = {kind: collections.Counter() for kind in ("embedding", "generative", "cached")}
    for step in range(60):
        for kind, places in batches.ids(step).items():
            seen[kind].update(places)
    assert {kind: len(counter) for kind, counter in seen.items()} == {
        "embedding": 59,
        "generative": 26,
        "cached": 13,
    }
    for counter in seen.values():
        assert max(counter.values()) - min(counter.values()) <= 1
    assert batches.epoch(0) == {"embedding": 0, "generative": 0, "cached": 0}
    assert batches.epoch(59)["cached"] > batches.epoch(59)["generative"] > 0


def test_all_layouts_are_drawn(config, tiny_tokenizer):
    counts = collections.Counter()
    for mode in ("doc", "query"):
        only = JointBatches(
            dataclasses.replace(config, layouts=[mode]), tiny_tokenizer, seed=3, num_steps=9
        )
        counts[mode] = int((only[0].cached.cached_texts.segments > 0).sum())
    mixed = JointBatches(
        dataclasses.replace(config, layouts=["none", "doc"]), tiny_tokenizer, num_steps=30
    )
    with_pieces = [
        len(
            np.unique(
                mixed[s].cached.cached_owner * 100
                + np.arange(len(mixed[s].cached.cached_owner))[:, None]
            )
        )
        for s in range(30)
    ]
    assert counts["doc"] > counts["query"] > 0
    assert len(set(with_pieces)) > 1


def test_pure_function_of_seed_and_step(batches, config, tiny_tokenizer):
    again = pickle.loads(
        pickle.dumps(JointBatches(config, tiny_tokenizer, GRIT, seed=3, num_steps=60))
    )
    for step in (59, 0, 17):
        assert same(batches[step], again[step])
    assert not same(
        batches[0].embedding.rows, JointBatches(config, tiny_tokenizer, seed=4)[0].embedding.rows
    )
    with pytest.raises(IndexError):
        batches[60]


@pytest.mark.parametrize("threads", [0, 2])
def test_iterator_resumes(batches, config, tiny_tokenizer, threads):
    config = dataclasses.replace(config, workers=threads)
    iterator = make_iterator(config, tiny_tokenizer, seed=3, num_steps=60, batches=batches)
    for step in range(5):
        assert same(next(iterator), batches[step])
    state = json.loads(json.dumps(iterator.get_state()))
    other = make_iterator(config, tiny_tokenizer, seed=3, num_steps=60, batches=batches)
    other.set_state(state)
    assert same(next(other), batches[5]) and same(next(iterator), batches[5])


def test_orbax_saves_the_iterator(batches, config, tiny_tokenizer, tmp_path):
    from orbax.checkpoint import v1 as ocp

    iterator = make_iterator(config, tiny_tokenizer, seed=3, num_steps=60, batches=batches)
    for _ in range(3):
        next(iterator)
    ocp.save_checkpointables(tmp_path / "checkpoint", {"data": iterator})
    other = make_iterator(config, tiny_tokenizer, seed=3, num_steps=60, batches=batches)
    ocp.load_checkpointables(tmp_path / "checkpoint", {"data": other})
    assert same(next(other), batches[3])


def test_iterator_ends(config, tiny_tokenizer):
    assert len(list(make_iterator(config, tiny_tokenizer, num_steps=4))) == 4


def test_few_shapes(config, tiny_tokenizer):
    batches = JointBatches(
        dataclasses.replace(config, probe_steps=12), tiny_tokenizer, seed=3, num_steps=40
    )
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(batches[step])) for step in range(40)}
    assert len(shapes) <= 2


def test_balanced_batches_fill_fewer_rows(files, tiny_tokenizer):
    config = DataConfig(
        generative=[files["chat"]],
        generative_batch=2,
        generative_max_length=64,
        row_multiple=1,
        probe_steps=0,
    )

    def fullest(window):
        batches = JointBatches(
            dataclasses.replace(config, balance_window=window), tiny_tokenizer, num_steps=21
        )
        return [int((batches[step].generative.rows.segments > 0).sum()) for step in range(21)]

    plain, balanced = fullest(0), fullest(7)
    assert sum(plain) == sum(balanced)  # two epochs of 21 examples
    assert max(balanced) < max(plain) and min(balanced) > min(plain)


def test_prepared_dataset_gives_the_same_batches(files, tiny_tokenizer, tmp_path):
    prepare([files["chat"]], tmp_path / "chat")
    config = DataConfig(generative=[files["chat"]], generative_batch=4, generative_max_length=64)
    prepared = dataclasses.replace(config, generative=[str(tmp_path / "chat")])
    for step in range(3):
        assert same(
            JointBatches(config, tiny_tokenizer)[step], JointBatches(prepared, tiny_tokenizer)[step]
        )


def test_summary_counts_everything(files, tiny_tokenizer, tmp_path):
    lines = [
        {"text": ["u", "a"]},
        {"text": ["amber " * 500, "a"]},
        {"text": 3},
        {"text": ["v", "b"]},
    ]
    path = write(tmp_path / "bad.jsonl", lines)
    config = DataConfig(
        generative=[path, files["chat"]],
        generative_batch=2,
        generative_max_length=64,
        on_error="skip",
        num_samples={files["chat"]: 7},
    )
    bad, chat = JointBatches(config, tiny_tokenizer).summary
    assert (bad.examples, bad.used, sum(bad.skipped.values())) == (4, 2, 1)
    assert bad.filtered == {"the first user turn fills generative_max_length (64)": 1}
    assert (chat.examples, chat.used, chat.kind) == (21, 7, "generative")
    with pytest.raises(GritError, match=r"bad\.jsonl:3: "):
        JointBatches(dataclasses.replace(config, on_error="stop"), tiny_tokenizer)


def test_several_positives_at_once(config, tiny_tokenizer):
    """Up to two of the rows' one or two positives, all different, then the negatives; places
    without one are empty."""
    config = dataclasses.replace(
        config, positives_per_query=2, group_size=2, generative_batch=0, cached_batch=0
    )
    batches = JointBatches(config, tiny_tokenizer, seed=3, num_steps=8)
    empty = 0
    for step in range(8):
        batch = batches[step].embedding
        assert len(batch.passages) == 24 and batch.positives == 2
        passages, where = (
            texts(batch, batch.passages, tiny_tokenizer),
            batches.ids(step)["embedding"],
        )
        for i, place in enumerate(where):
            path, line = place.rsplit(":", 1)
            example = json.loads(Path(path).read_text().splitlines()[int(line) - 1])
            here = [
                p
                for p, there in zip(passages[3 * i : 3 * i + 3], batch.present[3 * i : 3 * i + 3])
                if there
            ]
            *positives, negative = here
            expected = {f"<|embed|>\n{text}" for _, text in example["pos"]}
            assert set(positives) == expected and len(positives) == len(expected)
            assert negative in {f"<|embed|>\n{text}" for _, text in example["neg"]}
            empty += batch.present[3 * i : 3 * i + 3].tolist().count(False)
    assert empty


def test_scores_stay_with_their_passages(tiny_tokenizer, tmp_path):
    """Whichever positives and negatives are drawn; negatives that are drawn twice have their score
    twice."""
    lines = [
        {
            "query": f"q{n}",
            "pos": [f"pos {n} {i}" for i in range(1 + n % 3)],
            "neg": [f"neg {n} 0"],
            "scores": [10.0 * n + i for i in range(1 + n % 3)] + [10.0 * n + 9],
        }
        for n in range(12)
    ]
    path = write(tmp_path / "f.jsonl", lines)
    score = {
        text: s
        for line in lines
        for text, s in zip([*line["pos"], *line["neg"]], line["scores"], strict=True)
    }
    config = DataConfig(embedding=[path], embedding_batch=6, positives_per_query=2, group_size=3)
    batches = JointBatches(
        config, tiny_tokenizer, num_steps=4, needs=BatchNeeds(teacher_scores=True)
    )
    for step in range(4):
        batch = batches[step].embedding
        for text, s, there in zip(
            texts(batch, batch.passages, tiny_tokenizer), batch.scores, batch.present
        ):
            assert not there or s == score[text.removeprefix("<|embed|>\n")]
    assert JointBatches(config, tiny_tokenizer)[0].embedding.scores is None
    lines[7].pop("scores")
    path = write(tmp_path / "f.jsonl", lines)
    with pytest.raises(GritError, match=r"f\.jsonl:8: no \"scores\""):
        JointBatches(config, tiny_tokenizer, needs=BatchNeeds(teacher_scores=True))


def test_what_attention_and_gradients_ask_for(config, tiny_tokenizer):
    needs = BatchNeeds(sample_blocks=True, prefix_generation=True, separate_sides=True)
    plain, asked = (
        JointBatches(config, tiny_tokenizer, seed=3, num_steps=12, needs=n)
        for n in (BatchNeeds(), needs)
    )
    shapes = set()
    for step in range(12):
        one, other = plain[step], asked[step]
        for side in ("queries", "passages"):
            assert texts(one.embedding, getattr(one.embedding, side), tiny_tokenizer) == texts(
                other.embedding, getattr(other.embedding, side), tiny_tokenizer
            )
        assert (
            other.embedding.queries // other.embedding.segments_per_row < other.embedding.query_rows
        ).all()
        assert (
            other.embedding.passages // other.embedding.segments_per_row
            >= other.embedding.query_rows
        ).all()
        np.testing.assert_array_equal(other.embedding.rows.blocks, other.embedding.pool.astype(int))
        rows, targets = other.generative.rows, other.generative.targets
        np.testing.assert_array_equal(rows.tokens, one.generative.rows.tokens)
        assert (
            rows.blocks[(rows.segments > 0) & (rows.positions == 0)].all()
            and not rows.blocks[targets > 0].any()
        )
        answers = (other.cached.text.rows.segments > 0) & (other.cached.text.rows.blocks == 0)
        np.testing.assert_array_equal(answers, other.cached.text.targets > 0)
        tags = (other.cached.cached_texts.segments > 0) & (other.cached.cached_texts.blocks == 0)
        np.testing.assert_array_equal(
            tags,
            (other.cached.cached_texts.segments > 0) & (other.cached.cached_texts.positions < 2),
        )
        assert (
            one.embedding.rows.blocks
            is one.generative.rows.blocks
            is one.cached.cached_texts.blocks
            is None
        )
        shapes.add((other.embedding.query_rows, len(other.embedding.pool)))
    assert len(shapes) <= 2


def test_the_last_answer_alone(tiny_tokenizer, tmp_path):
    """The original's `prefixlm`, attention as it is: the same rows, and of their targets those of
    the last answers."""
    turns = [[f"why {n}?", f"so {n}", "and then?", f"then {n}"] for n in range(6)]
    path = write(tmp_path / "f.jsonl", [{"text": text} for text in turns])
    config = DataConfig(generative=[path], generative_batch=6, generative_max_length=64)
    whole, last = (
        JointBatches(
            dataclasses.replace(config, last_answer_only=only), tiny_tokenizer, num_steps=1
        )[0].generative
        for only in (False, True)
    )
    assert same(whole.rows, last.rows) and last.rows.blocks is None
    answers = lambda batch, i: tiny_tokenizer.decode(
        batch.rows.tokens[(batch.targets > 0) & (batch.sequence == i)]
    )
    assert {answers(last, i) for i in range(6)} == {f"then {n}" for n in range(6)}
    assert all(
        answers(whole, i) == answers(last, i).replace("then", "so") + answers(last, i)
        for i in range(6)
    )


def test_summary_is_told_and_written(files, tiny_tokenizer, tmp_path, capsys):
    lines = [
        {"text": ["u", "a"]},
        {"text": ["amber " * 500, "a"]},
        {"text": None},
        {"text": ["v", "b"]},
    ]
    path = write(tmp_path / "bad.jsonl", lines)
    config = DataConfig(
        generative=[path, files["chat"], files["plain"]],
        generative_batch=2,
        generative_max_length=64,
        on_error="skip",
        num_samples={files["chat"]: 7},
    )
    batches = JointBatches(config, tiny_tokenizer)
    capsys.readouterr()
    batches.report_summary(tmp_path / "summary.json")
    told = "".join(capsys.readouterr())
    assert (
        '2 of 4 generative examples; 1 "text" must be a string, got null; 1 the first user turn'
        " fills" in told
    )
    assert "7 of 21 generative examples; 14 not among the data.num_samples" in told
    assert "plain.jsonl" not in told  # nothing was left out of it
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["name"] for entry in found] == config.generative
    for entry in found:
        left_out = (
            sum(entry["skipped"].values()) + sum(entry["filtered"].values()) + entry["not_sampled"]
        )
        assert entry["used"] + left_out == entry["examples"]
    assert (
        found[0]["skipped"] == {'"text" must be a string, got null': 1}
        and found[1]["not_sampled"] == 14
    )


def test_subset_of_every_kind_in_every_form(files, tiny_tokenizer, tmp_path):
    """num_samples: embedding files with instructions alone in the original, any source here,
    strings included."""
    plain = write(
        tmp_path / "e.jsonl",
        [{"query": f"q{n}", "pos": [f"p{n}"], "neg": [f"n{n}"]} for n in range(20)],
    )
    samples = {plain: 6, files["one"]: 5, files["plain"]: 3, files["rag"]: 4}
    config = DataConfig(
        embedding=[plain, files["one"]],
        generative=[files["plain"]],
        cached=[files["rag"]],
        embedding_batch=4,
        generative_batch=2,
        cached_batch=2,
        num_samples=samples,
    )
    batches = JointBatches(config, tiny_tokenizer, num_steps=40)
    assert {entry.name: entry.used for entry in batches.summary} == samples
    seen = collections.Counter(
        place for step in range(40) for places in batches.ids(step).values() for place in places
    )
    counts = collections.Counter(place.rsplit(":", 1)[0] for place in seen)
    assert counts == samples


def test_subset_is_random_and_fixed(files, tiny_tokenizer):
    config = DataConfig(
        generative=[files["chat"]], generative_batch=7, num_samples={files["chat"]: 7}
    )
    first, second, other = (JointBatches(config, tiny_tokenizer, seed=seed) for seed in (1, 1, 2))
    chosen = [
        sorted({place for step in range(5) for place in b.ids(step)["generative"]})
        for b in (first, second, other)
    ]
    assert chosen[0] == chosen[1] != chosen[2] and [len(c) for c in chosen] == [7, 7, 7]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"embedding_batch": 60}, r"embedding_batch \(60\) is more than the 59 usable examples"),
        ({"embedding_batch": 0, "generative_batch": 0, "cached_batch": 0}, "every batch size is 0"),
        ({"generative": []}, "data.generative_batch: is 4, but data.generative names no source"),
        ({"group_size": 0}, "data.group_size: must be at least 1, got 0"),
        ({"layouts": ["docs"]}, "data.layouts: expected some of none, .*, got 'docs'"),
        (
            {"row_length": 32},
            "data.row_length: must be at least 64, the longest text allowed, got 32",
        ),
        ({"num_samples": {"three": 3}}, "data.num_samples: 'three' is not a source"),
    ],
)
def test_mistakes(config, tiny_tokenizer, change, message):
    with pytest.raises((GritError, ValueError), match=message):
        JointBatches(dataclasses.replace(config, **change), tiny_tokenizer)


def test_no_example_meets_itself_through_overlapping_globs(tiny_tokenizer, tmp_path):
    """Without a look at the files, a batch of 8 of these 8 examples read twice has some twice."""
    for part in ("a", "b"):
        rows = [{"query": f"{part} {n}", "pos": ["p"], "neg": ["n"]} for n in range(4)]
        write(tmp_path / f"{part}.jsonl", rows)
    names = [f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl"]
    batches = JointBatches(DataConfig(embedding=names, embedding_batch=8), tiny_tokenizer)
    for step in range(6):
        assert len(set(batches.ids(step)["embedding"])) == 8
    with pytest.raises(GritError, match="data.embedding: .*a.jsonl is listed twice"):
        JointBatches(DataConfig(embedding=[names[1]] * 2, embedding_batch=4), tiny_tokenizer)
    covered = DataConfig(
        generative=[f"{tmp_path}/a*", f"{tmp_path}/[a]*"],
        generative_batch=1,
        num_samples={f"{tmp_path}/[a]*": 2},
    )
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(GritError, match="data.num_samples: other entries of data.generative read"):
        JointBatches(covered, tiny_tokenizer)


def test_no_negatives_is_a_clear_error(tiny_tokenizer, tmp_path):
    path = write(tmp_path / "f.jsonl", [{"query": f"q{n}", "pos": [f"p{n}"]} for n in range(8)])
    config = DataConfig(embedding=[path], embedding_batch=4)
    with pytest.raises(GritError, match=r"f\.jsonl:1: no negatives, and group_size is 2"):
        JointBatches(config, tiny_tokenizer)
    batch = JointBatches(dataclasses.replace(config, group_size=1), tiny_tokenizer)[0].embedding
    assert len(batch.passages) == len(batch.queries) == 4


def test_config_from_yaml(tmp_path, files):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"generative: ['{files['chat']}']\ngenerative_batch: 4\nlayouts: [doc, none]\non_error:"
        " skip\n"
    )
    config = load_config(DataConfig, path, {"group_size": "5"})
    assert (config.generative_batch, config.layouts, config.on_error, config.group_size) == (
        4,
        ["doc", "none"],
        "skip",
        5,
    )
    with pytest.raises(GritError, match="generative_bach"):
        load_config(DataConfig, path, {"generative_bach": "5"})


def test_documents_are_shuffled_where_a_teacher_reads_them_in_order(tiny_tokenizer, tmp_path):
    """Another order in each epoch, the same one every time; without a teacher, that of the data."""
    lines = [
        {"docs": [f"first {n}", f"second {n}", f"third {n}"], "text": [f"why {n}?", f"so {n}"]}
        for n in range(6)
    ]
    path = write(tmp_path / "rag.jsonl", lines)
    config = DataConfig(cached=[path], cached_batch=6, layouts=["doc"], probe_steps=0)
    needs = BatchNeeds(teacher_rows=True)
    plain, taught, again = (
        JointBatches(config, tiny_tokenizer, GRIT, seed=3, needs=n)
        for n in (BatchNeeds(), needs, needs)
    )

    def orders(step, batches):
        batch, words = batches[step].cached, ("first", "second", "third")
        rows = batch.cached_texts
        for owner in range(1, 7):
            text = tiny_tokenizer.decode(rows.tokens[0][batch.cached_owner[0] == owner])
            yield tuple(sorted(words, key=text.index))

    straight = ("first", "second", "third")
    assert {order for step in range(4) for order in orders(step, plain)} == {straight}
    drawn = [order for step in range(4) for order in orders(step, taught)]
    assert len(set(drawn)) > 4 and drawn[:6] != drawn[6:12]
    for step in range(4):
        assert same(taught[step], again[step]) and plain.ids(step) == taught.ids(step)
        teacher = taught[step].cached.teacher.rows
        for segment in range(1, 7):
            text = tiny_tokenizer.decode(teacher.tokens[0][teacher.segments[0] == segment])
            assert tuple(sorted(straight, key=text.index)) == straight
    assert plain[0].cached.teacher is None


def test_a_teacher_changes_no_layout_and_no_other_batch(config, tiny_tokenizer, batches):
    """Over single documents, the cached rows are those of a run without one."""
    taught = JointBatches(
        config, tiny_tokenizer, GRIT, seed=3, num_steps=60, needs=BatchNeeds(teacher_rows=True)
    )
    for step in range(3):
        one, other = batches[step], taught[step]
        assert (other.cached.teacher.columns >= 0).sum() == (other.cached.text.targets > 0).sum()
        other.cached.teacher, other.cached.text.max_targets = None, 0
        assert same(one, other)


@pytest.mark.parametrize("named", [[], ["chat"]])
def test_what_is_distilled_from_the_base_goes_by_its_source(
    config, files, tiny_tokenizer, batches, named
):
    """All sources unless some are named; nothing else of a batch changes."""
    config = dataclasses.replace(config, distilled=[files[name] for name in named])
    needs = BatchNeeds(base_teacher=True)
    marked = JointBatches(config, tiny_tokenizer, GRIT, seed=3, num_steps=60, needs=needs)
    kinds = set()
    for step in range(8):
        plain, batch = batches[step], marked[step]
        text = batch.generative
        for number, place in enumerate(marked.ids(step)["generative"]):
            here = (text.sequence == number) & (text.rows.segments > 0)
            (flag,) = set(text.distilled[here].tolist())
            assert flag == (not named or "chat.jsonl" in place)
            kinds.add(flag)
        assert not text.distilled[text.rows.segments == 0].any()
        assert text.max_targets >= text.targets.sum(axis=1).max()
        text.distilled, text.max_targets = None, 0
        assert same(plain, batch)
    assert kinds == ({True, False} if named else {True})
