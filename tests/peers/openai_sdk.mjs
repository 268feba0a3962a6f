// OpenAI's Node SDK against the gateway: openai_sdk.mjs BASE_URL [MODEL_SERVER].
import assert from 'node:assert/strict'
import OpenAI from 'openai'

const [baseURL, modelServer] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey: 'none needed', maxRetries: 0, timeout: 30_000 })
const say = (what) => console.log(`openai-node: ${modelServer ? 'model server' : 'built-in model'}: ${what}`)

const models = []
for await (const model of client.models.list()) models.push(model.id)
assert.ok(models.length > 0, 'no models')
const model = models[0]
assert.equal((await client.models.retrieve(model)).id, model)

const ask = (text, options = {}, request = {}) =>
  client.chat.completions.create({ model, messages: [{ role: 'user', content: text }], ...options }, request)
const collect = async (stream) => {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return chunks
}
const textOf = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? '').join('')

const whole = await ask('hello')
const answer = whole.choices[0].message.content
assert.equal(whole.object, 'chat.completion')
assert.equal(whole.choices[0].finish_reason, 'stop')
assert.ok(answer.length > 0 && whole.usage.total_tokens > 0)
if (!modelServer) assert.ok(answer.startsWith('You said: hello'))

let chunks = await collect(await ask('hello', { stream: true }))
assert.equal(textOf(chunks), answer)
assert.equal(chunks[0].choices[0].delta.role, 'assistant')
assert.ok(chunks.length > 5, 'the stream came in one piece')
chunks = await collect(await ask('hello', { stream: true, stream_options: { include_usage: true } }))
assert.deepEqual(chunks.at(-1).choices, [])
assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens)

const helper = client.chat.completions.stream({ model, messages: [{ role: 'user', content: 'hello' }] })
assert.equal(await helper.finalContent(), answer)
say('models, chat completions whole and streamed, with usage, and the stream helper')

const text = await client.completions.create({ model, prompt: 'hello' })
assert.ok(text.choices[0].text.length > 0)
const pieces = await collect(await client.completions.create({ model, prompt: 'hello', stream: true }))
assert.equal(pieces.map((p) => p.choices[0]?.text ?? '').join(''), text.choices[0].text)
say('completions whole and streamed')

if (modelServer) {
  // The built-in model answers to any name.
  await assert.rejects(ask('x', { model: 'no-such-model' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError)
    return error.code === 'not_found' && error.message.includes('no-such-model')
  })
}
await assert.rejects(client.models.retrieve('no-such-model'), OpenAI.NotFoundError)
await assert.rejects(ask('x', { messages: 'not a list' }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError)
  // A model server behind refuses in words of its own.
  return modelServer !== undefined || error.code === 'invalid_request'
})
say("errors are the SDK's typed exceptions")

const inSession = (turn) => ({ headers: { 'x-session-id': 'node-session', 'Idempotency-Key': turn } })
const first = await ask('remember me', {}, inSession('node-turn-1'))
const again = await ask('remember me', {}, inSession('node-turn-1'))
assert.equal(first.choices[0].message.content, again.choices[0].message.content)
await assert.rejects(ask('other words', {}, inSession('node-turn-1')), OpenAI.ConflictError)
assert.ok(textOf(await collect(await ask('second', { stream: true }, inSession('node-turn-2')))))
const { turns } = await (await fetch(`${baseURL}/sessions/node-session`)).json()
assert.deepEqual(turns.map((t) => [t.text, t.state]), [['remember me', 'done'], ['second', 'done']])
say('x-session-id joins a session, Idempotency-Key makes a repeat the same turn')

const long = await ask('one '.repeat(2_000), { stream: true, max_tokens: 1_000 })
for await (const chunk of long) {
  if (chunk.choices[0].delta.content) break
}
long.controller.abort()
if (modelServer) {
  const deadline = Date.now() + 10_000
  for (;;) {
    const calls = await (await fetch(`${modelServer}/sim/calls`)).json()
    if (calls.cancelled >= 1 && calls.in_flight === 0) break
    assert.ok(Date.now() < deadline, `the model server's call is not cancelled: ${JSON.stringify(calls)}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
assert.ok((await ask('still there?')).choices[0].message.content)
say('a stream that is left is cancelled')
