import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { ZmqContext } from '@ckpt/cuda'
import { NAME, outcomeOf, tensorsOf, until, withUpdates } from './testing/fixture.ts'
import { type ScriptedWorker, scriptedWorker } from './testing/scripted-worker.ts'

setDefaultTimeout(60_000)

test('a ring that one rank cannot allocate ends the update before any conversation, on every rank', async () => {
  const program = join(import.meta.dir, 'testing/open-program.ts')
  const child = Bun.spawn([process.execPath, program], { stderr: 'inherit' })
  const { results, liveObjects } = JSON.parse(await new Response(child.stdout).text())
  expect(results[0]).toEqual({
    code: 'device_memory_exhausted',
    rank: 1,
    phase: 'open',
    quarantined_bytes: 0,
  })
  // the ranks are usable: the next update gets as far as waiting for a worker that nobody starts
  expect(results[1]).toMatchObject({ code: 'engine_timeout', phase: 'open', quarantined_bytes: 0 })
  expect(liveObjects).toBe(0)
})

for (const comes of [true, false]) {
  const what = comes ? 'connects and does not map its ring' : 'never connects'
  test(`a worker that ${what}, while the other one has: which of both is told, and all are released`, async () => {
    await withUpdates(async ({ updates, register }) => {
      await register(tensorsOf(4, 100_000, 1))
      const context = new ZmqContext()
      const { id, done } = updates.start(NAME, { timeout: 20, open_timeout: 1 })
      const ended = outcomeOf(done)
      const workers: ScriptedWorker[] = []
      for await (const { map } of updates.events(id)) {
        if (map === undefined) continue
        const [first, second] = Object.values(map) as [string, string]
        workers.push(scriptedWorker(context, first, () => {}))
        // it has the handle and does not reply
        if (comes) workers.push(scriptedWorker(context, second, () => new Promise(() => {})))
        break
      }
      await until(() => workers[0]!.seen.includes('error'))
      for (const worker of workers) worker.close()
      const { failure, seconds } = await ended
      expect(failure).toMatchObject({
        code: comes ? 'engine_timeout' : 'engine_device_missing',
        phase: 'open',
        rank: 1,
      })
      expect(failure?.message).toContain(
        comes ? 'has connected but has not replied to the handle' : 'has connected within 1 s',
      )
      expect(seconds).toBeLessThan(10)
      expect(workers[0]!.seen).toEqual(['handle', 'error'])
      context.close()
    })
  })
}
