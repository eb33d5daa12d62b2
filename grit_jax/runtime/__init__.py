"""What every run needs from its machine: files, hosts, preemption, the run folder, metrics,
progress."""
