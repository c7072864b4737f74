"""Render: a delivery, its pinned template version and its data become a Message. Pure.

Rendering is late, just before sending, and repeatable: the version is pinned, so an audit can make the same bytes
again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidings import ids
from tidings.channels import CHANNELS
from tidings.directory.catalog import TemplateVersion
from tidings.errors import RenderError
from tidings.flow.load import Delivery
from tidings.flow.request import DirectContent, to_fields
from tidings.model.messages import Message

_decode_content = msgspec.json.Decoder(DirectContent).decode


def render_message(delivery: Delivery, template: TemplateVersion | None, traceparent: str | None) -> Message:
    """The message of a delivery.

    Raises:
        RenderError: the template cannot be rendered with this data, or what it makes is not a message.
    """
    if delivery.content is not None:
        fields = to_fields(delivery.channel, _decode_content(delivery.content))
    elif template is not None:
        fields = template.compiled.render(delivery.channel, delivery.locale, to_variables(delivery))
    else:
        raise RenderError("There is neither a template nor content.")
    return Message(
        delivery=delivery.id,
        channel=delivery.channel,
        to=delivery.address,
        content=CHANNELS[delivery.channel].to_content(fields),
        template_version=delivery.template_version_id,
        traceparent=traceparent,
        expires_at=delivery.expires_at,
    )


def to_variables(delivery: Delivery) -> dict[str, Any]:
    """What a template can name: the request's data at the top, and `user`, `notification`, `delivery`."""
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
