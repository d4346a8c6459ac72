import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { CkptError, packBegin, packEnd, packFrame, packLeave, packLook } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import type { RunningEngine } from './index.ts'
import { ask, askBegin, askEnd, copyInto, look, planOf } from './testing/direct-daemon.ts'
import { all, PlayedUpdates } from './testing/played-updates.ts'
import { type DaemonSide, NONE, X } from './testing/scripted-daemon.ts'

const NOT_YET = 'no update has gone through'
const TORN = 'the last update has failed half way'
const MOVED = "the engine's memory has changed"
const MAIN = join(import.meta.dir, '../../cli/main.ts')
const library = openLibrary({ kind: 'host', hostDevices: 4 })
const played = new PlayedUpdates(library)
const { daemon, startEngine, post, weightsOf, begin, open, list, end } = played
const { wholeUpdate, expectContent } = played

interface Answer {
  readonly status: number
  readonly text: string
}

/** An engine that takes direct updates; its faults strike these only. It has no weights yet. */
function startDirect(size: number, ...faults: string[]): Promise<RunningEngine> {
  const direct = faults.map((fault) => `${fault}:direct`)
  return startEngine({
    direct: true,
    tensorParallelSize: size,
    faults: direct,
    disconnectGraceMs: 300,
  })
}

/** As {@link startDirect}, after a whole update through the ring. */
async function startFilled(size: number, ...faults: string[]): Promise<RunningEngine> {
  const engine = await startDirect(size, ...faults)
  await daemon.fill(size)
  expectResults(await wholeUpdate(engine, 'D4'), [
    ...Array(size).fill({ ok: true, torn: false, not_direct: null }),
  ])
  return engine
}

function beginDirect(engine: RunningEngine, timeoutSeconds = 20, version?: string) {
  const { sides, map } = played.bind(engine)
  const http = post(engine, '/collective_rpc', {
    method: 'ckpt_direct',
    args: [map],
    kwargs: version === undefined ? {} : { weight_version: version },
    timeout: timeoutSeconds,
  })
  return { sides, http }
}

function resultsOf({ status, text }: Answer): Record<string, unknown>[] {
  expect({ status, text }).toMatchObject({ status: 200 })
  return JSON.parse(text).results
}

function expectResults(answer: Answer, expected: readonly object[]): void {
  const results = resultsOf(answer)
  expect(results).toHaveLength(expected.length)
  for (const [rank, result] of results.entries()) expect(result).toMatchObject(expected[rank]!)
}

/** Copies the bytes of a seed into every rank, which are what is expected from now on. */
async function copyAll(
  sides: readonly DaemonSide[],
  looked: readonly Awaited<ReturnType<typeof look>>[],
  seed: number,
): Promise<void> {
  const buffer = await daemon.hold(seed)
  for (const rank of sides.keys()) {
    copyInto(library, looked[rank]!, looked[rank]!.decoded!, daemon.tensors, buffer)
  }
  library.bufferFree(buffer)
}

async function wholeDirect(engine: RunningEngine, seed: number): Promise<void> {
  const { sides, http } = beginDirect(engine)
  const looked = await all(sides, (side) => look(side))
  expect(await all(sides, (side, rank) => askBegin(side, looked[rank]!))).toEqual(
    sides.map(() => null),
  )
  await copyAll(sides, looked, seed)
  expect(await all(sides, askEnd)).toEqual(sides.map(() => null))
  expectResults(
    await http,
    sides.map(() => ({ ok: true, torn: false, placed: true })),
  )
}

/** After a fault that applied once, the same engine takes a whole direct update. */
async function expectHealed(engine: RunningEngine): Promise<void> {
  await wholeDirect(engine, 4321)
  await expectContent(engine)
}

