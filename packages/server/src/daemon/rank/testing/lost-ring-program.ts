/**
 * Run by `link.test.ts` as a process of its own, because it frees device memory by guessing its handle. A ring comes into
 * quarantine, its memory is freed behind the back of its Worker, then the engine's request returns, so that the Worker frees it
 * too. Prints what became of that, as JSON.
 */
import type { Failure } from '@ckpt/core'
import { openLibrary, selectDevices, ZmqContext } from '@ckpt/cuda'
import { TestDir } from '../../registry/testing/fixture.ts'
import { RankTeam } from '../../updates/team.ts'
import { clockMs } from '../../clock.ts'
import { RankPool } from '../pool.ts'
import { freeDeviceMemory } from './guessed-handles.ts'
import { ABORTED, planInput, RING_BYTES, RUN, SteppedWorker } from './one-rank.ts'

const END_MS = 20_000

const dir = new TestDir()
const { library: options, ranks } = selectDevices('host:1', 1)
const native = openLibrary(options)
const dead: Pick<Failure, 'code' | 'rank' | 'message'>[] = []
const died = Promise.withResolvers<void>()
const pool = await RankPool.start(options, native, ranks, {
  failed: () => {},
  dead({ code, rank, message }) {
    dead.push({ code, rank, message })
    died.resolve()
  },
  left: () => {},
})
const links = await pool.use([0])
const link = links[0]!
await link.request({ type: 'plan', key: 'plan', input: planInput(1) })
const buffers = [Uint32Array.of(native.bufferAlloc(RING_BYTES, 0))]
const context = new ZmqContext()
const address = `ipc://${dir.path}/engine.sock`
const worker = new SteppedWorker(context, address)
const team = new RankTeam(RUN, links, () => {})
const times = { openMs: END_MS, deadlineMs: clockMs() + END_MS }
const plan = { planKey: 'plan', ringBytes: RING_BYTES, buffers, readings: [null], remotes: [null] }
await team.open({ ...plan, ...times }, () => ({
  address,
  http: true,
  engine: null,
  dialect: null,
}))
team.begin()
worker.wait()
worker.reply()
await team.reached('opened')
team.announce()
worker.wait()
// it is inside `load_weights`, and its request has not returned
team.abort(ABORTED, 100)
await team.left()
const quarantinedBefore = pool.quarantinedBytes
const freedBehindIt = freeDeviceMemory(native)
const ended = link.settled(RUN).then(() => true)
worker.close()
link.http(RUN, { ok: false, status: 500, message: 'words' })
await Promise.race([died.promise, Bun.sleep(END_MS)])
const threadEnded = await Promise.race([ended, Bun.sleep(END_MS).then(() => false)])
const [next] = await pool.use([0])
const fresh = next !== link && (await next!.readMemory()).totalBytes > 0
const quarantinedAfter = pool.quarantinedBytes
const result = { quarantinedBefore, freedBehindIt, dead, threadEnded, fresh, quarantinedAfter }
await new Promise<void>((resolve) => {
  process.stdout.write(`${JSON.stringify(result)}\n`, () => resolve())
})
context.close()
await pool.close()
dir.remove()
process.exit(0)
