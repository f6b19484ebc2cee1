"""A fake of a far network: a proxy in front of the broker behind which everything arrives later. A process of its
own, so that it takes nothing from the benchmark's threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from setting import ADDRESS


@contextmanager
def far_broker(each_way_secs: float) -> Iterator[str]:
    """The address of the proxy; what passes takes so long in either direction."""
    command = [sys.executable, __file__, str(each_way_secs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        try:
            yield f"127.0.0.1:{int(proxy.stdout.readline())}"
        finally:
            proxy.kill()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


async def _serve(delay: float) -> None:
    host, port = ADDRESS.rsplit(":", 1)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_pass(reader, to_broker, delay), _pass(from_broker, writer, delay))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
