import { expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { ZmqContext } from '@ckpt/cuda'
import { TestDir } from '../registry/testing/fixture.ts'
import { EngineSocket } from './engine-socket.ts'

const BODY = Uint8Array.of(1)
const LATER = Uint8Array.of(2)

async function next(socket: EngineSocket): Promise<string | null> {
  for (let tries = 0; tries < 500; tries++) {
    const link = socket.nextLink()
    if (link !== null) return link
    await Bun.sleep(2)
  }
  return null
}

test('what waits for a worker that goes is not delivered to the next one', async () => {
  const dir = new TestDir()
  const context = new ZmqContext()
  const address = `ipc://${dir.path}/a.sock`
  const socket = new EngineSocket(context, address)
  const first = context.socket('REP')
  first.connect(address)
  expect(await next(socket)).toBe('connected')
  first.close()
  // libzmq has no peer any more, and we have not looked at its monitor yet
  await Bun.sleep(100)
  socket.send(BODY)
  expect(socket.retryMs).not.toBeNull()
  expect(await next(socket)).toBe('disconnected')
  expect(socket.retryMs).toBeNull()
  const second = context.socket('REP')
  second.connect(address)
  expect(await next(socket)).toBe('connected')
  socket.send(LATER)
  let frames: Uint8Array[] | null = null
  for (let tries = 0; frames === null && tries < 500; tries++) {
    await Bun.sleep(2)
    socket.flush()
    frames = second.recv()
  }
  expect(frames?.at(-1)).toEqual(LATER)
  second.close()
  socket.close()
  context.close()
  dir.remove()
})

test('an address that cannot be bound leaves nothing open', () => {
  const context = new ZmqContext()
  const open = () => readdirSync('/proc/self/fd').length
  const bind = () => new EngineSocket(context, 'ipc:///nowhere/at/all.sock')
  expect(bind).toThrow()
  const before = open()
  for (let times = 0; times < 20; times++) expect(bind).toThrow()
  // a socket that closes is reaped by another thread
  for (let tries = 0; open() > before + 4 && tries < 50; tries++) Bun.sleepSync(10)
  expect(open()).toBeLessThanOrEqual(before + 4)
  context.close()
})
