"""Parts of text messages, as Twilio counts them."""

from __future__ import annotations

from typing import Any

import pytest
from aiosmpplib.codec import find_codec_info
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.golden import cases
from tidings.model.segments import (
    JOINED,
    SINGLE,
    Segments,
    count_segments,
    decode_gsm,
    encode_gsm,
    find_country,
    simplify,
    split_text,
)

BITS = {"GSM-7": 7, "UCS-2": 16}
MIXED = st.text(st.sampled_from("aZ é@Δ\n^{}[~]|€") | st.characters(exclude_categories=["Cs"]), max_size=500)
GSM = st.text(st.sampled_from("aZ é@Δ\n^{}[~]|€\f\\"), max_size=500)


@pytest.mark.parametrize("case", cases("twilio/sms_segment_vectors.json"))
def test_published_case(case: dict[str, Any]) -> None:
    text = simplify(case["body"]) if case.get("smart_encoding") else case["body"]
    counted = count_segments(text)
    assert counted.encoding == case["encoding"]
    assert counted.parts == case["segments"]
    assert counted.units * BITS[counted.encoding] == case["message_bits"]
    headers = counted.parts * 6 * 8 if counted.parts > 1 else 0
    assert counted.units * BITS[counted.encoding] + headers == case["total_bits"]


@given(MIXED | GSM)
def test_cutting_agrees_with_counting(text: str) -> None:
    counted = count_segments(text)
    encoding, parts = split_text(text)
    assert encoding == counted.encoding
    assert len(parts) == counted.parts
    assert "".join(parts) == text
    sizes = [len(encode_gsm(p)) if encoding == "GSM-7" else len(p.encode("utf-16-be")) // 2 for p in parts]
    assert sum(sizes) == counted.units
    assert max(sizes) <= (SINGLE if len(parts) == 1 else JOINED)[encoding]


@given(GSM)
def test_the_alphabet_agrees_with_another_implementation(text: str) -> None:
    theirs = find_codec_info("gsm0338", None)
    assert encode_gsm(text) == theirs.encode(text, "strict")[0]
    assert decode_gsm(encode_gsm(text)) == text


@given(MIXED)
def test_simplifying_never_makes_it_longer(text: str) -> None:
    plain = simplify(text)
    assert plain == text or count_segments(plain).encoding == "GSM-7"
    assert simplify(plain) == plain
    assert count_segments(plain).parts <= count_segments(text).parts


def test_simplifying() -> None:
    assert simplify("“It’s here” – 5 €…") == '"It\'s here" - 5 €...'
    assert simplify("“あ”") == "“あ”"  # nothing would be gained


def test_what_is_not_in_the_alphabet() -> None:
    with pytest.raises(ValueError, match="GSM 7-bit"):
        encode_gsm("あ")
    assert decode_gsm(b"\x1b\x65\x1b\x00\xff") == "€  "
    assert count_segments("") == Segments("GSM-7", 0, 1)
    assert count_segments("\x1b").encoding == "UCS-2"


@pytest.mark.parametrize(
    ("number", "country"),
    [
        ("+12025550123", "US"),
        ("+14165550123", "CA"),
        ("+17875550123", "PR"),
        ("+447700900123", "GB"),
        ("+4915112345678", "DE"),
        ("+77012345678", "KZ"),
        ("+79161234567", "RU"),
        ("+1999", "US"),  # no such number, but the country code says so much
        ("+80012345678", None),  # international freephone
        ("+99900000001", None),
        ("Tidings", None),
    ],
)
def test_country(number: str, country: str | None) -> None:
    assert find_country(number) == country
