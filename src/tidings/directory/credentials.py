"""The vault: seals what must not be readable in the database, such as the credentials of provider accounts.

AES-256-GCM (NIST SP 800-38D) with a random nonce. Each thing is sealed with a key of its own, derived by HKDF-SHA256
(RFC 5869) from `TIDINGS_SECRET_KEY` and its place: what it is for, its project and its key. The place is the associated
data as well, so a sealed value that somebody moved to another row or project does not open.

Several master keys may be given: the first seals, all of them open. That is how one is rotated; see
:func:`tidings.directory.accounts.reseal_accounts`. This module knows no table.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidings.errors import ProviderError, SettingsError

KEY_MIN: Final = 32
"""Bytes of a master key."""

_VERSION: Final = b"\x01"
_NONCE: Final = 12
_KEY_ID_LABEL: Final = b"tidings key id"
"""What the public id of a master key is derived under; no sealing key is derived under it."""


class Place(msgspec.Struct, frozen=True):
    """Where a sealed value belongs. It opens nowhere else."""

    use: str
    """What it is, such as `account`."""
    project_id: int
    key: str
    """The row's key in the project."""

    def to_bytes(self) -> bytes:
        """One text for each place, and no text for two."""
        return msgspec.json.encode(["tidings seal", self.use, self.project_id, self.key])


class Sealed(msgspec.Struct, frozen=True):
    """A sealed value."""

    data: bytes
    """One byte of version, the nonce, the ciphertext with its tag."""
    key_id: str
    """Which master key opens it."""


def new_secret_key() -> str:
    """A master key as `TIDINGS_SECRET_KEY` takes it."""
    return base64.b64encode(secrets.token_bytes(KEY_MIN)).decode()


class Vault:
    """Seals and opens. Its keys are in no representation of it and in no error.

    Args:
        secret_keys: master keys in base64, the sealing one first. With none, nothing can be sealed or opened.

    Raises:
        SettingsError: one of them is not base64, or too short.
    """

    __slots__ = ("_keys", "_sealing")

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._keys: dict[str, bytes] = {}
        for number, text in enumerate(secret_keys, 1):
            try:
                key = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise SettingsError(f"TIDINGS_SECRET_KEY: key {number} is not base64") from None
            if len(key) < KEY_MIN:
                raise SettingsError(f"TIDINGS_SECRET_KEY: key {number} has fewer than {KEY_MIN} bytes")
            self._keys.setdefault(_key_id(key), key)
        self._sealing = next(iter(self._keys), None)

    def __repr__(self) -> str:
        return f"<Vault of {len(self._keys)} keys>"

    @property
    def sealing_key_id(self) -> str | None:
        """The public id of the key that seals; None when there is none."""
        return self._sealing

    def seal(self, place: Place, plain: bytes) -> Sealed:
        """`plain`, readable only with the master key and only at `place`.

        Raises:
            SettingsError: there is no master key.
        """
        if self._sealing is None:
            raise SettingsError("TIDINGS_SECRET_KEY is not set, so credentials cannot be stored")
        nonce = secrets.token_bytes(_NONCE)
        where = place.to_bytes()
        cipher = AESGCM(_derive(self._keys[self._sealing], where))
        return Sealed(_VERSION + nonce + cipher.encrypt(nonce, plain, where), self._sealing)

    def open(self, place: Place, sealed: Sealed) -> bytes:
        """What was sealed at `place`.

        Raises:
            SettingsError: it was sealed with a master key that is not among ours.
            ProviderError: it was changed, or sealed at another place.
        """
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise SettingsError(f"TIDINGS_SECRET_KEY lacks the key {sealed.key_id}, which credentials are sealed with")
        where = place.to_bytes()
        version, nonce, data = sealed.data[:1], sealed.data[1 : 1 + _NONCE], sealed.data[1 + _NONCE :]
        try:
            if version != _VERSION or len(nonce) != _NONCE:
                raise InvalidTag
            return AESGCM(_derive(key, where)).decrypt(nonce, data, where)
        except InvalidTag:
            raise ProviderError(f"the credentials of {place.use} {place.key!r} do not open; enter them again") from None

    def derive(self, place: Place) -> tuple[bytes, ...]:
        """Keys of 32 octets for signing something of `place`'s: one of each master key. Sign with the first, accept all
        of them; they are no sealing keys.

        Raises:
            SettingsError: there is no master key.
        """
        if not self._keys:
            raise SettingsError("TIDINGS_SECRET_KEY is not set, so nothing can be signed")
        return tuple(_derive(key, b"tidings sign " + place.to_bytes()) for key in self._keys.values())


def _derive(master: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(master)


def _key_id(master: bytes) -> str:
    return hashlib.sha256(_derive(master, _KEY_ID_LABEL)).hexdigest()[:8]
