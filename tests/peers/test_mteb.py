"""mteb, unmodified, on local tasks of every type: its scores against NumPy, SciPy and scikit-learn on
the vectors of `GritLM.encode`; through the socket; and what its own tools read of the results."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pytest
import scipy.stats
from cli_world import run
from live_server import live_server
from mteb_folders import INSTRUCTION, TYPES, task_folders
from pydocs_corpus import write_corpus

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint, EndpointSettings
from grit_jax.evaluation.mteb import MtebSettings, evaluate_mteb
from grit_jax.evaluation.mteb_tasks import folder_task, tasks_named
from grit_jax.evaluation.pydocs_mteb import SAME_MODULE_PROMPT, write_mteb_tasks
from grit_jax.evaluation.retrieval import ndcg
from grit_jax.rag.rerank import read_relevance, reading_prompts
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.serving.settings import ServeSettings

pytest.importorskip("mteb")
pytestmark = pytest.mark.peers
NAMED = MtebSettings(name="local/tiny")


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory, sentences):
    return task_folders(tmp_path_factory.mktemp("tasks"), sentences)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def scores(tiny_model, folders, output):
    return evaluate_mteb(tiny_model, "tiny", [], output, NAMED, task_files=[folders])


class Truth:
    """The main score of each type of task, computed from the files of its folder."""

    def __init__(self, model, folders):
        self.model, self.folders = model, folders

    def rows(self, kind, name="test.jsonl"):
        lines = (self.folders / kind / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def vectors(self, texts, instruction=INSTRUCTION):
        return self.model.encode(texts, instruction).astype(np.float64)

    def documents(self, kind):
        rows = self.rows(kind, "corpus.jsonl")
        texts = [f"{row['title']} {row['text']}".strip() for row in rows]
        return [row["_id"] for row in rows], texts

    def similarities(self, kind):
        """Cosines `[queries, documents]`; documents have no instruction."""
        queries = [row["text"] for row in self.rows(kind, "queries.jsonl")]
        names, texts = self.documents(kind)
        return names, self.vectors(queries) @ self.vectors(texts, "").T

    def Retrieval(self):
        names, scores = self.similarities("Retrieval")
        return np.mean(
            [
                ndcg(np.argsort(-row).tolist(), frozenset({i, i + 1}), 10)
                for i, row in enumerate(scores)
            ]
        ).round(5)

    def average_precision(self, order, relevant):
        hits = [rank for rank, name in enumerate(order, 1) if name in relevant]
        return sum((i + 1) / rank for i, rank in enumerate(hits)) / len(relevant)

    def Reranking(self, scores=None):
        names, cosines = self.similarities("Reranking")
        values = []
        for i, row in enumerate(self.rows("Reranking", "top_ranked.jsonl")):
            candidates = list(dict.fromkeys(row["documents"]))
            score = {c: cosines[i, names.index(c)] for c in candidates}
            order = sorted(candidates, key=lambda c: -(scores[i][c] if scores else score[c]))
            values.append(self.average_precision(order, {f"d{i}", f"d{i + 1}"}))
        return np.mean(values).round(5)

    def Classification(self):
        from sklearn.linear_model import LogisticRegression

        parts = [self.rows("Classification", f"{part}.jsonl") for part in ("train", "test")]
        (train, seen), (test, labels) = (
            (self.vectors([row["text"] for row in rows]), [row["label"] for row in rows])
            for rows in parts
        )
        return LogisticRegression(max_iter=100).fit(train, seen).score(test, labels)

    def Clustering(self):
        """mteb's samples of 16,384 texts, ten times, from its seed."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        rows = self.rows("Clustering")
        vectors = self.vectors([row["text"] for row in rows]).astype(np.float32)
        labels, rng, values = np.array([row["label"] for row in rows]), random.Random(42), []
        for _ in range(10):
            sample = rng.choices(range(len(rows)), k=16_384)
            means = MiniBatchKMeans(
                len(set(labels)), batch_size=512, n_init=1, random_state=42, init="k-means++"
            )
            values.append(v_measure_score(labels[sample], means.fit_predict(vectors[sample])))
        return np.mean(values)

    def pairs(self, kind):
        rows = self.rows(kind)
        return rows, *(self.vectors([row[f"text{n}"] for row in rows]) for n in (1, 2))

    def PairClassification(self):
        rows, first, second = self.pairs("PairClassification")
        labels = [row["label"] for row in rows]
        precision = lambda scores: self.average_precision(
            np.argsort(-scores), set(np.flatnonzero(labels))
        )
        manhattan = -np.abs(first - second).sum(1)
        return max(precision((first * second).sum(1)), precision(manhattan))

    def STS(self):
        from scipy.stats import spearmanr

        rows, first, second = self.pairs("STS")
        return spearmanr([row["score"] for row in rows], (first * second).sum(1)).statistic

    def Summarization(self):
        from scipy.stats import spearmanr

        values = []
        for row in self.rows("Summarization"):
            machine, human = (self.vectors(row[f"{k}_summaries"]) for k in ("machine", "human"))
            values.append(spearmanr(row["relevance"], (machine @ human.T).max(1)).statistic)
        return np.mean(values)


