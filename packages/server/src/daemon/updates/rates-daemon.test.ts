import { expect, setDefaultTimeout, spyOn, test } from 'bun:test'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { TestDir } from '../registry/testing/fixture.ts'
import { Planner } from './plan.ts'
import { NAME, tensorsOf, until, withUpdates } from './testing/fixture.ts'
import { createUpdates } from './updates.ts'

setDefaultTimeout(60_000)

const MIB = 2 ** 20

async function outputOf(bytesPerSecond: number, program: string, ...told: string[]) {
  const env = { ...process.env, CKPT_HOST_COPY_BYTES_PER_SECOND: String(bytesPerSecond) }
  const command = [process.execPath, join(import.meta.dir, 'testing', program), ...told]
  const child = Bun.spawn(command, { env, stderr: 'inherit' })
  return JSON.parse(await new Response(child.stdout).text())
}

/** What a daemon says of its device at once and after a while, on a link of so many bytes a second. */
function daemonOn(stateDir: string, bytesPerSecond: number, patienceMs: number) {
  return outputOf(bytesPerSecond, 'rates-program.ts', stateDir, String(patienceMs))
}

test('a daemon that is left alone measures its device, and the next one of its state directory does not', async () => {
  const dir = new TestDir()
  try {
    const { first, last, left } = await daemonOn(dir.path, 100e6, 20_000)
    expect(first.from).toBe('default')
    expect(last.from).toBe('measured')
    expect(last.bytes_per_second).toBeGreaterThan(100e6 / 3)
    expect(last.bytes_per_second).toBeLessThan(100e6 * 3)
    expect(left).toBe(0)

    const file = join(dir.path, 'rates.json')
    const { mtimeNs } = statSync(file, { bigint: true })
    const next = await daemonOn(dir.path, 2000e6, 2500)
    expect(next).toEqual({ first: last, last, left: 0 })
    expect(statSync(file, { bigint: true }).mtimeNs).toBe(mtimeNs)
    expect(JSON.parse(readFileSync(file, 'utf8')).devices).toHaveLength(1)
  } finally {
    dir.remove()
  }
})

test('an update stops a measurement, which is made up for when the daemon is idle again', async () => {
  const seen = await outputOf(2e6, 'stop-measuring-program.ts')
  expect(seen).toEqual({ afterUpdate: 'default', last: 'measured' })
})

test('an update of several ranks tells how fast its broadcast is, and its engine; a later daemon knows', async () => {
  const sizes = { ringBytes: 32 * MIB, bucketBytes: 8 * MIB }
  await withUpdates(async ({ updates, options, registry, register, engine: start }) => {
    const engine = await start()
    await register(tensorsOf(10, 8 * MIB - 1024, 1))
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 30 }
    const { stages, buckets } = await updates.start(NAME, request).done
    expect(buckets).toBe(10)
    await until(() => updates.status().broadcast.from === 'learnt')
    const { broadcast, engines } = updates.status()
    const { bytes, busy_s: seconds } = stages.broadcast
    expect(broadcast.bytes_per_second).toBeCloseTo(bytes / seconds, 0)
    const rates = engines[0]!.rates
    expect(rates.from).toBe('learnt')
    const { bucket_s, tensor_s, bytes_per_second } = rates
    // what the engine has taken, by the model, is what it has taken: two ranks overlap, single buckets are late
    const predicted = buckets * (bucket_s + tensor_s) + bytes / bytes_per_second
    expect(predicted).toBeGreaterThan(stages.reload.busy_s / 8)
    expect(predicted).toBeLessThan(stages.reload.busy_s * 4)

    await until(() => existsSync(join(options.stateDir, 'rates.json')))
    await updates.close('the first is over')
    const next = await createUpdates(options, registry)
    expect(next.status().broadcast).toEqual(broadcast)
    await next.close('the second is over')
  }, sizes)
})

test('what was planned when a checkpoint was registered is planned anew when its device has been measured', async () => {
  const prepare = spyOn(Planner.prototype, 'prepare')
  try {
    await withUpdates(
      async ({ updates, register }) => {
        await register(tensorsOf(2, 1000, 1))
        updates.prepare(NAME)
        expect(prepare).toHaveBeenCalledTimes(1)
        updates.begin()
        await until(() => updates.status().devices[0]!.h2d.from === 'measured')
        await until(() => prepare.mock.calls.length === 2)
        expect(prepare.mock.calls[1]).toEqual(prepare.mock.calls[0]!)
      },
      { rankCount: 1, devices: 'host:1' },
    )
  } finally {
    prepare.mockRestore()
  }
})
