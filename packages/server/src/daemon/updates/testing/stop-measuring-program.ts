/**
 * Run by `rates-daemon.test.ts` as a process of its own, with a link so slow (`CKPT_HOST_COPY_BYTES_PER_SECOND`) that a measurement takes
 * seconds: one update comes before it, one while it runs. Prints where the device's rate comes from when the update has ended, and at last.
 */
import { NAME, tensorsOf, until, withUpdates } from './fixture.ts'

/** A measurement begins after a second. */
const BEGUN_MS = 1300

await withUpdates(
  async ({ updates, register, engine: start }) => {
    const from = () => updates.status().devices[0]!.h2d.from
    const engine = await start()
    await register(tensorsOf(2, 1000, 1))
    updates.begin()
    const update = () =>
      updates.start(NAME, { update_url: `${engine.url}/collective_rpc`, timeout: 20 }).done
    // before it begins
    await update()
    await Bun.sleep(BEGUN_MS)
    await update()
    const afterUpdate = from()
    await until(() => from() === 'measured')
    process.stdout.write(`${JSON.stringify({ afterUpdate, last: from() })}\n`)
  },
  { rankCount: 1, devices: 'host:1' },
)
process.exit(0)
