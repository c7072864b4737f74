"""Why a mail was refused: enhanced status codes (RFC 3463), basic ones (RFC 5321), and the words of mail systems.

`smtp_talk.py` reads the answers of our own server with these tables, `bounces.py` what other servers told a system
that reports to us. An address is only given up (`bounced`, `invalid_address`) where something says that it is the
address; what nothing explains is `rejected`, which suppresses nothing.
"""

from __future__ import annotations

import re
from typing import Final

from tidings.model.words import Reason

_TEXT_MAX: Final = 8_192

# Subject and detail of the enhanced status code (RFC 3463 and its IANA registry), for the answers of our own server and
# for what another one reports alike.
REASON_BY_DETAIL: Final[dict[str, Reason]] = {
    "1.1": Reason.bounced,  # bad destination mailbox address
    "1.2": Reason.bounced,  # bad destination system address
    "1.3": Reason.invalid_address,  # bad destination mailbox address syntax
    "1.6": Reason.bounced,  # mailbox has moved
    "1.7": Reason.rejected,  # bad sender's mailbox address syntax
    "1.8": Reason.rejected,  # bad sender's system address
    "1.10": Reason.bounced,  # null MX
    "2.1": Reason.bounced,  # mailbox disabled
    "2.2": Reason.mailbox_full,
    "2.3": Reason.too_large,  # message length exceeds administrative limit
    "3.4": Reason.too_large,  # message too big for system
    "4.1": Reason.bounced,  # no answer from host; Exchange Online says it of unknown recipients
    "4.4": Reason.bounced,  # unable to route
    "6.7": Reason.unsupported,  # non-ASCII addresses not permitted
    "7.8": Reason.unauthorized,  # authentication credentials invalid
    "7.9": Reason.unauthorized,  # authentication mechanism too weak
    "7.11": Reason.unauthorized,  # encryption required
    "7.14": Reason.unauthorized,  # trust relationship required
}

# What only reports say, when another system has tried: it may have waited for days.
_BY_DETAIL_IN_REPORTS: Final[dict[str, Reason]] = {
    "1.9": Reason.connect_failed,  # x2 and qmail: resources unavailable
    "4.2": Reason.connect_failed,  # bad connection
    "4.3": Reason.connect_failed,  # directory server failure
    "4.5": Reason.connect_failed,  # congestion
    "4.6": Reason.provider_error,  # routing loop
    "4.7": Reason.connect_failed,  # delivery time expired
    "7.9": Reason.blocked,  # Yahoo: not accepted for policy reasons
    "7.13": Reason.bounced,  # user account disabled (RFC 5248)
    "7.17": Reason.bounced,  # mailbox owner has changed (RFC 7293)
    "7.20": Reason.blocked,  # no passing DKIM signature (RFC 7372), as the next ones
    "7.21": Reason.blocked,
    "7.22": Reason.blocked,
    "7.23": Reason.blocked,  # SPF
    "7.24": Reason.blocked,
    "7.25": Reason.blocked,  # reverse DNS
    "7.26": Reason.blocked,  # several of them
    "7.27": Reason.blocked,  # sender has a null MX
}
_BY_SUBJECT: Final[dict[str, Reason]] = {
    "3": Reason.provider_error,
    "4": Reason.connect_failed,
    "5": Reason.provider_error,
    "7": Reason.blocked,
}
_BY_REPLY: Final[dict[str, Reason]] = {
    # Not 550 and 553: an address is only given up where something says that it is the address.
    "521": Reason.bounced,  # host does not accept mail (RFC 7504)
    "551": Reason.bounced,  # user not local
    "552": Reason.mailbox_full,
    "556": Reason.bounced,  # domain does not accept mail
}


def _wordings(*table: tuple[Reason, str]) -> list[tuple[Reason, re.Pattern[str]]]:
    return [(reason, re.compile(pattern, re.IGNORECASE)) for reason, pattern in table]


