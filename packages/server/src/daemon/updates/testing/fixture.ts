/** What the updates' tests share: a registry, updates and reference engines on the host library, and what must be left afterwards. */
import { readdirSync } from 'node:fs'
import { CkptError, type EngineWeights, type Failure, type UpdateReport } from '@ckpt/core'
import { type Library, openLibrary, selectDevices } from '@ckpt/cuda'
import {
  type ReferenceEngineOptions,
  type RunningEngine,
  runReferenceEngine,
} from '../../../engines/reference/index.ts'
import { createRegistry } from '../../registry/held.ts'
import type { Registry } from '../../registry/registry.ts'
import {
  daemonOptions,
  safetensors,
  TestDir,
  type TestTensors,
  u8,
} from '../../registry/testing/fixture.ts'
import type { DaemonOptions } from '../../types.ts'
import { createUpdates, type Updates } from '../updates.ts'

export const NAME = 'model'

/** `count` tensors of about `bytes` bytes each; another seed gives other bytes of the same shapes. */
export function tensorsOf(count: number, bytes: number, seed: number): TestTensors {
  const tensors: TestTensors = {}
  for (let i = 0; i < count; i++) tensors[`layer.${i}.weight`] = u8(bytes + 2 * i, seed * 1000 + i)
  return tensors
}

/** Small buckets, so that an update has many. */
export const SMALL_BUCKETS = { ringBytes: 2 ** 21, bucketBytes: 2 ** 18 }

export interface Bench {
  readonly options: DaemonOptions
  readonly registry: Registry
  readonly updates: Updates
  readonly dir: TestDir
  readonly library: Library
  register(tensors: TestTensors, version?: string): Promise<void>
  engine(options?: Partial<ReferenceEngineOptions>): Promise<RunningEngine>
}

/** Runs with a daemon's inside, then checks that it leaves no native object, no shared memory and no socket. */
export async function withUpdates(
  run: (bench: Bench) => Promise<void>,
  told: Partial<DaemonOptions> & { rankCount?: number; devices?: string } = {},
): Promise<void> {
  const { rankCount: ranks = 2, devices = 'host:2', ...rest } = told
  const dir = new TestDir()
  const selection = selectDevices(devices, ranks)
  const library = openLibrary(selection.library)
  const before = library.liveObjects()
  const options = daemonOptions(dir.path, { ...selection, ...rest })
  const registry = await createRegistry(options)
  const updates = await createUpdates(options, registry)
  const engines: RunningEngine[] = []
  try {
    await run({
      options,
      registry,
      updates,
      dir,
      library,
      async register(tensors, version) {
        const file = dir.write('model.safetensors', safetensors(tensors))
        await registry.register(NAME, { files: [file], replace: true, version }, null)
      },
      async engine(engineOptions = {}) {
        const engine = await runReferenceEngine({
          listen: '127.0.0.1:0',
          tensorParallelSize: ranks,
          devices,
          dialect: 'D4',
          faults: [],
          ...engineOptions,
        })
        let closed: Promise<void> | null = null
        const once = { ...engine, close: () => (closed ??= engine.close()) }
        engines.push(once)
        return once
      },
    })
  } finally {
    await Promise.all(engines.map((engine) => engine.close()))
    await updates.close('the test is over')
    await registry.close()
  }
  const sockets = readdirSync(`${dir.path}/engines`)
  dir.remove()
  if (sockets.length > 0) throw new Error(`sockets are left: ${sockets.join(', ')}`)
  const left = library.liveObjects() - before
  if (left !== 0) throw new Error(`${left} native objects are left`)
  const shared = readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${process.pid}-`))
  if (before === 0 && shared.length > 0) throw new Error(`left in /dev/shm: ${shared.join(', ')}`)
}

export async function weightsOf(engine: RunningEngine): Promise<EngineWeights> {
  const response = await fetch(`${engine.url}/v1/weights`)
  return (await response.json()) as EngineWeights
}

/** Throws unless every rank of the engine holds the rows that are its own of every tensor (U8, one dimension). */
export async function requireWeights(engine: RunningEngine, tensors: TestTensors): Promise<void> {
  const { ranks, torn } = await weightsOf(engine)
  if (torn) throw new Error('the engine is torn')
  for (const [rank, { tensors: held }] of ranks.entries()) {
    const names = Object.keys(tensors)
    if (Object.keys(held).length !== names.length) throw new Error(`rank ${rank} holds other names`)
    for (const name of names) {
      const { bytes } = tensors[name]!
      const part = bytes.length % ranks.length === 0 ? bytes.length / ranks.length : null
      const own = part === null ? bytes : bytes.subarray(rank * part, (rank + 1) * part)
      const wanted = new Bun.CryptoHasher('sha256').update(own).digest('hex')
      if (held[name]?.sha256 !== wanted) throw new Error(`${name} differs on rank ${rank}`)
    }
  }
}

export interface Outcome {
  readonly report: UpdateReport | null
  readonly failure: Failure | null
  readonly seconds: number
}

/** How an update ends, and how long that takes. */
export async function outcomeOf(done: Promise<UpdateReport>): Promise<Outcome> {
  const startMs = performance.now()
  const seconds = () => (performance.now() - startMs) / 1000
  try {
    return { report: await done, failure: null, seconds: seconds() }
  } catch (error) {
    if (!(error instanceof CkptError)) throw error
    return { report: null, failure: error.failure, seconds: seconds() }
  }
}

/** What a reference engine does wrong from now on; what it holds goes on. */
export async function arm({ url }: RunningEngine, ...faults: string[]): Promise<void> {
  const init = { method: 'POST', body: JSON.stringify({ faults }) }
  const { status } = await fetch(`${url}/v1/faults`, init)
  if (status !== 200) throw new Error(`the engine does not know ${faults.join()}`)
}

/** Whether a fault makes it stand still. */
export async function isHeld({ url }: RunningEngine): Promise<boolean> {
  return ((await (await fetch(`${url}/v1/faults`)).json()) as { holding: boolean }).holding
}

/** Waits until something holds; throws after ten seconds. */
export async function until(holds: () => boolean): Promise<void> {
  for (let tries = 0; tries < 5000; tries++) {
    if (holds()) return
    await Bun.sleep(2)
  }
  throw new Error(`waited in vain until ${holds}`)
}