test('1, 2 and 4 ranks: every byte comes to its place, twice with other contents', async () => {
  for (const size of [1, 2, 4]) {
    const engine = await startFilled(size)
    const before = await expectContent(engine)
    for (const round of [1, 2]) {
      await wholeDirect(engine, size * 10 + round)
      const weights = await expectContent(engine)
      expect(weights.updates).toBe(1 + round)
      expect(weights.ranks[0]!.tensors).not.toEqual(before.ranks[0]!.tensors)
    }
  }
}, 60_000)

test('the answers have the form of the extension, and the version is kept', async () => {
  const engine = await startDirect(1)
  await daemon.fill(1)
  const [ring] = resultsOf(await wholeUpdate(engine, 'D4'))
  const seconds = expect.any(Number)
  const well = { ok: true, error: null, phase: null, torn: false, seconds }
  const replayed = daemon.tensors.length
  const none = { ordinary: 0, reasons: {}, not_direct: null }
  expect(ring).toEqual({ ...well, mode: 'recorded', replayed, ...none })
  const { sides, http } = beginDirect(engine, 20, '8')
  const looked = await all(sides, (side) => look(side))
  expect(await askBegin(sides[0]!, looked[0]!)).toBeNull()
  await copyAll(sides, looked, 8)
  expect(await askEnd(sides[0]!)).toBeNull()
  expect(await sides[0]!.saw('disconnected', 5000)).toBe(true)
  expect(resultsOf(await http)).toEqual([{ ...well, mode: 'direct', placed: true }])
  expect(await expectContent(engine)).toMatchObject({ updates: 2, version: '8' })
})

test('updates through the ring that fail: 200, in which phase, and why the next cannot be direct', async () => {
  const faults = ['refuse-handle@open:once', 'error@post:once', 'close@1:once']
  const expected = [
    { ok: false, phase: 'begin', torn: false, not_direct: NOT_YET },
    { ok: false, phase: 'hook', torn: true, not_direct: TORN, replayed: 3 },
    { ok: false, phase: 'lists', torn: true, not_direct: TORN, replayed: 3 },
  ]
  for (const [i, fault] of faults.entries()) {
    const engine = await startEngine({ direct: true, tensorParallelSize: 1, faults: [fault] })
    const { sides, http } = begin(engine)
    await sides[0]!.send(daemon.handle)
    await sides[0]!.reply()
    if (i > 0) await list(sides, 0)
    if (i === 1) await sides[0]!.send(NONE)
    if (i === 1) expect(await sides[0]!.reply()).toHaveLength(0)
    const last = i === 0 ? X : i === 1 ? NONE : daemon.lists[1]!
    await sides[0]!.send(last)
    const answer = await http
    expectResults(answer, [expected[i]!])
    expect(resultsOf(answer)[0]!.error).toContain('injected')
  }
  const engine = await startDirect(1)
  const missing = { method: 'update_weights_from_ipc', args: [{}] }
  expectResults(await post(engine, '/collective_rpc', missing), [
    {
      ok: false,
      phase: 'begin',
      torn: false,
      replayed: 0,
      error: 'KeyError: rank 0 is not in the map',
    },
  ])
})

test('the map of a known digest is not sent again, and says dtype and shape of whole tensors', async () => {
  const engine = await startFilled(2)
  const { sides, http } = beginDirect(engine)
  const first = await look(sides[1]!)
  const known = await look(sides[1]!, first.map)
  expect(known).toEqual({ ...first, encodedMap: new Uint8Array(0), decoded: null })
  const unknown = await look(sides[1]!, '00'.repeat(32))
  expect(unknown).toEqual(first)
  expect(new Bun.CryptoHasher('sha256').update(first.encodedMap).digest('hex')).toBe(first.map)
  const { tensors, dtypes, shapes, tensor, source, run } = first.decoded!
  const at = (name: string) => tensors.indexOf(name)
  expect(tensors).toEqual(daemon.tensors.map(({ name }) => name))
  expect([dtypes[at('packed')], shapes[at('packed')]]).toEqual(['float4_e2m1fn_x2', [16, 3]])
  expect([dtypes[at('__proto__')], shapes[at('up')]]).toEqual(['float64', [48, 96]])
  // rows 24 to 47 of `up`, all of `norm`, nothing of `empty`
  const copiesOf = (name: string) =>
    [...tensor.keys()].filter((i) => tensor[i] === at(name)).map((i) => [source[i], run[i]])
  expect(copiesOf('up')).toEqual([[24 * 96 * 2, 24 * 96 * 2]])
  expect(copiesOf('norm')).toEqual([[0, 28]])
  expect(copiesOf('empty')).toEqual([])
  await all(sides, (side) => side.send(packLeave('seen', true)))
  expectResults(await http, [
    { ok: true, placed: false },
    { ok: true, placed: false },
  ])
})

