"""The quickstart's corpus: documentation of the Python packages on this machine, and questions
about it."""
