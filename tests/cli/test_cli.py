"""What the verbs print and write when all is well; with `--json` one object on stdout, and nothing
else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cli_world import good_files, run, write_lines
from report_fixture import made_up_json

import grit_jax.train
from grit_jax import __version__
from grit_jax.cli.main import VERBS
from grit_jax.data.sources import open_source
from grit_jax.inference.files import INT8_LEVELS, read_prompts
from grit_jax.inference.model import GritLM
from grit_jax.models.parameters import num_parameters
from grit_jax.pydocs import corpus as questions

TIMINGS = {"encode_query", "search", "load", "prefill", "decode", "total"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, sentences, tiny_model) -> Path:
    """A model and a good file of each kind."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model.save_pretrained(folder / "model")
    good_files(folder, sentences)
    return folder


@pytest.fixture(autouse=True)
def at_home(world, monkeypatch):
    """Paths in the tests are relative to the world."""
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def texts(sentences) -> list[str]:
    """What stands in texts.txt and texts.jsonl."""
    return sentences[:9]


def test_help_and_version(capsys):
    assert run(capsys, "--version").out == f"grit_jax {__version__}\n"
    said = run(capsys, "--help")
    for verb in VERBS:
        assert verb in said.out
        assert run(capsys, verb, "--help").status == 0


# ---- encode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["texts.txt", "texts.jsonl"])
@pytest.mark.parametrize("dim", [None, 24])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "binary"])
def test_encode(file, dim, precision, capsys, tiny_model, texts, tmp_path):
    output = tmp_path / "vectors"
    command = f"encode model --input {file} --output {output} --precision {precision} --json"
    said = run(capsys, command, *(("--dim", dim) if dim else ()))
    assert said.status == 0
    assert said.json.keys() == {
        "texts",
        "tokens",
        "truncated",
        "seconds",
        "tokens_per_s",
        "dim",
        "precision",
    }
    assert (said.json["texts"], said.json["dim"], said.json["precision"]) == (
        9,
        dim or 48,
        precision,
    )
    wanted = tiny_model.encode(texts)[:, :dim]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = np.load(output)
    assert found.shape == (9, (dim or 48) // 8 if precision == "binary" else dim or 48)
    if precision == "float32":
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    elif precision == "bfloat16":
        np.testing.assert_allclose(
            found.view(ml_dtypes.bfloat16).astype(np.float32), wanted, atol=4e-3
        )
    elif precision == "int8":
        assert found.dtype == np.int8 and (np.abs(found).max(axis=1) == INT8_LEVELS).all()
        cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1)
        assert (cosine > 0.999).all()
    else:
        away = np.abs(wanted) > 1e-5  # from zero, where rounding decides
        assert (np.unpackbits(found, axis=1)[away] == (wanted > 0)[away]).all()
    assert list(tmp_path.iterdir()) == [output]  # nothing beside it, and no suffix added


def test_encode_with_an_instruction_into_a_link(capsys, tiny_model, texts, tmp_path):
    (tmp_path / "old.npy").write_bytes(b"something older")
    (tmp_path / "link.npy").symlink_to(tmp_path / "old.npy")
    how = "--instruction 'Find it' --max-length 20"
    said = run(capsys, f"encode model --input texts.txt --output {tmp_path}/link.npy {how}")
    assert said.status == 0 and said.out.startswith("9 texts to ")
    wanted = tiny_model.encode(texts, "Find it", 20)
    np.testing.assert_allclose(np.load(tmp_path / "old.npy"), wanted, atol=1e-5)
    assert (tmp_path / "link.npy").is_symlink()


def test_texts_are_taken_as_they_are(capsys, tiny_model, tmp_path):
    """A line of a text file is a text, without its line end; those in JSON are kept."""
    (tmp_path / "windows.txt").write_bytes("eins\r\n\r\nzwei ü\r\n".encode())
    (tmp_path / "MAC.TXT").write_bytes(b"eins\rzwei\r")
    write_lines(tmp_path / "ends.jsonl", {"text": "one\n"}, "two\n\n", "")
    for file, wanted in (
        ("windows.txt", ["eins", "", "zwei ü"]),  # row i is line i
        ("MAC.TXT", ["eins", "zwei"]),
        ("ends.jsonl", ["one\n", "two\n\n", ""]),
    ):
        assert (
            run(capsys, f"encode model --input {tmp_path / file} --output {tmp_path}/v.npy").status
            == 0
        )
        np.testing.assert_allclose(
            np.load(tmp_path / "v.npy"), tiny_model.encode(wanted), atol=1e-5
        )


# ---- generate ------------------------------------------------------------------------------------


