/**
 * Run by `open.test.ts` as a process of its own, because its devices are small: 32 MiB each. The plan is told that it may
 * take more than there is, so that the allocation fails on the ranks. Prints how the updates ended, as JSON.
 */
import { openLibrary, type RankInfo } from '@ckpt/cuda'
import { createRegistry } from '../../registry/held.ts'
import { daemonOptions, safetensors, TestDir } from '../../registry/testing/fixture.ts'
import { createUpdates } from '../updates.ts'
import { NAME, outcomeOf, tensorsOf } from './fixture.ts'

const library = { kind: 'host', hostDevices: 2, hostDeviceBytes: 32 * 2 ** 20 } as const
const native = openLibrary(library)
const ranks = [0, 1].map((rank): RankInfo => {
  const { name, uuid, numaNode } = native.deviceDescribe(rank)
  return { rank, device: rank, deviceName: name, key: uuid, uuid, numaNode }
})
const dir = new TestDir()
// rank 1 has less memory than the plan was told
const taken = native.memoryAlloc(1, 8 * 2 ** 20)
const options = daemonOptions(dir.path, { library, ranks, memoryFraction: 1.3 })
const registry = await createRegistry(options)
const updates = await createUpdates(options, registry)

async function update(bytes: number) {
  const file = dir.write('m.safetensors', safetensors(tensorsOf(1, bytes, 1)))
  await registry.register(NAME, { files: [file], replace: true }, null)
  const { failure } = await outcomeOf(updates.start(NAME, { timeout: 10, open_timeout: 0.5 }).done)
  const { quarantined_bytes } = updates.status()
  return { code: failure?.code, rank: failure?.rank, phase: failure?.phase, quarantined_bytes }
}

const results = [await update(28 * 2 ** 20), await update(2 ** 20)]
native.memoryFree(taken)
await updates.close('the test is over')
await registry.close()
dir.remove()
process.stdout.write(`${JSON.stringify({ results, liveObjects: native.liveObjects() })}\n`)
process.exit(0)
