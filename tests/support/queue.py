"""What mqclient has no call for, on the bare protocol.

usage: queue.py ADDRESS QUEUE raw      publish stdin, base64 of one body a line, as it is
       queue.py ADDRESS QUEUE texts    publish stdin, one text a line, each compressed
       queue.py ADDRESS QUEUE named   the same, each line being a message_id, a blank and a text
       queue.py ADDRESS QUEUE nested   the same; the first one's header holds 5,000 nested tables, the second
                                       one's as many nested arrays
       queue.py ADDRESS QUEUE take     take all ready messages and print them decompressed, one a line
       queue.py ADDRESS QUEUE declare  declare it with stdin, a JSON object, as arguments
       queue.py ADDRESS QUEUE alone    declare it as this connection's alone, say so, wait for stdin's end
       queue.py ADDRESS QUEUE depth    print how many messages are ready
       queue.py ADDRESS QUEUE peek     print x-delivery-count of each ready message, oldest first. Giving
                                       them back adds one to each: for the end of a test
       queue.py ADDRESS QUEUE headers  print the headers of each ready message as JSON; counts as peek does
       queue.py ADDRESS QUEUE delete   delete the queue, whoever consumes from it
"""

import base64
import json
import sys

import pika
import zstd

address, name, verb = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(f"amqp://{address}"))
channel = connection.channel()


def declare() -> int:
    """As mqclient does, unless it is there."""
    try:
        answer = connection.channel().queue_declare(name, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        answer = channel.queue_declare(
            name, durable=True, arguments={"x-queue-type": "quorum"}
        )
    return answer.method.message_count


if verb == "raw":
    declare()
    channel.confirm_delivery()
    for line in sys.stdin:
        channel.basic_publish("", name, base64.b64decode(line))
elif verb == "texts":
    declare()
    channel.confirm_delivery()
    for line in sys.stdin.buffer:
        channel.basic_publish("", name, zstd.compress(line.rstrip(b"\n"), 3))
elif verb == "named":
    declare()
    channel.confirm_delivery()
    for line in sys.stdin.buffer:
        identity, text = line.rstrip(b"\n").split(b" ", 1)
        properties = pika.BasicProperties(message_id=identity.decode())
        channel.basic_publish("", name, zstd.compress(text, 3), properties)
elif verb == "nested":
    declare()
    channel.confirm_delivery()
    sys.setrecursionlimit(1_000_000)
    tables, arrays = {}, []
    for _ in range(5_000):
        tables = {"t": tables}
    for _ in range(5_000):
        arrays = [arrays]
    for line in sys.stdin.buffer:
        properties = pika.BasicProperties(headers=tables)
        channel.basic_publish("", name, zstd.compress(line.rstrip(b"\n"), 3), properties)
        tables, arrays = {"a": arrays}, []
elif verb == "take":
    for _ in range(declare()):
        method, _properties, body = channel.basic_get(name, auto_ack=True)
        if method is None:
            break
        print(zstd.decompress(body).decode())
elif verb == "declare":
    channel.queue_declare(name, durable=True, arguments=json.load(sys.stdin))
elif verb == "alone":
    channel.queue_declare(name, exclusive=True)
    print("ready", flush=True)
    sys.stdin.read()
elif verb == "depth":
    print(declare())
elif verb == "peek":
    for _ in range(declare()):
        method, properties, _body = channel.basic_get(name)
        if method is None:
            break
        print((properties.headers or {}).get("x-delivery-count", 0))
elif verb == "headers":
    for _ in range(declare()):
        method, properties, _body = channel.basic_get(name)
        if method is None:
            break
        print(json.dumps(properties.headers or {}, default=str))
elif verb == "delete":
    channel.queue_delete(name)
else:
    sys.exit(__doc__)
connection.close()
