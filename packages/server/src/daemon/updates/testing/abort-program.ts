/**
 * Run by `abort.test.ts` as a process of its own, because the library's copies are throttled: a bucket of 1 MB takes a
 * quarter of a second. A scripted worker takes some lists; the update is aborted while the copy of the next bucket is under way.
 * Prints what the worker was sent after the abort, as JSON.
 */
import { openLibrary, type RankInfo, ZmqContext } from '@ckpt/cuda'
import { createRegistry } from '../../registry/held.ts'
import { daemonOptions, safetensors, TestDir } from '../../registry/testing/fixture.ts'
import { createUpdates } from '../updates.ts'
import { NAME, outcomeOf, tensorsOf } from './fixture.ts'
import { type ScriptedWorker, scriptedWorker } from './scripted-worker.ts'

const RANKS = Number(process.argv[2] ?? 1)
const BUCKET_BYTES = 2 ** 20
const MID_COPY_MS = 100
const LONGER_THAN_A_COPY_MS = 700

const library = { kind: 'host', hostDevices: RANKS, hostCopyBytesPerSecond: 4 * 2 ** 20 } as const
const native = openLibrary(library)
const ranks = Array.from({ length: RANKS }, (_, rank): RankInfo => {
  const { name, uuid, numaNode } = native.deviceDescribe(rank)
  return { rank, device: rank, deviceName: name, key: uuid, uuid, numaNode }
})
const dir = new TestDir()
const options = daemonOptions(dir.path, {
  library,
  ranks,
  ringBytes: 6 * 2 ** 20,
  bucketBytes: BUCKET_BYTES,
})
const registry = await createRegistry(options)
const updates = await createUpdates(options, registry)
const file = dir.write('m.safetensors', safetensors(tensorsOf(5, BUCKET_BYTES - 256, 1)))
await registry.register(NAME, { files: [file] }, null)
const context = new ZmqContext()

async function abortAfter(lists: number) {
  const { id, done } = updates.start(NAME, { timeout: 30 })
  const ended = outcomeOf(done)
  const workers: ScriptedWorker[] = []
  const reached = Promise.withResolvers<void>()
  let left = RANKS
  for await (const event of updates.events(id)) {
    if (event.event !== 'map') continue
    for (const address of Object.values(event.map!)) {
      let told = false
      const taken = (count: number) => {
        if (count < lists || told) return
        told = true
        if (--left === 0) reached.resolve()
      }
      workers.push(scriptedWorker(context, address, taken))
    }
    await reached.promise
    await Bun.sleep(MID_COPY_MS)
    break
  }
  const before = workers.map(({ seen }) => [...seen])
  updates.abort(id)
  await Bun.sleep(LONGER_THAN_A_COPY_MS)
  const after = workers.map(({ seen }, i) => seen.slice(before[i]!.length))
  for (const worker of workers) worker.close()
  const { failure } = await ended
  return { lists, before, after, code: failure?.code }
}

const results = []
for (const lists of [1, 2, 4]) results.push(await abortAfter(lists))
context.close()
await updates.close('the test is over')
await registry.close()
dir.remove()
process.stdout.write(`${JSON.stringify({ results, liveObjects: native.liveObjects() })}\n`)
process.exit(0)
