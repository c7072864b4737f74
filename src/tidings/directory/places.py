"""Places: where somebody is, and what time it is there, as far as a region or a phone number tells. Pure; data.

Time zones of countries are those of `zone.tab` of the IANA time zone database, which comes with the package tzdata.
North American numbers tell their state or province by the area code: North American Numbering Plan Administrator,
https://www.nanpa.com/reports/area-code-maps-and-codes (state of 2026-11, compared with libphonenumber 9.0.43). Which
state keeps which time: 49 CFR part 71; of provinces, `zone.tab`.

A number stays with its owner who moves, and a mobile number tells only the country. So one place may have many time
zones, and whoever asks has to be content with all of them.
"""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final, NamedTuple

import phonenumbers

US_TERRITORIES: Final = frozenset({"AS", "GU", "MP", "PR", "VI"})
"""Parts of the United States that have country codes of their own in ISO 3166."""


class Place(NamedTuple):
    """Where somebody may be."""

    country: str
    """ISO 3166: `US`."""
    subdivisions: tuple[str, ...] = ()
    """ISO 3166-2, one of which it is: `US-FL`; none: unknown."""
    zones: tuple[str, ...] = ()
    """Time zones, one of which it is in; those that show the same time stand here once."""


class Person(NamedTuple):
    """What decides where somebody is."""

    time_zone: str | None = None
    region: str | None = None
    """ISO 3166: `US` or `US-FL`."""
    phone: str | None = None
    """E.164."""


def find_zones(person: Person, default_zone: str | None) -> tuple[str, ...]:
    """The time zones that somebody may be in: their own; else those of their phone number, of their region; else the
    default, else UTC. A zone that the database does not know (any more) is passed over."""
    if person.time_zone is not None and is_zone(person.time_zone):
        return (person.time_zone,)
    for place in (locate_phone(person.phone), locate_region(person.region)):
        if place is not None and place.zones:
            return place.zones
    return (default_zone if default_zone is not None and is_zone(default_zone) else "UTC",)


@lru_cache(maxsize=1024)
def is_zone(name: str) -> bool:
    """Whether the IANA database has it. `localtime` is this machine's own zone, which means another one elsewhere."""
    return name in zoneinfo.available_timezones() and name != "localtime"


