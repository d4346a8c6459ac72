import { afterEach, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLibzmq, type ZmqCalls, zmqVersion } from './libzmq.ts'
import { type ZmqMonitor, type ZmqSocket, ZmqContext, zmqPoll } from './zmq.ts'

const dir = mkdtempSync(join(tmpdir(), 'ckpt-zmq-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))

const bytes = (text: string) => new TextEncoder().encode(text)
const text = (frame: Uint8Array | undefined) => new TextDecoder().decode(frame)
const DELIMITER = new Uint8Array(0)

let contexts: ZmqContext[] = []
let addresses = 0
const newContext = () => {
  const context = new ZmqContext()
  contexts.push(context)
  return context
}
const newAddress = () => `ipc://${join(dir, `s${++addresses}`)}`

afterEach(() => {
  for (const context of contexts) context.close()
  contexts = []
})

/** Polls without blocking the event loop, so that Workers and child processes of the test go on. */
async function receive(socket: ZmqSocket, timeoutMs = 5000): Promise<Uint8Array[]> {
  const endMs = performance.now() + timeoutMs
  while (performance.now() < endMs) {
    const frames = socket.recv()
    if (frames !== null) return frames
    await Bun.sleep(1)
  }
  throw new Error('nothing received')
}

async function monitorEvent(monitor: ZmqMonitor, wanted: string): Promise<string> {
  const endMs = performance.now() + 5000
  while (performance.now() < endMs) {
    const event = monitor.next()
    if (event?.event === wanted) return event.address
    if (event === null) await Bun.sleep(1)
  }
  throw new Error(`no event ${wanted}`)
}

test('the packaged libzmq is 4.3', () => {
  expect(zmqVersion(openLibzmq()).slice(0, 2)).toEqual([4, 3])
})

test('a DEALER without a peer cannot send, a REP answers it when there is one', async () => {
  const context = newContext()
  const address = newAddress()
  const dealer = context.socket('DEALER')
  dealer.bind(address)
  expect(dealer.lastEndpoint()).toBe(address)
  expect(dealer.send([DELIMITER, bytes('lost')])).toBe(false)
  const rep = context.socket('REP')
  rep.connect(address)
  for (let tries = 0; !dealer.send([DELIMITER, bytes('one')]); tries++) {
    expect(tries).toBeLessThan(1000)
    await Bun.sleep(1)
  }
  expect((await receive(rep)).map(text)).toEqual(['one'])
  expect(dealer.recv()).toBeNull()
  expect(rep.send([DELIMITER])).toBe(true)
  expect((await receive(dealer)).map(text)).toEqual(['', ''])
})

test('zmqPoll tells which items are readable and keeps its timeout', async () => {
  const context = newContext()
  const [left, right] = [context.socket('PAIR'), context.socket('PAIR')]
  left.bind('inproc://poll')
  right.connect('inproc://poll')
  const startMs = performance.now()
  expect(zmqPoll([left, right], 60)).toEqual([false, false])
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(59)
  const spinMs = performance.now()
  expect(zmqPoll([left, right], 60, true)).toEqual([false, false])
  expect(performance.now() - spinMs).toBeGreaterThanOrEqual(59)
  left.send([bytes('x')])
  expect(zmqPoll([left, right], 1000)).toEqual([false, true])
  expect(zmqPoll([left, right], 1000, true)).toEqual([false, true])
  expect(zmqPoll([], 0)).toEqual([])
  expect(() => zmqPoll([left], Number.POSITIVE_INFINITY)).toThrow(RangeError)
})

test('a monitor tells that a peer has connected and has gone', async () => {
  for (const address of [newAddress(), 'tcp://127.0.0.1:*']) {
    const context = newContext()
    const bound = context.socket('DEALER')
    const monitor = bound.monitor()
    bound.bind(address)
    const peer = newContext().socket('REP')
    const peerMonitor = peer.monitor()
    peer.connect(bound.lastEndpoint())
    await monitorEvent(monitor, 'connected')
    await monitorEvent(peerMonitor, 'connected')
    expect(zmqPoll([monitor], 0)).toHaveLength(1)
    peerMonitor.close()
    peer.close()
    await monitorEvent(monitor, 'disconnected')
    monitor.close()
  }
})

test('a message of many frames and megabytes arrives whole', async () => {
  const context = newContext()
  const [left, right] = [context.socket('PAIR'), context.socket('PAIR')]
  left.bind('inproc://large')
  right.connect('inproc://large')
  const large = new Uint8Array(3_000_000).map((_, i) => (i * 7) & 255)
  left.send([bytes('a'), DELIMITER, large, bytes('z')])
  const frames = await receive(right)
  expect(frames.map((frame) => frame.length)).toEqual([1, 0, 3_000_000, 1])
  expect(Bun.hash(frames[2] as Uint8Array)).toBe(Bun.hash(large))
  // The copies must not be overwritten by later messages.
  left.send([bytes('b')])
  await receive(right)
  expect(text(frames[0])).toBe('a')
})

test('errors carry the call, the address and the reason', () => {
  const context = newContext()
  const socket = context.socket('DEALER')
  expect(() => socket.bind('ipc:///no/such/dir/s')).toThrow(
    /zmq_bind ipc:\/\/\/no\/such\/dir\/s: No such file/,
  )
  expect(() => socket.connect('nonsense://x')).toThrow(/Protocol not supported|Invalid argument/)
  const rep = context.socket('REP')
  rep.bind(newAddress())
  // A REP that has received nothing may not send: an error, not an EAGAIN.
  expect(() => rep.send([bytes('x')])).toThrow(/zmq_send|state/)
  socket.close()
  socket.close()
  expect(() => socket.bind(newAddress())).toThrow('closed')
  context.close()
  expect(() => context.socket('REP')).toThrow('closed')
})

/** libzmq with some functions replaced; each gets the real ones. */
function withCalls(replace: (real: ZmqCalls) => Partial<ZmqCalls>, body: () => void): void {
  const calls = openLibzmq()
  const real = { ...calls }
  Object.assign(calls, replace(real))
  try {
    body()
  } finally {
    Object.assign(calls, real)
  }
}

function newPair(name: string): [ZmqSocket, ZmqSocket] {
  const context = newContext()
  const [left, right] = [context.socket('PAIR'), context.socket('PAIR')]
  left.bind(`inproc://${name}`)
  right.connect(`inproc://${name}`)
  return [left, right]
}

const ENOENT = 2
const EFAULT = 14

test('an errno that the runtime has changed is no error: the socket is asked', () => {
  const alone = newContext().socket('DEALER')
  const [left, right] = newPair('clobbered')
  withCalls(
    () => ({ zmq_errno: () => ENOENT }),
    () => {
      expect(alone.send([DELIMITER, bytes('x')])).toBe(false)
      expect(right.recv()).toBeNull()
      expect(left.send([bytes('x')])).toBe(true)
      expect(right.recv()?.map(text)).toEqual(['x'])
    },
  )
})

test('a message that comes between the call and its errno is received', () => {
  const [left, right] = newPair('between')
  const meanwhile = () => {
    left.send([bytes('late')])
    return ENOENT
  }
  withCalls(
    () => ({ zmq_errno: meanwhile }),
    () => expect(right.recv()?.map(text)).toEqual(['late']),
  )
})

test('a call that fails again and again on a ready socket is an error with its reason', () => {
  const [left, right] = newPair('broken')
  left.send([bytes('x')])
  withCalls(
    () => ({ zmq_errno: () => EFAULT, zmq_msg_recv: () => -1 }),
    () => expect(() => right.recv()).toThrow('zmq_msg_recv: Bad address'),
  )
  expect(right.recv()?.map(text)).toEqual(['x'])
})

test('zmqPoll: an interrupted call whose errno was changed is repeated, a broken one is an error', () => {
  const [left, right] = newPair('poll-errno')
  left.send([bytes('x')])
  let failures = 1
  withCalls(
    (real) => ({
      zmq_errno: () => ENOENT,
      zmq_poll: (...args) => (failures-- > 0 ? -1 : real.zmq_poll(...args)),
    }),
    () => {
      expect(zmqPoll([left, right], 1000)).toEqual([false, true])
      failures = Number.POSITIVE_INFINITY
      expect(() => zmqPoll([right], 1000)).toThrow('zmq_poll: No such file')
    },
  )
})

/** A REP whose connection to `dealer` ends after the first frame of the next message that is sent. */
function goesAfterFirstFrame(dealer: ZmqSocket, monitor: ZmqMonitor, peer: ZmqSocket) {
  let gone = false
  return (real: ZmqCalls): Partial<ZmqCalls> => ({
    zmq_send: (...args) => {
      const result = real.zmq_send(...args)
      if (args[0] !== dealer.pointer || gone) return result
      gone = true
      peer.close()
      for (let tries = 0; monitor.next()?.event !== 'disconnected'; tries++) {
        expect(tries).toBeLessThan(1000)
        zmqPoll([monitor], 10)
      }
      Bun.sleepSync(20)
      return result
    },
  })
}

for (const more of [[], ['in the middle'], ['two', 'in the middle']]) {
  test(`a peer that goes between two of ${2 + more.length} frames: false, and the next message is whole`, async () => {
    const address = newAddress()
    const dealer = newContext().socket('DEALER')
    const monitor = dealer.monitor()
    dealer.bind(address)
    const peer = newContext().socket('REP')
    peer.connect(address)
    await monitorEvent(monitor, 'connected')
    const message = (word: string) => [DELIMITER, ...more.map(bytes), bytes(word)]
    withCalls(goesAfterFirstFrame(dealer, monitor, peer), () =>
      expect(dealer.send(message('lost'))).toBe(false),
    )
    expect(dealer.send(message('nobody'))).toBe(false)
    const next = newContext().socket('REP')
    next.connect(address)
    await monitorEvent(monitor, 'connected')
    for (let tries = 0; !dealer.send(message('first')); tries++) {
      expect(tries).toBeLessThan(1000)
      await Bun.sleep(1)
    }
    expect((await receive(next)).map(text)).toEqual([...more, 'first'])
    next.send([bytes('taken')])
    expect((await receive(dealer)).map(text)).toEqual(['', 'taken'])
    monitor.close()
  })
}

test('close does not block on messages that nobody took', async () => {
  const context = new ZmqContext()
  const dealer = context.socket('DEALER')
  dealer.connect('tcp://127.0.0.1:9')
  dealer.send([bytes('never taken')])
  const startMs = performance.now()
  context.close()
  expect(performance.now() - startMs).toBeLessThan(1000)
})

const PEER_WORKER = `
  import { ZmqContext, zmqPoll } from '${join(import.meta.dir, 'zmq.ts')}'
  declare var self: Worker
  self.onmessage = (message: MessageEvent) => {
    const context = new ZmqContext()
    const rep = context.socket('REP')
    rep.connect(message.data.address)
    let taken = 0
    while (taken < message.data.messages) {
      if (!zmqPoll([rep], 5000)[0]) break
      const frames = rep.recv()
      if (frames === null) continue
      taken++
      while (!rep.send([frames[0].slice(0, 4)])) {}
    }
    zmqPoll([rep], 50)
    context.close()
    postMessage(taken)
  }
`

test('two threads: a Worker that blocks in zmqPoll converses, the main thread goes on', async () => {
  const address = newAddress()
  const dealer = newContext().socket('DEALER')
  dealer.bind(address)
  const file = join(dir, 'peer.ts')
  await Bun.write(file, PEER_WORKER)
  const worker = new Worker(file)
  const done = new Promise<number>((resolve, reject) => {
    worker.onmessage = (message) => resolve(message.data)
    worker.onerror = (error) => reject(new Error(error.message))
  })
  const messages = 500
  worker.postMessage({ address, messages })
  for (let i = 0; i < messages; i++) {
    const body = bytes(String(i).padStart(4, '0') + 'x'.repeat(i))
    while (!dealer.send([DELIMITER, body])) await Bun.sleep(1)
    expect(text((await receive(dealer))[1])).toBe(String(i).padStart(4, '0'))
  }
  expect(await done).toBe(messages)
  worker.terminate()
})

const root = join(import.meta.dir, '..', '..', '..')
const python = join(root, '.venv', 'bin', 'python')
const havePyzmq = existsSync(join(root, '.venv', 'ready'))
if (!havePyzmq) console.log('skipped: the pyzmq peer, because there is no .venv/ready')

test.skipIf(!havePyzmq)('a pyzmq REP in another process converses with our DEALER', async () => {
  const address = newAddress()
  const dealer = newContext().socket('DEALER')
  const monitor = dealer.monitor()
  dealer.bind(address)
  const script = `
import sys, zmq
s = zmq.Context().socket(zmq.REP)
s.connect(sys.argv[1])
for _ in range(3):
    s.send(s.recv()[::-1])
assert s.recv() == b''
s.send(b'')
s.close(linger=1000)
`
  const child = Bun.spawn([python, '-c', script, address], { stderr: 'inherit' })
  await monitorEvent(monitor, 'connected')
  for (const word of ['abc', 'x'.repeat(100_000) + 'y', '\u0000z']) {
    expect(dealer.send([DELIMITER, bytes(word)])).toBe(true)
    const frames = await receive(dealer)
    expect(frames).toHaveLength(2)
    expect(text(frames[1])).toBe([...word].reverse().join(''))
  }
  dealer.send([DELIMITER, DELIMITER])
  expect((await receive(dealer)).map((frame) => frame.length)).toEqual([0, 0])
  await monitorEvent(monitor, 'disconnected')
  expect(await child.exited).toBe(0)
})
