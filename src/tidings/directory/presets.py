"""Presets: hours in which the law of a place does not want people to be solicited by text message. No legal advice.

What is here was looked up in November 2026. Laws change, have exceptions (consent, an existing business relationship,
what is no solicitation at all), and some forbid public holidays, which no preset knows. Only laws that are stricter
than the federal one stand here for a state; those that speak of voice calls only are left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from tidings.directory.places import (
    SUBDIVISION_ZONES,
    US_TERRITORIES,
    Person,
    Place,
    find_country,
    locate_phone,
    locate_region,
)

CHECKED: Final = "2026-11"
"""When the sources were looked at."""

_WORKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat")


class Hours(NamedTuple):
    """A range of times of day in which nothing is to be sent; see `tidings.directory.quiet.Range`."""

    start: str
    end: str
    days: tuple[str, ...] = ()


_SUNDAY: Final = Hours("00:00", "24:00", ("sun",))


class Law(NamedTuple):
    """One place's hours."""

    place: str
    """ISO 3166: `US`, `US-FL`."""
    name: str
    """The statute, or whose rule it is."""
    hours: tuple[Hours, ...]
    source: str
    """Where it was looked up."""
    read: bool
    """The rule's own text was read there; else it is what others say of it."""


_STATES_TABLE: Final = "https://www.dropcowboy.com/state-compliance"

