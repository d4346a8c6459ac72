/** What hosts without a rank in an update hold in place, or of a trainer: others read it out of their memory. */
import { describe, expect, test } from 'bun:test'
import {
  closeSync,
  existsSync,
  openSync,
  renameSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import { until } from '../../../../../test/support/until.ts'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { bytesOf, safetensors, TestDir, type TestTensors } from '../registry/testing/fixture.ts'
import {
  arm,
  isHeld,
  outcomeOf,
  requireWeights,
  tensorsOf,
  weightsOf,
} from '../updates/testing/fixture.ts'
import { type Daemons, NAME, type TestDaemon, withDaemons } from './testing/daemons.ts'

const REQUEST = { timeout: 20, open_timeout: 10 }
const TEST_MS = 60_000
/** Less than an update's own `timeout`. */
const HOLD_MS = 15_000
const WAYS = ['pipelined', 'direct'] as const

interface Setting {
  /** The leader: it has the rank. */
  readonly reader: TestDaemon
  readonly owner: TestDaemon
  readonly engine: RunningEngine
  readonly engines: { readonly url: string; readonly ranks: number[] }[]
  readonly dir: TestDir
}

/** An owner that has no rank in the updates of `engine`; files in `parent`. */
async function withOwner(parent: string, run: (setting: Setting) => Promise<void>): Promise<void> {
  const dir = new TestDir(parent)
  const inside = async ({ daemons, engine: start }: Daemons) => {
    const [reader, owner] = daemons as [TestDaemon, TestDaemon]
    const engine = await start({ direct: true })
    await run({ reader, owner, engine, engines: [{ url: engine.url, ranks: [0] }], dir })
  }
  try {
    await withDaemons([1, 1], inside, { ringBytes: 2 ** 22, bucketBytes: 2 ** 18 })
  } finally {
    dir.remove()
  }
}

/** Two files in place; returns their paths. */
async function registerInPlace({ owner, dir }: Setting, tensors: TestTensors, consume = false) {
  const all = Object.entries(tensors)
  const half = Math.ceil(all.length / 2)
  const files = [all.slice(0, half), all.slice(half)].map((part, i) =>
    dir.write(`${i}.safetensors`, safetensors(Object.fromEntries(part))),
  )
  const request = { files, replace: true, in_place: true, consume }
  const { notes } = await owner.registry.register(NAME, request, null)
  expect(notes ?? []).toEqual([])
  return files as [string, string]
}

async function update({ reader, engines }: Setting, mode: 'auto' | (typeof WAYS)[number]) {
  const request = { ...REQUEST, engines, ranks: [0], mode }
  return outcomeOf(reader.updates.start(NAME, request).done)
}

describe.skipIf(withoutUcx !== null)('of another host is read', () => {
  for (const parent of ['/tmp', '/dev/shm']) {
    test(
      `every byte of files in place in ${parent}, through the ring and directly`,
      () =>
        withOwner(parent, async (setting) => {
          for (const [seed, mode] of [...WAYS, ...WAYS].entries()) {
            const tensors = tensorsOf(30, 60_000, seed)
            await registerInPlace(setting, tensors)
            expect(setting.owner.registry.describe(NAME).in_place).toBe(true)
            const { report, failure } = await update(setting, mode)
            expect(failure).toBeNull()
            expect(report?.mode).toBe(mode)
            // direct reads take the little that lies between two tensors along
            expect(report?.p2p?.bytes).toBeGreaterThanOrEqual(bytesOf(tensors))
            await requireWeights(setting.engine, tensors)
          }
        }),
      TEST_MS,
    )
  }

  test(
    'a file that was consumed, removed or replaced by rename since: its bytes stay',
    () =>
      withOwner('/dev/shm', async (setting) => {
        const first = tensorsOf(6, 50_000, 1)
        const consumed = await registerInPlace(setting, first, true)
        expect(consumed.map((path) => existsSync(path))).toEqual([false, false])
        expect((await update(setting, 'pipelined')).failure).toBeNull()
        await requireWeights(setting.engine, first)
        const second = tensorsOf(6, 50_000, 2)
        const [one, two] = await registerInPlace(setting, second)
        unlinkSync(one)
        renameSync(setting.dir.write('next', safetensors(tensorsOf(3, 50_000, 3))), two)
        expect((await update(setting, 'direct')).failure).toBeNull()
        await requireWeights(setting.engine, second)
      }),
    TEST_MS,
  )

  test.each(WAYS)(
    'a file that was written to before: the update fails with its name, %s',
    (mode) =>
      withOwner('/dev/shm', async (setting) => {
        await registerInPlace(setting, tensorsOf(6, 50_000, 1))
        expect((await update(setting, 'pipelined')).failure).toBeNull()
        const [, path] = await registerInPlace(setting, tensorsOf(6, 50_000, 2))
        truncateSync(path, 100)
        const { failure } = await update(setting, mode)
        expect(failure?.code).toMatch(/^(file_changed|checkpoint_invalid)$/)
        expect(failure?.message).toContain(path)
        await requireWeights(setting.engine, tensorsOf(6, 50_000, 1))
        const healed = tensorsOf(6, 50_000, 3)
        await registerInPlace(setting, healed)
        expect((await update(setting, mode)).failure).toBeNull()
        await requireWeights(setting.engine, healed)
      }),
    TEST_MS,
  )

  test(
    'a file that is written to amid an update: it fails with its name, the engine is torn, the next one heals it',
    () =>
      withOwner('/dev/shm', async (setting) => {
        const { engine } = setting
        const [, path] = await registerInPlace(setting, tensorsOf(120, 60_000, 1))
        await arm(engine, 'hold@2')
        const outcome = update(setting, 'pipelined')
        await until('the engine to hold', HOLD_MS, () => isHeld(engine))
        // the writer does not wait for the update
        writeFileSync(path, 'other bytes')
        await arm(engine)
        const { failure } = await outcome
        expect(failure?.code).toMatch(/^(file_changed|checkpoint_invalid)$/)
        expect(failure?.message).toContain(path)
        expect((await weightsOf(engine)).torn).toBe(true)
        const healed = tensorsOf(120, 60_000, 2)
        await registerInPlace(setting, healed)
        expect((await update(setting, 'pipelined')).failure).toBeNull()
        await requireWeights(engine, healed)
      }),
    TEST_MS,
  )

  test(
    'what a trainer has written into shared memory',
    () =>
      withOwner('/tmp', async (setting) => {
        const { registry } = setting.owner
        for (const [seed, mode] of WAYS.entries()) {
          const tensors = tensorsOf(9, 60_000, seed)
          const all = Object.entries(tensors)
          const bytes = all.map(([, one]) => one.bytes.length)
          const { buffers } = await registry.buffers(NAME, { bytes, replace: true })
          const written = all.map(([name, one], i) => {
            const { id, path } = buffers[i]!
            const descriptor = openSync(path, 'r+')
            writeSync(descriptor, one.bytes)
            closeSync(descriptor)
            const { dtype, shape } = one
            return { id, tensors: [{ name, dtype, shape: [...shape], offset: 0 }] }
          })
          await registry.tensors(NAME, { buffers: written, replace: true })
          const { report, failure } = await update(setting, mode)
          expect(failure).toBeNull()
          expect(report?.mode).toBe(mode)
          await requireWeights(setting.engine, tensors)
        }
      }),
    TEST_MS,
  )
})