@lru_cache(maxsize=1024)
def load_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone; made once."""
    return zoneinfo.ZoneInfo(name)


def locate_phone(phone: str | None) -> Place | None:
    """Where a number comes from; None: it does not tell."""
    # All that is looked at: three digits of the country code, or the 1 and an area code.
    return _locate_prefix(phone[:5]) if phone else None


@lru_cache(maxsize=8192)
def _locate_prefix(prefix: str) -> Place | None:
    if prefix.startswith("+1"):
        where = _areas().get(prefix[2:5])
        if where is None:  # a new code, or one without a place: 800, 500
            return Place("US", (), _country_zones("US"))
        subdivisions = tuple(where.split())
        return locate_region(where) if len(subdivisions) == 1 else _join(subdivisions)
    if prefix[:3] in ("+76", "+77"):
        return locate_region("KZ")
    for digits in (1, 2, 3):
        code = prefix[1 : 1 + digits]
        regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(code)) if code.isdecimal() else None
        if regions is not None:
            return locate_region(regions[0])  # the main one comes first; the others keep its time, but for islands
    return None


def _join(subdivisions: tuple[str, ...]) -> Place:
    zones = tuple(dict.fromkeys(zone for one in subdivisions for zone in SUBDIVISION_ZONES[one].split()))
    return Place(subdivisions[0][:2], subdivisions, _distinct(zones))


@lru_cache(maxsize=8192)
def locate_region(region: str | None) -> Place | None:
    """Where a region is; None: there is none of that name. A subdivision that is not known here is all its country."""
    if not region:
        return None
    country, _, subdivision = region.upper().partition("-")
    zones = _country_zones(country)
    if not zones:
        return None
    if country == "US" and subdivision in US_TERRITORIES:
        return locate_region(subdivision)
    if not subdivision:
        return Place(country, (), zones)
    known = SUBDIVISION_ZONES.get(f"{country}-{subdivision}")
    return Place(country, (f"{country}-{subdivision}",), _distinct(tuple(known.split())) if known else zones)


@cache
def find_country(time_zone: str) -> str | None:
    """The country that a time zone is in; None: it is in none, or stands there under an old name."""
    return next((country for country, zones in _countries().items() if time_zone in zones), None)


@cache
def _areas() -> dict[str, str]:
    return {code: where for where, codes in AREA_CODES.items() for code in codes.split()}


@cache
def _countries() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    table = files("tzdata").joinpath("zoneinfo", "zone.tab").read_text(encoding="utf-8")
    for line in table.splitlines():
        if line and not line.startswith("#"):
            country, _, zone, *_ = line.split("\t")
            found.setdefault(country, []).append(zone)
    return _BESIDES | {country: tuple(zones) for country, zones in found.items()}


@cache
def _country_zones(country: str) -> tuple[str, ...]:
    return _distinct(_countries().get(country, ()))


_BESIDES: Final = {"AC": ("Atlantic/St_Helena",), "XK": ("Europe/Belgrade",)}
"""Ascension and Kosovo have a country code for telephones, and in ISO 3166 only a reserved one."""
_WEEKS: Final = tuple(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(weeks=n) for n in range(5 * 52))


@cache
def _distinct(zones: tuple[str, ...]) -> tuple[str, ...]:
    """One of each group of zones whose clocks agree, looked at once a week for five years: Russia has 26 zones and 11
    times."""
    seen: dict[tuple[timedelta | None, ...], str] = {}
    for name in zones:
        zone = load_zone(name)
        seen.setdefault(tuple(week.astimezone(zone).utcoffset() for week in _WEEKS), name)
    return tuple(seen.values())


# ---------------------------------------------------------------- data

_EASTERN: Final = "America/New_York"
_CENTRAL: Final = "America/Chicago"
_MOUNTAIN: Final = "America/Denver"
_PACIFIC: Final = "America/Los_Angeles"


def _each(states: str, zones: str) -> dict[str, str]:
    return {f"US-{state}": zones for state in states.split()}


SUBDIVISION_ZONES: Final[dict[str, str]] = {
    **_each("CT DC DE GA MA MD ME NC NH NJ NY OH PA RI SC VA VT WV", _EASTERN),
    **_each("AL AR IA IL LA MN MO MS OK WI", _CENTRAL),
    **_each("CO MT NM UT WY", _MOUNTAIN),
    **_each("CA WA", _PACIFIC),
    **_each("FL TN", f"{_EASTERN} {_CENTRAL}"),
    **_each("KS ND NE SD TX", f"{_CENTRAL} {_MOUNTAIN}"),
    **_each("ID NV OR", f"{_MOUNTAIN} {_PACIFIC} America/Boise"),
    # with the names under which the database keeps their past; they show the same time
    "US-IN": f"{_EASTERN} {_CENTRAL} America/Indiana/Indianapolis",
    "US-KY": f"{_EASTERN} {_CENTRAL} America/Kentucky/Louisville",
    "US-MI": f"{_EASTERN} {_CENTRAL} America/Detroit",
    "US-AK": "America/Anchorage America/Adak",
    "US-AZ": f"America/Phoenix {_MOUNTAIN}",  # the Navajo Nation changes its clocks, the rest of Arizona does not
    "US-HI": "Pacific/Honolulu",
    "CA-AB": "America/Edmonton",
    "CA-BC": "America/Vancouver America/Edmonton America/Creston America/Dawson_Creek America/Fort_Nelson",
    "CA-MB": "America/Winnipeg",
    "CA-NB": "America/Moncton",
    "CA-NL": "America/St_Johns America/Goose_Bay",
    "CA-NS": "America/Halifax",
    "CA-NT": "America/Edmonton",
    "CA-NU": "America/Iqaluit America/Rankin_Inlet America/Cambridge_Bay America/Resolute",
    "CA-ON": "America/Toronto America/Winnipeg America/Atikokan",
    "CA-PE": "America/Halifax",
    "CA-QC": "America/Toronto America/Halifax America/Blanc-Sablon",
    "CA-SK": "America/Regina America/Edmonton",
    "CA-YT": "America/Whitehorse",
}
"""The time zones of the states and provinces that numbers tell of. Towns that keep a neighbour's time without leave are
passed over."""

AREA_CODES: Final[dict[str, str]] = {
    "US-AL": "205 251 256 334 659 938",
    "US-AK": "907",
    "US-AZ": "480 520 602 623 928",
    "US-AR": "327 479 501 870",
    "US-CA": (
        "209 213 279 310 323 341 350 357 369 408 415 424 442 510 530 559 562 619 626 628 650 657 661 669 707 714 738 "
        "747 760 805 818 820 831 837 840 858 909 916 925 949 951"
    ),
    "US-CO": "303 719 720 748 970 983",
    "US-CT": "203 475 860 959",
    "US-DE": "302",
    "US-DC": "202 771",
    "US-FL": "239 305 321 324 352 386 407 448 561 645 656 689 727 728 754 772 786 813 850 863 904 941 954",
    "US-GA": "229 404 470 478 678 706 762 770 912 943",
    "US-HI": "808",
    "US-ID": "208 986",
    "US-IL": "217 224 309 312 331 447 464 618 630 708 730 773 779 815 847 861 872",
    "US-IN": "219 260 317 463 574 765 812 930",
    "US-IA": "319 515 563 641 712",
    "US-KS": "316 620 785 913",
    "US-KY": "270 364 502 606 859",
    "US-LA": "225 318 337 457 504 985",
    "US-ME": "207",
    "US-MD": "227 240 301 410 443 667",
    "US-MA": "339 351 413 508 617 774 781 857 978",
    "US-MI": "231 248 269 313 517 586 616 679 734 810 906 947 989",
    "US-MN": "218 320 507 612 651 763 924 952",
    "US-MS": "228 471 601 662 769",
    "US-MO": "235 314 417 557 573 636 660 816 975",
    "US-MT": "406",
    "US-NE": "308 402 531",
    "US-NV": "702 725 775",
    "US-NH": "603",
    "US-NJ": "201 551 609 640 732 848 856 862 908 973",
    "US-NM": "505 575",
    "US-NY": "212 315 329 332 347 363 516 518 585 607 624 631 646 680 716 718 838 845 914 917 929 934",
    "US-NC": "252 336 472 704 743 828 910 919 980 984",
    "US-ND": "701",
    "US-OH": "216 220 234 283 326 330 380 419 436 440 513 567 614 740 937",
    "US-OK": "405 539 572 580 918",
    "US-OR": "458 503 541 971",
    "US-PA": "215 223 267 272 412 445 484 570 582 610 717 724 814 835 878",
    "US-RI": "401",
    "US-SC": "803 821 839 843 854 864",
    "US-SD": "605",
    "US-TN": "423 615 629 729 731 865 901 931",
    "US-TX": (
        "210 214 254 281 325 346 361 409 430 432 469 512 621 682 713 726 737 806 817 830 832 903 915 936 940 945 956 "
        "972 979"
    ),
    "US-UT": "385 435 801",
    "US-VT": "802",
    "US-VA": "276 434 540 571 686 703 757 804 826 948",
    "US-WA": "206 253 360 425 509 564",
    "US-WV": "304 681",
    "US-WI": "262 274 353 414 534 608 715 920",
    "US-WY": "307",
    "CA-AB": "368 403 587 780 825",
    "CA-BC": "236 250 257 604 672 778",
    "CA-MB": "204 431 584",
    "CA-NB": "428 506",
    "CA-NL": "709 879",
    "CA-NS CA-PE": "782 851 902",
    "CA-NT CA-NU CA-YT": "867",
    "CA-ON": "226 249 289 343 365 382 387 416 437 519 548 613 647 683 705 742 753 807 905 942",
    "CA-QC": "263 273 354 367 418 438 450 468 514 579 581 819 873",
    "CA-SK": "306 474 639",
    "AG": "268", "AI": "264", "AS": "684", "BB": "246", "BM": "441", "BS": "242", "DM": "767", "DO": "809 829 849",
    "GD": "473", "GU": "671", "JM": "658 876", "KN": "869", "KY": "345", "LC": "758", "MP": "670", "MS": "664",
    "PR": "787 939", "SX": "721", "TC": "649", "TT": "868", "VC": "784", "VG": "284", "VI": "340",
}  # fmt: skip
"""Area codes of the North American Numbering Plan by where they are; two provinces may share one."""