@pytest.fixture(scope="module")
def truth(tiny_model, folders):
    return Truth(tiny_model, folders)


@pytest.mark.parametrize("kind", TYPES)
def test_scores_are_those_of_an_independent_computation(scores, truth, kind):
    [score] = [task for task in scores.tasks if task.type == kind]
    assert score.score == pytest.approx(getattr(truth, kind)(), abs=1e-6)
    assert 0 < score.score < 1 or kind in ("STS", "Summarization")
    assert score.subsets == {"test/default": score.score} and not score.cached
    assert (score.instruction.query, score.instruction.document) == (INSTRUCTION, "")
    assert score.truncated == 0


def test_through_the_socket_they_are_the_same(scores, tiny_model, folders, tmp_path):
    settings = ServeSettings("tiny", slots=2, context=512, warm_up=False)
    with live_server(tiny_model, settings) as server:
        endpoint = Endpoint(server.url, EndpointSettings(connections=2))
        served = evaluate_mteb(endpoint, server.url, [], tmp_path, task_files=[folders])
        judges = MtebSettings("cross-encoder")
        task = folders / "Reranking"
        one = evaluate_mteb(endpoint, server.url, [], tmp_path, judges, task_files=[task])
    assert (served.model, served.revision) == ("served/tiny", "served")
    for ours, theirs in zip(scores.tasks, served.tasks, strict=True):
        assert theirs.score == pytest.approx(ours.score, abs=1e-6), ours.task
        assert theirs.truncated is None
    local = evaluate_mteb(tiny_model, "tiny", [], tmp_path, judges, task_files=[task])
    assert one.tasks[0].score == pytest.approx(local.tasks[0].score, abs=1e-6)


def test_the_generative_head_as_cross_encoder(tiny_model, folders, truth, tmp_path):
    """Reranking: its judgement of each candidate. Retrieval: of the encoder's three best."""
    settings = MtebSettings("cross-encoder", rerank=3)
    files = [folders / "Reranking", folders / "Retrieval"]
    found = evaluate_mteb(tiny_model, "tiny", [], tmp_path, settings, task_files=files)
    names, texts = truth.documents("Reranking")
    queries = [row["text"] for row in truth.rows("Reranking", "queries.jsonl")]
    judged = []
    for query in queries:
        prompts = reading_prompts(tiny_model, [(query, text) for text in texts])
        judged.append(dict(zip(names, read_relevance(tiny_model, prompts.ids), strict=True)))
    assert found.tasks[0].score == pytest.approx(truth.Reranking(judged), abs=1e-6)
    assert found.tasks[0].instruction is None
    _, cosines = truth.similarities("Retrieval")
    expected = []
    for i, row in enumerate(cosines):
        best = sorted(np.argsort(-row)[:3].tolist(), key=lambda d, i=i: -judged[i][f"d{d}"])
        expected.append(ndcg(best, frozenset({i, i + 1}), 10))
    assert found.tasks[1].score == pytest.approx(np.mean(expected).round(5), abs=1e-6)
    with pytest.raises(GritError, match="LocalSTS is neither retrieval nor reranking"):
        evaluate_mteb(tiny_model, "t", [], tmp_path, settings, task_files=[folders / "STS"])


