/**
 * Run by `plan.test.ts` as a process of its own, with devices of 256 MiB (`CKPT_HOST_DEVICE_BYTES`). With `kept` as argv[2], the
 * second of two equal updates finds so little free memory that the ring of the first would take more than its share; with
 * `shared`, two ranks have one device in a single update. Prints the reports, as JSON.
 */
import type { UpdateReport } from '@ckpt/core'
import { NAME, tensorsOf, withUpdates } from './fixture.ts'

const MIB = 2 ** 20
const FREE_BYTES = 60 * MIB
const shared = process.argv[2] === 'shared'
const reports: UpdateReport[] = []

await withUpdates(
  async ({ updates, register, engine: start, library }) => {
    const engine = await start()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    await register(tensorsOf(5, 8 * MIB - 256, 1))
    reports.push(await updates.start(NAME, request).done)
    if (shared) return
    const taken = library.memoryAlloc(0, library.deviceMemory(0).freeBytes - FREE_BYTES)
    reports.push(await updates.start(NAME, request).done)
    library.memoryFree(taken)
  },
  { rankCount: shared ? 2 : 1, devices: 'host:1', memoryFraction: shared ? 0.25 : 0.5 },
)
const results = reports.map(({ ring_bytes, mode_reason }) => ({ ring_bytes, mode_reason }))
process.stdout.write(`${JSON.stringify(results)}\n`)
process.exit(0)
