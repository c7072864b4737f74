"""The pages' routes: whom a token names, what they see, and what their forms do.

Whatever a mail program or a scanner does with a GET, it changes nothing. A form of the preference page brings a mark
that only the page itself has told, so no other site can post one; the button of the other page and a mail program's one
click bring no more than the token, as RFC 8058 wants it: no cookie, no header.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

from babel.dates import format_datetime
from fastapi import FastAPI, Request, Response
from minijinja import Environment

from tidings.db.pool import Connection
from tidings.directory.audit import Actor
from tidings.directory.categories import load_category
from tidings.directory.consent import Origin
from tidings.directory.preferences import NOTHING_SAID, Choices, apply_choices, load_choices, load_merged
from tidings.directory.projects import Project
from tidings.directory.suppressions import lift_opt_out, list_opt_outs
from tidings.directory.users import User, load_user
from tidings.errors import Invalid, NotFound
from tidings.flow.tracking import Guest, Page
from tidings.flow.unsubscribe import Left, unsubscribe
from tidings.model.words import Channel, Frequency
from tidings.web.deps import Deps
from tidings.web.inbox.preferences import public_ip
from tidings.web.pages.form import (
    KEEP_PAUSE,
    NO_PAUSE,
    PAUSES,
    Answer,
    Change,
    Fault,
    Fields,
    Shown,
    find_range,
    is_one_click,
    parse_answer,
    parse_fields,
    to_shown,
    unmuted,
)
from tidings.web.pages.words import Words, choose_words

UNSUBSCRIBE: Final = "/u/{token}"
PREFERENCES: Final = "/p/{token}"
PATHS: Final = frozenset({UNSUBSCRIBE, PREFERENCES})

_FOREIGN: Final = frozenset({"cross-site", "same-site"})
"""`Sec-Fetch-Site` of a form on somebody else's page; https://www.w3.org/TR/fetch-metadata/."""


def add_pages(app: FastAPI, deps: Deps) -> None:
    """Mount the routes."""

    async def ask(request: Request, token: str) -> Response:
        visit = await _enter(deps, request, token, "u")
        return _missing(request) if visit is None else await _question(deps, visit)

    async def leave(request: Request, token: str) -> Response:
        visit = await _enter(deps, request, token, "u")
        if visit is None:
            return _missing(request)
        fields = await _read(request)
        if not is_one_click(fields):
            return await _question(deps, visit, 400)
        by_page = fields.get("from") == ["page"]
        about = await _describe(deps, visit)
        wording = None
        if by_page:
            told = "; ".join(f"{name}: {value}" for name, value in about)
            wording = f"{visit.t('unsubscribe_question')} {told} [{visit.t('unsubscribe')}]"
        origin = _to_origin(request, "page" if by_page else "one_click", wording)
        left = await unsubscribe(deps.database, deps.receiver, deps.clock, visit.guest, origin)
        if left is Left.required:
            return visit.show("required_title", visit.t("required_text"), status=409, rows=about)
        return visit.show(
            "unsubscribed_title", visit.t("unsubscribed_text"), good=True, rows=about, further=_further(deps, visit)
        )

    async def choose(request: Request, token: str) -> Response:
        visit = await _enter(deps, request, token, "p")
        if visit is None or visit.user is None:
            return _missing(request)
        if visit.guest.test:
            return await _sample(deps, visit)
        shown = await _load_shown(deps, visit, visit.user)
        return _preferences(deps, visit, shown)

    async def save(request: Request, token: str) -> Response:
        visit = await _enter(deps, request, token, "p")
        if visit is None or visit.user is None:
            return _missing(request)
        if visit.guest.test:
            return await _sample(deps, visit, saved=())
        shown = await _load_shown(deps, visit, visit.user)
        fields = await _read(request)
        mark = fields.get("form", ("",))[0]
        if request.headers.get("sec-fetch-site") in _FOREIGN or not hmac.compare_digest(
            mark.encode(), deps.signer.mark_form(visit.guest).encode()
        ):
            return _preferences(deps, visit, shown, faults=(Fault("", "error_form"),), status=403)
        answer = parse_answer(fields, shown, deps.clock.now())
        if answer.faults:
            return _preferences(deps, visit, shown, faults=answer.faults, fields=fields, status=422)
        if answer.given:
            origin = _to_origin(request, "page", _to_wording(visit, answer))
            try:
                await _save(deps, visit.guest, visit.user, answer, origin)
            except Invalid:  # what can be chosen changed meanwhile; the page shows how it is now
                shown = await _load_shown(deps, visit, visit.user)
                return _preferences(deps, visit, shown, faults=(Fault("", "error_rejected"),), status=409)
            shown = await _load_shown(deps, visit, visit.user)
        return _preferences(deps, visit, shown, saved=[_tell(visit.t, change) for change in answer.changes])

    for path, endpoint, methods in (
        (UNSUBSCRIBE, ask, ["GET", "HEAD"]),
        (UNSUBSCRIBE, leave, ["POST"]),
        (PREFERENCES, choose, ["GET", "HEAD"]),
        (PREFERENCES, save, ["POST"]),
    ):
        app.add_api_route(path, endpoint, methods=methods, include_in_schema=False)


