/** Copies of what another registry holds, through UCX, as they are made between daemons. */
import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { deserialize } from 'node:v8'
import { CkptError } from '@ckpt/core'
import { type Library, openLibrary } from '@ckpt/cuda'
import { start } from '../../../../../test/support/process.ts'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import {
  daemonOptions,
  failure,
  LIBRARY,
  requireHeld,
  safetensors,
  TestDir,
  type TestTensors,
  u8,
} from './testing/fixture.ts'
import type { DaemonOptions } from '../types.ts'
import { createRegistry } from './held.ts'
import type { Offer, Registry } from './registry.ts'

setDefaultTimeout(60_000)

const MIB = 2 ** 20
const OWNER = join(import.meta.dir, 'testing/owner.ts')

interface Sides {
  readonly owner: Registry
  readonly taker: Registry
  readonly dir: TestDir
  readonly library: Library
}

/** Nothing native may be left. */
async function withSides(
  run: (sides: Sides) => Promise<void>,
  told: Partial<DaemonOptions> = {},
): Promise<void> {
  const library = openLibrary(LIBRARY)
  const before = library.liveObjects()
  const dir = new TestDir()
  const owner = await createRegistry(daemonOptions(dir.path))
  const taker = await createRegistry(daemonOptions(dir.path, told))
  try {
    await run({ owner, taker, dir, library })
  } finally {
    await taker.close()
    await owner.close()
    dir.remove()
  }
  expect(library.liveObjects() - before).toBe(0)
}

/** What the other daemons of a cluster tell of `m`, held until it is given back. */
async function offered(owner: Registry, told: Partial<Offer> = {}) {
  const { version, serve, check, release } = owner.lease('m')
  const remotes = (await serve(new Set([0]))).map((one) => one!)
  const { table, sources } = version
  const offer: Offer = {
    version: version.version,
    table,
    sources,
    remotes,
    devices: [[]],
    gone: new AbortController().signal,
    confirm: async () => check?.(),
    ...told,
  }
  return { offer, release: () => release(false) }
}

/** Of all sizes, some without bytes, whose natural order is none of the file's. */
function manyTensors(seed: number): TestTensors {
  const sizes = [0, 1, 255, 256, 257, 4096, 70_001, 1_500_000, 3 * MIB + 5]
  const entries = Array.from({ length: 120 }, (_, i) => {
    const bytes = sizes[(i * 7 + seed) % sizes.length]!
    return [`layer.${(i * 37) % 120}.w`, u8(bytes, seed * 1000 + i)] as const
  })
  return Object.fromEntries(entries)
}

function requireNothing(registry: Registry): void {
  expect(registry.list()).toEqual([])
  expect(registry.busy).toBe(false)
}

describe.skipIf(withoutUcx !== null)('a copy of what another daemon holds', () => {
  for (const inPlace of [false, true]) {
    test(`has every byte, ${inPlace ? 'of files in place' : 'of its arena'}, through one reader or two`, () =>
      withSides(async ({ owner, taker, dir, library }) => {
        for (const [seed, devices] of [[[]], [[], []]].entries()) {
          const tensors = manyTensors(seed)
          const all = Object.entries(tensors)
          const files = [all.slice(0, 50), all.slice(50)].map((part, i) =>
            dir.write(`${seed}-${i}.safetensors`, safetensors(Object.fromEntries(part))),
          )
          const request = { files, replace: true, in_place: inPlace, version: `v${seed}` }
          await owner.register('m', request, null)
          const { offer, release } = await offered(owner, { devices })
          const answer = await taker.pull('m', offer, true)
          expect(answer).toMatchObject({ name: 'm', version: `v${seed}`, tensors: 120 })
          release()
          // the owner may do with its memory what it likes
          await owner.drop('m', { force: true })
          const lease = taker.lease('m')
          requireHeld(library, lease.version, tensors)
          lease.release(true)
        }
        expect(taker.list()).toHaveLength(1)
        expect(taker.list()[0]).toMatchObject({ version: 'v1', state: 'complete', in_place: false })
      }))
  }

  test('is refused where the name is held, and takes its place where that is asked for', () =>
    withSides(async ({ owner, taker, dir, library }) => {
      const [one, two] = [{ w: u8(5000, 1) }, { w: u8(7000, 2) }]
      const file = dir.write('a.safetensors', safetensors(one))
      await taker.register('m', { files: [file] }, null)
      await owner.register('m', { files: [dir.write('b', safetensors(two))] }, null)
      const { offer, release } = await offered(owner)
      await failure(() => taker.pull('m', offer, false), 'checkpoint_exists', 'registered already')
      await taker.pull('m', offer, true)
      release()
      const lease = taker.lease('m')
      requireHeld(library, lease.version, two)
      lease.release(true)
    }))

  test('without the memory for it nothing is read and nothing is held', () =>
    withSides(
      async ({ owner, taker, dir }) => {
        await owner.register(
          'm',
          { files: [dir.write('a', safetensors({ w: u8(9 * MIB, 1) }))] },
          null,
        )
        const { offer, release } = await offered(owner, {
          confirm: () => Promise.reject(new Error('nothing was to be read')),
        })
        await failure(() => taker.pull('m', offer, true), 'host_memory_exhausted', 'm')
        release()
        expect(taker.list()).toEqual([])
        expect(taker.memory().pinned_bytes).toBe(0)
      },
      { hostMemoryBytes: 4 * MIB },
    ))

  const lost = new CkptError('leader_lost', 'the leader is lost')
  const confirm = () => Promise.reject(new Error('not all was read'))

  test('does not begin where the daemons hold it no more', () =>
    withSides(async ({ owner, taker, dir }) => {
      const file = dir.write('a', safetensors({ w: u8(1000, 1) }))
      await owner.register('m', { files: [file] }, null)
      const { offer, release } = await offered(owner, { gone: AbortSignal.abort(lost), confirm })
      await failure(() => taker.pull('m', offer, true), 'leader_lost', 'the leader is lost')
      release()
      requireNothing(taker)
    }))

  test('ends amid reads that do not, where the daemons hold it no more, and leaves nothing', () =>
    withSides(async ({ owner, taker, dir }) => {
      const file = dir.write('a', safetensors({ w: u8(64 * MIB, 1) }))
      await owner.register('m', { files: [file], in_place: true }, null)
      const still = await start([process.execPath, OWNER, file, dir.path], /offers ([^.]+)\./)
      try {
        const remotes: Offer['remotes'] = deserialize(Buffer.from(still.ready[1]!, 'base64'))
        process.kill(still.pid, 'SIGSTOP')
        const gone = new AbortController()
        const { offer, release } = await offered(owner, { gone: gone.signal, confirm, remotes })
        const pulled = taker.pull('m', offer, true)
        pulled.catch(() => {}) // thrown below
        expect(await Promise.race([pulled, Bun.sleep(300)])).toBeUndefined()
        gone.abort(lost)
        await failure(() => pulled, 'leader_lost', 'the leader is lost')
        release()
        requireNothing(taker)
      } finally {
        await still.stop('SIGKILL')
      }
    }))

  test('of a file in place that is written to meanwhile fails with its name', () =>
    withSides(async ({ owner, taker, dir }) => {
      const path = dir.write('a.safetensors', safetensors({ w: u8(5 * MIB, 1) }))
      await owner.register('m', { files: [path], in_place: true }, null)
      const { offer, release } = await offered(owner)
      writeFileSync(path, 'other bytes')
      await failure(() => taker.pull('m', offer, true), 'file_changed', path)
      release()
      expect(taker.list()).toEqual([])
    }))
})
