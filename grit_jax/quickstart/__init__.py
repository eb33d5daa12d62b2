"""The main job from a corpus to answers, and its report."""
