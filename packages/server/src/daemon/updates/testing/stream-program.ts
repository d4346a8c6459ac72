/**
 * Run by `stream.test.ts` as a process of its own, because reads are throttled (`CKPT_READ_BYTES_PER_SECOND`): a checkpoint takes
 * over a second to read, and an update begins at once. Prints what each case has seen, as JSON.
 */
import { truncateSync } from 'node:fs'
import { CkptError } from '@ckpt/core'
import { safetensors } from '../../registry/testing/fixture.ts'
import {
  type Bench,
  NAME,
  outcomeOf,
  requireWeights,
  tensorsOf,
  until,
  weightsOf,
  withUpdates,
} from './fixture.ts'

const MIB = 2 ** 20
const LAYERS = 10
const LAYER_BYTES = 8 * MIB

function write({ dir }: Bench, seed: number) {
  const tensors = tensorsOf(LAYERS, LAYER_BYTES, seed)
  return { tensors, file: dir.write(`v${seed}.safetensors`, safetensors(tensors)) }
}

async function begin(bench: Bench, file: string, version: string) {
  const request = { files: [file], replace: true, wait: false, version }
  return bench.registry.register(NAME, request, null)
}

function stateOf({ registry }: Bench): string {
  const [held] = registry.list()
  return held === undefined ? 'none' : `${held.version} ${held.state}`
}

function failureOf(call: () => unknown) {
  try {
    call()
    return null
  } catch (error) {
    return CkptError.wrap(error).failure
  }
}

/** Ends when the engine has taken a bucket, or the update has ended. */
async function firstBucket({ updates }: Bench, id: string): Promise<void> {
  while (updates.state(id).buckets_done === 0 && updates.state(id).state !== 'failed') {
    await Bun.sleep(5)
  }
}

const cases: Record<string, (bench: Bench) => Promise<unknown>> = {
  /** The engine has the first buckets before the last bytes are read. */
  async overtakes(bench) {
    const engine = await bench.engine()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const seen = []
    for (const seed of [1, 2, 3]) {
      const { tensors, file } = write(bench, seed)
      const { reading, seconds } = await begin(bench, file, `${seed}`)
      const { id, done } = bench.updates.start(NAME, request)
      await firstBucket(bench, id)
      const during = stateOf(bench)
      const { stages, version, gb_per_s: rate } = await done
      await requireWeights(engine, tensors)
      seen.push({
        reading,
        seconds,
        during,
        read: stages.read,
        rate,
        version,
        after: stateOf(bench),
      })
    }
    const again = await bench.updates.start(NAME, request).done
    return { seen, readAgain: again.stages.read, pinned: bench.registry.memory().pinned_bytes }
  },

  /** A file that changes while it is sent tears the engine; the version before it is still held and heals it. */
  async changes(bench) {
    const engine = await bench.engine()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const first = write(bench, 1)
    await bench.registry.register(NAME, { files: [first.file], version: '1' }, null)
    await bench.updates.start(NAME, request).done
    const { file } = write(bench, 2)
    await begin(bench, file, '2')
    const { id, done } = bench.updates.start(NAME, request)
    const ended = outcomeOf(done)
    await firstBucket(bench, id)
    truncateSync(file, 1000)
    const { failure, seconds } = await ended
    const { torn } = await weightsOf(engine)
    const held = stateOf(bench)
    await bench.updates.start(NAME, request).done
    await requireWeights(engine, first.tensors)
    return { failure, named: failure?.message.includes(file), seconds, torn, held }
  },

  /** An update that is aborted or late does not wait for bytes; reading goes on. */
  async ends(bench) {
    const engine = await bench.engine()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const { tensors, file } = write(bench, 1)
    await begin(bench, file, '1')
    const aborted = bench.updates.start(NAME, request)
    const ended = outcomeOf(aborted.done)
    await firstBucket(bench, aborted.id)
    bench.updates.abort(aborted.id, 'by the test')
    const abort = await ended
    const during = stateOf(bench)
    await begin(bench, write(bench, 2).file, '2')
    const startMs = performance.now()
    const late = await outcomeOf(bench.updates.start(NAME, { ...request, timeout: 0.3 }).done)
    // what is asked for a name waits until its bytes are there
    const dropped = await bench.registry.drop(NAME, { force: false })
    const dropSeconds = (performance.now() - startMs) / 1000
    const gone = stateOf(bench)
    await begin(bench, file, '3')
    await bench.updates.start(NAME, request).done
    await requireWeights(engine, tensors)
    return { abort, during, late, dropped, dropSeconds, gone }
  },

  /** A file changes before any update wants it: the next one is told, and only the one after it gets the older version. */
  async fails(bench) {
    const engine = await bench.engine()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const first = write(bench, 1)
    await bench.registry.register(NAME, { files: [first.file], version: '1' }, null)
    const { file } = write(bench, 2)
    await begin(bench, file, '2')
    truncateSync(file, 1000)
    await until(() => stateOf(bench) === '1 complete')
    const gathered = failureOf(() => bench.registry.gather(NAME))
    const told = failureOf(() => bench.updates.start(NAME, request))
    const { version } = await bench.updates.start(NAME, request).done
    await requireWeights(engine, first.tensors)
    // the next registration is nobody's failure
    await begin(bench, write(bench, 3).file, '3')
    truncateSync(file, 10)
    const after = (await bench.updates.start(NAME, request).done).version
    return { file, gathered, told, version, after }
  },

  /** The same with no version before it: gathering says so too, and leaves it to be told to the update. */
  async failsFirst(bench) {
    const { file } = write(bench, 1)
    await begin(bench, file, '1')
    truncateSync(file, 1000)
    await until(() => stateOf(bench) === 'none')
    const gathered = [1, 2].map(() => failureOf(() => bench.registry.gather(NAME)))
    const told = failureOf(() => bench.updates.start(NAME, { timeout: 1 }))
    return { file, failures: [...gathered, told], after: bench.registry.gather(NAME).tensors }
  },

  /** An update whose time ends before the files are there says how far they are, and has left the engine alone. */
  async slow(bench) {
    const engine = await bench.engine()
    const { file } = write(bench, 1)
    const spare = write(bench, 2)
    await bench.registry.register('other', { files: [spare.file], wait: false }, null)
    await begin(bench, file, '1')
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 0.2 }
    const { failure } = await outcomeOf(bench.updates.start(NAME, request).done)
    const { torn, ranks } = await weightsOf(engine)
    return { failure, torn, tensors: Object.keys(ranks[0]?.tensors ?? {}).length }
  },

  /** The daemon ends: everything is freed, which `withUpdates` looks at. */
  async closes(bench) {
    await begin(bench, write(bench, 1).file, '1')
    return { during: stateOf(bench) }
  },

  /** Parts of ranks are compared, so they are waited for. */
  async ranks(bench) {
    const request = { files: [write(bench, 1).file], wait: false }
    const answer = await bench.registry.register(NAME, request, 0)
    return { reading: answer.reading ?? false, state: stateOf(bench) }
  },
}

