"""The methods of both clients, by noun, each written once: a function that makes a `Call`, and where it is found.

A method's result depends on whose it is: of a `Client` the answer itself, of an `AsyncClient` what gives it when it is
awaited. The descriptors say so to type checkers as well.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from tidings.client import broadcasts, directory, people, requests
from tidings.client.calls import Call, Listing

P = ParamSpec("P")
T = TypeVar("T")


class Sync(Protocol):
    """What carries calls out at once."""

    def run(self, call: Call[T]) -> T:
        """The answer."""

    def pages(self, listing: Listing[T]) -> Iterator[T]:
        """The items of all pages."""


class Async(Protocol):
    """What carries calls out in an event loop."""

    def run(self, call: Call[T]) -> Awaitable[T]:
        """The answer, awaited."""

    def pages(self, listing: Listing[T]) -> AsyncIterator[T]:
        """The items of all pages."""


Runner = TypeVar("Runner", bound=Sync | Async, covariant=True)


class Group(Generic[Runner]):
    """Something whose methods are carried out by a client: the client itself, or the methods of one noun."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner


class Method(Generic[P, T]):
    """One call."""

    def __init__(self, make: Callable[P, Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: Group[Sync], kind: type[Any] | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: Group[Async], kind: type[Any] | None = None) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, owner: Group[Any], kind: type[Any] | None = None) -> Callable[P, Any]:
        """The method of this client."""

        @functools.wraps(self._make)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._runner.run(self._make(*args, **kwargs))

        return method


class Pages(Generic[P, T]):
    """A list, read page by page as it is consumed."""

    def __init__(self, make: Callable[P, Listing[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: Group[Sync], kind: type[Any] | None = None) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, owner: Group[Async], kind: type[Any] | None = None) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, owner: Group[Any], kind: type[Any] | None = None) -> Callable[P, Any]:
        """The method of this client."""

        @functools.wraps(self._make)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._runner.pages(self._make(*args, **kwargs))

        return method


class Blobs(Group[Runner]):
    create = Method(requests.create_blob)


class Users(Group[Runner]):
    put = Method(people.put_user)
    get = Method(people.get_user)
    list = Pages(people.list_users)
    delete = Method(people.delete_user)
    put_addresses = Method(people.put_addresses)
    inbox = Pages(people.list_inbox)
    create_token = Method(people.create_token)
    import_file = Method(broadcasts.import_users)
    export = Method(people.export_user)
    erase = Method(people.erase_user)
    preferences = Method(people.get_preferences)
    put_preferences = Method(people.put_preferences)
    patch_preferences = Method(people.patch_preferences)
    consents = Pages(people.list_consents)
    create_preference_link = Method(people.create_preference_link)
    topics = Pages(people.list_topics_of)


class Topics(Group[Runner]):
    put = Method(people.put_topic)
    get = Method(people.get_topic)
    list = Pages(people.list_topics)
    delete = Method(people.delete_topic)
    members = Pages(people.list_topic_members)
    add = Method(people.add_topic_members)
    remove = Method(people.remove_topic_members)


class Segments(Group[Runner]):
    put = Method(people.put_segment)
    get = Method(people.get_segment)
    list = Pages(people.list_segments)
    delete = Method(people.delete_segment)
    members = Pages(people.list_segment_members)
    preview = Method(people.preview_segment)


class Broadcasts(Group[Runner]):
    create = Method(broadcasts.create)
    estimate = Method(broadcasts.estimate)
    get = Method(broadcasts.get)
    list = Pages(broadcasts.list_broadcasts)
    pause = Method(broadcasts.pause)
    resume = Method(broadcasts.resume)
    cancel = Method(broadcasts.cancel)


class Events(Group[Runner]):
    send = Method(requests.send_events)


class EventRules(Group[Runner]):
    put = Method(directory.put_event_rule)
    get = Method(directory.get_event_rule)
    list = Pages(directory.list_event_rules)
    delete = Method(directory.delete_event_rule)


class Categories(Group[Runner]):
    put = Method(directory.put_category)
    get = Method(directory.get_category)
    list = Pages(directory.list_categories)
    delete = Method(directory.delete_category)


class Types(Group[Runner]):
    put = Method(directory.put_type)
    get = Method(directory.get_type)
    list = Pages(directory.list_types)
    versions = Pages(directory.list_type_versions)
    delete = Method(directory.delete_type)


class Templates(Group[Runner]):
    put = Method(directory.put_template)
    get = Method(directory.get_template)
    list = Pages(directory.list_templates)
    create_version = Method(directory.create_template_version)
    get_version = Method(directory.get_template_version)
    versions = Pages(directory.list_template_versions)
    publish = Method(directory.publish_template)
    rollback = Method(directory.rollback_template)
    preview = Method(directory.preview_template)


class Accounts(Group[Runner]):
    put = Method(directory.put_account)
    get = Method(directory.get_account)
    list = Pages(directory.list_accounts)
    check = Method(directory.check_account)
    delete = Method(directory.delete_account)


class Keys(Group[Runner]):
    create = Method(directory.create_key)
    get = Method(directory.get_key)
    list = Pages(directory.list_keys)
    revoke = Method(directory.revoke_key)


class DeadLetters(Group[Runner]):
    list = Pages(requests.list_dead_letters)
    replay = Method(requests.replay_dead_letter)
    replay_many = Method(requests.replay_dead_letters)
    replay_all = Method(requests.replay_all_dead_letters)


class Groups(Group[Runner]):
    """All of them, and what is about notifications, which needs no noun."""

    send = Method(requests.send)
    get = Method(requests.get)
    list = Pages(requests.list_notifications)
    cancel = Method(requests.cancel)
    explain = Method(requests.explain)
    what_if = Method(requests.what_if)
    audit = Pages(directory.list_audit)
    project = Method(directory.get_project)
    put_settings = Method(directory.put_settings)
    health = Method(requests.get_health)
    readiness = Method(requests.get_readiness)

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.blobs = Blobs(runner)
        self.users = Users(runner)
        self.topics = Topics(runner)
        self.segments = Segments(runner)
        self.broadcasts = Broadcasts(runner)
        self.events = Events(runner)
        self.event_rules = EventRules(runner)
        self.categories = Categories(runner)
        self.types = Types(runner)
        self.templates = Templates(runner)
        self.accounts = Accounts(runner)
        self.keys = Keys(runner)
        self.dead_letters = DeadLetters(runner)
