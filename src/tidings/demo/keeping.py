"""The demo's secrets, in one file that only its owner can read. Knows the file and nothing else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

FILE_NAME: Final = "demo.json"


class DemoSecrets(msgspec.Struct, frozen=True):
    """What a start of the demo hands to the next one, and to the commands run beside it."""

    api_key: str
    webhook_secret: str
    """`whsec_…`: what the demo's webhooks are signed with."""
    api_url: str

    def __repr__(self) -> str:
        return f"DemoSecrets(api_url={self.api_url!r})"


def load_demo_secrets(data_dir: Path) -> DemoSecrets | None:
    """What was saved; None when nothing was, when it is not readable for us, or when it is damaged."""
    try:
        return msgspec.json.decode((data_dir / FILE_NAME).read_bytes(), type=DemoSecrets)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def save_demo_secrets(data_dir: Path, secrets: DemoSecrets) -> None:
    """Writes the file whole or not at all; it is never readable for others, not even for a moment."""
    data_dir.mkdir(parents=True, exist_ok=True)
    draft = data_dir / f"{FILE_NAME}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(secrets)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(data_dir / FILE_NAME)
