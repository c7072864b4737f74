"""Text messages through Amazon SNS, published to a phone number.

https://docs.aws.amazon.com/sns/latest/api/API_Publish.html
https://docs.aws.amazon.com/sns/latest/dg/sms_publish-to-phone.html

Nothing comes back after SNS took a message: what became of it is written to CloudWatch's logs only, and so is that a
number cannot be reached or that the month's spend is used up. Replies do not come, either; SNS itself keeps the list
of numbers that answered STOP, per AWS account, and drops messages to them.

Without senders, SNS chooses among the account's numbers. It takes no key by which a second send would be dropped.

This room knows SNS; it knows no retry policy and no project.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from html import unescape
from typing import ClassVar, Final, Literal
from urllib.parse import urlencode

from pydantic import Field, field_validator

from tidings.model.messages import Message, Rejected, SendResult, Sent, Sms
from tidings.model.words import Channel, Reason
from tidings.providers.api import decide_by_status, to_bad_answer
from tidings.providers.aws import AwsApi, AwsConfig, decide_by_code, to_evidence
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.port import Capability, ProviderSpec, Surroundings, find_unsupported
from tidings.providers.senders import SenderConfig, SenderKind, choose_sender

_FORM: Final = "application/x-www-form-urlencoded; charset=utf-8"
_MESSAGE_ID: Final = re.compile(rb"<MessageId>\s*([A-Za-z0-9-]{1,100})\s*</MessageId>")
_CODE: Final = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,100})\s*</Code>")
_TEXT: Final = re.compile(r"<Message>(.{0,2000}?)</Message>", re.DOTALL)


class SnsConfig(AwsConfig):
    """Credentials that may do `sns:Publish` to phone numbers."""

    message_type: Literal["Transactional", "Promotional"] = "Transactional"
    """What SNS optimises for: arriving, or cost."""
    max_price: Decimal | None = Field(default=None, gt=0, max_digits=8, decimal_places=5)
    """US dollars that one message may cost at most; a dearer one is not sent."""
    senders: tuple[SenderConfig, ...] = Field(default=(), max_length=500)
    """Numbers of the account (long and short codes, toll-free) and sender ids. Empty lets SNS choose."""
    entity_id: str | None = Field(default=None, pattern=r"^[0-9A-Za-z]{1,50}$")
    """The sender's registration for India (DLT)."""

    @field_validator("senders")
    @classmethod
    def _check_senders(cls, senders: tuple[SenderConfig, ...]) -> tuple[SenderConfig, ...]:
        if any(sender.kind is SenderKind.messaging_service for sender in senders):
            raise ValueError("SNS has no messaging services: numbers and sender ids only")
        return senders


class SnsProvider:
    """Publishes to phone numbers in one region of Amazon SNS."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="sns",
        channels=frozenset({Channel.sms}),
        config=SnsConfig,
        capabilities=frozenset({Capability.sender}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://docs.aws.amazon.com/sns/latest/dg/sms_publish-to-phone.html",
        verified_by=(
            "AWS's own Signature Version 4 suite and API description (botocore), and moto as a peer. SNS sends no "
            "receipts: what became of a message stands in CloudWatch only. Only SNS itself can confirm what it "
            "answers for a number that opted out."
        ),
    )

    def __init__(self, config: SnsConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._api = AwsApi(config, "sns", "sns", surroundings, self.spec)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        content = message.content
        assert isinstance(content, Sms)
        sender: SenderConfig | None = None
        if self._config.senders or content.sender is not None:
            chosen = choose_sender(self._config.senders, message)
            if isinstance(chosen, Rejected):
                return chosen
            sender = chosen
        body = urlencode(render_form(self._config, message.to, content.text, sender), errors="replace").encode()
        try:
            answer = await self._api.call("/", _FORM, body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Asks for the settings of text messages (https://docs.aws.amazon.com/sns/latest/api/API_GetSMSAttributes.html)."""
        return await self._api.check("/", _FORM, b"Action=GetSMSAttributes&Version=2010-03-31", method="POST")

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def render_form(config: SnsConfig, to: str, text: str, sender: SenderConfig | None) -> dict[str, str]:
    """The fields of a `Publish` request. Maps are numbered entries in Amazon's query protocol."""
    attributes: list[tuple[str, str, str]] = [("AWS.SNS.SMS.SMSType", "String", config.message_type)]
    if config.max_price is not None:
        attributes.append(("AWS.SNS.SMS.MaxPrice", "Number", format(config.max_price, "f")))
    if sender is not None:
        named = sender.kind is SenderKind.alphanumeric
        attributes.append(("AWS.SNS.SMS.SenderID" if named else "AWS.MM.SMS.OriginationNumber", "String", sender.id))
    if config.entity_id is not None:
        attributes.append(("AWS.MM.SMS.EntityId", "String", config.entity_id))
    form = {"Action": "Publish", "Version": "2010-03-31", "PhoneNumber": to, "Message": text}
    for number, (name, kind, value) in enumerate(attributes, start=1):
        entry = f"MessageAttributes.entry.{number}."
        form |= {f"{entry}Name": name, f"{entry}Value.DataType": kind, f"{entry}Value.StringValue": value}
    return form


# https://docs.aws.amazon.com/sns/latest/api/API_Publish.html#API_Publish_Errors, and the codes of
# https://docs.aws.amazon.com/sns/latest/api/API_CreateSMSSandboxPhoneNumber.html for numbers
_ERRORS: Final[dict[str, Reason]] = {
    "OptedOut": Reason.opted_out,
    "OptedOutException": Reason.opted_out,
    "AuthorizationError": Reason.unauthorized,
    "AuthorizationErrorException": Reason.unauthorized,
    "InvalidSecurity": Reason.unauthorized,
    "InvalidSecurityException": Reason.unauthorized,
    "InvalidParameter": Reason.rejected,
    "InvalidParameterException": Reason.rejected,
    "InvalidParameterValue": Reason.rejected,
    "ParameterValueInvalid": Reason.rejected,
    "ValidationError": Reason.rejected,
    "ValidationException": Reason.rejected,
    "UserError": Reason.rejected,
    "NotFound": Reason.unauthorized,
    "NotFoundException": Reason.unauthorized,
}
_ABOUT_PARAMETERS: Final = frozenset(
    {"InvalidParameter", "InvalidParameterException", "InvalidParameterValue", "ParameterValueInvalid"}
)


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer to `Publish` means: by the error's code, else by what all of Amazon's services have in common,
    else by the status.

    SNS says which parameter it does not like in words: `Invalid parameter: PhoneNumber Reason: … is not valid to
    publish to`, `… is opted out`, `Invalid parameter: Message too long`.
    """
    if 200 <= answer.status < 300:
        found = _MESSAGE_ID.search(answer.body)
        return Sent(found[1].decode()) if found else to_bad_answer(answer)
    xml = answer.body.decode("utf-8", "replace")
    code, text = _CODE.search(xml), _TEXT.search(xml)
    said, name = unescape(text[1].strip()) if text else "", code[1] if code else ""
    evidence = to_evidence(answer, name, said)
    lowered = said.lower()
    if name in _ABOUT_PARAMETERS:
        if "opted out" in lowered:
            return Rejected(Reason.opted_out, evidence)
        if "too long" in lowered:
            return Rejected(Reason.too_large, evidence)
        if "phonenumber" in lowered or "e164" in lowered:
            return Rejected(Reason.invalid_address, evidence)
    if (reason := _ERRORS.get(name)) is not None:
        return Rejected(reason, evidence)
    return decide_by_code(name, answer, now, evidence) or decide_by_status(answer, now, evidence or None)
