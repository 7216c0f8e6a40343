// An echo for tests/client/test_servers.py: "node serve.mjs" with ws, "bun serve.mjs" with Bun's own
// server. As tests/programs/other_server.py.

const announce = (port) => console.log(`ws://127.0.0.1:${port}`);

if (globalThis.Bun) {
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request, server) {
      const chosen = (request.headers.get("sec-websocket-protocol") ?? "").includes("chat");
      const headers = chosen ? { "Sec-WebSocket-Protocol": "chat" } : {};
      return server.upgrade(request, { headers }) ? undefined : new Response("?", { status: 400 });
    },
    websocket: {
      perMessageDeflate: true,
      maxPayloadLength: 1 << 26,
      message(socket, message) {
        if (message === "close") socket.close(4001, "bye");
        else socket.send(message, true);
      },
      close: (socket, code) => console.log(`closed ${code}`),
    },
  });
  announce(server.port);
} else {
  const { WebSocketServer } = await import("ws");
  const server = new WebSocketServer({
    host: "127.0.0.1",
    port: 0,
    perMessageDeflate: { threshold: 0 },
    handleProtocols: (offered) => offered.has("chat") && "chat",
  });
  server.on("listening", () => announce(server.address().port));
  server.on("connection", (socket) => {
    socket.on("message", (data, binary) => {
      if (!binary && data.toString() === "close") socket.close(4001, "bye");
      else socket.send(data, { binary });
    });
    socket.on("close", (code) => console.log(`closed ${code}`));
  });
}
