"""What is wrong with a configuration file: every error at once, each with its line, key, value and what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from natcore.errors import ConfigurationError
from natcore.internal.redaction import is_secret, plain, printable, redact, show, show_text
from natcore.service.toml_lines import key_lines, line_of

Made = TypeVar("Made")
MOST_ERRORS = 100  # of a file

# What an argument is checked against: it is not looked at when that one is wrong itself.
_AGAINST = {"warn_at": ("rearm_at",), "backoff_min": ("backoff_max",)}
_RELATION = re.compile(
    r"as many ports as|at least backoff_min|with ports=|ports='|range of port_ranges"
)  # to other keys
# Arguments that stand in for wrong ones, so that the others are looked at.
STAND_INS: Mapping[str, Any] = {
    "source": "0.0.0.0/0", "destination": "0.0.0.0/0", "pool": "192.0.2.1", "external_ip": "192.0.2.1",
    "internal_ip": "192.0.2.1", "external_port": 1, "internal_port": 1, "inside": "inside", "outside": "outside",
}  # fmt: skip


class SettingsError(ConfigurationError):
    """A file that is not a configuration.

    source: the file. key: dotted, such as "snat[1].pool". value: as the file has it, redacted; None: missing, or unknown.
    problem: "must be …", or what else is wrong. line: where the key stands, or its table; None: unknown. errors: all of the
    file, this one first.
    """

    def __init__(self, source: Path, key: str, value: object, problem: str, line: int | None = None) -> None:
        if any(is_secret(part) for part in key.split(".")):
            value = None
        key, problem = show_text(key), redact(printable(problem))
        if not key:
            text = problem
        elif problem.startswith("must "):
            text = f"{key} {problem}" if value is None or ", got " in problem else f"{key} {problem}, got {show(value)}"
        else:
            text = f"{key}: {problem}" if value is None else f"{key} = {show(value)}: {problem}"
        where = printable(str(source)) + ("" if line is None else f":{line}")
        super().__init__(f"{where}: {text}")
        self.source, self.key, self.value, self.problem, self.line = source, key, plain(value), problem, line
        self.errors: tuple[SettingsError, ...] = (self,)

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "error": redact(str(self)), "file": str(self.source), "line": self.line, "key": self.key, "value": self.value,
            "problem": self.problem,
        }  # fmt: skip


class SettingsErrors(SettingsError):
    """Several errors of one file: `errors`; the other attributes are those of the first."""

    def __init__(self, errors: Sequence[SettingsError]) -> None:
        first = errors[0]
        super().__init__(first.source, first.key, first.value, first.problem, first.line)
        self.args = ("\n".join(str(each) for each in errors),)
        self.errors = tuple(errors)


class Problems:
    """The errors of a file so far. text: the file's, for lines; "": it has none."""

    def __init__(self, source: Path, text: str = "") -> None:
        self.source = source
        self.errors: list[SettingsError] = []
        self._text = text

    @cached_property
    def _lines(self) -> dict[str, int]:
        try:
            return key_lines(self._text)
        except RecursionError:
            return {}

    def error(self, key: str, value: object, problem: str) -> SettingsError:
        """Return an error with the line of its key."""
        return SettingsError(self.source, key, value, problem, line_of(self._lines, key))

    def add(self, key: str, value: object, problem: str) -> None:
        self.errors.append(self.error(key, value, problem))

    def raise_any(self) -> None:
        """Raise SettingsError if there is one; SettingsErrors if there are several."""
        self.errors.sort(key=lambda error: error.line or 0)
        if len(self.errors) == 1:
            raise self.errors[0]
        if len(self.errors) > MOST_ERRORS:
            more = SettingsError(self.source, "", None, f"{len(self.errors) - MOST_ERRORS:,} errors more")
            self.errors[MOST_ERRORS:] = [more]
        if self.errors:
            raise SettingsErrors(self.errors)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Add the SettingsError that the block raises."""
        try:
            yield
        except SettingsError as error:
            self.errors += error.errors

    @contextmanager
    def named(self, key: str, raw: Mapping[str, Any]) -> Iterator[None]:
        """Turn a constructor's ConfigurationError ("Class.field must be …, got value") into one that names the file's key."""
        try:
            yield
        except SettingsError:
            raise
        except ConfigurationError as error:
            message = str(error)
            match = re.match(r"(?:[A-Z]\w*\.)?([a-z]\w*)(?: (?=must )|=|: )", message)
            if match is None:
                raise self.error(key, None, message) from None
            value, rest = raw.get(match[1]), message[match.end() :]
            rest = rest.removeprefix(f"{show(value)}: ").removesuffix(f", got {show(value)}")
            raise self.error(f"{key}.{match[1]}", value, rest) from None
        except (
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
        ) as error:  # a sink that does not check its arguments
            raise self.error(key, None, f"cannot be used: {type(error).__name__}: {error}") from None

    def made(
        self, make: Callable[..., Made], key: str, raw: Mapping[str, Any], arguments: dict[str, Any]
    ) -> Made | None:
        """Return what make(**arguments) gives; None: what is wrong with the arguments, all of it, has been added."""
        left = dict(arguments)
        seen = {error.key for error in self.errors if error.key.startswith(key)}
        while True:
            try:
                with self.named(key, raw):
                    made = make(**left)
                return None if seen else made
            except SettingsError as error:
                if error.key in seen:
                    return None
                if not (seen and _RELATION.search(error.problem)):  # that would follow from what was left out
                    self.errors.append(error)
                seen.add(error.key)
                name = error.key.removeprefix(f"{key}.")
            if name not in left:
                return None
            for each in (
                name,
                *_AGAINST.get(name, ()),
            ):  # a constructor tells its first error: without that, the next one
                if each in STAND_INS:
                    left[each] = STAND_INS[each]
                else:
                    left.pop(each, None)
