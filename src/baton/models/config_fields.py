"""Typed reading of a checkpoint's own description (JSON or GGUF metadata), with errors that name
the field and where it stands."""

from collections.abc import Mapping
from typing import Any

from baton.core.errors import CheckpointError


class Fields:
    """Fields of one mapping; `source` opens every error message."""

    def __init__(self, values: Mapping[str, Any], source: str):
        self._values = values
        self.source = source

    def get(self, key: str) -> Any:
        """The raw value; null and absent are both None."""
        return self._values.get(key)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._default(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._default(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._default(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._default(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def section(self, key: str) -> "Fields | None":
        """A nested object, None when it is absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self.source}: {key}")

    def _default(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        shown = "absent" if value is None else repr(value)[:80]
        return CheckpointError(f"{self.source}: {key} is {shown}; it must be {wanted}")
