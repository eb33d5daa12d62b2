"""Which lm-eval tasks are run, and where their documents come from."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.evaluation.harness_backend import Backend
from grit_jax.evaluation.paper_tasks import passages_cut_by

TASKS = Path(__file__).parent / "lm_tasks"  # the task files of this package
HUB = "hf://datasets/"


@dataclasses.dataclass(frozen=True)
class TaskChoice:
    """Tasks to run.

    Attributes:
      names: of tasks, groups or tags; or folders and YAML files of tasks.
      include: folders of more task files, whose names may be used.
      data: for tasks and groups by name: a local copy of the hub repository of their data set.
    """

    names: Sequence[str]
    include: Sequence[Path] = ()
    data: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def load_tasks(
    choice: TaskChoice, backend: Backend, *, allow_code: bool = False, predict_only: bool = False
) -> tuple[list[Any], Any]:
    """The tasks as lm-eval's objects, their data sets read; and the manager that knows their names.

    Names are looked for in the folders given, then among the tasks of this package, then among
    lm-eval's own.

    Raises:
      GritError: an unknown name, a folder without tasks, a file that lm-eval cannot load, a data
        set that cannot be read, or a task that runs code that the model writes, unless
        `allow_code`.
    """
    from lm_eval.tasks import TaskManager

    folders = [Path(name) for name in choice.names if Path(name).is_dir()]
    for folder in (*folders, *choice.include):
        if not Path(folder).is_dir():
            raise GritError(f"--include {folder}: there is no such folder")
    include = [str(TASKS), *map(str, choice.include), *map(str, folders)]
    manager = TaskManager(include_path=include, include_defaults=False)
    specs: list[str] = []
    for name in choice.names:
        if Path(name).is_dir():
            specs += names_in(Path(name))
        elif Path(name).suffix == ".yaml":
            specs.append(_yaml_file(name))
        else:
            specs.append(name)
    unknown = [name for name in specs if name not in manager.all_tasks and "/" not in name]
    if unknown:
        manager = TaskManager(include_path=include)
        for name in unknown:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=1)
                raise GritError(
                    f"--tasks {name}: lm-eval knows no such task, and the folders given have none"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
    specs = list(dict.fromkeys(specs))
    _check_data(choice, specs)
    for name in specs:
        check_code(name, manager, allow_code=allow_code, predict_only=predict_only)
    tasks = []
    with passages_cut_by(backend.first_tokens):
        for name in specs:
            tasks += _load(name, manager, choice.data.get(name))
    check_repeats(tasks)
    return tasks, manager


def check_repeats(tasks: Sequence[Any]) -> None:
    """Raises GritError if a task is chosen twice: by itself and in a group, or in two groups."""
    seen = set()
    for item in tasks:
        for task in item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]:
            if task.task_name in seen:
                raise GritError(
                    f"--tasks: {task.task_name} is chosen twice, by its own name and in a group, or"
                    " in two groups; name it once"
                )
            seen.add(task.task_name)


def names_in(folder: Path) -> list[str]:
    """The groups of a folder, and its tasks that belong to no group.

    Raises:
      GritError: it has no tasks.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    members = {m for group in manager.all_groups for m in _members(manager.task_index[group])}
    for tag in members & set(manager.all_tags):
        members |= manager.task_index[tag].tags
    names = [n for n in (*manager.all_groups, *manager.all_subtasks) if n not in members]
    if not names:
        raise GritError(f"--tasks {folder}: the folder has no task files of lm-eval (*.yaml)")
    return names


def check_code(name: str, manager: Any, *, allow_code: bool, predict_only: bool) -> None:
    """Raises GritError if a task, or a member of a group, runs code that the model writes, unless
    that is allowed or nothing is scored."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(name)
    if entry is None and name.endswith(".yaml"):  # a file
        config = load_yaml(name, resolve_func=False)
    else:
        config = (entry.cfg or {}) if entry is not None else {}
    if config.get("unsafe_code") and not allow_code and not predict_only:
        raise GritError(
            f"--tasks {name}: its score comes from running code that the model writes; allow it"
            " with --allow-code-execution (a separate process with limits, which is no safe jail),"
            " or write the answers alone with --predict-only"
        )
    for member in _members(entry):
        check_code(member, manager, allow_code=allow_code, predict_only=predict_only)


def _yaml_file(name: str) -> str:
    if not Path(name).is_file():
        raise GritError(f"--tasks {name}: there is no such file")
    return str(Path(name).resolve())


def _check_data(choice: TaskChoice, specs: Sequence[str]) -> None:
    for name, folder in choice.data.items():
        if name not in specs:
            raise GritError(f"--data {name}={folder}: {name} is not among --tasks")
        if not folder.is_dir():
            raise GritError(f"--data {name}={folder}: there is no such folder")


def _load(name: str, manager: Any, data: Path | None) -> list[Any]:
    """A task, a group, or the tasks of a tag."""
    try:
        if data is not None:
            _use_local_data(name, manager, data)
        loaded = manager.load([name])
    except Exception as error:  # task files hold code, and data sets come from anywhere
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise GritError(
            f"--tasks {name}: lm-eval cannot load it: {type(error).__name__}: {reason}; a task's"
            f" data set may also be read from a local copy: --data {name}=DIR"
        ) from error
    groups, tasks = loaded.get("groups", {}), loaded["tasks"]
    members = {child for names in loaded.get("group_map", {}).values() for child in names}
    top = [group for group_name, group in groups.items() if group_name not in members]
    return top or list(tasks.values())


def _use_local_data(name: str, manager: Any, data: Path) -> None:
    """Lets a task, or each task of a group or tag, read a local copy of the hub repository of its
    data set."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    if members := _members(entry):
        for member in members:
            _use_local_data(member, manager, data)
        return
    config = load_yaml(entry.yaml_path) if entry.yaml_path else entry.cfg or {}
    manager.task_index[name] = dataclasses.replace(
        entry, yaml_path=None, cfg=config | local_data(config, data)
    )


def _members(entry: Any) -> list[str]:
    """The names in a group or a tag; none for a task."""
    if entry is None:
        return []
    config = entry.cfg or {}
    if "group" not in config:
        return [] if "task" in config else sorted(entry.tags)
    listed = config.get("task") or []
    items = [listed] if isinstance(listed, str) else listed
    return [item if isinstance(item, str) else item.get("task") or item["group"] for item in items]


def local_data(config: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """What of a task's configuration changes for a local copy of its hub repository."""
    options = config.get("dataset_kwargs") or {}
    if config.get("custom_dataset") is not None:  # its function gets these options alone
        return {"dataset_kwargs": {**options, "path": str(data)}}
    files = options.get("data_files")
    if files is None:
        return {"dataset_path": str(data)}
    local = {split: _local_file(file, data) for split, file in files.items()}
    return {"dataset_kwargs": {**options, "data_files": local}}


def _local_file(file: str, data: Path) -> str:
    """`hf://datasets/OWNER/NAME/a/b.jsonl` in a copy of that repository."""
    if not file.startswith(HUB):
        return file
    return str(data.joinpath(*file.removeprefix(HUB).split("/")[2:]))
