"""Uploaded files in their folder: what is on disk after a restart."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.serving.errors import ApiError
from grit_jax.serving.file_folder import Attachment, FileFolder


def test_files_outlast_the_process(tmp_path):
    folder = FileFolder(tmp_path / "files")
    first, second = (
        folder.add("a.txt", "assistants", b"one"),
        folder.add("b.txt", "user_data", b"two"),
    )
    first.stores["docs"] = Attachment(5, {"year": 2020}, 40, 8)
    folder.save(first)
    # Half written, or half deleted, by a process that was killed.
    (folder.path / "file-half").mkdir()
    (folder.path / "file-half" / "content").write_bytes(b"x")
    folder.close()
    again = FileFolder(tmp_path / "files")
    assert again.files() == sorted([first, second], key=lambda file: file.id)
    assert again.content(second.id) == b"two" and again.get(first.id) == first
    assert again.attachments("docs") == {first.id: Attachment(5, {"year": 2020}, 40, 8)}
    assert not (again.path / "file-half").exists()
    again.remove(first.id)
    again.close()
    last = FileFolder(tmp_path / "files")
    assert last.files() == [second] and last.attachments("docs") == {}
    with pytest.raises(ApiError, match="there is no uploaded file"):
        last.content(first.id)
    last.close()


def test_one_server_at_a_time(tmp_path):
    folder = FileFolder(tmp_path)
    with pytest.raises(GritError, match="another grit serve is writing here"):
        FileFolder(tmp_path)
    folder.close()
    FileFolder(tmp_path).close()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GritError, match="--files .*/file: cannot be written"):
        FileFolder(tmp_path / "file")
    (tmp_path / "d" / "file-1").mkdir(parents=True)
    (tmp_path / "d" / "file-1" / "file.json").write_text("{}")
    with pytest.raises(GritError, match="file.json: id: this key is missing"):
        FileFolder(tmp_path / "d")
