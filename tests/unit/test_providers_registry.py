from importlib.metadata import EntryPoint

import pytest

from tidings.errors import Invalid, ProviderError
from tidings.providers.registry import PROVIDERS, _load, create, parse_config


def test_names_are_listed_and_found() -> None:
    assert list(PROVIDERS) == sorted(PROVIDERS)
    assert {"inbox", "simulator", "smtp", "webhook"} <= set(PROVIDERS)
    assert len(PROVIDERS) == len(list(PROVIDERS))
    assert "nobody" not in PROVIDERS


def test_unknown_provider_is_an_answer_to_the_caller() -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("nobody", {})
    assert caught.value.errors[0].pointer == "/provider"
    assert "smtp" in caught.value.errors[0].detail


def test_a_third_partys_provider_is_loaded_by_its_entry_point() -> None:
    target = "tidings.providers.inbox:InboxProvider"
    assert _load(EntryPoint("inbox", target, "tidings.providers")) is PROVIDERS["inbox"]
    with pytest.raises(ProviderError, match="named inbox"):
        _load(EntryPoint("other", target, "tidings.providers"))
    with pytest.raises(ProviderError, match="cannot be loaded"):
        _load(EntryPoint("other", "no.such.module:Thing", "tidings.providers"))


def test_a_configuration_of_another_provider_is_refused() -> None:
    with pytest.raises(ProviderError, match="is not the configuration of inbox"):
        create("inbox", parse_config("simulator", {}), None)  # type: ignore[arg-type]  # refused before it is looked at
    with pytest.raises(ProviderError, match="no provider"):
        create("nobody", parse_config("simulator", {}), None)  # type: ignore[arg-type]  # refused before it is looked at


def test_only_vendors_that_forget_our_id_cost_a_row_for_each_message() -> None:
    linked = {
        name
        for name, kind in PROVIDERS.items()
        if not kind.spec.echoes_key and (kind.spec.receipts is not None or kind.spec.reports)
    }
    assert linked == {"brevo", "ses", "smpp"}