LAWS: Final[dict[str, Law]] = {
    law.place: law
    for law in (
        Law(
            "US",
            "47 CFR 64.1200(c)(1)",
            (Hours("21:00", "08:00"),),
            "https://www.nwdebtresolution.com/post/telephone-consumer-protection-act-call-time-restrictions",
            True,
        ),
        Law(
            "US-CT",
            "Conn. Gen. Stat. 42-288a",
            (Hours("20:00", "09:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-FL",
            "Fla. Stat. 501.616(6)(a)",
            (Hours("20:00", "08:00"),),
            "http://www.lawserver.com/law/state/florida/statutes/florida_statutes_501-616",
            True,
        ),
        Law(
            "US-KY",
            "KRS 367.46955",
            (Hours("21:00", "10:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-LA",
            "LPSC General Order R-29617",
            (Hours("20:00", "08:00"), _SUNDAY),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-MA",
            "Mass. Gen. Laws ch. 159C, s. 3",
            (Hours("20:00", "08:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-MD",
            "Stop the Spam Calls Act of 2023",
            (Hours("20:00", "08:00"),),
            "https://www.dnc.com/index.php/news/maryland-governor-signs-stop-spam-calls-act-2023-law",
            False,
        ),
        Law(
            "US-MN",
            "Minn. Stat. 325E.30",
            (Hours("21:00", "09:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            # The statutes that are quoted there say 21:00; summaries say 20:00, which is the stricter.
            "US-MS",
            "Miss. Code 77-3-603 and 77-3-723",
            (Hours("20:00", "08:00"), _SUNDAY),
            "https://www.dnc.com/blog/no-more-holidays-mississippi-marketers-magnolia-state-lifts-prohibition-telemarketing-legal",
            False,
        ),
        Law(
            "US-NM",
            "N.M. Stat. 57-12-22",
            (Hours("21:00", "09:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-NV",
            "NRS 598.0918",
            (Hours("20:00", "09:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-OK",
            "15 Okla. Stat. 775C.4",
            (Hours("20:00", "08:00"),),
            _STATES_TABLE,
            False,
        ),
        Law(
            "US-OR",
            "ORS 646.569 as amended by HB 3865 (2025)",
            (Hours("20:00", "08:00"),),
            "https://production.jdsupra.com/legalnews/oregon-passes-new-telephone-8210765",
            False,
        ),
        Law(
            "US-RI",
            "R.I. Gen. Laws 5-61-2 and 5-61-3.6",
            (
                Hours("18:00", "09:00", ("mon", "tue", "wed", "thu")),
                Hours("18:00", "10:00", ("fri",)),
                Hours("17:00", "24:00", ("sat",)),
                _SUNDAY,
                Hours("00:00", "09:00", ("mon",)),
            ),
            "https://instalawyer.io/laws/rhode-island-general-laws/section-5-61-2-definitions",
            True,
        ),
        Law(
            "US-TX",
            "Tex. Bus. & Com. Code ch. 301 and 302, with SB 140 (2025)",
            (
                Hours("21:00", "09:00", _WORKDAYS[:-1]),
                Hours("21:00", "12:00", ("sat",)),
                Hours("21:00", "09:00", ("sun",)),
            ),
            "https://www.cloudcommunications.com/news/texas-senate-bill-140",
            False,
        ),
        Law(
            "US-UT",
            "Utah Code 13-25a-103(3)",
            (Hours("21:00", "08:00"), _SUNDAY),
            "https://codes.findlaw.com/ut/title-13-commerce-and-trade/ut-code-sect-13-25a-103/",
            True,
        ),
        Law(
            "US-WA",
            "RCW 19.158.040(2)",
            (Hours("20:00", "08:00"),),
            "https://app.leg.wa.gov/RCW/default.aspx?cite=19.158.040",
            True,
        ),
        Law(
            # Operators differ: 22:00 (https://developers.brevo.com/reference/sendtransacsms), 20:30 and 20:00 are told,
            # and 08:00 and 08:30. The strictest stands here.
            "FR",
            "French operators' rule for marketing texts",
            (Hours("20:00", "08:30"), _SUNDAY),
            "https://github.com/element-hq/element-web/issues/7672",
            False,
        ),
        Law(
            # 10:00 since October 2025; 09:00 is still told by some.
            "IN",
            "TRAI, TCCCPR 2018, promotional messages",
            (Hours("21:00", "10:00"),),
            "https://crm.smsgatewayhub.com/knowledge-base/article/"
            "important-update-new-service-explicit-message-restriction-time-10-am-to-9-pm",
            False,
        ),
    )
}

PRESETS: Final[dict[str, tuple[str, ...]]] = {
    "us": ("US",),
    "us_federal": ("US",),
    "fr": ("FR",),
    "in": ("IN",),
    "local": ("US", "FR", "IN"),
}
"""By name: the countries whose law it is. `us` is the federal law and the state's, `us_federal` the federal one only,
`local` that of the country where somebody is."""

CHANNELS: Final = ("sms",)
"""What these laws are about, unless the quiet hours name channels themselves."""


def find_laws(preset: str, person: Person) -> tuple[Law, ...]:
    """The laws of a preset that may apply to somebody.

    Region and phone number both count, since courts presume that a number's owner is where the number is from. Of
    somebody of whom nothing is known it is assumed that they are in the preset's one country; in a country whose states
    have laws, the strictest of those where they may be.
    """
    return _find_laws(preset, person.region, person.phone[:5] if person.phone else None, person.time_zone)


@lru_cache(maxsize=16_384)
def _find_laws(preset: str, region: str | None, prefix: str | None, time_zone: str | None) -> tuple[Law, ...]:
    wanted = PRESETS.get(preset, ())
    places = [place for place in (locate_region(region), locate_phone(prefix)) if place is not None]
    if not places and time_zone is not None and (country := find_country(time_zone)) is not None:
        places = [Place(country)]
    if not places and len(wanted) == 1:
        places = [Place(wanted[0])]
    found: dict[str, Law] = {}
    for place in places:
        country = "US" if place.country in US_TERRITORIES else place.country
        if country not in wanted:
            continue
        found[country] = LAWS[country]
        if preset != "us_federal" and place.country == country:
            for subdivision in _candidates(place, places, time_zone):
                if (law := LAWS.get(subdivision)) is not None:
                    found[subdivision] = law
    return tuple(sorted(found.values(), key=lambda law: len(law.place), reverse=True))  # the nearest first


def _candidates(place: Place, places: list[Place], time_zone: str | None) -> tuple[str, ...]:
    """The subdivisions that somebody may be in: the one that is known, else all that keep their time."""
    if place.subdivisions:
        return place.subdivisions
    if any(other.country == place.country and other.subdivisions for other in places):
        return ()  # the other one tells
    every = tuple(one for one in SUBDIVISION_ZONES if one.startswith(f"{place.country}-"))
    keeping = tuple(one for one in every if time_zone in SUBDIVISION_ZONES[one].split())
    return keeping or every
