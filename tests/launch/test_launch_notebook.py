"""The notebook: its cells run one after the other as a person runs them, on a CPU and with smaller
sizes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest
from fake_cloud import LAUNCH, REPOSITORY

NOTEBOOK = LAUNCH / "colab.ipynb"
# In a process of its own: the code cells in order, and after the parameters those of the test.
RUNNER = """
import importlib.util, json, sys
notebook, sizes, facts = sys.argv[1:]
space = {"__name__": "__main__"}
for cell in json.load(open(notebook, encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            unknown = json.loads(sizes).keys() - space.keys()
            assert not unknown, unknown
            space.update(json.loads(sizes))
        if cell["id"] == "client":  # once more as where the library is absent
            names = ("embedded", "chat", "over_documents")
            replies = [{name: space[name] for name in names}]
            find_spec = importlib.util.find_spec
            importlib.util.find_spec = lambda name: None if name == "openai" else find_spec(name)
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
            importlib.util.find_spec = find_spec
            replies.append({name: space[name] for name in names})
            url, similarity = space["server"].url, float(space["served"] @ space["queries"][0])
answer = space["answer"]
json.dump({
    "package": space["grit_jax"].__file__, "losses": space["losses"], "before": space["before"], "after": space["after"],
    "similarities": (space["queries"] @ space["documents"].T).tolist(), "mode": answer.mode, "answer": answer.answer,
    "found": answer.documents, "model": str(space["result"].model.resolve()),
    "replies": replies, "url": url, "similarity": similarity,
}, open(facts, "w"))
"""


KINDS = ("chat", "over_documents")


def code_cells() -> dict[str, dict]:
    return {
        cell["id"]: cell
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == "code"
    }


def test_its_form():
    """What Colab and Jupyter want (nbformat 4.5), no output of anybody's run, and plain Python in
    every cell."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert (
        notebook["metadata"]["accelerator"] == "TPU"
        and notebook["metadata"]["colab"]["gpuType"] == "V5E1"
    )
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert isinstance(cell["source"], list) and isinstance(cell["metadata"], dict)
    for cell in code_cells().values():
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    assert [
        name
        for name, cell in code_cells().items()
        if "parameters" in cell["metadata"].get("tags", ())
    ] == ["parameters"]


@pytest.mark.parametrize(
    "devices, driver, wanted",
    [
        ("tpu", "", ["grit-jax[tpu,serve] @ file:///x/grit.tar.gz"]),
        ("gpu", "580.65.06", ["grit-jax[cuda,serve] @ file:///x/grit.tar.gz"]),
        ("gpu", "550.54.15", ["grit-jax[serve] @ file:///x/grit.tar.gz", "jax[cuda12]"]),
        ("none", "", ["grit-jax[serve] @ file:///x/grit.tar.gz"]),
    ],
)
def test_it_installs_what_the_accelerator_needs(monkeypatch, devices, driver, wanted):
    # NVIDIA's newer drivers have a /dev/accel*, too
    monkeypatch.setattr(
        "glob.glob",
        lambda pattern: ["/dev/accel0"] if devices != "none" and "accel" in pattern else [],
    )

    def run(command, **how):
        if command[0] == "nvidia-smi" and devices == "gpu":
            return subprocess.CompletedProcess(command, 0, f"{driver}\n")
        raise FileNotFoundError(command[0])

    monkeypatch.setattr("subprocess.run", run)
    source = "".join(code_cells()["install"]["source"])
    space = {"SOURCE": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # it is there already
    exec(compile(source, "install", "exec"), space)
    assert space["requirements"]("/x/grit.tar.gz") == wanted
    assert space["requirements"]("git+https://host/grit")[0].endswith(" @ git+https://host/grit")


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path):
    """Installed from an archive as a person uploads it, with the shipped base as the model to
    import."""
    archive = tmp_path / "grit.tar.gz"
    files = ["pyproject.toml", "README.md", "LICENSE", "grit_jax"]
    subprocess.run(
        [
            "tar",
            "-czf",
            archive,
            "--exclude=__pycache__",
            "--transform=s,^,grit/,",
            "-C",
            REPOSITORY,
            *files,
        ],
        check=True,
    )
    sizes = {
        "MODEL": str(REPOSITORY / "grit_jax" / "quickstart" / "base_model"),
        "PACKAGES": ["optax", "grain"],
        "DOCUMENTS": 150,
        "STEPS": 4,
        "PAIRS": 4,
        "TEXTS": 2,
        "CHUNK": 4,
        "MAX_LENGTH": 96,
        "RANK": 2,
        "ALPHA": 4,
        "INDEXED": 8,
        "QUESTIONS": 1,
        "SLOTS": 2,
        "CONTEXT": 256,
        "WARM_UP": False,
        "NEED_ACCELERATOR": False,
        "SOURCE": str(archive),
    }
    # An environment as Colab's: it has the libraries, here those of this one, and pip, but not the
    # package.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (site / "libraries.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    where = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")
    }
    where |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    (tmp_path / "run.py").write_text(RUNNER)
    command = [
        tmp_path / "venv/bin/python",
        tmp_path / "run.py",
        NOTEBOOK,
        json.dumps(sizes),
        tmp_path / "facts.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=where)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert Path(facts["package"]).is_relative_to(site)
    assert len(facts["losses"]) == 4 and all(0 < loss < 100 for loss in facts["losses"])
    assert facts["before"].keys() == facts["after"].keys() == {"recall@1", "recall@10", "ndcg@10"}
    assert (
        facts["before"]["ndcg@10"] > 0.6
    )  # the shipped base has learned to search: it was imported whole
    assert (
        facts["similarities"][0][0] > facts["similarities"][0][1]
        and facts["similarities"][1][1] > facts["similarities"][1][0]
    )
    assert facts["mode"] == "doc" and facts["found"][0]["id"] in {str(n) for n in range(8)}
    assert "(query-then-doc, document " in done.stdout and "(doc, document " in done.stdout
    # The server: the vectors of encode, an answer, and one that begins with documents' caches; with
    # OpenAI's client and without.
    assert facts["similarity"] > 0.999 and "the server has ended" in done.stdout
    with pytest.raises(OSError):
        urllib.request.urlopen(facts["url"] + "/health")
    texts = []
    for reply in facts["replies"]:
        answers = [reply[name]["choices"][0]["message"]["content"] for name in KINDS]
        assert all(answers) and reply["over_documents"]["grit"]["mode"] == "doc"
        usage = reply["over_documents"]["usage"]
        assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
        texts.append((answers, reply["embedded"]["data"][0]["embedding"]))
    assert texts[0] == texts[1]
    weights = {path.suffix for path in Path(facts["model"]).iterdir()}
    assert {".safetensors", ".json"} <= weights
