/**
 * Run by `direct.test.ts` as a process of its own, because copies are throttled. A direct update is aborted while its copies are on
 * their way; they cannot be stopped within 250 ms. The next update goes through and is reported ok: prints what the engine then has.
 *
 * Its argument says how the update ends: `abort`; `abort-kill`: its rank's Worker is ended as well; `kill`: only that; `hang`: at its deadline,
 * because that Worker does not come back (`CKPT_FAULT_DIR`).
 */
import { rmSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { NAME, outcomeOf, requireWeights, until, withUpdates } from './fixture.ts'
import type { TestTensors } from '../../registry/testing/fixture.ts'
import { safetensors, u8 } from '../../registry/testing/fixture.ts'

const LARGE = 12_000_000
const SMALL = 1_000_000
const large = (seed: number) => ({ 'a.weight': u8(LARGE, seed) })
const small = (seed: number) => ({ 'b.weight': u8(SMALL, seed) })

const how = process.argv[2]
const workers: Worker[] = []
const { on } = Worker.prototype
Worker.prototype.on = function (this: Worker, ...args: Parameters<typeof on>) {
  if (!workers.includes(this)) workers.push(this)
  return on.apply(this, args)
} as typeof on

/** Ends the Worker that was started last: there is one rank. */
async function rankWorker(): Promise<void> {
  await workers.at(-1)!.terminate()
  await Bun.sleep(100)
}

await withUpdates(
  async (bench) => {
    const engine = await bench.engine({ direct: true })
    const engines = [{ url: engine.url, ranks: [] }]
    const update = (id: string, timeout = 30) =>
      bench.updates.start(NAME, { engines, update_id: id, timeout })
    await bench.register({ ...large(1), ...small(1) })
    const first = await outcomeOf(update('one').done)
    await bench.register({ ...large(2), ...small(2) })
    // as long as a worker waits whose daemon says nothing more
    const second = update('two', how === 'hang' ? 2 : 8)
    await until(() => bench.updates.state('two').phase === 'transfer')
    await Bun.sleep(50)
    if (how === 'kill') await rankWorker()
    else if (how !== 'hang') bench.updates.abort('two', 'enough')
    const ended = await outcomeOf(second.done)
    if (how === 'abort-kill') await rankWorker()
    const third: TestTensors = { ...small(3), ...large(3) }
    const place = `/dev/shm/ckpt-unsettled-${process.pid}.safetensors`
    await Bun.write(place, safetensors(third))
    await bench.registry.register(NAME, { files: [place], replace: true, in_place: true }, null)
    rmSync(place)
    const last = await outcomeOf(update('three').done)
    await Bun.sleep(4000)
    const held = await requireWeights(engine, third).then(
      () => 'the weights of the last update',
      (error) => String(error),
    )
    const { torn } = bench.updates.status().engines[0]!
    const text = {
      first: first.report?.mode ?? first.failure,
      second: ended.failure ?? ended.report?.mode,
      third:
        last.report === null ? last.failure : [last.report.mode, last.report.engines[0]?.result],
      torn,
      openSeconds: [first.report?.seconds.open, last.report?.seconds.open],
      seconds: [first.seconds, ended.seconds, last.seconds],
      held,
    }
    console.log(JSON.stringify(text))
  },
  { rankCount: 1, devices: 'host:1' },
)
process.exit(0)
