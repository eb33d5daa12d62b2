"""The quickstart of a pretrained model: what a name stands for, its commands, and a whole run of a
tiny one."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from grit_jax.cli.main import build_parser
from grit_jax.errors import GritError
from grit_jax.models.hf import sources
from grit_jax.models.hf.sources import ADAPTED
from grit_jax.quickstart import pretrained
from grit_jax.quickstart.report import PretrainedReport
from grit_jax.quickstart.settings import PretrainedSettings, QuickstartSettings
from grit_jax.rag.index import Index
from grit_jax.run_config import read_run_config
from grit_jax.runtime.files import write_json, write_jsonl
from grit_jax.text.rag_layouts import MODES


def write_corpus(data: Path, sentences: list[str], model_questions: int = 20) -> None:
    """A finished corpus of a few lines, as `prepare_corpus` leaves it."""
    documents = [
        {"id": f"pkg.f{i}", "title": f"pkg.f{i}", "text": s} for i, s in enumerate(sentences[:60])
    ]
    embedding = [
        {"query": ["find it", s[:20]], "pos": [["", s]], "neg": [["", t]]}
        for s, t in zip(sentences[:30], sentences[30:60], strict=True)
    ]
    files = {
        "embedding": embedding,
        "generative": [{"text": [f"Write {d['id']}.", d["text"]]} for d in documents],
        "rag": [
            {
                "docs": [f"{d['title']} {d['text']}"],
                "text": [f"What does `{d['id']}` begin with?", d["text"].split()[0]],
            }
            for d in documents[:model_questions]
        ],
        "documents": documents,
    }
    for folder in ("heldout", "heldout_packages", "train"):
        (data / folder).mkdir(parents=True)
        for name, rows in files.items():
            write_jsonl(data / folder / f"{name}.jsonl", rows)
    for name in ("embedding_summary", "embedding_question"):
        write_jsonl(data / "train" / f"{name}.jsonl", embedding)
    corpus = {"documents": 120, "train": 60, "held_out": 60, "dropped": 0, "rows": {}}
    write_json(data / "corpus.json", corpus | {"skipped_files": 0, "missing_packages": []})


def test_a_base_stands_for_the_model_with_its_adapter(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "ADAPTERS", tmp_path / "adapters")
    assert pretrained.model_of("smollm2") == "smollm2"
    assert "smollm2: without the adapter of smollm2-grit" in capsys.readouterr().err
    folder = tmp_path / "adapters" / ADAPTED["smollm2-grit"].folder
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("")
    assert pretrained.model_of("smollm2") == "smollm2-grit" == pretrained.model_of("smollm2-grit")
    (tmp_path / "smollm2").mkdir()  # a folder comes first
    assert pretrained.model_of("smollm2") == "smollm2"
    assert pretrained.model_of("org/model") == "org/model" and not capsys.readouterr().err


def test_the_printed_commands_can_be_typed(tmp_path):
    settings = PretrainedSettings("m", seed=3, documents=50, steps=2)
    commands = pretrained._commands(Path("q"), "m", "why?", settings)
    assert commands[0] == (
        "grit data pydocs --output q/data --seed 3 --documents 50 --characters 600 --sentences"
    )
    assert "grit eval perplexity q/model --input q/scored/language.jsonl" in commands
    parser = build_parser()
    for command in commands:
        parser.parse_args(shlex.split(command)[1:] if "train" not in command else ["train", "x"])
    plain = pretrained._commands(Path("q"), "m", "why?", PretrainedSettings("m"))
    assert "grit eval perplexity m --input q/scored/language.jsonl" in plain
    assert not any("train" in command for command in plain)


def test_a_folder_of_the_other_quickstart_is_refused(tmp_path):
    pretrained.claim(tmp_path / "base", PretrainedSettings("smollm2"))
    with pytest.raises(GritError, match="with --base smollm2, not without --base"):
        pretrained.claim(tmp_path / "base", QuickstartSettings())
    pretrained.claim(tmp_path / "plain", QuickstartSettings())
    with pytest.raises(GritError, match="without --base, not with --base smollm2"):
        pretrained.claim(tmp_path / "plain", PretrainedSettings("smollm2"))


def test_what_is_no_model_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(GritError, match="model not found: no such directory"):
        pretrained.run_pretrained(tmp_path / "out", PretrainedSettings("./none"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # half a minute: every layout compiles for two batch shapes
def test_a_whole_run_and_a_short_training(tiny_model, sentences, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "model")
    write_corpus(tmp_path / "out" / "data", sentences)
    monkeypatch.setattr(pretrained, "ANSWER_TOKENS", 8)
    settings = PretrainedSettings(str(tmp_path / "model"), steps=2)
    write_json(tmp_path / "out" / "quickstart.json", {"base": settings.base, "steps": 2})
    report = pretrained.run_pretrained(tmp_path / "out", settings)
    assert set(report.rag) == set(MODES) and set(report.rag_retrieved) == {"doc-then-query", "doc"}
    assert report.training.steps == 2 and report.retrieval.keys() == {"names", "packages"}
    search = report.retrieval["names"]
    assert (search.queries, search.queries_all, search.pool) == (30, 30, 60)
    assert search.before is not None and search.bm25["recall@10"] > 0.9
    assert report.language.base is None and report.language.before != report.language.model
    assert (report.rag_questions, report.rag_questions_all) == (20, 20)
    assert report.index["documents"] == 60 == report.documents_all and len(report.samples) == 4
    for name in ("report.html", "train.yaml", "model/config.json", "scored/names.jsonl"):
        assert (tmp_path / "out" / name).is_file(), name
    config = read_run_config(tmp_path / "out" / "train.yaml")
    assert config.lora is not None and config.model.path == str(tmp_path / "model")
    model = pretrained.GritLM.from_pretrained(tmp_path / "out" / "model")
    assert len(Index.open(tmp_path / "out" / "index", model).documents.rows) == 60
    # A finished folder is reported, not redone.
    monkeypatch.setattr(pretrained, "build_index", None)
    assert pretrained.run_pretrained(tmp_path / "out", settings) == report
    assert PretrainedReport.read(tmp_path / "out" / "report.json") == report
