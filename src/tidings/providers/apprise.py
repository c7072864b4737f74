"""A hundred and more chat services through Apprise: https://github.com/caronc/apprise

An account holds one Apprise URL, which says the service, the room and the credentials; addresses call it by the
account's `name` (`apprise:default`). Apprise blocks, so it runs in a few threads of its own. What these threads may do
is watched where the interpreter does it (PEP 578), whatever a plugin believes to be doing: connect to public addresses
only (or what the operator opened), read no file but Python's own, start no process. Redirects are not followed, long
answers not read, and who has not answered in time is hung up on: else they would keep the thread, and fill the memory.

Apprise says yes or no. What else can be known is taken from what went on meanwhile: whether anything left this machine,
and the HTTP status that its plugins log.

This room knows Apprise; Apprise knows the services. It is imported when the first message is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import logging
import re
import socket
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, SecretStr, field_validator

from tidings.model.messages import Chat, Deferred, Message, Rejected, SendResult, Sent, Uncertain, split_scheme
from tidings.model.words import Channel, Reason
from tidings.providers.api import decide_by_status
from tidings.providers.guard import Guard
from tidings.providers.http import HttpAnswer
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

THREADS: Final = 4
"""For each account: so many messages are sent at a time."""
READ_CAP: Final = 128 * 1024
"""Octets of an answer, its header and all; compressed, it may become a thousand times as long."""
SCHEMES: Final = frozenset(
    """
    46elks apprise apprises atalk azure bark barks betterstack bluesky brevo bsky bulksms bulkvs burstsms chanify
    clickatell clicksend cliq cm d7sms dapnet dingtalk discord dot eight00com elks emby embys enigma2 enigma2s
    evolution evolutions exotel feishu firehydrant flock flowtriq flowtriqs fluxer fluxers form forms freemobile
    gchat github goalert goalerts gorush gorushs gotify gotifys groundmail groupme gupshup hassio hassios httpsms
    humhub humhubs ifttt ilert incidentio infobip jira join json jsons kakao kakaotalk kaleyra kavenegar klr kodi
    kodis kook kudosity kumulos lametric lametrics lark lauther lfg line mailersend mailgun mastodon mastodons
    matrix matrixs misskey misskeys mmost mmosts mobilemessage mobilemsg msg91 msgbird ncloud nclouds nctalk nctalks
    nexmo notica noticas notifiarr notifico notificos notifyre ntfy ntfys o365 octopush onebot onebots
    onesignal opsgenie pagerduty pagertree parsep parseps pbul pinglet pinglets pingram pjet pjets plivo postmark
    pover prowl psafer psafers push pushdeer pushdeers pushed pushme pushplus pushward pushy qq reddit resend revolt
    ringc rocket rockets ryver schan sendgrid sendpulse serwersms ses session sessions seven sfr signal signalgrid
    signals signl4 simplepush sinch slack smsc smseagle smseagles smsmanager smsmgr smstunnel smtp2go sns sogs
    sparkpost spike splunk spugpush spush squadcast stackfield strmlabs synology synologys telesign telnyx tgram
    threema toot toots trigv trigvs tweet twilio twist twitter viber victorops voipms vonage webex wechat wecom
    wecombot whapi whatsapp workflow workflows wpush wxpusher wxteams x xbmc xbmcs xmatters xml xmls youlmk zalo
    zcliq zohocliq zoom zulip
    """.split()  # noqa: SIM905 - two hundred words read better so
)
"""The services that may be used, as their URLs begin: those that speak HTTP through `requests`. Left out is what talks
to this machine (desktops, syslog, files), what keeps threads or connections of its own (IRC, XMPP, MQTT), and what has
a provider here that can do more (e-mail, FCM, Web Push, SMPP)."""
_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
_STATUS: Final = re.compile(r"\berror=(\d{3})\b")


class AppriseConfig(Config):
    """An account for one service that Apprise knows; `tidings providers --services` lists them."""

    url: SecretStr
    """The service's Apprise URL, such as `tgram://<token>/<chat>`: https://appriseit.com/services/"""
    name: Annotated[str, Field(pattern=_NAME)] = "default"
    """What addresses call it: `apprise:default`."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or not rest or scheme.lower() not in SCHEMES:
            raise ValueError("must be the Apprise URL of a service that `tidings providers --services` lists")
        return url

    def serves(self, target: str) -> bool:
        """Its name."""
        return target == self.name


class AppriseProvider:
    """Sends messages with Apprise's plugins."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="apprise",
        channels=frozenset({Channel.chat}),
        config=AppriseConfig,
        capabilities=frozenset({Capability.heading, Capability.url}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://appriseit.com/library/",
        schemes=frozenset({"apprise"}),
        verified_by="its generic JSON service against a stub; the plugins are tested by their project",
    )

    def __init__(self, config: AppriseConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._guard = surroundings.guard
        self._timeout = surroundings.time_for(self.spec)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="apprise")
        self._plugins = threading.local()
        """A plugin for each thread: they are not made for several."""

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Chat)
        if split_scheme(message.to)[1] != self._config.name:
            return Rejected(Reason.no_account, "the account has another name")
        watch = _Watch(self._guard)
        work = self._threads.submit(self._notify, message.content, watch)
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            if work.cancelled():
                return Deferred(Reason.throttled, detail="all threads of the account are busy")
            watch.end()
            return Uncertain(f"no answer within {self._timeout:g} s")

    def _notify(self, content: Chat, watch: _Watch) -> SendResult:
        """One message, in one of our threads."""
        install_watch()
        _here.watch = watch
        try:
            plugin = self._plugin()
            if plugin is None:
                return Rejected(Reason.unauthorized, "Apprise does not understand the account's URL")
            body = content.text if content.url is None else f"{content.text}\n{content.url}"
            taken = bool(plugin.notify(body=body, title=content.title or ""))
        finally:
            _here.watch = None
        return Sent() if taken else self._decide(watch)

    def _plugin(self) -> Any:
        plugin = getattr(self._plugins, "plugin", None)
        if plugin is None:
            plugin = self._plugins.plugin = _load(self._config.url.get_secret_value(), self._timeout)
        return plugin

    def _decide(self, watch: _Watch) -> SendResult:
        """What a no means."""
        if watch.refused is not None:
            return Rejected(Reason.target_refused, watch.refused)
        if not watch.sent:
            return Deferred(Reason.connect_failed, detail="Apprise could not connect")
        if watch.status is not None and watch.status >= 300:
            return decide_by_status(HttpAnswer(watch.status, {}, b""), self._clock.now())
        return Uncertain("Apprise says no more than that it failed, after the request had left")

    async def close(self) -> None:
        """Ends the threads, as soon as each has done what it is at."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _load(url: str, timeout: float) -> Any:
    import apprise
    from apprise.common import PersistentStoreMode

    asset = apprise.AppriseAsset(
        app_id="Tidings",
        app_desc="Tidings",
        app_url="",
        http_redirects=False,
        storage_mode=PersistentStoreMode.MEMORY,
    )
    plugin = apprise.Apprise.instantiate(url, asset=asset)
    if plugin is None:
        return None
    plugin.redirects = False  # the URL itself could have asked for them
    plugin.verify_certificate = True  # or for this
    plugin.socket_connect_timeout = timeout / 2
    plugin.socket_read_timeout = timeout / 2
    plugin.request_rate_per_sec = 0  # it would sleep; the account's pace is ours
    return plugin


def list_reachable() -> Mapping[str, tuple[str, ...]]:
    """The services that may be used, by their names, each with what its URL begins with."""
    from apprise.manager_plugins import NotificationManager

    create: Any = NotificationManager  # its methods have no types
    manager = create()
    manager.load_modules()
    found = {}
    for plugin in manager.plugins(include_disabled=False):
        schemes: list[str] = []
        for given in (plugin.protocol, plugin.secure_protocol):
            schemes += [given] if isinstance(given, str) else given or ()
        if usable := tuple(scheme for scheme in schemes if scheme in SCHEMES):
            found[str(plugin.service_name)] = usable
    return dict(sorted(found.items(), key=lambda item: item[0].casefold()))


# ---------------------------------------------------------------- the watch


class _Refused(PermissionError):
    """What a plugin gets when it tries something that it may not."""


class _Watch:
    """What one message's thread does, as the interpreter tells it: refuses some of it and remembers the rest."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.refused: str | None = None
        self.sent = False
        """A request has begun to leave."""
        self.status: int | None = None
        """The last HTTP status that a plugin did not like."""
        self._sockets: list[socket.socket] = []
        self._over = False

    def end(self) -> None:
        """Break off what is under way, from another thread: nobody waits for it any more."""
        self._over = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # it has ended already
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # beneath TLS, which another thread is reading

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Called by the interpreter before it does something. https://docs.python.org/3/library/audit_events.html

        Raises:
            _Refused: it must not be done.
        """
        if event == "http.client.send":
            self._see_request(args[0])
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            self._see_target(args[1])
        elif event == "open":
            self._see_file(args[0])
        elif event in _FORBIDDEN:
            self._refuse("the service's plugin may not start processes")

    def _see_request(self, connection: http.client.HTTPConnection) -> None:
        self.sent = True
        connection.response_class = _ShortResponse
        if connection.sock is not None and connection.sock not in self._sockets:
            self._sockets.append(connection.sock)
        if self._over:
            self._refuse("the time is over")

    def _see_target(self, target: Any) -> None:
        if self._over:
            self._refuse("the time is over")
        if target is None:  # of a connected socket: was looked at before
            return
        # A path (a Unix socket) is no address; neither is a name, which nobody has resolved.
        if not isinstance(target, tuple) or not self._guard.allows(str(target[0])):
            self._refuse("the target is not a public address")

    def _see_file(self, path: Any) -> None:
        if isinstance(path, int):  # open already
            return
        text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
        if ".." in text or not text.startswith(_own_folders()):
            # Not the message's fault, and for some of them (~/.netrc) no reason to fail: so it is only kept from them.
            raise _Refused("no files here")

    def _refuse(self, why: str) -> None:
        self.refused = why
        raise _Refused(why)


class _ShortResponse(http.client.HTTPResponse):
    """An answer whose connection gives no more than `READ_CAP` octets, however they are asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Capped(self.fp))


