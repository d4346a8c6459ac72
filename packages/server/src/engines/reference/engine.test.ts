import { expect, test } from 'bun:test'
import { CkptError, type Dialect } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import { until } from '../../../../../test/support/until.ts'
import { all, PlayedUpdates } from './testing/played-updates.ts'
import { NONE, X } from './testing/scripted-daemon.ts'

/** Less than Bun gives a test. */
const HOLD_MS = 4000
const DIALECTS: readonly Dialect[] = ['D1', 'D2', 'D3', 'D4']
const played = new PlayedUpdates(openLibrary({ kind: 'host', hostDevices: 4 }))
const { daemon, startEngine, post, weightsOf, begin, open, list, end } = played
const { wholeUpdate, expectContent, expectHealed } = played

test('every dialect, 1, 2 and 4 ranks: every byte, twice with other contents', async () => {
  for (const [dialect, size] of [
    ['D1', 1],
    ['D2', 2],
    ['D3', 4],
    ['D4', 2],
  ] as const) {
    const engine = await startEngine({ dialect, tensorParallelSize: size })
    for (const seed of [1, 2]) {
      await daemon.fill(seed * 100 + size)
      const answer = await wholeUpdate(engine, dialect)
      expect(answer.status).toBe(200)
      expect(JSON.parse(answer.text).results).toHaveLength(size)
      const weights = await expectContent(engine)
      expect(weights.updates).toBe(seed)
      expect(weights.ranks.map((rank) => rank.uuid)).toEqual([...engine.keys])
    }
  }
}, 60_000)

test('as SGLang: success and version in the answer, 400 on a failure', async () => {
  const engine = await startEngine({ dialect: 'D1', faults: ['error@post:once'] })
  await daemon.fill(7)
  const failing = begin(engine, 20, '6')
  await open(failing.sides)
  await list(failing.sides, 0)
  await all(failing.sides, (side) => side.send(NONE))
  const failed = await failing.http
  expect(failed.status).toBe(400)
  expect(JSON.parse(failed.text)).toMatchObject({ success: false })
  expect(failed.text).toContain('post hook')
  const answer = await wholeUpdate(engine, 'D1', '7')
  expect(JSON.parse(answer.text)).toMatchObject({ success: true })
  expect((await weightsOf(engine)).version).toBe('7')
})

test('a D1 to D3 worker is gone after its reply to the first None, a D4 worker waits', async () => {
  for (const dialect of DIALECTS) {
    const engine = await startEngine({ dialect })
    await daemon.fill(3)
    const { sides, http } = begin(engine)
    await open(sides)
    await list(sides, 0)
    await all(sides, async (side) => {
      await side.send(NONE)
      expect(await side.reply()).toHaveLength(0)
      expect(await side.saw('disconnected', dialect === 'D4' ? 300 : 5000)).toBe(dialect !== 'D4')
      if (dialect === 'D4') await side.send(NONE)
      if (dialect === 'D4') expect(await side.reply()).toHaveLength(0)
    })
    expect((await http).status).toBe(200)
  }
}, 60_000)

const text = (body: Uint8Array) => new TextDecoder().decode(body)

test('error@K: replies as the dialect does, leaves on X, is torn, heals', async () => {
  for (const dialect of DIALECTS) {
    const engine = await startEngine({ dialect, faults: ['error@1:once'] })
    await daemon.fill(4)
    const { sides, http } = begin(engine)
    await open(sides)
    await list(sides, 0)
    await all(sides, (side) => side.send(daemon.lists[1]!))
    expect(await sides[0]!.reply()).toHaveLength(0)
    const reply = await sides[1]!.replyWithin(dialect === 'D1' ? 300 : 5000)
    if (dialect === 'D1') expect(reply).toBeNull()
    if (dialect === 'D2') expect([...reply!.subarray(0, 1)]).toEqual([0x80])
    if (dialect === 'D3' || dialect === 'D4') expect(text(reply!)).toStartWith('Traceback')
    if (dialect !== 'D1') expect(text(reply!)).toContain('injected: load_weights failed at list 1')
    await sides[0]!.send(X)
    if (dialect !== 'D1') await sides[1]!.send(X)
    const answer = await http
    expect(answer.status).toBe(500)
    const { message } = JSON.parse(answer.text).error
    expect(message).toStartWith('Some workers failed to update weights: rank 0: ')
    expect(message).toContain(dialect === 'D1' ? 'AssertionError' : 'aborted by the test')
    // D1 raises past its socket: nobody sees it go. The others close it.
    expect(await sides[0]!.saw('disconnected', dialect === 'D1' ? 300 : 5000)).toBe(
      dialect !== 'D1',
    )
    expect((await weightsOf(engine)).torn).toBe(true)
    await expectHealed(engine, dialect)
  }
}, 60_000)

