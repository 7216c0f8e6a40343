// Bun's own server (uWebSockets).
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  args: Bun.argv.slice(2),
  options: {
    port: { type: 'string', default: '0' },
    deflate: { type: 'boolean', default: false },
    'ping-interval': { type: 'string' },
    certfile: { type: 'string' },
    keyfile: { type: 'string' }
  }
})

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: Number(options.port),
  tls: options.certfile
    ? { cert: Bun.file(options.certfile), key: Bun.file(options.keyfile) }
    : undefined,
  fetch (request, server) {
    const inRoom = new URL(request.url).pathname === '/room'
    if (server.upgrade(request, { data: { inRoom } })) return
    return new Response('This is a WebSocket server.\n', { status: 426 })
  },
  websocket: {
    perMessageDeflate: options.deflate,
    maxPayloadLength: 16 << 20,
    // Bun pings a few seconds before this timeout; the minimum is 8.
    idleTimeout: options['ping-interval'] ? 8 : 120,
    open (socket) {
      if (socket.data.inRoom) socket.subscribe('all')
    },
    message (socket, message) {
      if (socket.data.inRoom) server.publish('all', message, options.deflate)
      else socket.send(message, options.deflate)
    }
  }
})

console.log('versions', JSON.stringify({ Bun: Bun.version }))
console.log('listening', server.port)