class _Capped(io.RawIOBase):
    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = READ_CAP

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise OSError("the answer is too long")
        view = memoryview(buffer)[: self._left]
        count = self._stream.readinto1(view)
        self._left -= count
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


_FORBIDDEN: Final = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"}
)


@cache
def _own_folders() -> tuple[str, ...]:
    """Where modules, their data and the list of certificate authorities are read from."""
    import apprise

    folders = {sys.prefix, sys.base_prefix, str(Path(apprise.__file__).parents[1])}
    return tuple(f"{folder}/" for folder in folders)


class _Here(threading.local):
    """The watch over this thread; None in all threads but ours, and in those between two messages."""

    watch: _Watch | None = None


_here: Final = _Here()


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if (watch := _here.watch) is not None:
        watch.see(event, args)


class _Listener(logging.Handler):
    """Takes from Apprise's log what it does not answer: the status. Nothing of it goes into ours: it names rooms."""

    def emit(self, record: logging.LogRecord) -> None:
        if (watch := _here.watch) is not None and (found := _STATUS.search(record.getMessage())) is not None:
            watch.status = int(found[1])


_installing: Final = threading.Lock()


def install_watch() -> None:
    """Has the interpreter tell us what threads do, and Apprise what it logs; once for the process."""
    with _installing:  # the cache alone lets two threads in
        _install_once()


@cache
def _install_once() -> None:
    _own_folders()  # imports Apprise, before anything is refused
    log = logging.getLogger("apprise")
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.addHandler(_Listener())
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # below, it logs paths, which hold tokens
    sys.addaudithook(_audit)
