"""The fake cloud as fixtures; see fake_cloud."""

from __future__ import annotations

import shutil
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cloud import HERE, LAUNCH, Cloud, end_run, program

sys.path.insert(0, str(LAUNCH))


@pytest.fixture
def cloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Cloud]:
    """An empty cloud: no slice, an empty bucket."""
    root, programs = tmp_path / "cloud", tmp_path / "bin"
    (root / "buckets" / "bucket").mkdir(parents=True)
    python = f"{sys.executable} -SE"
    program(programs / "gcloud", f"#!{python}\n{(HERE / 'fake_gcloud').read_text()}")
    # On a machine: pip brings uv, uv makes a venv, and the venv has grit.
    program(
        programs / "python3",
        '#!/bin/sh\ncase "$*" in\n  "-m pip "*) mkdir -p "$HOME/grit/uv/bin"; cp'
        f' {programs / "uv-to-install"} "$HOME/grit/uv/bin/uv" ;;\n  *) exec {sys.executable} -S'
        ' "$@" ;;\nesac\n',
    )
    program(programs / "grit-to-install", f"#!{python}\n{(HERE / 'fake_grit').read_text()}")
    program(
        programs / "uv-to-install",
        "#!/bin/sh\nfor last; do :; done\n"
        f'if [ "$1" = venv ]; then mkdir -p "$last/bin"; cp {programs / "grit-to-install"}'
        ' "$last/bin/grit"; fi\n',
    )
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_CLOUD", str(root))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("GRIT_SYNC_SECONDS", "0.1")
    for name in ("GRIT_HOME", "CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    yield Cloud(root, capfd)
    for home in root.glob("vm*/w*/grit"):
        end_run(home)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def light(monkeypatch):
    """A checkout that is packed at once: what the machines of this cloud need of it."""
    monkeypatch.setattr("machine.SHIPPED", ("launch",))


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were asked for, none of them made."""
    asked: list[float] = []
    monkeypatch.setattr(
        "watch.time", types.SimpleNamespace(sleep=asked.append, monotonic=time.monotonic)
    )
    return asked


@pytest.fixture
def clock(pauses, monkeypatch):
    """The pauses, and a clock that they alone move."""
    monkeypatch.setattr("watch.time.monotonic", lambda: float(sum(pauses)))
    return pauses


@pytest.fixture
def played(cloud, pauses, light, monkeypatch):
    """A cloud that answers at once, in this process."""
    cloud.answer_here(monkeypatch)
    return cloud