def test_generate(capsys, tiny_model):
    prompts = read_prompts(Path("prompts.jsonl"))
    wanted = tiny_model.generate(prompts, max_new_tokens=5)
    command = "generate model --input prompts.jsonl --max-new-tokens 5"
    generations = [{"prompt": p, "text": t} for p, t in zip(prompts, wanted, strict=True)]
    assert run(capsys, f"{command} --json").json == {"generations": generations}
    said = run(capsys, command)
    assert (said.status, said.out, said.err) == (0, "\n---\n".join(wanted) + "\n", "")
    alone = [tiny_model.generate([prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert run(capsys, f"{command} --stream").out == "\n---\n".join(alone) + "\n"


def test_generate_one_prompt(capsys, tiny_model):
    command = "generate model --prompt 'Quiet engine' --max-new-tokens 5"
    [text] = tiny_model.generate("Quiet engine", max_new_tokens=5)
    assert run(capsys, command).out == text + "\n" == run(capsys, f"{command} --stream").out
    said = run(capsys, f"{command} --stream --json")
    assert said.json == {"generations": [{"prompt": "Quiet engine", "text": text}]}
    [wanted] = tiny_model.generate("Quiet engine", 5, 1.5, 0.9, 40, 3)
    said = run(capsys, f"{command} --temperature 1.5 --top-p 0.9 --top-k 40 --seed 3 --json")
    assert said.json["generations"][0]["text"] == wanted


# ---- index and ask -------------------------------------------------------------------------------


def test_index_and_ask(capsys, texts, tmp_path):
    index = f"index model --input corpus.jsonl --output {tmp_path}/index"
    made = run(capsys, f"{index} --json").json
    assert (made["documents"], made["encoded"], made["skipped"], made["kv"]) == (9, 9, 0, "native")
    assert made["bytes_kv"] > 0 and made["vectors"] == "exact"
    again = run(capsys, index).out
    assert (
        again.startswith("9 documents (0 tokens encoded in ") and "9 were indexed before" in again
    )

    ask = f"ask model --index {tmp_path}/index '{texts[4]}' --max-new-tokens 4"
    said = run(capsys, f"{ask} --mode doc --k 2 --json")
    assert said.json.keys() >= {"answer", "documents", "mode", "timings"} and said.err == ""
    assert [document.keys() for document in said.json["documents"]] == [{"id", "score"}] * 2
    first, second = said.json["documents"]
    assert first["id"] == "d4" and first["score"] > second["score"]
    assert said.json["mode"] == "doc" and said.json["timings"].keys() == TIMINGS
    assert all(seconds >= 0 for seconds in said.json["timings"].values())
    fewer = run(
        capsys, f"{ask} --mode doc --k 2 --search-precision int8 --search-dim 24 --json"
    ).json
    assert [document["id"] for document in fewer["documents"]] == [first["id"], second["id"]]
    assert fewer["documents"][0]["score"] == pytest.approx(first["score"], abs=2e-6)
    none = run(capsys, f"{ask} --mode none --json").json
    assert (none["documents"], none["mode"], none["timings"].keys()) == ([], "none", TIMINGS)
    auto = run(capsys, f"{ask} --json").json
    assert auto["mode"] not in ("auto", "none") and len(auto["documents"]) == 1  # the one used
    assert f"[{auto['mode']}, " in run(capsys, ask).out

    # Records that are gone are computed, with a warning; the answer is the same.
    for file in (tmp_path / "index" / "kv").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * file.stat().st_size)
    lost = run(capsys, f"{ask} --mode doc --k 2 --json")
    assert lost.json["answer"] == said.json["answer"] and "warning: document 'd4'" in lost.err
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    (tmp_path / "index" / "index.json").write_text(json.dumps({**manifest, "complete": False}))
    unfinished = run(capsys, f"{ask} --mode none")
    assert (
        unfinished.status == 0 and "warning" in unfinished.err and "not finished" in unfinished.err
    )


def test_an_index_that_is_compressed_elsewhere_and_kept_up_to_date(capsys, texts, tmp_path):
    index = f"--output {tmp_path}/index --kv int4 --store {tmp_path}/records --json"
    made = run(capsys, f"index model --input corpus.jsonl {index}").json
    assert (
        made["kv"] == "int4"
        and 0 < made["kv_ratio"] < 0.5
        and not (tmp_path / "index" / "kv").exists()
    )
    ask = f"ask model --index {tmp_path}/index '{texts[4]}' --max-new-tokens 4 --mode doc --json"
    said = run(capsys, ask)
    assert said.json["documents"][0]["id"] == "d4" and said.err == ""
    rows = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    rows = [
        {**row, "text": row["text"] + " Indeed."} if row["id"] == "d4" else row
        for row in rows
        if row["id"] != "d0"
    ]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = run(capsys, f"index model --input {tmp_path}/new.jsonl {index}")
    assert again.status == 2 and "--update" in again.err
    again = run(
        capsys, f"index model --input {tmp_path}/new.jsonl {index} --update --delete-missing"
    ).json
    assert [again[name] for name in ("documents", "encoded", "replaced", "deleted")] == [8, 1, 1, 1]
    assert run(capsys, ask).json["documents"][0]["id"] == "d4"


def test_an_index_without_records(capsys, tmp_path):
    made = run(
        capsys, f"index model --input corpus.jsonl --output {tmp_path}/index --kv none --json"
    )
    assert made.json["bytes_kv"] == 0
    said = run(
        capsys, f"ask model --index {tmp_path}/index Who? --mode doc --max-new-tokens 4 --json"
    )
    assert said.json["mode"] == "doc" and "warning" in said.err and "--kv none" in said.err


# ---- eval ----------------------------------------------------------------------------------------


def test_eval(capsys):
    found = run(capsys, "eval retrieval model --input embedding.jsonl --json").json
    assert found.keys() == {"model", "bm25"}
    assert found["model"].pop("truncated") == 0
    for scores in found.values():
        assert scores.keys() == {"recall@1", "recall@10", "ndcg@10"}
        assert all(0 <= score <= 1 for score in scores.values())
    found = run(capsys, "eval perplexity model --input generative.jsonl --json").json
    assert found.keys() == {"perplexity", "truncated"} and found["perplexity"] > 1
    rag = "eval rag model --input rag.jsonl --modes none --max-new-tokens 2"
    found = run(capsys, f"{rag} --json").json
    assert found.keys() == {"none"} and found["none"].keys() == {
        "match",
        "exact_match",
        "f1",
        "seconds",
        "truncated",
    }
    shown = run(capsys, rag).out
    assert shown.startswith("none  ") and "match 0." in shown and len(shown.splitlines()) == 1


def test_eval_rag_in_one_table(capsys, tmp_path):
    rag = (
        "eval rag model --input rag.jsonl --modes none doc --max-new-tokens 2 --k 2 --kv"
        " native,int8"
    )
    said = run(capsys, f"{rag} --json --output {tmp_path}/table --corpus corpus.jsonl")
    found = said.json
    assert said.status == 0 and (found["questions"], found["corpus"], found["seed"]) == (3, 9, 0)
    assert [(row["mode"], row["k"], row["kv"], row["positions"]) for row in found["rows"]] == [
        ("none", None, None, None),
        ("doc", 2, "native", "running"),
        ("doc", 2, "int8", "running"),
    ]
    assert json.loads((tmp_path / "table/rag.json").read_text()) == found
    assert len((tmp_path / "table/table.md").read_text().splitlines()) == 2 + 3 + 2


def test_distractors(capsys, tmp_path):
    out = tmp_path / "several.jsonl"
    said = run(
        capsys, f"data distractors --input rag.jsonl --corpus corpus.jsonl --k 2,3 --output {out}"
    )
    assert said.status == 0 and said.out == f"3 rows in {out}\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["docs"]) for row in rows] == [2, 3, 2]


def test_repeats(capsys, tmp_path):
    out = tmp_path / "repeats.jsonl"
    write_lines(
        tmp_path / "long.jsonl",
        {"id": "1", "title": "Counting", "text": " ".join(map(str, range(20)))},
    )
    said = run(capsys, f"data repeats --input {tmp_path}/long.jsonl --rows 5 --output {out}")
    assert (
        said.status == 0
        and said.out == f"5 rows in {out}\n"
        and len(out.read_text().splitlines()) == 5
    )


# ---- train, import, export, data -----------------------------------------------------------------


def test_train_and_export(capsys, tmp_path, monkeypatch):
    write_lines(
        tmp_path / "half.jsonl",
        {"text": ["a", "b"]},
        {"text": 5},
        {"text": ["a", ""]},
        {"query": "a", "pos": ["b"]},
        {"text": ["long " * 99, "b"]},
        {"text": ["c", "d"]},
    )
    with (tmp_path / "half.jsonl").open("a") as file:
        file.write('{"text": ["a"\n')
    run_folder, steps = tmp_path / "run", "metrics.jsonl"
    train = (
        f"train run.yaml --output {run_folder} --data.on_error skip "
        f"--data.generative '[generative.jsonl, {tmp_path}/half.jsonl]'"
    )
    said = run(capsys, train)
    assert (
        said.out == f"2 steps done; model in {run_folder}/model, metrics in {run_folder}/{steps}\n"
    )
    reasons = {
        "skipped": {
            "\"text\" must be a string, got int ('5')": 1,
            "turn 2 is empty": 1,
            "an embedding example in a generative file": 1,
            "not valid JSON: Expecting ',' delimiter at column 14": 1,
        },
        "filtered": {"the first user turn fills generative_max_length (64)": 1},
    }
    counts = "; ".join(f"{count} {why}" for part in reasons.values() for why, count in part.items())
    assert [line for line in said.lines if "half.jsonl" in line] == [
        f"{tmp_path}/half.jsonl: 2 of 7 generative examples; {counts}"
    ]
    half = json.loads((run_folder / "data_summary.json").read_text())[1]
    assert (half["examples"], half["used"], half["not_sampled"]) == (7, 2, 0)
    assert {key: half[key] for key in reasons} == reasons
    assert [json.loads(line)["step"] for line in (run_folder / steps).read_text().splitlines()] == [
        0,
        1,
    ]
    said = run(capsys, train)
    assert (said.status, said.out) == (
        0,
        f"finished before: 2 steps; model in {run_folder}/model\n",
    )

    said = run(capsys, f"export {run_folder} {tmp_path}/out")
    assert said.out == f"step 2 of {run_folder} -> {tmp_path}/out\n"
    exported = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert exported == (run_folder / "model" / "model.safetensors").read_bytes()
    assert run(capsys, f"export {run_folder} {tmp_path}/out").status == 2  # never over something

    # Killed on the way to more steps, a run does not pass the model of fewer for its own.
    def interrupted(*_, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grit_jax.train, "run_loop", interrupted)
        assert run(capsys, f"{train} --train.steps 3").status == 130
    assert not (run_folder / "model" / "grit.json").exists()


def test_import_there_and_back(capsys, tiny_model, texts, tmp_path):
    said = run(capsys, f"import model {tmp_path}/same")
    assert (
        said.out
        == f"model -> {tmp_path}/same: mistral, {num_parameters(tiny_model.config):,} parameters\n"
    )
    wanted = tiny_model.encode(texts)
    np.testing.assert_array_equal(GritLM.from_pretrained(tmp_path / "same").encode(texts), wanted)
    (tmp_path / "half").mkdir()  # an empty folder will do
    assert run(capsys, f"import {tmp_path}/same {tmp_path}/half --dtype bfloat16").status == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("same", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    cosine = (GritLM.from_pretrained(tmp_path / "half").encode(texts) * wanted).sum(axis=1)
    assert (cosine > 0.99).all()
    assert {path.name for path in tmp_path.iterdir()} == {"same", "half"}


def test_data(capsys, tmp_path, monkeypatch):
    said = run(capsys, f"data prepare embedding.jsonl embedding.jsonl --output {tmp_path}/set")
    assert said.status == 2 and "embedding.jsonl is listed twice; list it once" in said.err
    shutil.copy("embedding.jsonl", tmp_path / "copy.jsonl")
    said = run(
        capsys, f"data prepare embedding.jsonl {tmp_path}/copy.jsonl --output {tmp_path}/set"
    )
    assert "hold the same 8 lines" in said.err
    assert said.out == f"16 embedding examples in {tmp_path}/set\n"
    assert len(open_source(tmp_path / "set")) == 16

    write = questions.write_corpus
    few = {"packages": ["json", "argparse", "logging"], "progress": False}
    monkeypatch.setattr(
        questions, "write_corpus", lambda out, seed, **more: write(out, seed, **more, **few)
    )
    said = run(capsys, f"data pydocs --output {tmp_path}/corpus --seed 4 --documents 40")
    first, *files = said.out.splitlines()
    assert first.startswith("40 documents: ") and first.endswith(" held out")
    for line in files:
        name, count = line.strip().removesuffix(" lines").split(": ")
        assert len(Path(name).read_text().splitlines()) == int(count)
    assert len(files) == 11


def test_a_finished_quickstart_is_reported(capsys, tmp_path):
    report = made_up_json()
    (tmp_path / "quickstart.json").write_text('{"seed": 0, "from_scratch": false}')
    (tmp_path / "report.json").write_text(json.dumps(report))
    said = run(capsys, f"quickstart --out {tmp_path} --json")
    assert said.json == json.loads(json.dumps(report)) and "reporting it" in said.err
    assert "untrained" in run(capsys, f"quickstart --out {tmp_path}").out