test('hang@K: no reply, X is not read; leaves when the request times out', async () => {
  const engine = await startEngine({ faults: ['hang@1:rank=0:once'] })
  const startMs = performance.now()
  const { sides, http } = begin(engine, 1.5)
  await open(sides)
  await list(sides, 0)
  await all(sides, (side) => side.send(daemon.lists[1]!))
  expect(await sides[1]!.reply()).toHaveLength(0)
  expect(await sides[0]!.replyWithin(200)).toBeNull()
  await all(sides, (side) => side.send(X))
  expect(await sides[1]!.saw('disconnected', 1000)).toBe(true)
  expect(await sides[0]!.saw('disconnected', 0)).toBe(false)
  const answer = await http
  expect(answer.status).toBe(500)
  expect(answer.text).toContain('timed out waiting for list 1')
  const seconds = (performance.now() - startMs) / 1000
  expect(seconds).toBeGreaterThan(1.4)
  expect(seconds).toBeLessThan(3.5)
  await expectHealed(engine, 'D4')
}, 30_000)

test('close@K: the daemon sees a disconnect and the request fails once all are released', async () => {
  const engine = await startEngine({ dialect: 'D3', faults: ['close@0:once'] })
  const { sides, http } = begin(engine)
  await open(sides)
  await all(sides, (side) => side.send(daemon.lists[0]!))
  expect(await sides[1]!.saw('disconnected', 5000)).toBe(true)
  expect(await sides[0]!.reply()).toHaveLength(0)
  await sides[0]!.send(X)
  const answer = await http
  expect(answer.status).toBe(500)
  expect(answer.text).toContain('the socket closes at list 0')
  await expectHealed(engine, 'D3')
})

test('http-500@open and http-404@open: at once, nobody connects', async () => {
  for (const status of [500, 404]) {
    const engine = await startEngine({ faults: [`http-${status}@open:once`] })
    const { sides, http } = begin(engine)
    expect((await http).status).toBe(status)
    expect(await sides[0]!.saw('connected', 100)).toBe(false)
    await expectHealed(engine, 'D4')
  }
})

test('hang@open: takes the request, nobody connects, until it times out', async () => {
  const engine = await startEngine({ faults: ['hang@open:once'] })
  const startMs = performance.now()
  const { sides, http } = begin(engine, 0.5)
  expect((await http).status).toBe(500)
  expect(performance.now() - startMs).toBeGreaterThan(450)
  expect(await sides[0]!.saw('connected', 0)).toBe(false)
  await expectHealed(engine, 'D4')
})

test('refuse-handle@open: an error reply, one more message, then it raises', async () => {
  for (const dialect of DIALECTS) {
    const engine = await startEngine({ dialect, faults: ['refuse-handle@open:once'] })
    const { sides, http } = begin(engine)
    await all(sides, (side) => side.send(daemon.handle))
    expect(await sides[0]!.reply()).toHaveLength(0)
    const refused = await sides[1]!.replyWithin(dialect === 'D1' ? 300 : 5000)
    if (dialect === 'D1') expect(refused).toBeNull()
    else expect(text(refused!)).toContain('injected: the IPC handle cannot be opened')
    if (dialect !== 'D1') await sides[1]!.send(X)
    await sides[0]!.send(X)
    const answer = await http
    expect(answer.status).toBe(500)
    expect(answer.text).toContain('rank 1: injected: the IPC handle cannot be opened')
    expect((await weightsOf(engine)).torn).toBe(false)
    await expectHealed(engine, dialect)
  }
}, 60_000)

test('a handle that cannot be opened is refused in the same way, and so is X instead of one', async () => {
  const engine = await startEngine({ tensorParallelSize: 1 })
  const missing = daemon.handle.slice()
  const name = new TextEncoder().encode('/ckpt-')
  const at = missing.findIndex((_, i) => name.every((byte, k) => missing[i + k] === byte))
  missing[at + name.length] = 'X'.charCodeAt(0)
  for (const message of [missing, X]) {
    const { sides, http } = begin(engine)
    await sides[0]!.send(message)
    expect((await sides[0]!.reply()).length).toBeGreaterThan(0)
    await sides[0]!.send(X)
    expect((await http).status).toBe(500)
  }
  await expectHealed(engine, 'D4')
})

