"""Fixtures for every test module."""

from netns import nat, network  # noqa: F401
