import { expect, setDefaultTimeout, test } from 'bun:test'
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readdirSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { ZmqContext } from '@ckpt/cuda'
import { rawSafetensors, safetensors } from '../registry/testing/fixture.ts'
import { NAME, outcomeOf, SMALL_BUCKETS, tensorsOf, until, withUpdates } from './testing/fixture.ts'
import { type ScriptedWorker, scriptedWorker } from './testing/scripted-worker.ts'

setDefaultTimeout(180_000)

const TENSORS = 64
const TENSOR_BYTES = 2 ** 24
const LAG_MS_MAX = 50
const TRIES = 3
const TICK_MS = 2

/** A gigabyte of zeros in a sparse file. */
function writeGigabyte(path: string): void {
  const header: Record<string, unknown> = {}
  for (let i = 0; i < TENSORS; i++) {
    const offsets = [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES]
    header[`layer.${i}.weight`] = { dtype: 'U8', shape: [TENSOR_BYTES], data_offsets: offsets }
  }
  const head = rawSafetensors(JSON.stringify(header))
  const fd = openSync(path, 'w')
  writeSync(fd, head)
  ftruncateSync(fd, head.length + TENSORS * TENSOR_BYTES)
  closeSync(fd)
}

/** Milliseconds that the main thread was ready to run and had no processor: what other processes take is not our lag. */
function waitedForCpuMs(): number {
  const [, waitedNs] = readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')
  return Number(waitedNs) / 1e6
}

/** The longest that the event loop kept a timer waiting. */
async function longestLagMs(work: Promise<unknown>): Promise<number> {
  let longestMs = 0
  let lastMs = performance.now()
  let lastWaitedMs = waitedForCpuMs()
  const timer = setInterval(() => {
    const nowMs = performance.now()
    const waitedMs = waitedForCpuMs()
    longestMs = Math.max(longestMs, nowMs - lastMs - TICK_MS - (waitedMs - lastWaitedMs))
    lastMs = nowMs
    lastWaitedMs = waitedMs
  }, TICK_MS)
  await work.finally(() => clearInterval(timer))
  return longestMs
}

/** The collector may stop the thread once: one undisturbed try is enough. */
async function leastLagMs(work: () => Promise<unknown>): Promise<number> {
  const lags: number[] = []
  for (let tries = 0; tries < TRIES && Math.min(...lags) >= LAG_MS_MAX; tries++) {
    lags.push(await longestLagMs(work()))
  }
  return Math.min(...lags)
}

test('the event loop answers within 50 ms while a gigabyte is registered and updated', async () => {
  await withUpdates(
    async ({ updates, registry, engine: start, dir }) => {
      const path = `${dir.path}/gigabyte.safetensors`
      writeGigabyte(path)
      const engine = await start()
      const request = { update_url: `${engine.url}/collective_rpc`, timeout: 60 }
      for (const in_place of [true, false]) {
        const files = { files: [path], replace: true, in_place }
        const registering = () => registry.register(NAME, files, null)
        expect(await leastLagMs(registering)).toBeLessThan(LAG_MS_MAX)
      }
      const updating = async () => {
        expect((await updates.start(NAME, request).done).bytes).toBe(TENSORS * TENSOR_BYTES)
      }
      expect(await leastLagMs(updating)).toBeLessThan(LAG_MS_MAX)
    },
    { hostMemoryBytes: 2 ** 32 },
  )
})

