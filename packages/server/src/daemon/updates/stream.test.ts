import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'

setDefaultTimeout(120_000)

const READ_BYTES_PER_SECOND = 50 * 2 ** 20
const CHECKPOINT_BYTES = 80 * 2 ** 20
/** What has been read before the clock starts is little. */
const READ_SECONDS_MIN = 1

test('an update overtakes the reading of its files', async () => {
  const program = join(import.meta.dir, 'testing/stream-program.ts')
  const env = { ...process.env, CKPT_READ_BYTES_PER_SECOND: `${READ_BYTES_PER_SECOND}` }
  const child = Bun.spawn([process.execPath, program], { env, stderr: 'inherit' })
  const output = await new Response(child.stdout).text()
  expect(await child.exited).toBe(0)
  const { overtakes, changes, ends, closes, ranks } = JSON.parse(output)

  for (const [i, version] of ['1', '2', '3'].entries()) {
    expect(overtakes.seen[i]).toMatchObject({
      reading: true,
      during: `${version} reading`,
      version,
      after: `${version} complete`,
    })
    const { busy_s, bytes } = overtakes.seen[i].read
    expect(bytes).toBeGreaterThan(CHECKPOINT_BYTES)
    expect(busy_s).toBeGreaterThan(1)
  }
  expect(overtakes.readAgain).toBeUndefined()
  // two versions, one of them replaced
  expect(overtakes.pinned).toBeLessThan(2.3 * CHECKPOINT_BYTES)

  expect(changes).toMatchObject({
    failure: { code: 'file_changed', phase: 'transfer' },
    named: true,
    torn: true,
    held: '1 complete',
  })
  expect(changes.seconds).toBeLessThan(3)

  expect(ends.abort).toMatchObject({ failure: { code: 'aborted' } })
  expect(ends.abort.seconds).toBeLessThan(2)
  expect(ends.during).toBe('1 reading')
  // the engine's worker has the same deadline, and may be the first to say so
  expect(['update_timeout', 'engine_disconnected']).toContain(ends.late.failure.code)
  expect(ends.late.seconds).toBeLessThan(2.3)
  expect(ends.dropSeconds).toBeGreaterThan(READ_SECONDS_MIN)
  expect(ends.dropped).toEqual({ name: 'model', existed: true })
  expect(ends.gone).toBe('none')

  expect(closes).toEqual({ during: '1 reading' })
  expect(ranks).toEqual({ reading: false, state: 'null complete' })
})
