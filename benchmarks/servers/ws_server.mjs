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
  : createServer(answerRequest)

function answerRequest (request, response) {
  response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': 5 })
  response.end('small')
}

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
  } else if (request.url === '/conversation') {
    socket.on('message', (data) => converse(socket, data.toString()))
  } else if (/^\/(chat\/|feed|ticker)/.test(request.url)) {
    join(socket, request.url)
  } else {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
  }
})

function converse (socket, message) {
  socket.send(`${message} 1`)
  setTimeout(() => {
    socket.send(`${message} 2`)
    setTimeout(() => socket.send(`${message} 3`), 2)
  }, 2)
}

const rooms = new Map()

function join (socket, name) {
  if (!rooms.has(name)) {
    rooms.set(name, new Set())
    if (name === '/ticker') setInterval(tick, 20)
  }
  const room = rooms.get(name)
  room.add(socket)
  socket.on('close', () => room.delete(socket))
  socket.on('message', (data, isBinary) => broadcast(room, data, isBinary))
}

function broadcast (room, data, isBinary) {
  for (const member of room) {
    if (member.readyState === WebSocket.OPEN) member.send(data, { binary: isBinary })
  }
}

let number = 0
function tick () {
  const table = {}
  number++
  for (let row = 0; row < 20; row++) table[`SYMBOL${row}`] = 100 + row + number % 1000 / 1000
  broadcast(rooms.get('/ticker'), JSON.stringify(table), false)
}

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
