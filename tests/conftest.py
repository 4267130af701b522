"""Fixtures for every test module, and what hypothesis is told: no test is timed."""

from hypothesis import settings

from support.multi_worker import use_several
from support.netns import each_driver, nat, network  # noqa: F401

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
use_several()