# Words that are believed more than the code beside them: codes for these are often wrong.
_SURE_WORDS: Final = _wordings(
    (
        Reason.mailbox_full,
        r"mailbox (is |was )?(\S+ )?(over)?full|over[ -]?quota|quota (was |is |has been )?(exceed|reached|violat|full)"
        r"|exceed(ed|s|ing)? (\S+ ){0,4}(quota|(storage|mailbox|disk|allowed) (limit|space|allocation|size))"
        r"|insufficient (disk|storage|system storage)|(not enough|no|out of) (storage|disk|mailbox) ?space"
        r"|mailbox (size|quota) (limit )?(was |is |has been )?exceed|mailfolder is full|message box.{0,20}full"
        r"|user'?s? (disk )?quota|exceeded the local limit|disk quota",
    ),
    (
        Reason.too_large,
        r"(message|mail|size|e-mail|letter)[^.:;]{0,30} (is )?(too (big|large)|larger than)|line limit exceeded"
        r"|(message|mail) (file |header )?size (exceed|limit|is )|exceed\S* .{0,30}(message|mail) ?(header )?size"
        r"|maximum (message|mail) (size|length)|too (big|large) (a )?(message|mail)|size.{0,20}exceed.{0,20}(limit|max)"
        r"|exceed\S* (the )?max(imum)? .{0,16}size",
    ),
    (
        Reason.blocked,
        r"\brbl\b|dnsbl|spamhaus|spamcop|connection (rate|frequency) limit|weren'?t"
        r" sent|low reputation|too many recipients",
    ),
    (
        Reason.content_rejected,
        r"\bvirus\b|\bspam(my|ming)?\b|malware|phish|unsolicited|bulk (e-?)?mail|message content|looks like junk"
        r"|content (was |is )?(rejected|blocked|filter)|attachment (type|name|extension)|executable"
        r"|mail reject[e\u00e9]",
    ),
)
_WORDS: Final = _wordings(
    (
        Reason.connect_failed,
        r"not found, try again|aborted after|failing for a long time|did not accept our requests to connect",
    ),
    (
        Reason.blocked,
        r"reverse dns|\bptr\b|black ?list|block ?list|blocked (by|using)|reputation|\bspf\b|\bdkim\b|\bdmarc\b"
        r"|unauthenticated|client host|service refuse"
        r"|(ip|host|server)\b[^.:;]{0,30} (not allowed|blocked|banned|listed)"
        r"|too many (connection|session|mails|messages|recipients)|rate limit"
        r"|relay(ing)? (access )?(is )?(denied|prohibited|not)|not permitted to relay|(unable|not allowed) to relay"
        r"|we do(n't| not) relay|(cannot|can't|not) relay|no relaying|sender (address )?(was )?(reject|denied|blocked)"
        r"|domain of sender|sender (domain|address)|\bhelo\b|policy|policies|authenticat|unverif\w+ sending"
        r"|my name was rejected|refused to talk|ip name lookup|mismatches client ip|sender.{0,20}verif"
        r"|refused (your )?mail from|not accept.{0,20}from|not authorized|not accepting connections",
    ),
    (
        Reason.bounced,
        r"(user|recipient|mailbox|account|address|addressee|mail ?drop|alias|e-?mail)\b[^.:;]{0,50}("
        r"unknown|not (be )?found|(does|do) ?n[o']?t exist|not exist|unavailable|disabled|inactive|suspended|expired"
        r"|terminated|discontinued|not listed"
        r"|invalid|not known|isn'?t (here|active)|has moved|no longer|unroute?able|not a valid|closed|locked"
        r"|is blocked|frozen)"
        r"|no such (user|recipient|address|mailbox|person|account|alias|local)|(unknown|invalid|bad|undeliverable|"
        r"unrout\w+) (\S+ )?(user|recipient|mailbox|local[- ]?part|address|account|alias)|no mailbox here|no account"
        r"|user does ?n[o']?t have|does ?n[o']?t have an? \S* ?account|unable to (find|look up) (user|recipient)"
        r"|not our (customer|user)|there is no (one|user)|no user\b|nobody here by|no valid recipients"
        r"|addressee unknown|unknown to (this|address)|not (a )?local|mailbox not|not listed in",
    ),
    (
        Reason.bounced,  # there is no such domain
        r"(host|domain|name server|domain name|mx)\b[^;]{0,60}("
        r"not (be )?found|unknown|(does|do) ?n[o']?t (exist|resolve)|no(t| longer) valid|may not exist"
        r"|non-existent|nxdomain)"
        r"|(unknown|invalid|no such|unrout\w+) (mail )?(host|domain)"
        r"|name or service not known|no route to (domain|host found)|illegal host|dns lookup failure"
        r"|unrouteable|couldn'?t find any host|could not find a gateway|all relevant mx records|no mx\b",
    ),
    (
        Reason.blocked,
        r"access denied|recipient rejected",
    ),
    (
        Reason.connect_failed,
        r"tim(ed|e)[ -]?out|time ?out|could(n't| not) (connect|be reached)|connection (refused|reset|timed|lost|closed|"
        r"dropped|was)|not reachable|unreachable|no route|unable to (connect|contact)|expired|giving up|retry time"
        r"|retries|delayed|wasn'?t able to establish|cannot connect|network is|not responding|deliver.{0,30}within",
    ),
    (
        Reason.provider_error,
        r"mail loop|routing loop|loop(s|ing)? (back|detected)|hop count|too many hops|system (error|config)|local error"
        r"|configuration error|temporar(y|ily)|command (died|failed|output)|out of memory|lost connection|syntax error"
        r"|service (currently )?unavailable|cannot open|can'?t (open|create)|permission denied|insufficient system"
        r"|mailer error|on hold",
    ),
)