test('error@post: no reply, the request fails, the engine is torn', async () => {
  for (const dialect of DIALECTS) {
    const engine = await startEngine({ dialect, faults: ['error@post:once'] })
    const { sides, http } = begin(engine)
    await open(sides)
    await list(sides, 0)
    await all(sides, (side) => side.send(NONE))
    expect(await sides[0]!.reply()).toHaveLength(0)
    if (dialect === 'D4') {
      expect(await sides[1]!.reply()).toHaveLength(0)
      await all(sides, (side) => side.send(NONE))
      expect(await sides[0]!.reply()).toHaveLength(0)
    }
    const answer = await http
    expect(answer.text).toContain('injected: the post hook failed')
    expect(await sides[1]!.replyWithin(50)).toBeNull()
    expect((await weightsOf(engine)).torn).toBe(true)
    await expectHealed(engine, dialect)
  }
}, 60_000)

test('hang@post: the ring is free in D4, the request ends at its timeout', async () => {
  const engine = await startEngine({ faults: ['hang@post:once'], tensorParallelSize: 1 })
  const { sides, http } = begin(engine, 1)
  await open(sides)
  await list(sides, 0)
  await all(sides, (side) => side.send(NONE))
  expect(await sides[0]!.reply()).toHaveLength(0)
  await all(sides, (side) => side.send(NONE))
  expect(await sides[0]!.replyWithin(200)).toBeNull()
  expect((await http).text).toContain('timed out waiting for the post hook')
  await expectHealed(engine, 'D4')
})

test('missing-device@open: one rank never connects, the request waits for the others', async () => {
  const engine = await startEngine({ faults: ['missing-device@open:once'] })
  const { sides, http } = begin(engine)
  await sides[0]!.send(daemon.handle)
  expect(await sides[0]!.reply()).toHaveLength(0)
  expect(await sides[1]!.saw('connected', 200)).toBe(false)
  await sides[0]!.send(X)
  const answer = await http
  expect(answer.text).toContain('rank 1: KeyError')
  await expectHealed(engine, 'D4')
})

test('a map without one of the keys is the same without a fault', async () => {
  const engine = await startEngine()
  const answer = await post(engine, '/collective_rpc', {
    method: 'update_weights_from_ipc',
    args: [{}],
  })
  expect(answer.status).toBe(500)
  expect(answer.text).toContain('rank 0: KeyError')
})

test('a daemon that vanishes is waited for a while; one that comes back can release', async () => {
  const engine = await startEngine({ disconnectGraceMs: 1000, tensorParallelSize: 1 })
  const gone = begin(engine)
  await open(gone.sides)
  await list(gone.sides, 0)
  const startMs = performance.now()
  gone.sides[0]!.close()
  const answer = await gone.http
  expect(answer.text).toContain('the daemon is gone while waiting for list 1')
  expect(performance.now() - startMs).toBeGreaterThan(900)

  const back = begin(engine)
  await open(back.sides)
  await list(back.sides, 0)
  back.sides[0]!.close()
  const again = daemon.side(back.sides[0]!.address.split('/').at(-1)!)
  await again.send(X)
  expect((await back.http).text).toContain('aborted by the test')
}, 30_000)

test('a list whose tensor does not lie in the ring is an error reply, not a crash', async () => {
  const { pickleList } = await import('@ckpt/core')
  const plan = {
    bucketCount: 1,
    bucketFirstTensor: Uint32Array.of(0, 1),
    order: Uint32Array.of(0),
    tensorRing: Float64Array.of(2 ** 20 - 4),
  }
  const table = { names: ['outside'], dtypes: Uint8Array.of(9), shapes: [[2]] }
  const body = pickleList(plan as never, table as never, 0)
  const engine = await startEngine({ tensorParallelSize: 1 })
  const { sides, http } = begin(engine)
  await open(sides)
  await sides[0]!.send(body)
  expect(text(await sides[0]!.reply())).toContain('outside does not lie in the ring')
  await sides[0]!.send(X)
  expect((await http).status).toBe(500)
})

test('two requests at once: the second waits for its turn', async () => {
  const engine = await startEngine({ tensorParallelSize: 1 })
  await daemon.fill(5)
  const first = begin(engine)
  await open(first.sides)
  const second = begin(engine)
  expect(await second.sides[0]!.saw('connected', 100)).toBe(false)
  await list(first.sides, 0)
  await end(first.sides, 'D4')
  expect((await first.http).status).toBe(200)
  await open(second.sides)
  await end(second.sides, 'D4')
  expect((await second.http).status).toBe(200)
})

