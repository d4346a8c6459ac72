import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'

setDefaultTimeout(60_000)

const MIB = 2 ** 20

async function ringsOf(what: 'kept' | 'shared') {
  const program = join(import.meta.dir, 'testing/plan-program.ts')
  const env = { ...process.env, CKPT_HOST_DEVICE_BYTES: String(256 * MIB) }
  const child = Bun.spawn([process.execPath, program, what], { env, stderr: 'inherit' })
  return JSON.parse(await new Response(child.stdout).text())
}

test('a ring that was decided before is not kept when it would take more than its share of what is free', async () => {
  const [first, second] = await ringsOf('kept')
  expect(first.ring_bytes).toBe(40 * MIB)
  expect(second.ring_bytes).toBeLessThanOrEqual(30 * MIB)
  expect(second.mode_reason).not.toBe('kept')
})

test('ranks that share a device share what is free there', async () => {
  const [both] = await ringsOf('shared')
  // 64 MiB of the device may be taken, by two rings
  expect(both).toEqual({ ring_bytes: 32 * MIB, mode_reason: expect.stringContaining('bucket') })
})