test('before the first whole update there is no place to look at', async () => {
  const engine = await startDirect(1)
  const early = beginDirect(engine)
  expect(await ask(early.sides[0]!, packLook(null))).toBe(NOT_YET)
  await early.sides[0]!.send(packLeave('later', true))
  expectResults(await early.http, [{ ok: true, phase: null, placed: false, torn: false }])
  const broken = begin(engine)
  await open(broken.sides)
  await list(broken.sides, 0)
  await broken.sides[0]!.send(X)
  expectResults(await broken.http, [{ ok: false, phase: 'lists', torn: true, not_direct: TORN }])
  const torn = beginDirect(engine)
  expect(await ask(torn.sides[0]!, packLook(null))).toBe(NOT_YET)
  await torn.sides[0]!.send(packLeave('later', true))
  expectResults(await torn.http, [{ ok: true, placed: false, torn: true }])
  expect(await weightsOf(engine)).toMatchObject({ updates: 0, torn: true })
})

test('a torn engine is whole after a direct update, and tensors of earlier checkpoints are not in its map', async () => {
  const engine = await startFilled(1)
  const half = begin(engine)
  await open(half.sides)
  await list(half.sides, 1)
  await half.sides[0]!.send(X)
  expectResults(await half.http, [{ ok: false, torn: true, not_direct: TORN }])
  await expectHealed(engine)
  // a checkpoint of the first three tensors only
  const fewer = begin(engine)
  await open(fewer.sides)
  await list(fewer.sides, 0)
  await end(fewer.sides, 'D4')
  expectResults(await fewer.http, [{ ok: true, not_direct: null, replayed: 3 }])
  const { sides, http } = beginDirect(engine)
  const { decoded } = await look(sides[0]!)
  expect(decoded!.tensors).toEqual(['embed', 'norm', 'scalar'])
  expect(() => planOf(decoded!, daemon.tensors)).toThrow('has no')
  await sides[0]!.send(packLeave('it does not fit', true))
  expectResults(await http, [{ ok: true, placed: false }])
})

test('nothing reads the weights while they are copied', async () => {
  const engine = await startFilled(1)
  const { sides, http } = beginDirect(engine)
  const looked = await all(sides, (side) => look(side))
  await askBegin(sides[0]!, looked[0]!)
  let read = false
  const weights = weightsOf(engine).then((held) => {
    read = true
    return held
  })
  await Bun.sleep(200)
  expect(read).toBe(false)
  await copyAll(sides, looked, 77)
  await askEnd(sides[0]!)
  await http
  expect(await weights).toMatchObject({ updates: 2, torn: false })
  await expectContent(engine)
})

