"""Queries of the session log: who had an address and port at a time, usage, verification."""

from natcore.internal.extras import extra

with extra("query"):
    import duckdb  # noqa: F401
    import pyarrow  # noqa: F401
