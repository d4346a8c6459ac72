import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'

setDefaultTimeout(60_000)

const MIB = 2 ** 20

test('a ring that was decided before is not kept when it would take more than its share of what is free', async () => {
  const program = join(import.meta.dir, 'testing/plan-program.ts')
  const env = { ...process.env, CKPT_HOST_DEVICE_BYTES: String(256 * MIB) }
  const child = Bun.spawn([process.execPath, program], { env, stderr: 'inherit' })
  const [first, second] = JSON.parse(await new Response(child.stdout).text())
  expect(first.ring_bytes).toBe(40 * MIB)
  expect(second.ring_bytes).toBeLessThanOrEqual(30 * MIB)
  expect(second.mode_reason).not.toBe('kept')
})
