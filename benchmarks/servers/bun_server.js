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
    const path = new URL(request.url).pathname
    if (path === '/small') return new Response('small')
    if (path === '/download') return new Response(parts())
    const room = path === '/room' ? 'all' : /^\/(chat\/|feed|ticker)/.test(path) ? path : undefined
    if (server.upgrade(request, { data: { room, path } })) return
    return new Response('This is a WebSocket server.\n', { status: 426 })
  },
  websocket: {
    perMessageDeflate: options.deflate,
    maxPayloadLength: 16 << 20,
    // Bun pings a few seconds before this timeout; the minimum is 8.
    idleTimeout: options['ping-interval'] ? 8 : 120,
    open (socket) {
      if (socket.data.room) socket.subscribe(socket.data.room)
      if (socket.data.path === '/ticker' && !ticking) ticking = setInterval(tick, 20)
      if (socket.data.path === '/rows') sendRows(socket)
    },
    message (socket, message) {
      if (socket.data.path === '/json') JSON.parse(message)
      else if (socket.data.room) server.publish(socket.data.room, message, options.deflate)
      else if (socket.data.path === '/conversation') converse(socket, message)
      else socket.send(message, options.deflate)
    }
  }
})

function converse (socket, message) {
  socket.send(`${message} 1`)
  setTimeout(() => {
    socket.send(`${message} 2`)
    setTimeout(() => socket.send(`${message} 3`), 2)
  }, 2)
}

let ticking
let number = 0
function tick () {
  const table = {}
  number++
  for (let row = 0; row < 20; row++) table[`SYMBOL${row}`] = 100 + row + number % 1000 / 1000
  server.publish('/ticker', JSON.stringify(table))
}

// 1 GiB, as fast as the client takes it.
function parts () {
  const part = new Uint8Array(1 << 16)
  let left = 1 << 14
  return new ReadableStream({
    pull (controller) {
      controller.enqueue(part)
      if (--left === 0) controller.close()
    }
  })
}

function sendRows (socket) {
  for (let number = 0; number < 400_000; number++) socket.send(`{"row": ${number % 1000}}`)
  socket.close()
}

console.log('versions', JSON.stringify({ Bun: Bun.version }))
console.log('listening', server.port)
