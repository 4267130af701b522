"""Files of these tests are in memory: logs sync what they write."""

from support.memory_folder import tmp_path  # noqa: F401