test('moved@open: begin is refused, the contents stay, the map too; the next look has the new place', async () => {
  const engine = await startFilled(2, 'moved@open:once')
  const before = await weightsOf(engine)
  const { sides, http } = beginDirect(engine)
  const looked = await all(sides, (side) => look(side))
  const refusals = await all(sides, (side, rank) => askBegin(side, looked[rank]!))
  expect(refusals).toEqual([null, MOVED])
  const again = await look(sides[1]!)
  expect([again.map, again.handles.length]).toEqual([looked[1]!.map, looked[1]!.handles.length])
  expect(again.generation).not.toBe(looked[1]!.generation)
  expect(again.handles[0]).not.toBe(looked[1]!.handles[0])
  await all(sides, (side) => side.send(packLeave('one does not begin', true)))
  expectResults(await http, [
    { ok: true, placed: false },
    { ok: true, placed: false },
  ])
  expect(await weightsOf(engine)).toEqual(before)
  await expectHealed(engine)
})

test('another generation than its own is refused, and one that is right later begins', async () => {
  const engine = await startFilled(1)
  const { sides, http } = beginDirect(engine)
  const looked = await look(sides[0]!)
  expect(await ask(sides[0]!, packBegin('other'))).toBe(MOVED)
  expect(await askBegin(sides[0]!, looked)).toBeNull()
  await copyAll(sides, [looked], 3)
  expect(await askEnd(sides[0]!)).toBeNull()
  expectResults(await http, [{ ok: true, placed: true }])
  await expectContent(engine)
})

test('a tensor that changes its size is another generation, the same bytes again are the same one', async () => {
  const engine = await startFilled(1)
  const generationNow = async () => {
    const { sides, http } = beginDirect(engine)
    const { generation } = await look(sides[0]!)
    await sides[0]!.send(packLeave('seen', true))
    await http
    return generation
  }
  const first = await generationNow()
  await wholeUpdate(engine, 'D4')
  expect(await generationNow()).toBe(first)
  const { pickleList } = await import('@ckpt/core')
  const plan = {
    bucketCount: 1,
    bucketFirstTensor: Uint32Array.of(0, 1),
    order: Uint32Array.of(0),
    tensorRing: Float64Array.of(0),
  }
  const { dtype } = daemon.tensors[0]!
  const table = { names: ['embed'], dtypes: Uint8Array.of(dtype), shapes: [[64, 30]] }
  const { sides, http } = begin(engine)
  await open(sides)
  await sides[0]!.send(pickleList(plan as never, table as never, 0))
  await sides[0]!.reply()
  await end(sides, 'D4')
  await http
  expect(await generationNow()).not.toBe(first)
})

test('leave after begin: untouched is as before it, torn or not; touched is torn', async () => {
  const engine = await startFilled(1)
  const left = async (untouched: boolean) => {
    const { sides, http } = beginDirect(engine)
    expect(await askBegin(sides[0]!, await look(sides[0]!))).toBeNull()
    await sides[0]!.send(packLeave('the daemon says so', untouched))
    return await http
  }
  expectResults(await left(true), [{ ok: true, phase: null, placed: false, torn: false }])
  await expectContent(engine)
  const words = 'the daemon says so'
  expectResults(await left(false), [{ ok: false, error: words, phase: 'copies', torn: true }])
  expectResults(await left(true), [{ ok: true, placed: false, torn: true }])
  expect(await weightsOf(engine)).toMatchObject({ updates: 1, torn: true })
  await expectHealed(engine)
})

test('what is no request, or comes out of turn, ends the update; before begin nothing is torn', async () => {
  const engine = await startFilled(1)
  const wrong = [
    Uint8Array.of(1, 2),
    packFrame([]),
    packFrame({ type: 'other' }),
    packFrame({ type: 'look', map: 5 }),
    packFrame({ type: 'begin' }),
    packFrame({ type: 'leave', reason: 'r' }),
    packEnd(),
  ]
  for (const frame of wrong) {
    const { sides, http } = beginDirect(engine)
    await sides[0]!.send(frame)
    expect(await sides[0]!.saw('disconnected', 5000)).toBe(true)
    const [result] = resultsOf(await http)
    expect(result).toMatchObject({ ok: false, phase: 'begin', torn: false, placed: false })
    expect(result!.error).toContain('what the daemon sends cannot be used')
  }
  await expectContent(engine)
  for (const frame of [Uint8Array.of(9), packLook(null), packBegin('again')]) {
    const { sides, http } = beginDirect(engine)
    expect(await askBegin(sides[0]!, await look(sides[0]!))).toBeNull()
    await sides[0]!.send(frame)
    expectResults(await http, [{ ok: false, phase: 'copies', torn: true, placed: false }])
    await expectHealed(engine)
  }
}, 30_000)

