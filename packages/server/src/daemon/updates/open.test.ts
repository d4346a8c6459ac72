import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'

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