# ---------------------------------------------------------------- who comes


class _Visit:
    """Somebody with a token, and how to speak to them."""

    def __init__(self, guest: Guest, project: Project, user: User | None, words: Words) -> None:
        self.guest = guest
        self.project = project
        self.user = user
        self.t = words

    def show(self, title: str, text: str, *, status: int = 200, **values: Any) -> Response:
        """A page with one message."""
        return self.render("message.html", self.t(title), status, text=text, **values)

    def render(self, template: str, title: str, status: int, **values: Any) -> Response:
        """A page of this project."""
        return _render(
            template,
            self.t,
            status,
            title=title,
            project=self.project.name or self.project.key,
            address=self.project.settings.address,
            test=self.guest.test,
            **values,
        )


async def _enter(deps: Deps, request: Request, token: str, page: Page) -> _Visit | None:
    guest = deps.signer.recognise(token, page, deps.clock.now())
    if guest is None:
        return None
    user = None
    try:
        project = await deps.catalog.load_project(guest.project_id)
        if guest.user_id is not None:
            user = await load_user(deps.database, guest.project_id, guest.user_id)
    except NotFound:
        if page == "p":
            return None
        project = await deps.catalog.load_project(guest.project_id)
    return _Visit(guest, project, user, choose_words(None if user is None else user.locale, _accepted(request)))


def _accepted(request: Request) -> str:
    return request.headers.get("accept-language", "")


async def _read(request: Request) -> Fields:
    return parse_fields(request.headers.get("content-type", ""), await request.body())


def _to_origin(request: Request, source: Any, wording: str | None) -> Origin:
    return Origin("user", source, wording, public_ip(request), request.headers.get("user-agent"))


# ---------------------------------------------------------------- unsubscribing


async def _question(deps: Deps, visit: _Visit, status: int = 200) -> Response:
    about = await _describe(deps, visit)
    text = visit.t("unsubscribe_question")
    return visit.show("unsubscribe_title", text, status=status, rows=about, asks=True, further=_further(deps, visit))


async def _describe(deps: Deps, visit: _Visit) -> Sequence[tuple[str, str]]:
    guest, t = visit.guest, visit.t
    try:
        category = (await load_category(deps.database, guest.project_id, guest.category)).name
    except NotFound:
        category = guest.category
    return (
        (t("from"), visit.project.name or visit.project.key),
        (t("about"), category),
        (t("channel"), _name(t, guest.channel)),
    )


def _further(deps: Deps, visit: _Visit) -> str | None:
    """The path of their preference page; none for whom there is none."""
    if visit.user is None:
        return None
    guest = visit.guest
    page = Guest("p", guest.project_id, guest.delivery, guest.user_id, test=guest.test)
    return f"/p/{deps.signer.invite(page)}"


# ---------------------------------------------------------------- preferences


