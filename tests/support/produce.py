"""Put events into a queue as a real producer does: stdin is one JSON value a line, each becomes an event.

usage: produce.py ADDRESS QUEUE
"""

import asyncio
import json
import sys

from mqclient.queue import Queue

sys.set_int_max_str_digits(0)
sys.setrecursionlimit(100_000)


async def main(address: str, name: str) -> None:
    queue = Queue("rabbitmq", address=address, name=name)
    async with queue.open_pub() as publisher:
        for line in sys.stdin:
            await publisher.send(json.loads(line))


asyncio.run(main(*sys.argv[1:]))