/** With `--evict` and room for two checkpoints and a half. */
async function evicts(bench: Bench) {
  const { registry, updates, dir } = bench
  const put = async (name: string, seed: number, owner: number | null) => {
    const entries = Object.entries(tensorsOf(LAYERS, LAYER_BYTES, seed))
    const tensors = Object.fromEntries(entries.map(([key, one]) => [`${seed}.${key}`, one]))
    const file = dir.write(`${seed}.safetensors`, safetensors(tensors))
    return registry.register(name, { files: [file] }, owner)
  }
  const refused = async () => {
    try {
      return (await put('c', 3, null)).evicted
    } catch (error) {
      return CkptError.wrap(error).code
    }
  }
  await put('b', 1, 0)
  const loading = put('b', 2, 1)
  await Bun.sleep(100)
  const whileLoading = await refused()
  await loading
  const small = dir.write('d.safetensors', safetensors(tensorsOf(1, 1000, 1)))
  await registry.register('d', { files: [small] }, null)
  const running = updates.start('d', { timeout: 60 })
  const queued = updates.start('b', { timeout: 60 })
  const whileQueued = await refused()
  updates.abort(queued.id)
  await outcomeOf(queued.done)
  const after = await refused()
  updates.abort(running.id)
  await outcomeOf(running.done)
  return { whileLoading, whileQueued, after }
}

const results: Record<string, unknown> = {}
for (const [name, run] of Object.entries(cases)) {
  await withUpdates(
    async (bench) => {
      results[name] = await run(bench)
    },
    { ringBytes: 24 * MIB, bucketBytes: LAYER_BYTES + 4096 },
  )
}
await withUpdates(
  async (bench) => {
    results.evicts = await evicts(bench)
  },
  { evict: true, hostMemoryBytes: 200 * MIB },
)
process.stdout.write(`${JSON.stringify(results)}\n`)
process.exit(0)
