"""Render: a delivery, its pinned template version and its data become a Message. Pure.

Rendering is late, just before sending, and repeatable: the version is pinned, so an audit can make the same bytes
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidings import ids
from tidings.channels import CHANNELS
from tidings.directory.catalog import TemplateVersion
from tidings.directory.digests import digest_of_one
from tidings.errors import RenderError
from tidings.flow.load import Delivery, list_barred
from tidings.flow.options import Extras, File
from tidings.flow.request import DirectContent, to_fields
from tidings.flow.tracking import Links
from tidings.model.messages import Message
from tidings.model.words import Priority

_decode_content = msgspec.json.Decoder(DirectContent).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


def render_message(
    delivery: Delivery,
    template: TemplateVersion | None,
    traceparent: str | None,
    *,
    category: str = "",
    extras: Extras | None = None,
    read: Callable[[File], bytes | None] = lambda _: None,
    headers: Sequence[tuple[str, str]] = (),
    report_url: str | None = None,
    links: Links | None = None,
) -> Message:
    """The message of a delivery.

    Args:
        category: of its type.
        extras: the request's options.
        read: gives the content of an attached file; None if it is not kept any more.
        headers: what the road adds to the header of a mail; a field that the request sets itself stays as it is.
        report_url: where the device reports what became of a push message.
        links: to our pages.

    Raises:
        RenderError: the template cannot be rendered with this data, or what it makes is not a message.
    """
    if delivery.content is not None:
        fields = to_fields(delivery.channel, _decode_content(delivery.content))
    elif template is not None:
        variables = to_variables(delivery)
        if template.compiled.says_digest and "digest" not in variables:
            variables["digest"] = to_digest(delivery)
        if template.compiled.says_links:
            variables["links"] = to_links(links)
        fields = template.compiled.render(delivery.channel, delivery.locale, variables)
    else:
        raise RenderError("There is neither a template nor content.")
    if extras is not None:
        fields |= extras.fields(delivery.channel)
    content = CHANNELS[delivery.channel].to_content(fields)
    if extras is not None or headers:
        content = (extras or Extras()).complete(content, read, headers)
    return Message(
        delivery=delivery.id,
        channel=delivery.channel,
        to=delivery.address,
        content=content,
        template_version=delivery.template_version_id,
        traceparent=traceparent,
        expires_at=delivery.expires_at,
        priority=Priority(delivery.priority),
        category=category,
        metadata=tuple(_decode_metadata(delivery.metadata).items()) if delivery.metadata is not None else (),
        barred=list_barred(delivery.suppressed),
        report_url=report_url,
    )


def to_variables(delivery: Delivery) -> dict[str, Any]:
    """What a template can name: the request's data at the top, and `user`, `notification`, `delivery`; `digest`
    and `links` come besides, as they are work."""
    variables: dict[str, Any] = msgspec.json.decode(delivery.data) if delivery.data is not None else {}
    variables["notification"] = {"id": ids.to_public(ids.NOTIFICATION, delivery.notification_id)}
    variables["delivery"] = {"id": ids.to_public(ids.DELIVERY, delivery.id), "channel": delivery.channel.name}
    variables["user"] = {
        "id": delivery.user_id,
        "locale": delivery.locale,
        "time_zone": delivery.user_time_zone,
        "attributes": msgspec.json.decode(delivery.user_attributes) if delivery.user_attributes else {},
    }
    return variables


def to_digest(delivery: Delivery) -> dict[str, Any]:
    """The `digest` of what is none: of one item, itself."""
    data = msgspec.json.decode(delivery.data) if delivery.data is not None else {}
    name = ids.to_public(ids.NOTIFICATION, delivery.notification_id)
    return digest_of_one(name, ids.time_of(delivery.notification_id), data)


def to_links(links: Links | None) -> dict[str, str]:
    """The links that a template can name; empty where there are none."""
    if links is None:
        return {"unsubscribe": "", "preferences": ""}
    return {"unsubscribe": links.unsubscribe, "preferences": links.preferences}
