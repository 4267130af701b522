"""A gateway's state in a file: what is saved, in which format, and how a gateway is restored from it (docs/guide/state.md)."""
