import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'

setDefaultTimeout(120_000)

const READ_BYTES_PER_SECOND = 50 * 2 ** 20
const CHECKPOINT_BYTES = 80 * 2 ** 20
const READ_GB_PER_SECOND = READ_BYTES_PER_SECOND / 1e9
/** What has been read before the clock starts is little. */
const READ_SECONDS_MIN = 1

test('an update overtakes the reading of its files', async () => {
  const program = join(import.meta.dir, 'testing/stream-program.ts')
  const env = { ...process.env, CKPT_READ_BYTES_PER_SECOND: `${READ_BYTES_PER_SECOND}` }
  const child = Bun.spawn([process.execPath, program], { env, stderr: 'inherit' })
  const output = await new Response(child.stdout).text()
  expect(await child.exited).toBe(0)
  const { overtakes, changes, ends, fails, failsFirst, slow, closes, ranks, evicts } =
    JSON.parse(output)

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
    // the whole update is as fast as its files
    expect(overtakes.seen[i].rate).toBeLessThan(1.5 * READ_GB_PER_SECOND)
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

  for (const failure of [fails.gathered, fails.told]) {
    expect(failure.code).toBe('file_changed')
    expect(failure.message).toContain(fails.file)
    expect(failure.message).toContain('the next update takes the version that was held before')
  }
  expect([fails.version, fails.after]).toEqual(['1', '3'])

  for (const failure of failsFirst.failures) {
    expect(failure).toMatchObject({ code: 'file_changed' })
    expect(failure.message).toContain(failsFirst.file)
  }
  expect(failsFirst.after).toBe(0)

  // no rank has anything to do with it yet
  expect(slow.failure).not.toHaveProperty('rank')
  expect(slow.failure).toMatchObject({ code: 'update_timeout', phase: 'register' })
  expect(slow.failure.message).toMatch(/; \d+ of the \d+ bytes of its files have been read so far/)
  expect(slow).toMatchObject({ torn: false, tensors: 0 })

  expect(closes).toEqual({ during: '1 reading' })
  expect(ranks).toEqual({ reading: false, state: 'null complete' })

  // neither what is being registered nor what an accepted update waits for
  expect(evicts).toEqual({
    whileLoading: 'host_memory_exhausted',
    whileQueued: 'host_memory_exhausted',
    after: ['b'],
  })
})