def test_search_over_an_index(tiny_model, folders, scores, tmp_path):
    """Exact search gives the scores of mteb's own; words and vectors together are another search."""
    files = [folders / kind for kind in ("Retrieval", "Reranking", "STS")]
    by_task = {task.task: task.score for task in scores.tasks}
    settings = MtebSettings("search")
    for task in evaluate_mteb(tiny_model, "t", [], tmp_path, settings, task_files=files).tasks:
        assert task.score == pytest.approx(by_task[task.task], abs=1e-6)
    hybrid = MtebSettings("search", retrieval=Retrieval("hybrid"))
    [both] = evaluate_mteb(tiny_model, "t", [], tmp_path, hybrid, task_files=files[:1]).tasks
    assert both.score > by_task["LocalRetrieval"] and not both.cached
    with pytest.raises(GritError, match="a model behind a URL cannot"):
        evaluate_mteb(object(), "t", [], tmp_path, settings, task_files=files)


def test_results_are_mtebs_own(scores, output, folders, tiny_model):
    import mteb

    cache = mteb.ResultCache(output)
    names = [task.task for task in scores.tasks]
    loaded = cache.load_results(models=["local/tiny"], tasks=names, require_model_meta=True)
    [model] = loaded.model_results
    assert (model.model_name, model.model_revision) == ("local/tiny", tiny_model.weights_hash[:16])
    written = {r.task_name: r.get_score() for r in model.task_results}  # to six decimals
    assert written == pytest.approx({task.task: task.score for task in scores.tasks}, abs=1e-6)
    meta = json.loads(next(output.glob("results/*/*/model_meta.json")).read_text())
    assert meta["embed_dim"] == tiny_model.embedding_width and meta["framework"] == [
        "GritLM",
        "JAX",
    ]
    frame = loaded.to_dataframe()
    assert set(frame["task_name"]) == set(names)


def test_results_are_used_again_while_data_and_settings_are_the_same(
    scores, output, folders, tiny_model, tmp_path, sentences
):
    sts = [folders / "STS"]
    again = lambda settings, files=sts: evaluate_mteb(
        tiny_model, "tiny", [], output, settings, task_files=files
    ).tasks[0]
    before = next(task for task in scores.tasks if task.type == "STS")
    cached = again(NAMED)
    assert cached.cached and cached.truncated is None
    assert cached.score == pytest.approx(before.score, abs=1e-6)
    none = again(MtebSettings(prompts="none", name="local/tiny"))
    assert (
        not none.cached and abs(none.score - before.score) > 1e-3 and none.instruction.query == ""
    )
    assert not again(MtebSettings(overwrite=True, name="local/tiny")).cached
    other = task_folders(tmp_path / "other", sentences) / "STS"
    lines = (other / "test.jsonl").read_text().splitlines()[5:]
    (other / "test.jsonl").write_text("\n".join(lines))
    changed = again(NAMED, [other])
    assert not changed.cached and abs(changed.score - before.score) > 1e-3
    again(MtebSettings(overwrite=True, name="local/tiny"))  # as the other tests expect it


def test_mtebs_own_prompts(folders):
    """As mteb's encoders ask for them."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    from grit_jax.evaluation.mteb import task_instructions

    class Theirs(AbsEncoder):
        prompts_dict = None
        prompt_priority = AbsEncoder.prompt_priority

        def __init__(self):
            pass

        def encode(self, *arguments, **options):
            raise NotImplementedError

    tasks = tasks_named(["MTEB(eng, v2)"])
    assert len(tasks) == 41
    ours = task_instructions(tasks, "mteb")
    theirs = Theirs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for task in tasks:
            name, meta = task.metadata.name, task.metadata
            assert ours[name].query == theirs.get_instruction(meta, PromptType.query), name
            assert ours[name].document == theirs.get_instruction(meta, PromptType.document), name
    grit = task_instructions(tasks, "grit")
    assert all(entry.source == "grit" and not entry.document for entry in grit.values())
    assert {e.task: e.type for e in grit.values()} == {
        t.metadata.name: t.metadata.type for t in tasks
    }


CODE = """
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