test('closing the engine ends a conversation that waits', async () => {
  const engine = await startEngine({ tensorParallelSize: 1 })
  const { sides, http } = begin(engine, 300)
  await open(sides)
  const startMs = performance.now()
  const settled = http.then(
    (answer) => answer.text,
    (error) => String(error),
  )
  await engine.close()
  played.engines.length = 0
  expect(performance.now() - startMs).toBeLessThan(3000)
  await settled
})

test('pausing, readiness and caches answer as the engines do', async () => {
  const engine = await startEngine({ tensorParallelSize: 1, faults: ['hang@pause:once'] })
  const paused = async () => JSON.stringify(await (await fetch(`${engine.url}/is_paused`)).json())
  for (const path of ['/health', '/ping']) expect((await fetch(engine.url + path)).status).toBe(200)
  const hanging = fetch(`${engine.url}/pause?mode=wait`, {
    method: 'POST',
    signal: AbortSignal.timeout(200),
  })
  expect(
    await hanging.then(
      () => 'answered',
      () => 'gave up',
    ),
  ).toBe('gave up')
  expect(await paused()).toBe('{"is_paused":false}')
  expect((await post(engine, '/pause?mode=abort&clear_cache=true', {})).status).toBe(200)
  expect(await paused()).toBe('{"is_paused":true}')
  expect((await post(engine, '/pause?mode=no', {})).status).toBe(400)
  for (const path of ['/reset_prefix_cache', '/resume', '/flush_cache']) {
    expect((await post(engine, path, {})).status).toBe(200)
  }
  expect(await paused()).toBe('{"is_paused":false}')
  await post(engine, '/pause_generation', { mode: 'abort' })
  expect(await paused()).toBe('{"is_paused":true}')
  await post(engine, '/continue_generation', {})
  expect(await paused()).toBe('{"is_paused":false}')
  expect((await fetch(`${engine.url}/update_weights_from_ipc`)).status).toBe(405)
  expect((await fetch(`${engine.url}/collective_rpc`)).status).toBe(405)
  expect((await fetch(`${engine.url}/openapi.json`)).status).toBe(404)
})

test('wrong requests and options are refused by name', async () => {
  const engine = await startEngine({ tensorParallelSize: 1, tellDevices: true })
  expect((await post(engine, '/collective_rpc', { method: 'other' })).text).toContain('other')
  expect((await post(engine, '/collective_rpc', {})).status).toBe(400)
  expect((await post(engine, '/update_weights_from_ipc', {})).status).toBe(400)
  const told = await (await fetch(`${engine.url}/update_weights_from_ipc`)).json()
  expect(told).toMatchObject({ ready: false, device_uuids: engine.keys, is_sleeping: false })
  for (const path of ['/sleep?level=2', '/wakeup?tags=weights', '/wakeup?tags=kv_cache']) {
    expect((await post(engine, path, {})).status).toBe(200)
    const paused = await (await fetch(`${engine.url}/is_paused`)).json()
    expect(paused).toEqual({ is_paused: path !== '/wakeup?tags=kv_cache' })
  }
  for (const options of [
    { listen: 'nowhere' },
    { tensorParallelSize: 0 },
    { dialect: 'D5' as Dialect },
    { faults: ['nonsense@1'] },
    { devices: 'gpu' },
  ]) {
    await expect(startEngine(options)).rejects.toThrow(CkptError)
  }
})

test('hold@open, hold@K and hold@post: stands still, and goes on when other faults are armed', async () => {
  const engine = await startEngine({})
  const arm = (...faults: string[]) =>
    fetch(`${engine.url}/v1/faults`, { method: 'POST', body: JSON.stringify({ faults }) })
  const goOn = async () => {
    await until('the engine to hold', HOLD_MS, async () => {
      const told = (await (await fetch(`${engine.url}/v1/faults`)).json()) as { holding: boolean }
      return told.holding
    })
    await arm()
  }
  expect((await arm('nonsense@3')).status).toBe(400)
  await daemon.fill(8)
  await arm('hold@open', 'hold@0', 'hold@post')
  const answer = wholeUpdate(engine, 'D4')
  // an update takes its faults when it begins
  for (const _ of ['open', 0, 'post']) await goOn()
  expect((await answer).status).toBe(200)
  await expectContent(engine)
}, 30_000)
