"""The one error family of the project. Messages say what was wrong, where (file, record, field) and what to do."""

from __future__ import annotations


class JmpDataError(Exception):
    """Base of every error that this project raises on purpose; the command line prints it as one line."""


class InvalidStructureError(JmpDataError, ValueError):
    """A structure breaks the schema: shapes, finite values, atomic numbers, a missing cell.

    Attributes:
        code: short reason code, used to count quarantined records.
    """

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


class RawFileError(JmpDataError, ValueError):
    """A published raw file is missing, truncated, or not in the layout that its source promises."""


class MissingFileError(RawFileError, FileNotFoundError):
    """A raw file, shard or configuration that should exist does not."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnsafePickleError(RawFileError):
    """A pickle asks for a class or function outside the allow-list; nothing of it was executed."""


class ManifestError(JmpDataError, ValueError):
    """A manifest, mixture or run configuration is malformed or names something that does not exist."""


class ShardError(JmpDataError, OSError):
    """A stored shard is damaged or incomplete; the message names shard, array and block."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StateMismatchError(JmpDataError, ValueError):
    """A saved state belongs to another mixture, seed or format; the message says what differs."""


class DownloadError(JmpDataError, OSError):
    """A download could not be completed and verified; no file was left under its final name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointError(JmpDataError, ValueError):
    """A model checkpoint does not fit: another model, missing keys, wrong shapes, unfitted scales."""


class MissingExtraError(JmpDataError, ImportError):
    """An optional package is needed; the message names the extra to install."""
