/**
 * Run by `recovery.test.ts` as a process of its own, to be killed: updates the engine at argv[3] out of the state directory
 * argv[2], with argv[4] as its `pause` and argv[5] as its timeout in seconds. Its copies are throttled, so that the engine's
 * workers wait for the next bucket most of the time. Prints a line per event; on SIGTERM it closes as the daemon does.
 */
import { openLibrary, type RankInfo } from '@ckpt/cuda'
import { createRegistry } from '../../registry/held.ts'
import { daemonOptions, safetensors, TestDir } from '../../registry/testing/fixture.ts'
import { createUpdates } from '../updates.ts'
import { NAME, tensorsOf } from './fixture.ts'

const [, , stateDir = '', url = '', pause = 'none', timeout = '60'] = process.argv
const library = { kind: 'host', hostDevices: 2, hostCopyBytesPerSecond: 2 * 2 ** 20 } as const
const native = openLibrary(library)
const ranks = [0, 1].map((rank): RankInfo => {
  const { name, uuid, numaNode } = native.deviceDescribe(rank)
  return { rank, device: rank, deviceName: name, key: uuid, uuid, numaNode }
})
const sizes = { ringBytes: 2 ** 21, bucketBytes: 2 ** 19 }
const options = daemonOptions(stateDir, { library, ranks, ...sizes })
const registry = await createRegistry(options)
const updates = await createUpdates(options, registry)
await updates.recover()
const dir = new TestDir()
const file = dir.write('m.safetensors', safetensors(tensorsOf(20, 2 ** 19 - 256, 1)))
await registry.register(NAME, { files: [file] }, null)
dir.remove()
const request = {
  update_url: url,
  timeout: Number(timeout),
  update_id: 'killed',
  pause: pause as 'none' | 'wait',
}
const { id, done } = updates.start(NAME, request)
process.once('SIGTERM', async () => {
  await updates.close('SIGTERM')
  await registry.close()
  console.log(JSON.stringify({ liveObjects: native.liveObjects() }))
  process.exit(0)
})
for await (const { event, buckets_done, error } of updates.events(id)) {
  console.log(JSON.stringify({ event, buckets_done, error }))
}
await done.catch(() => {})