test('memory, objects and sockets do not grow over many updates with new files', async () => {
  await withUpdates(async ({ updates, register, registry, engine: start, library, options }) => {
    const engine = await start()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const used = () => ({
      objects: library.liveObjects(),
      pinnedBytes: registry.memory().pinned_bytes,
      shared: readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${process.pid}-`))
        .length,
      sockets: readdirSync(`${options.stateDir}/engines`).length,
    })
    const rounds: ReturnType<typeof used>[] = []
    const descriptors: number[] = []
    for (let round = 0; round < 12; round++) {
      await register(tensorsOf(12, 200_000, round))
      await updates.start(NAME, request).done
      rounds.push(used())
      descriptors.push(readdirSync('/proc/self/fd').length)
    }
    expect(rounds.slice(2)).toEqual(Array(10).fill(rounds[1]))
    // a connection may close a moment later: less than one an update
    expect(descriptors.at(-1)! - descriptors[1]!).toBeLessThan(5)
  }, SMALL_BUCKETS)
})

const CHANGES: Record<string, (path: string) => void> = {
  rewritten: (path) => {
    const fd = openSync(path, 'r+')
    writeSync(fd, 'x', 4096)
    closeSync(fd)
  },
  // of a mapping the process would die
  truncated: (path) => truncateSync(path, 4096),
}

for (const [what, change] of Object.entries(CHANGES)) {
  test(`an in-place file that is ${what} fails the update with its name, before or during it`, async () => {
    await withUpdates(
      async ({ updates, registry, engine: start, dir }) => {
        const path = `${dir.path}/gigabyte.safetensors`
        const engine = await start()
        const request = { update_url: `${engine.url}/collective_rpc`, timeout: 30 }
        writeGigabyte(path)
        const answer = await registry.register(NAME, { files: [path], in_place: true }, null)
        expect(answer.notes ?? []).toEqual([])
        const { id, done } = updates.start(NAME, request)
        const ended = outcomeOf(done)
        await until(() => updates.state(id).buckets_done > 0)
        change(path)
        const { failure } = await ended
        expect(failure).toMatchObject({ code: 'file_changed' })
        expect(failure?.message).toContain(path)
        expect(updates.state(id).engines).toMatchObject([{ torn: true }])
        writeGigabyte(path)
        await registry.register(NAME, { files: [path], in_place: true, replace: true }, null)
        change(path)
        const later = await outcomeOf((async () => await updates.start(NAME, request).done)())
        expect(['file_changed', 'checkpoint_invalid']).toContain(later.failure?.code as string)
        expect(later.failure?.message).toContain(path)
      },
      { hostMemoryBytes: 2 ** 32 },
    )
  })
}

test('an in-place file that changes while its engine is waited for fails the update before anything is sent', async () => {
  await withUpdates(async ({ updates, registry, dir }) => {
    const path = dir.write('small.safetensors', safetensors(tensorsOf(2, 10_000, 1)))
    await registry.register(NAME, { files: [path], in_place: true }, null)
    const seen = { ready: false, looks: 0, posts: 0 }
    const engine = Bun.serve({
      hostname: '127.0.0.1',
      port: 0,
      fetch({ method }) {
        if (method === 'POST') seen.posts++
        else seen.looks++
        return new Response('', { status: seen.ready ? 200 : 503 })
      },
    })
    const url = `http://127.0.0.1:${engine.port}/collective_rpc`
    const { id, done } = updates.start(NAME, { update_url: url, engine: 'vllm', timeout: 20 })
    const ended = outcomeOf(done)
    await until(() => seen.looks > 0)
    truncateSync(path, 100)
    seen.ready = true
    const { failure } = await ended
    expect(failure).toMatchObject({ code: 'file_changed', phase: 'open' })
    expect(failure?.message).toContain(path)
    expect(seen.posts).toBe(0)
    expect(updates.state(id).engines).toMatchObject([{ result: 'not_contacted', torn: false }])
    await engine.stop(true)
  })
})

test('an in-place file that changes after the last copy fails the update before any release', async () => {
  await withUpdates(
    async ({ updates, registry, dir }) => {
      const path = dir.write('small.safetensors', safetensors(tensorsOf(2, 10_000, 1)))
      await registry.register(NAME, { files: [path], in_place: true }, null)
      const context = new ZmqContext()
      const { id, done } = updates.start(NAME, { timeout: 20 })
      const ended = outcomeOf(done)
      let worker: ScriptedWorker | null = null
      let rewritten = false
      for await (const { event, map } of updates.events(id)) {
        if (event !== 'map') continue
        worker = scriptedWorker(context, Object.values(map!)[0]!, async (lists) => {
          // what follows the list may come when the file is gone
          if (lists !== 1 || rewritten) return
          rewritten = true
          // everything is in the ring by now
          await Bun.sleep(300)
          closeSync(openSync(path, 'r+'))
        })
        break
      }
      await until(() => updates.state(id).state === 'failed')
      expect((await ended).failure).toMatchObject({ code: 'file_changed' })
      expect((await ended).failure?.message).toContain(path)
      expect(worker!.seen).not.toContain('none')
      worker!.close()
      context.close()
    },
    { rankCount: 1, devices: 'host:1' },
  )
})