test('a daemon that vanishes after begin leaves a torn engine, before it a whole one', async () => {
  const engine = await startFilled(1)
  for (const begun of [false, true]) {
    const { sides, http } = beginDirect(engine)
    const looked = await look(sides[0]!)
    if (begun) expect(await askBegin(sides[0]!, looked)).toBeNull()
    sides[0]!.close()
    const [result] = resultsOf(await http)
    expect(result!.error).toContain('the daemon is gone while waiting for')
    expect(result).toMatchObject({ phase: begun ? 'copies' : 'begin', torn: begun, placed: false })
  }
  await expectHealed(engine)
})

test('error@0: begin is refused', async () => {
  const engine = await startFilled(2, 'error@0:once')
  const { sides, http } = beginDirect(engine)
  const looked = await all(sides, (side) => look(side))
  const refusals = await all(sides, (side, rank) => askBegin(side, looked[rank]!))
  expect(refusals).toEqual([null, 'injected: it does not begin'])
  await all(sides, (side) => side.send(packLeave('one does not begin', true)))
  expectResults(await http, [
    { ok: true, torn: false },
    { ok: true, torn: false },
  ])
  await expectHealed(engine)
})

test('hang@0 and hang@1: no reply to begin, and nothing is read after it, until the request times out', async () => {
  for (const k of [0, 1]) {
    const engine = await startFilled(1, `hang@${k}:once`)
    const startMs = performance.now()
    const { sides, http } = beginDirect(engine, 1)
    const { generation } = await look(sides[0]!)
    await sides[0]!.send(packBegin(generation))
    expect(await sides[0]!.replyWithin(300)).toEqual(k === 0 ? null : packFrame({ ok: true }))
    await sides[0]!.send(packLeave('it hangs', true))
    expect(await sides[0]!.saw('disconnected', 300)).toBe(false)
    const [result] = resultsOf(await http)
    expect(result).toMatchObject({ ok: false, phase: k === 0 ? 'begin' : 'copies', torn: k === 1 })
    expect(result!.error).toContain('timed out waiting for')
    expect(performance.now() - startMs).toBeGreaterThan(900)
    await expectHealed(engine)
  }
})

test('close@0 and close@1: the daemon sees a disconnect, without a reply to begin and after it', async () => {
  for (const k of [0, 1]) {
    const engine = await startFilled(1, `close@${k}:once`)
    const { sides, http } = beginDirect(engine)
    const { generation } = await look(sides[0]!)
    await sides[0]!.send(packBegin(generation))
    expect(await sides[0]!.saw('disconnected', 5000)).toBe(true)
    expect(await sides[0]!.replyWithin(50)).toEqual(k === 0 ? null : packFrame({ ok: true }))
    const [result] = resultsOf(await http)
    expect(result).toMatchObject({ ok: false, phase: k === 0 ? 'begin' : 'copies', torn: k === 1 })
    expect(result!.error).toContain('injected: the socket closes at')
    await expectHealed(engine)
  }
})

