/** What another daemon reads out of an owner's memory stays there until its update has ended, in the first update of a name and later. */
import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import { until } from '../../../../../test/support/until.ts'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { bytesOf, type TestTensors } from '../registry/testing/fixture.ts'
import { arm, isHeld, outcomeOf, requireWeights, tensorsOf } from '../updates/testing/fixture.ts'
import { type Daemons, NAME, type TestDaemon, withDaemons } from './testing/daemons.ts'

setDefaultTimeout(60_000)

const HOLD_MS = 15_000
const RING_BYTES = 2 ** 22
/** More than a ring: of what is held at list 2 a part is read afterwards. */
const versionOf = (seed: number) => tensorsOf(120, 60_000, seed)
/** For one version, and not for two. */
const ONE_VERSION_BYTES = 12 * 2 ** 20
/** Through the ring the first buckets are read when it holds; directly the engine's weights are held still, and all is read later. */
const HELD_AT = { pipelined: 'hold@2', direct: 'hold@0' } as const

type Mode = keyof typeof HELD_AT

interface Setting {
  readonly reader: TestDaemon
  readonly owner: TestDaemon
  readonly engine: RunningEngine
}

/** The owner has no rank in the updates. */
async function withOwner(
  run: (setting: Setting) => Promise<void>,
  hostMemoryBytes: number | null = null,
): Promise<void> {
  const inside = async ({ daemons, engine: start }: Daemons) => {
    const [reader, owner] = daemons as [TestDaemon, TestDaemon]
    await run({ reader, owner, engine: await start({ direct: true }) })
  }
  const limits = { ringBytes: RING_BYTES, bucketBytes: 2 ** 18, hostMemoryBytes }
  await withDaemons([1, 1], inside, limits)
}

function startUpdate({ reader, engine }: Setting, mode: Mode) {
  const engines = [{ url: engine.url, ranks: [0] }]
  const request = { timeout: 30, open_timeout: 10, engines, ranks: [0], mode }
  return outcomeOf(reader.updates.start(NAME, request).done)
}

/** An update that brings `held`, amid which the owner is asked for what would change the memory that is read. */
async function updateAmid(
  setting: Setting,
  mode: Mode,
  held: TestTensors,
  amid: () => Promise<void>,
): Promise<void> {
  const { engine } = setting
  await arm(engine, HELD_AT[mode])
  const outcome = startUpdate(setting, mode)
  await until('the engine to hold', HOLD_MS, () => isHeld(engine))
  await amid()
  await arm(engine)
  const { report, failure } = await outcome
  expect(failure).toBeNull()
  expect(report).toMatchObject({ mode, bytes: bytesOf(held) })
  expect(report?.p2p?.bytes).toBeGreaterThanOrEqual(bytesOf(held))
  await requireWeights(engine, held)
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  const failed = await work.then(
    () => null,
    (error: unknown) => CkptError.wrap(error),
  )
  return failed?.code ?? 'ok'
}

/** The engine says where its weights lie. */
async function meet(setting: Setting, mode: Mode): Promise<void> {
  if (mode !== 'direct') return
  await setting.owner.register(versionOf(0))
  expect((await startUpdate(setting, 'pipelined')).failure).toBeNull()
}

describe.skipIf(withoutUcx !== null).each(['pipelined', 'direct'] as const)(
  'memory that another daemon reads, %s:',
  (mode) => {
    test('dropping it is refused, a new version comes beside it and is what the next update brings', () =>
      withOwner(async (setting) => {
        const { owner } = setting
        await meet(setting, mode)
        await owner.register(versionOf(1))
        for (const seed of [1, 2, 3]) {
          await updateAmid(setting, mode, versionOf(seed), async () => {
            const drop = () => codeOf(owner.registry.drop(NAME, { force: true }))
            expect(await drop()).toBe('checkpoint_busy')
            const next = versionOf(seed + 1)
            expect(await codeOf(owner.register(next, { replace: false }))).toBe('checkpoint_exists')
            await owner.register(next)
            // the new one is not read, and what is read has no other name
            expect(await drop()).toBe('checkpoint_busy')
          })
        }
        expect(await owner.registry.drop(NAME, { force: true })).toMatchObject({ existed: true })
      }))

    test('without room for both a new version is refused', () =>
      withOwner(async (setting) => {
        const { owner } = setting
        await meet(setting, mode)
        for (const seed of [1, 2]) {
          const held = versionOf(seed)
          await owner.register(held)
          await updateAmid(setting, mode, held, async () => {
            const refused = codeOf(owner.register(versionOf(seed + 10)))
            expect(await refused).toBe('host_memory_exhausted')
          })
        }
      }, ONE_VERSION_BYTES))
  },
)
