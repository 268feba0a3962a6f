// The ws package against the gateway: ws_plain.mjs URL.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import WebSocket from 'ws'

const url = process.argv[2]

async function open(address, protocols, options) {
  const socket = new WebSocket(address, protocols, options)
  const waiting = []
  const arrived = []
  socket.on('message', (data, isBinary) => {
    assert.equal(isBinary, false)
    const text = data.toString()
    waiting.length > 0 ? waiting.shift()(text) : arrived.push(text)
  })
  socket.next = async () => (arrived.length > 0 ? arrived.shift() : new Promise((resolve) => waiting.push(resolve)))
  const upgraded = once(socket, 'upgrade')
  await once(socket, 'open')
  socket.answer = (await upgraded)[0]
  return socket
}

const plain = await open(url, [], { headers: { 'x-session-id': 'ws-node' } })
assert.equal(plain.answer.headers['x-session-id'], 'ws-node')
plain.send('hello')
assert.match(await plain.next(), /^You said: hello\n/)
plain.close()
const [code] = await once(plain, 'close')
assert.equal(code, 1005, 'its close frame, which had no code, comes back')

const stream = await open(`${url}?stream=true`)
assert.ok(stream.answer.headers['x-session-id'])
stream.send('streamed')
const frames = []
for (let frame; (frame = await stream.next()) !== ''; ) frames.push(frame)
assert.ok(frames.length > 3 && frames.join('').startsWith('You said: streamed\n'))
stream.terminate()
console.log('ws-plain: ws (Node): plain text')

const json = await open(url, 'chatgateway.v1')
assert.equal(json.protocol, 'chatgateway.v1')
assert.equal(JSON.parse(await json.next()).type, 'hello')
json.send(JSON.stringify({ type: 'send', session: 'ws-node-json', turn: 'node-turn', text: 'hello', unknown: true }))
const seen = []
while (seen.at(-1)?.type !== 'done') seen.push(JSON.parse(await json.next()))
assert.equal(seen.filter((f) => f.type === 'accepted').length, 1)
assert.deepEqual(seen.filter((f) => f.id).map((f) => f.type).slice(0, 2), ['turn', 'delta'])
assert.match(seen.filter((f) => f.type === 'delta').map((f) => f.text).join(''), /^You said: hello\n/)
json.send(JSON.stringify({ type: 'cancel', session: 'ws-node-json', turn: 'node-turn' }))
json.send(JSON.stringify({ type: 'cancel', session: 'ws-node-json', turn: 'unknown' }))
const refused = JSON.parse(await json.next())
assert.deepEqual([refused.type, refused.code, refused.turn], ['error', 'not_found', 'unknown'])
json.close(1000)
await once(json, 'close')
console.log('ws-plain: ws (Node): JSON frames')