async def _load_shown(deps: Deps, visit: _Visit, user: User) -> Shown:
    project_id, now = visit.guest.project_id, deps.clock.now()
    choices = await load_choices(deps.database, project_id, user.id)
    merged = await load_merged(deps.database, project_id, unmuted(choices.preferences), now)
    channels = {Channel[name] for name, values in user.addresses.items() if values}
    if (await deps.inbox.load_counts((project_id, user.id))).last_seq:
        channels.add(Channel.in_app)
    addresses = [(Channel[name], text) for name, texts in user.addresses.items() for text in texts]
    left = await list_opt_outs(deps.database, project_id, addresses)
    return to_shown(choices, merged, channels, now, left)


async def _sample(deps: Deps, visit: _Visit, *, saved: Sequence[str] | None = None) -> Response:
    """The page as a test message leads to it: with nothing of what the user chose, and nothing to be chosen. Test
    messages are read by those who make them, whom live users' choices do not concern."""
    now = deps.clock.now()
    merged = await load_merged(deps.database, visit.guest.project_id, NOTHING_SAID, now)
    shown = to_shown(Choices(), merged, tuple(Channel), now)
    return _preferences(deps, visit, shown, saved=saved, fields={})


async def _save(deps: Deps, guest: Guest, user: User, answer: Answer, origin: Origin) -> None:
    actor = Actor(guest.project_id, "user")

    async def work(conn: Connection) -> None:
        await apply_choices(conn, actor, user.id, answer.given, origin, merge=True)
        for change in answer.changes:
            if change.channel is not None and change.value == "on":
                for address in sorted(user.addresses.get(change.channel.name, ())):
                    await lift_opt_out(conn, actor, change.channel, address, change.key)

    await deps.database.transaction(work)


def _preferences(
    deps: Deps,
    visit: _Visit,
    shown: Shown,
    *,
    saved: Sequence[str] | None = None,
    faults: Sequence[Fault] = (),
    fields: Fields | None = None,
    status: int = 200,
) -> Response:
    """The page.

    Args:
        fields: what its reader entered, where that could not be taken: they find it as they left it.
    """
    t, project = visit.t, visit.project.name or visit.project.key
    return visit.render(
        "preferences.html",
        t("preferences_title", project=project),
        status,
        prefix=t("error_prefix") if faults else None if saved is None else t("saved" if saved else "nothing_changed"),
        intro=t("preferences_intro", project=project),
        mark=None if visit.guest.test else deps.signer.mark_form(visit.guest),
        saved=saved,
        faults=[{"field": fault.field, "text": _explain(t, fault)} for fault in faults],
        categories=_to_categories(t, shown, fields),
        pauses=_to_pauses(t, shown, fields),
        quiet=_to_quiet(t, shown, fields, faults),
        zones=_list_zones(shown.choices.time_zone),
        time_zone=_keep(fields, "time_zone", shown.choices.time_zone or ""),
        default_zone=t("time_zone_default", zone=visit.project.settings.time_zone or "UTC"),
    )


def _to_categories(t: Words, shown: Shown, fields: Fields | None) -> list[dict[str, Any]]:
    def is_on(key: str, channel: Channel) -> bool:
        if fields is not None:
            return f"{channel.name}:{key}" in fields.get("on", ())
        return answers[channel.name].on

    found = []
    for category in shown.categories:
        answers, often = category.channels, _keep(fields, f"often:{category.key}", category.frequency.value)
        found.append(
            {
                "key": category.key,
                "name": category.name,
                "description": category.description,
                "required": category.required,
                "asked": ",".join(channel.name for channel in shown.channels),
                "channels": [
                    {"name": channel.name, "label": _name(t, channel), "on": is_on(category.key, channel)}
                    for channel in shown.channels
                ],
                "frequencies": [
                    {"name": one.value, "label": t(f"frequency_{one.value}"), "on": one.value == often}
                    for one in Frequency
                ],
            }
        )
    return found


