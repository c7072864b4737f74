"""The vault: what it seals opens with the right key at the right place, and nowhere else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.directory.credentials import Place, Sealed, Vault, new_secret_key
from tidings.errors import ProviderError, SettingsError

OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
PLACE = Place("account", 7, "smtp-main")


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 1 << 31))
def test_what_is_sealed_opens(plain: bytes, key: str, project: int) -> None:
    vault = Vault([OLD])
    place = Place("account", project, key)
    sealed = vault.seal(place, plain)
    assert vault.open(place, sealed) == plain
    assert vault.seal(place, plain).data != sealed.data, "each seal has its own nonce"


@pytest.mark.parametrize(
    "place", [Place("account", 8, "smtp-main"), Place("account", 7, "smtp-main2"), Place("hook", 7, "smtp-main")]
)
def test_it_opens_at_no_other_place(place: Place) -> None:
    sealed = Vault([OLD]).seal(PLACE, b"secret")
    with pytest.raises(ProviderError, match="do not open"):
        Vault([OLD]).open(place, sealed)


@given(st.integers(0, 1_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, change: int) -> None:
    vault = Vault([OLD])
    sealed = vault.seal(PLACE, b"secret")
    data = bytearray(sealed.data)
    data[at % len(data)] ^= change
    with pytest.raises(ProviderError):
        vault.open(PLACE, Sealed(bytes(data), sealed.key_id))


@given(st.binary(max_size=40))
def test_garbage_does_not_open(data: bytes) -> None:
    vault = Vault([OLD])
    assert vault.sealing_key_id is not None
    with pytest.raises(ProviderError):
        vault.open(PLACE, Sealed(data, vault.sealing_key_id))


def test_the_first_key_seals_and_all_open() -> None:
    before, both, after = Vault([OLD]), Vault([NEW, OLD]), Vault([NEW])
    sealed = before.seal(PLACE, b"secret")
    assert both.open(PLACE, sealed) == b"secret"
    again = both.seal(PLACE, b"secret")
    assert again.key_id == after.sealing_key_id != before.sealing_key_id
    assert after.open(PLACE, again) == b"secret"
    with pytest.raises(SettingsError, match=sealed.key_id):
        after.open(PLACE, sealed)


def test_the_same_key_under_another_id_does_not_open() -> None:
    sealed = Vault([OLD]).seal(PLACE, b"secret")
    with pytest.raises(ProviderError):
        Vault([NEW, OLD]).open(PLACE, Sealed(sealed.data, Vault([NEW]).sealing_key_id or ""))


@pytest.mark.parametrize("key", ["not base64!", base64.b64encode(b"short").decode(), ""])
def test_a_bad_master_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Vault([OLD, key])
    assert "key 2" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_without_a_key_nothing_is_sealed() -> None:
    with pytest.raises(SettingsError, match="TIDINGS_SECRET_KEY is not set"):
        Vault([]).seal(PLACE, b"secret")


def test_keys_are_in_no_representation() -> None:
    key = new_secret_key()
    vault = Vault([key])
    assert key not in repr(vault)
    assert repr(base64.b64decode(key)) not in repr(vault)
    assert len(base64.b64decode(key)) == 32
