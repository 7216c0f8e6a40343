// Node's ws, with bufferutil, which its documentation recommends.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import { createRequire } from 'node:module'
import { parseArgs } from 'node:util'
import { WebSocket, WebSocketServer } from 'ws'

const { values: options } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    deflate: { type: 'boolean', default: false },
    'ping-interval': { type: 'string' },
    certfile: { type: 'string' },
    keyfile: { type: 'string' }
  }
})
const server = options.certfile
  ? createSecureServer({ cert: readFileSync(options.certfile), key: readFileSync(options.keyfile) })
  : createServer()

const sockets = new WebSocketServer({
  server, perMessageDeflate: options.deflate, maxPayload: 16 << 20
})
sockets.on('connection', (socket, request) => {
  socket.on('error', console.error)
  socket.isAlive = true
  socket.on('pong', () => { socket.isAlive = true })
  if (request.url === '/room') {
    socket.on('message', (data, isBinary) => {
      sockets.clients.forEach((client) => {
        if (client.readyState === WebSocket.OPEN) client.send(data, { binary: isBinary })
      })
    })
  } else {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
  }
})

if (options['ping-interval']) {
  setInterval(() => {
    for (const socket of sockets.clients) {
      if (!socket.isAlive) socket.terminate()
      socket.isAlive = false
      socket.ping()
    }
  }, options['ping-interval'] * 1000)
}

const versions = { ws: readVersion('ws'), bufferutil: readVersion('bufferutil') }
function readVersion (name) {
  try {
    return createRequire(import.meta.url)(`${name}/package.json`).version
  } catch {
    return 'none'
  }
}
server.listen(Number(options.port), '127.0.0.1', 4096, () => {
  console.log('versions', JSON.stringify({ ...versions, Node: process.versions.node }))
  console.log('listening', server.address().port)
})
