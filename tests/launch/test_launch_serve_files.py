"""Files for other tools that start a server: the manifest for GKE, the image, SkyPilot's service,
Slurm."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerators import accelerator
from fake_cloud import LAUNCH

from grit_jax.runtime.chips import CHIPS, SHAPES

# What GKE calls the machines of a generation (cloud.google.com/kubernetes-engine/docs/concepts/tpus).
GKE_NAMES = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}


def grit_arguments(words: list[str]) -> Any:
    """How `grit` understands `serve` with these words."""
    from grit_jax.cli.main import build_parser

    args, rest = build_parser().parse_known_args(["serve", *words])
    assert not rest, rest
    return args


def started_with(words: list[str], tmp_path: Path, monkeypatch) -> list[str]:
    """The words of `grit serve` that `worker.py serve WORDS` starts."""
    monkeypatch.setenv("GRIT_HOME", str(tmp_path))
    at = words.index("--") if "--" in words else len(words)
    command = [sys.executable, "-S", str(LAUNCH / "worker.py"), "serve", *words[:at], "--dry-run"]
    done = subprocess.run([*command, *words[at:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = shlex.split(done.stdout.splitlines()[-1])
    assert said[0].endswith("grit") and said[1] == "serve"
    return said[2:]


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The objects of serve.yaml by kind."""
    objects = list(yaml.safe_load_all((LAUNCH / "serve.yaml").read_text()))
    assert len({each["kind"] for each in objects}) == len(objects)
    return {each["kind"]: each for each in objects}


