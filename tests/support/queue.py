"""What mqclient has no call for, on the bare protocol.

usage: queue.py ADDRESS QUEUE raw      publish stdin, base64 of one body a line, as it is
       queue.py ADDRESS QUEUE depth    print how many messages are ready
       queue.py ADDRESS QUEUE peek     print x-delivery-count of each ready message, oldest first. Giving
                                       them back adds one to each: for the end of a test
       queue.py ADDRESS QUEUE delete   delete the queue, whoever consumes from it
"""

import base64
import sys

import pika

address, name, verb = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(f"amqp://{address}"))
channel = connection.channel()


def declare() -> int:
    answer = channel.queue_declare(
        name, durable=True, arguments={"x-queue-type": "quorum"}
    )
    return answer.method.message_count


if verb == "raw":
    declare()
    channel.confirm_delivery()
    for line in sys.stdin:
        channel.basic_publish("", name, base64.b64decode(line))
elif verb == "depth":
    print(declare())
elif verb == "peek":
    for _ in range(declare()):
        method, properties, _body = channel.basic_get(name)
        if method is None:
            break
        print((properties.headers or {}).get("x-delivery-count", 0))
elif verb == "delete":
    channel.queue_delete(name)
else:
    sys.exit(__doc__)
connection.close()