test('exit@0 and exit@1: the process ends, without a reply to begin and after it', async () => {
  for (const k of [0, 1]) {
    using stack = new DisposableStack()
    const args = ['engine', '--devices', 'host', '--listen', '127.0.0.1:0', '--direct', '--json']
    const child = Bun.spawn([process.execPath, MAIN, ...args, '--fault', `exit@${k}:direct`], {
      stdout: 'pipe',
      stderr: 'inherit',
    })
    stack.defer(() => child.kill('SIGKILL'))
    const { value } = await child.stdout.getReader().read()
    const engine = JSON.parse(new TextDecoder().decode(value)) as RunningEngine
    expectResults(await wholeUpdate(engine, 'D4'), [{ ok: true }])
    const { sides, http } = beginDirect(engine)
    const failed = http.catch(() => 'the process has ended')
    const { generation } = await look(sides[0]!)
    await sides[0]!.send(packBegin(generation))
    expect(await sides[0]!.saw('disconnected', 5000)).toBe(true)
    expect(await sides[0]!.replyWithin(50)).toEqual(k === 0 ? null : packFrame({ ok: true }))
    expect(await failed).toBe('the process has ended')
    expect(await child.exited).toBe(70)
  }
}, 30_000)

test('error@post and hang@post: all is copied, and the engine is torn', async () => {
  for (const fault of ['error', 'hang']) {
    const engine = await startFilled(1, `${fault}@post:once`)
    const { sides, http } = beginDirect(engine, 1)
    const looked = await look(sides[0]!)
    expect(await askBegin(sides[0]!, looked)).toBeNull()
    await copyAll(sides, [looked], 5)
    const reason = 'injected: the post hook failed'
    if (fault === 'error') expect(await askEnd(sides[0]!)).toBe(reason)
    else await sides[0]!.send(packEnd())
    if (fault === 'hang') expect(await sides[0]!.replyWithin(200)).toBeNull()
    const [result] = resultsOf(await http)
    expect(result).toMatchObject({ ok: false, phase: 'hook', torn: true, placed: false })
    const timedOut = 'timed out waiting for the post hook'
    expect(result!.error).toContain(fault === 'error' ? reason : timedOut)
    expect(await weightsOf(engine)).toMatchObject({ updates: 1, torn: true })
    await expectHealed(engine)
  }
})

test('missing-device@open is one result, the faults of the whole engine are not', async () => {
  const engine = await startFilled(2, 'missing-device@open:once')
  const { sides, http } = beginDirect(engine)
  await look(sides[0]!)
  await sides[0]!.send(packLeave('one is missing', true))
  expectResults(await http, [
    { ok: true, placed: false },
    { ok: false, phase: 'begin', error: 'KeyError: rank 1 is not in the map', torn: false },
  ])
  for (const [fault, status] of [
    ['http-500', 500],
    ['http-404', 404],
    ['hang', 500],
  ] as const) {
    const other = await startFilled(1, `${fault}@open:once`)
    const answer = await beginDirect(other, 0.5).http
    expect(answer.status).toBe(status)
    if (fault === 'hang') expect(answer.text).toContain('RPC call to ckpt_direct timed out')
    await expectHealed(other)
  }
})

test('without the option the workers have no such method, and only D4 may have it', async () => {
  const engine = await startEngine({ tensorParallelSize: 1 })
  await daemon.fill(1)
  expect(JSON.parse((await wholeUpdate(engine, 'D4')).text)).toEqual({ results: [null] })
  const { http } = beginDirect(engine)
  expect(await http).toMatchObject({ status: 500 })
  expect((await http).text).toContain('the workers have no method ckpt_direct')
  for (const method of ['other', 'constructor']) {
    expect((await post(await startDirect(1), '/collective_rpc', { method })).status).toBe(500)
  }
  await expect(startEngine({ direct: true, dialect: 'D3' })).rejects.toThrow(CkptError)
})

test('closing the engine ends a direct update that waits', async () => {
  const engine = await startFilled(1)
  const { sides, http } = beginDirect(engine, 300)
  expect(await askBegin(sides[0]!, await look(sides[0]!))).toBeNull()
  const settled = http.catch(() => null)
  const startMs = performance.now()
  await engine.close()
  played.engines.length = 0
  expect(performance.now() - startMs).toBeLessThan(3000)
  await settled
})