def _to_pauses(t: Words, shown: Shown, fields: Fields | None) -> list[dict[str, Any]]:
    chosen = _keep(fields, "pause", KEEP_PAUSE if shown.muted else NO_PAUSE)
    pauses = [(NO_PAUSE, t(NO_PAUSE)), *((name, t(name)) for name in PAUSES)]
    if shown.muted and shown.muted_until is not None:
        until = _to_moment(t, shown.muted_until, shown.choices.time_zone)
        pauses.insert(0, (KEEP_PAUSE, t("pause_until", date=until)))
    elif shown.muted:
        pauses = [(KEEP_PAUSE if name == "pause_ever" else name, label) for name, label in pauses]
    return [{"name": name, "label": label, "on": name == chosen} for name, label in pauses]


def _to_quiet(t: Words, shown: Shown, fields: Fields | None, faults: Sequence[Fault]) -> list[dict[str, Any]] | None:
    now = find_range(shown.choices.quiet_hours)
    if now is None:
        return None
    told = {fault.field: _explain(t, fault) for fault in faults}
    return [
        {"name": name, "label": t(name), "value": _keep(fields, name, value), "fault": told.get(name)}
        for name, value in zip(("quiet_start", "quiet_end"), now, strict=True)
    ]


def _keep(fields: Fields | None, name: str, value: str) -> str:
    entered = fields.get(name) if fields is not None else None
    return entered[0] if entered else value


def _explain(t: Words, fault: Fault) -> str:
    return t(fault.text, field=t(fault.field)) if fault.text == "error_time" else t(fault.text)


def _to_moment(t: Words, at: datetime, zone: str | None) -> str:
    return format_datetime(at, "long", tzinfo=ZoneInfo(zone or "UTC"), locale=t.language)


@cache
def _zones() -> Sequence[str]:
    """Names of places, which people find; without those that are kept for old files only."""
    old = ("Etc/", "US/", "SystemV/", "posix/", "right/")
    return ("UTC", *sorted(zone for zone in available_timezones() if "/" in zone and not zone.startswith(old)))


def _list_zones(own: str | None) -> Sequence[str]:
    return _zones() if own is None or own in _zones() else (own, *_zones())


def _name(t: Words, channel: Channel) -> str:
    return t(f"channel_{channel.name}")


def _tell(t: Words, change: Change) -> str:
    """A change as a line for its reader."""
    if change.channel is not None:
        return f"{change.category} · {_name(t, change.channel)}: {t(change.value)}"
    if change.what == "frequency":
        return f"{change.category} · {t('frequency')}: {t(f'frequency_{change.value}')}"
    if change.what == "pause":
        return f"{t('pause')}: {t(change.value)}"
    name = t("quiet_legend") if change.what == "quiet" else t("time_zone")
    return f"{name}: {change.value or '–'}"


def _to_wording(visit: _Visit, answer: Answer) -> str:
    """What they read when they decided, for the record."""
    project = visit.project.name or visit.project.key
    lines = "; ".join(_tell(visit.t, change) for change in answer.changes)
    return f"{visit.t('preferences_intro', project=project)} {lines} [{visit.t('save')}]"


# ---------------------------------------------------------------- HTML


def _missing(request: Request) -> Response:
    """The same for every token that is not good."""
    t = choose_words(None, _accepted(request))
    return _render("message.html", t, 404, title=t("missing_title"), text=t("missing_text"))


@cache
def _load_pages() -> tuple[Environment, str, Mapping[str, str]]:
    """The templates, the style sheet, and the headers that all pages have."""
    folder = files(__package__)
    names = ("layout.html", "message.html", "preferences.html")
    pages = Environment(
        templates={name: folder.joinpath(name).read_text(encoding="utf-8") for name in names},
        undefined_behavior="lenient",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = folder.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "x-robots-tag": "noindex, nofollow",
    }
    return pages, css, headers


def _render(template: str, t: Words, status: int, **values: Any) -> Response:
    pages, css, headers = _load_pages()
    texts = {**t.texts, "language": t.language}
    html = pages.render_template(template, t=texts, css=css, **values)
    return Response(
        html, status, media_type="text/html; charset=utf-8", headers={**headers, "content-language": t.language}
    )
