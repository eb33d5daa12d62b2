"""Training room: losses, the joint step, the loop and its checkpoints."""