@pytest.fixture
def pod(manifest) -> dict[str, Any]:
    return manifest["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def test_the_manifest_selects_its_pods(manifest, container):
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitoring"):
        assert manifest[kind]["spec"]["selector"] == {"matchLabels": labels}, kind
    assert manifest["Service"]["spec"]["selector"] == labels
    (port,) = container["ports"]
    (served,) = manifest["Service"]["spec"]["ports"]
    (scraped,) = manifest["PodMonitoring"]["spec"]["endpoints"]
    assert port["name"] == served["targetPort"] == scraped["port"]
    assert scraped["path"] == "/metrics"
    account = manifest["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == manifest["ServiceAccount"]["metadata"]["name"]


def test_the_manifest_starts_a_server_that_others_reach(container, pod, tmp_path, monkeypatch):
    args = grit_arguments(started_with(container["args"], tmp_path, monkeypatch))
    (port,) = container["ports"]
    assert (args.host, args.port) == ("0.0.0.0", port["containerPort"])
    assert args.name == "grit" and args.indices[0].startswith("docs=/")
    # Keys: a file of the Secret, which the image's user may read.
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    (item,) = volume["secret"]["items"]
    assert mount["name"] == volume["name"] and mount["readOnly"] is True
    assert str(args.api_keys) == f"{mount['mountPath']}/{item['path']}"
    assert volume["secret"]["defaultMode"] == 0o440 and pod["securityContext"] == {"fsGroup": 1000}
    assert "--uid 1000 grit" in (LAUNCH / "Dockerfile").read_text()


def test_the_keys_are_those_that_the_comment_makes(manifest, pod):
    (command,) = re.findall(
        r"kubectl create secret generic (\S+) (.*?) +\(", (LAUNCH / "serve.yaml").read_text()
    )
    name, entries = command[0], set(re.findall(r"--from-\w+=(\w+)=", command[1]))
    (endpoint,) = manifest["PodMonitoring"]["spec"]["endpoints"]
    scraper = endpoint["authorization"]["credentials"]["secret"]
    (volume,) = pod["volumes"]
    assert volume["secret"]["secretName"] == scraper["name"] == name
    assert {volume["secret"]["items"][0]["key"], scraper["key"]} == entries


def test_the_probes_ask_what_needs_no_key(container):
    from grit_jax.serving.app import OPEN_PATHS

    paths = {
        name: container[name]["httpGet"]["path"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {
        "startupProbe": "/health",
        "readinessProbe": "/ready",
        "livenessProbe": "/health",
    }
    assert set(paths.values()) <= set(OPEN_PATHS) and "/metrics" not in OPEN_PATHS
    assert all(container[name]["httpGet"]["port"] == "http" for name in paths)
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_the_pod_is_given_the_time_to_drain(container, pod):
    """Kubernetes counts preStop and what follows SIGTERM together."""
    (grace,) = [int(arg.removeprefix("--grace=")) for arg in container["args"] if "--grace" in arg]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    ready = container["readinessProbe"]
    assert int(command[1]) >= ready["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] >= int(command[1]) + grace + 10


def test_the_manifest_and_the_table_name_machines_that_there_are(container, pod):
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| `(tpu-\S+)` \| `([0-9x]+)` \| (\d+) \|$",
        (LAUNCH / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) >= 6
    for name, gke, topology, chips in rows:
        slice_ = accelerator(name)
        family = name.rpartition("-")[0]
        shape = tuple(map(int, topology.split("x")))
        (axes,) = {chip.axes for chip in CHIPS.values() if chip.accelerator == family}
        assert gke == GKE_NAMES[family] and shape in SHAPES[axes]
        assert slice_.chips == int(chips) and slice_.hosts_on_gke == 1
        (chip,) = [chip for chip in CHIPS.values() if chip.accelerator == family]
        assert chip.accelerator_type(shape) == name
    selector = pod["nodeSelector"]
    chosen = (
        selector["cloud.google.com/gke-tpu-accelerator"],
        selector["cloud.google.com/gke-tpu-topology"],
    )
    resources = container["resources"]
    assert resources["requests"]["google.com/tpu"] == resources["limits"]["google.com/tpu"]
    assert (*chosen, resources["limits"]["google.com/tpu"]) in [row[1:] for row in rows]


# ---- the image -----------------------------------------------------------------------------------


def test_the_image_that_serves():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    names = [stage.splitlines()[0] for stage in stages]
    assert names == ["python:3.11-slim-bookworm AS package", "package AS serve", "package"]
    steps = [line.split(maxsplit=1) for line in stages[1].splitlines()[1:] if line[:1].isupper()]
    serve = dict(steps)
    entry = json.loads(serve["ENTRYPOINT"])
    assert entry == ["python3", "/opt/grit/launch/worker.py", "serve"]
    check = json.loads(serve["HEALTHCHECK"].partition("CMD ")[2])
    assert check == [*entry[:2], "healthy"] and "--start-period=30m" in serve["HEALTHCHECK"]
    assert serve["EXPOSE"] == "8000"
    assert set(serve) == {"EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}  # root is not needed any more
    # What is built without --target is the package, as every other way of launching takes it.
    assert stages[2].splitlines()[1:] == ['CMD ["grit", "--help"]']
    assert text.count("gcs,serve") == 2


# ---- SkyPilot and Slurm --------------------------------------------------------------------------


def test_the_skypilot_service(tmp_path, monkeypatch):
    task = yaml.safe_load((LAUNCH / "sky_serve.yaml").read_text())
    resources, service = task["resources"], task["service"]
    slice_ = accelerator(resources["accelerators"].removeprefix("tpu-"))
    assert slice_.hosts == 1 and slice_.image == resources["accelerator_args"]["runtime_version"]
    assert service["readiness_probe"]["path"] == "/ready" and service["replicas"] >= 1
    where = {"MODEL": "gs://b/model", "KEYS": "gs://b/keys", "FLAGS": "--index docs=gs://b/index"}
    assert set(where) == set(task["envs"])
    line = f"printf '%s\\n' {task['run'].removeprefix('python3 launch/worker.py serve ')}"
    words = subprocess.run(["bash", "-c", line], env=where, capture_output=True, text=True).stdout
    args = grit_arguments(started_with(words.splitlines(), tmp_path, monkeypatch))
    assert (args.host, args.port) == ("0.0.0.0", resources["ports"])
    assert args.api_keys.name == "b_keys" and args.indices[0].startswith("docs=/")


def test_slurm_gives_a_server_one_process_on_one_node(tmp_path):
    (tmp_path / "grit_jax").mkdir()
    where = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = [LAUNCH / "slurm.sh", "--dry-run", "serve", "model", "--port", "8000"]
    done = subprocess.run(command, env=where, capture_output=True, text=True)
    assert "srun --nodes=1 --ntasks=1 --gpu-bind=none " in done.stdout, done.stderr
    where["SLURM_JOB_NUM_NODES"] = "2"
    done = subprocess.run(command, env=where, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "slurm.sh: a server runs on one node, and the job has 2\n"
