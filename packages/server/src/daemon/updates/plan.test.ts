import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { buildTable } from '@ckpt/core'
import type { RankLink } from '../rank/link.ts'
import type { DaemonOptions, HeldVersion } from '../types.ts'
import { Planner } from './plan.ts'
import type { UpdateSpec } from './spec.ts'

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

test('an update finds the plan that was prepared, whichever engines take it', async () => {
  const row = { name: 'a', dtype: 0, shape: [MIB], bytes: MIB, offset: 0, owner: 0 }
  const version = {
    table: buildTable([row]),
    sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(MIB) }],
    ownerRanks: [[0]],
    layoutDigest: 'layout',
    bytes: MIB,
  } as unknown as HeldVersion
  const made: [string, string][] = []
  const link = {
    rank: { rank: 0, device: 0 },
    readMemory: async () => ({ freeBytes: 64 * MIB, totalBytes: 64 * MIB }),
    request: async ({ type, key, input }: { type: string; key: string; input: unknown }) => {
      if (input !== null) made.push([type, key])
      return made.some(([, held]) => held === key) ? { digest: 'plan' } : null
    },
  } as unknown as RankLink
  const planner = new Planner({
    memoryFraction: 0.9,
    ringBytes: null,
    bucketBytes: null,
  } as DaemonOptions)
  await planner.prepare(version, [link])
  const spec = { ranks: [0], mode: 'auto', engines: [{ key: 'an engine', ranks: [0] }] }
  const planned = await planner.plan(version, spec as unknown as UpdateSpec, [link])
  expect(made).toEqual([['prepare', planned.key]])
})
