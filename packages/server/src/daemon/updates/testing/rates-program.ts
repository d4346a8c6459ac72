/**
 * Run by `rates-daemon.test.ts` as a process of its own, because copies are throttled (`CKPT_HOST_COPY_BYTES_PER_SECOND`): a daemon with
 * the state directory argv[2] that is left alone for argv[3] milliseconds, or until it has measured its device. Prints what it
 * says of the device at once and afterwards, and what it has left, as JSON.
 */
import { openLibrary, selectDevices } from '@ckpt/cuda'
import { createRegistry } from '../../registry/held.ts'
import { daemonOptions } from '../../registry/testing/fixture.ts'
import { createUpdates } from '../updates.ts'

const [, , stateDir = '', patienceMs = ''] = process.argv
const selection = selectDevices('host:1', 1)
const library = openLibrary(selection.library)
const before = library.liveObjects()
const options = daemonOptions(stateDir, { ...selection, hostMemoryBytes: 2 ** 30 })
const registry = await createRegistry(options)
const updates = await createUpdates(options, registry)
const h2d = () => updates.status().devices[0]!.h2d

const first = h2d()
updates.begin()
const endMs = performance.now() + Number(patienceMs)
while (performance.now() < endMs && (h2d().from === 'default' || first.from !== 'default')) {
  await Bun.sleep(10)
}
const last = h2d()
await updates.close('the test is over')
await registry.close()
const left = library.liveObjects() - before
process.stdout.write(`${JSON.stringify({ first, last, left })}\n`)
process.exit(0)
