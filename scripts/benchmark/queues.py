"""The benchmark's own ends of the queues, on the bare protocol so that they cost little: events go in, and
every result gets a time stamp the moment that it arrives."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pika
import zstd
from pika.adapters.blocking_connection import BlockingChannel

from setting import ADDRESS, Late

_QUORUM = {"x-queue-type": "quorum"}
_numbers = itertools.count()


def encode(data: Any) -> bytes:
    """An event's body, as mqclient makes it."""
    return pack(json.dumps({"headers": {}, "data": data}).encode())


def pack(message: bytes) -> bytes:
    """As mqclient packs a message."""
    body: bytes = zstd.compress(message, 3, 1)
    return body


def unpack(body: bytes) -> bytes:
    """The message."""
    message: bytes = zstd.decompress(body)
    return message


def decode(body: bytes) -> Any:
    """A result's data."""
    return json.loads(unpack(body))["data"]


def connect() -> pika.BlockingConnection:
    """No heartbeats: a benchmark may be busy for a while."""
    return pika.BlockingConnection(pika.URLParameters(f"amqp://{ADDRESS}/%2F?heartbeat=0"))


@dataclass(frozen=True)
class Queues:
    """The two of a pilot."""

    incoming: str
    outgoing: str
    channel: BlockingChannel

    def publish(self, bodies: list[bytes]) -> None:
        """All of them, without waiting for the broker."""
        for body in bodies:
            self.channel.basic_publish("", self.incoming, body)

    def fill(self, bodies: list[bytes], deadline: float = 120) -> None:
        """The same, until the broker has them all in the queue."""
        self.publish(bodies)
        self.wait(lambda: self.depth() >= len(bodies), deadline, "the events are not in the queue")

    def depth(self) -> int:
        """How many events nobody has taken."""
        return int(self._look().message_count)

    def consumers(self) -> int:
        """How many listen for events."""
        return int(self._look().consumer_count)

    def await_consumer(self, deadline: float = 30) -> None:
        """Until a pilot listens."""
        self.wait(lambda: self.consumers() > 0, deadline, "no pilot listens")

    def wait(self, condition: Callable[[], bool], deadline: float, otherwise: str) -> None:
        """Until it is so."""
        wait_until(condition, deadline, otherwise, pause=0.02)

    def _look(self) -> Any:
        return self.channel.queue_declare(self.incoming, passive=True).method


@contextmanager
def declared(label: str, count: int) -> Iterator[list[Queues]]:
    """So many queues for events and one for all results, deleted at the end."""
    stem = f"{label}-{os.getpid()}-{next(_numbers)}"
    names = [f"{stem}-events-{number}" for number in range(count)]
    outgoing = f"{stem}-results"
    channel = connect().channel()
    for name in (*names, outgoing):
        channel.queue_declare(name, durable=True, arguments=_QUORUM)
    try:
        yield [Queues(name, outgoing, channel) for name in names]
    finally:
        # The broker may have been started again in between.
        with suppress(pika.exceptions.AMQPError, OSError):
            channel.connection.close()
        with connect() as connection:
            channel = connection.channel()
            for name in (*names, outgoing):
                channel.queue_delete(name)


@contextmanager
def fresh(label: str) -> Iterator[Queues]:
    """The two queues of one pilot."""
    with declared(label, 1) as queues:
        yield queues[0]


def connected_again(queues: list[Queues]) -> list[Queues]:
    """The same queues of a broker that was started again."""
    channel = connect().channel()
    return [replace(own, channel=channel) for own in queues]


class Collector(threading.Thread):
    """Takes results from a queue and remembers when each came."""

    def __init__(self, queue: str, note: Callable[[int, bytes], None] | None = None) -> None:
        """`note` is called with each result's number, from 1 on, and its body."""
        super().__init__(daemon=True)
        self.times: list[float] = []
        self._queue, self._note = queue, note
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._listening = threading.Event()

    def __enter__(self) -> Collector:
        self.start()
        if not self._listening.wait(30):
            raise Late("the broker gives no results")
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self.join(30)

    def run(self) -> None:
        connection = connect()
        channel = connection.channel()
        channel.basic_consume(self._queue, self._take, auto_ack=True)
        self._listening.set()
        while not self._ended.is_set():
            connection.process_data_events(time_limit=0.2)
        connection.close()

    def _take(self, _channel: object, _method: object, _properties: object, body: bytes) -> None:
        now = time.monotonic()
        with self._changed:
            self.times.append(now)
            count = len(self.times)
            self._changed.notify_all()
        if self._note:
            self._note(count, body)

    def wait_for(self, count: int, deadline: float, check: Callable[[], None] = lambda: None) -> None:
        """Until so many results are there; `deadline` in seconds from now. `check` complains if they can't come."""
        end = time.monotonic() + deadline
        while len(self.times) < count:
            left = end - time.monotonic()
            if left <= 0:
                raise Late(f"{len(self.times)} of {count} results within {deadline:.0f} s")
            check()
            with self._changed:
                self._changed.wait_for(lambda: len(self.times) >= count, min(left, 1))


def wait_until(condition: Callable[[], bool], deadline: float, otherwise: str, pause: float = 0.05) -> None:
    """Looks again and again; `deadline` in seconds from now."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise Late(f"{otherwise} within {deadline:.0f} s")
        time.sleep(pause)
