"""A warm standby: what an active gateway tells it, and who of the two translates (docs/guide/standby.md)."""
