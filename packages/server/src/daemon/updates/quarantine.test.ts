import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import {
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  until,
  withUpdates,
} from './testing/fixture.ts'
import { proxyOf } from './testing/proxy.ts'

setDefaultTimeout(120_000)

test('a ring that a hanging worker may still read is kept and counted until its request returns', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['hang@2:once'] })
    // the engine hangs longer than the daemon waits
    const proxy = proxyOf(engine, {
      'POST /collective_rpc': () => {
        const body = { ...(proxy.bodies.get('/collective_rpc') as object), timeout: 8 }
        return fetch(`${engine.url}/collective_rpc`, { method: 'POST', body: JSON.stringify(body) })
      },
    })
    const request = { update_url: `${proxy.url}/collective_rpc` }
    const hung = await outcomeOf(updates.start(NAME, { ...request, timeout: 2 }).done)
    expect(hung.failure).toMatchObject({ code: 'update_timeout', phase: 'transfer', rank: 1 })
    expect(hung.seconds).toBeLessThan(4)
    expect(updates.status().quarantined_bytes).toBeGreaterThanOrEqual(2 ** 21)
    const early = await outcomeOf(updates.start(NAME, { ...request, timeout: 1 }).done)
    expect(early.failure).toMatchObject({ code: 'engine_busy', phase: 'open' })
    await until(() => updates.status().quarantined_bytes === 0)
    const tensors = tensorsOf(12, 200_000, 2)
    await register(tensors)
    await updates.start(NAME, { ...request, timeout: 20 }).done
    await requireWeights(engine, tensors)
    await proxy.close()
  }, SMALL_BUCKETS)
})

test('an engine that exits in the middle of an update', async () => {
  await withUpdates(async ({ updates, register, dir }) => {
    await register(tensorsOf(12, 200_000, 1))
    const main = join(import.meta.dir, '../../cli/main.ts')
    const socket = join(dir.path, 'engine.sock')
    const common = [
      '--listen',
      `unix:${socket}`,
      '--tensor-parallel-size',
      '2',
      '--devices',
      'host:2',
    ]
    const spawnEngine = (...more: string[]) =>
      Bun.spawn([process.execPath, main, 'engine', ...common, ...more], {
        stdout: 'ignore',
        stderr: 'ignore',
      })
    const request = {
      update_url: 'http://localhost/collective_rpc',
      uds: socket,
      timeout: 60,
      open_timeout: 40,
    }
    const first = spawnEngine('--fault', 'exit@2')
    const { failure, seconds } = await outcomeOf(updates.start(NAME, request).done)
    expect(failure?.phase).toBe('transfer')
    expect(['engine_disconnected', 'engine_unreachable', 'engine_failed']).toContain(
      failure?.code as string,
    )
    expect(seconds).toBeLessThan(50)
    await first.exited
    expect(updates.status()).toMatchObject({ quarantined_bytes: 0, engines: [{ torn: true }] })
    // the daemon waits for the engine that starts now
    const second = spawnEngine()
    await updates.start(NAME, request).done
    expect(updates.status()).toMatchObject({ engines: [{ torn: false }] })
    second.kill('SIGTERM')
    await second.exited
  }, SMALL_BUCKETS)
})