STATUS: Final = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")
REPLY: Final = re.compile(r"(?<![\d.:/@\[-])([45][0-5]\d)(?=[\s:;,\-\])>.]|$)(?!\.\d)")


# What stands beside every cause, and what only looks like one: addresses and links have words in them.
_NOISE: Final = re.compile(
    r"https?://\S+|[^\s<>@]{1,64}@[^\s<>]{1,255}|recipient address rejected|this message has been in"
    r" the queue too long|could not be delivered to one or more|address\(es\) failed",
    re.IGNORECASE,
)
_AT_MAIL_FROM: Final = re.compile(
    r"(after|reply to|like our) MAIL FROM|>>> ?MAIL FROM(?!.*>>> ?RCPT)", re.IGNORECASE | re.DOTALL
)


def decide_reason(status: str, text: str) -> Reason:
    """Why a mail came back, of the enhanced status code and the words beside it. What none of the tables knows is
    `rejected`: it suppresses nothing.

    Sure words, then what the status says exactly, then other words, then the status's subject, then the basic code.
    """
    words = _NOISE.sub(" ", text[:_TEXT_MAX])
    reason = _decide_reason(status, words)
    if reason in (Reason.bounced, Reason.rejected) and _AT_MAIL_FROM.search(words):
        return Reason.blocked  # refused before the recipient was named: it is about us
    return reason


def _decide_reason(status: str, text: str) -> Reason:
    for reason, words in _SURE_WORDS:
        if words.search(text):
            return reason
    kind, _, detail = status.partition(".")
    if found := _BY_DETAIL_IN_REPORTS.get(detail):
        return found
    if kind == "5" and (found := REASON_BY_DETAIL.get(detail)):
        return found
    subject = detail.partition(".")[0]
    if subject == "6":
        return Reason.content_rejected
    for reason, words in _WORDS:
        if words.search(text):
            return Reason.connect_failed if kind == "4" and reason is Reason.bounced else reason
    if kind == "4" and detail == "2.2":
        return Reason.mailbox_full
    if found := _BY_SUBJECT.get(subject):
        return found
    if subject == "1":
        return Reason.bounced if kind == "5" else Reason.connect_failed
    reply = REPLY.search(text)
    return _BY_REPLY.get(reply[1], Reason.rejected) if reply else Reason.rejected
