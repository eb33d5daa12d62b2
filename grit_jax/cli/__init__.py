"""The `grit` command."""
