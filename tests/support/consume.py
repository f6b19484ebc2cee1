"""Take results from a queue as a real consumer does and print each as one line of ASCII JSON, which is
the same text for the same value, NaN and lone surrogates included. Ends after COUNT results, or when
none came for IDLE seconds.

usage: consume.py ADDRESS QUEUE COUNT IDLE
"""

import asyncio
import json
import sys

from mqclient.queue import Queue

sys.set_int_max_str_digits(0)
sys.setrecursionlimit(100_000)


async def main(address: str, name: str, count: int, idle: int) -> None:
    queue = Queue("rabbitmq", address=address, name=name, timeout=idle)
    left = count
    if left == 0:
        return
    async with queue.open_sub() as results:
        async for data in results:
            print(json.dumps(data), flush=True)
            left -= 1
            if left == 0:
                break


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
