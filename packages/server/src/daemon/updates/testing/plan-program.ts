/**
 * Run by `plan.test.ts` as a process of its own, with devices of 256 MiB (`CKPT_HOST_DEVICE_BYTES`). The second of two equal
 * updates finds so little free memory that the ring of the first would take more than its share. Prints both reports, as JSON.
 */
import { NAME, tensorsOf, withUpdates } from './fixture.ts'

const MIB = 2 ** 20
const FREE_BYTES = 60 * MIB

await withUpdates(
  async ({ updates, register, engine: start, library }) => {
    const engine = await start()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    await register(tensorsOf(5, 8 * MIB - 256, 1))
    const first = await updates.start(NAME, request).done
    const taken = library.memoryAlloc(0, library.deviceMemory(0).freeBytes - FREE_BYTES)
    const second = await updates.start(NAME, request).done
    library.memoryFree(taken)
    const results = [first, second].map(({ ring_bytes, mode_reason }) => ({
      ring_bytes,
      mode_reason,
    }))
    process.stdout.write(`${JSON.stringify(results)}\n`)
  },
  { rankCount: 1, devices: 'host:1', memoryFraction: 0.5 },
)
process.exit(0)
