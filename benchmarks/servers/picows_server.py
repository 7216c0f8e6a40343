"""picows on uvloop."""

from __future__ import annotations

import uvloop
from common import HOST, MAX_MESSAGE_SIZE, announce, parse_options, tls_context
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


def accept(request: WSUpgradeRequest) -> Echo:
    return Echo()


async def main() -> None:
    options = parse_options(tls=True)
    server = await ws_create_server(
        accept,
        HOST,
        options.port,
        ssl=tls_context(options),
        max_frame_size=MAX_MESSAGE_SIZE,
        enable_auto_ping=options.ping_interval is not None,
        auto_ping_idle_timeout=options.ping_interval or 20,
        auto_ping_reply_timeout=options.ping_interval or 20,
    )
    announce(server.sockets[0].getsockname()[1], "picows", "uvloop", "aiofastnet")
    await server.serve_forever()


uvloop.run(main())
