"""Settings that contradict each other are refused before anything starts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tidings.errors import SettingsError
from tidings.settings import load_settings


@pytest.mark.parametrize(("lease", "timeout"), [(39, 20), (4, 2), (3, 1)])
def test_a_lease_leaves_time_to_send(lease: int, timeout: int) -> None:
    with pytest.raises(SettingsError, match="TIDINGS_LEASE must be at least twice TIDINGS_PROVIDER_TIMEOUT"):
        load_settings(lease=timedelta(seconds=lease), provider_timeout=timedelta(seconds=timeout), _env_file=None)


def test_a_lease_of_twice_the_time_out_will_do() -> None:
    assert load_settings(lease=timedelta(seconds=40), _env_file=None).lease == timedelta(seconds=40)