class Mine(AbsTaskSTS):
    metadata = TaskMetadata(
        name="MySTS", description="", type="STS", category="t2t", eval_langs=["eng-Latn"],
        main_score="cosine_spearman", dataset={"path": "local/mine", "revision": "1"},
    )

    def load_data(self, **options):
        rows = {"sentence1": ["a", "b", "c d"], "sentence2": ["a", "x y", "c"], "score": [5, 0, 3]}
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True
"""


def test_tasks_of_a_python_file_on_the_command_line(capsys, tmp_path, tiny_model, folders):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.py").write_text(CODE)
    command = f"eval mteb {tmp_path}/model --output {tmp_path}/out --task-files {tmp_path}/mine.py"
    said = run(capsys, f"{command} {folders} --tasks MySTS LocalSTS --json")
    assert said.status == 0, said.err
    assert [task["task"] for task in said.json["tasks"]] == ["MySTS", "LocalSTS"]
    assert said.json["tasks"][0]["instruction"]["query"] == "Retrieve semantically similar text."
    shown = run(capsys, f"{command} --tasks MySTS")
    assert shown.status == 0 and shown.out.startswith("MySTS  cosine_spearman")
    wrong = run(capsys, f"{command} --tasks STSBenchmrk")
    assert wrong.status == 2 and "did you mean STSBenchmark" in wrong.err
    absent = run(capsys, f"{command} --tasks BIOSSES")
    assert absent.status == 2 and "BIOSSES: its data cannot be loaded (offline by" in absent.err
    (tmp_path / "mine.py").write_text("raise ValueError('no')")
    broken = run(capsys, command)
    assert broken.status == 2 and "mine.py: ValueError: no" in broken.err


def test_a_folder_is_a_task_of_mteb(folders):
    task = folder_task(folders / "Retrieval")
    assert task.metadata.main_score == "ndcg_at_10" and not task.data_loaded
    task.load_data()
    assert len(task.dataset["default"]["test"]["corpus"]) == 24


def test_tasks_from_the_documentation(tmp_path, tiny_model):
    """mteb runs every task, and its scores of two types are those of the texts' vectors."""
    folder = tmp_path / "tasks"
    write_mteb_tasks(write_corpus(tmp_path / "corpus"), folder, rows=12)
    scores = evaluate_mteb(tiny_model, "tiny", [], tmp_path / "results", NAMED, task_files=[folder])
    found = {task.task: task for task in scores.tasks}
    assert len(found) == 12 and all(0 <= abs(task.score) <= 1 for task in found.values())
    rows = [json.loads(line) for line in (folder / "PydocsObjectSTS/test.jsonl").open()]
    texts = [[row[key] for row in rows] for key in ("text1", "text2")]
    a, b = (tiny_model.encode(own, SAME_MODULE_PROMPT).astype(np.float64) for own in texts)
    expected = scipy.stats.spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic
    assert abs(found["PydocsObjectSTS"].score - expected) < 1e-6
    corpus, queries = (
        [json.loads(line) for line in (folder / f"PydocsSummaryRetrieval/{name}.jsonl").open()]
        for name in ("corpus", "queries")
    )
    instruction = json.loads((folder / "PydocsSummaryRetrieval/task.json").read_text())["prompt"]
    similarities = (
        tiny_model.encode([row["text"] for row in queries], instruction).astype(np.float64)
        @ tiny_model.encode([row["text"] for row in corpus]).astype(np.float64).T
    )
    number = {row["_id"]: i for i, row in enumerate(corpus)}
    lines = (folder / "PydocsSummaryRetrieval/qrels/test.tsv").read_text().splitlines()[1:]
    own = [number[line.split("\t")[1]] for line in lines]
    expected = np.mean(
        [ndcg(np.argsort(-s).tolist(), frozenset({i}), 10) for s, i in zip(similarities, own)]
    )
    # mteb rounds scores of rankings to 5 decimals.
    assert abs(found["PydocsSummaryRetrieval"].score - round(expected, 5)) < 1e-6
