"""What every run needs from its machine: files, hosts, preemption, the run folder, metrics,
progress."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Notice": "preemption",
        "Preempted": "preemption",
        "RunFolder": "run_folder",
        "join_hosts": "hosts",
        "lock_folder": "files",
        "open_trackers": "trackers",
        "read_json": "files",
        "wait_for_all": "hosts",
        "write_file": "files",
        "write_json": "files",
    },
)
