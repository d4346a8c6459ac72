import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { buildTable, type PlanInput } from '@ckpt/core'
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

/** One tensor in a buffer on the NUMA node that `nodes` tells, if any. */
function versionOn(nodes: readonly number[]): HeldVersion {
  const row = { name: 'a', dtype: 0, shape: [MIB], bytes: MIB, offset: 0, owner: 0 }
  const space = { starts: Float64Array.of(0), bytes: Float64Array.of(MIB) }
  return {
    table: buildTable([row]),
    sources: [nodes.length === 0 ? space : { ...space, nodes: Int32Array.from(nodes) }],
    ownerRanks: [[0]],
    layoutDigest: 'layout',
    bytes: MIB,
  } as unknown as HeldVersion
}

/** A rank that tells what plans it was given to make. */
function linkTo(made: { type: string; key: string; input: PlanInput }[]): RankLink {
  return {
    rank: { rank: 0, device: 0, numaNode: 1 },
    readMemory: async () => ({ freeBytes: 64 * MIB, totalBytes: 64 * MIB }),
    request: async (request: { type: string; key: string; input: PlanInput | null }) => {
      const { type, key, input } = request
      if (input !== null) made.push({ type, key, input })
      return made.some((held) => held.key === key) ? { digest: 'plan' } : null
    },
  } as unknown as RankLink
}

const OPTIONS = { memoryFraction: 0.9, ringBytes: null, bucketBytes: null } as DaemonOptions
const SPEC = {
  ranks: [0],
  mode: 'auto',
  engines: [{ key: 'an engine', ranks: [0] }],
} as unknown as UpdateSpec

test('an update finds the plan that was prepared, whichever engines take it', async () => {
  const made: { type: string; key: string; input: PlanInput }[] = []
  const link = linkTo(made)
  const planner = new Planner(OPTIONS)
  await planner.prepare(versionOn([]), [link])
  const planned = await planner.plan(versionOn([]), SPEC, [link])
  expect(made).toMatchObject([{ type: 'prepare', key: planned.key }])
})

test('versions of one layout share a plan when their memory is on the same NUMA nodes', async () => {
  const made: { type: string; key: string; input: PlanInput }[] = []
  const link = linkTo(made)
  const planner = new Planner(OPTIONS)
  for (const nodes of [[], [0], [1], [0], []]) {
    await planner.plan(versionOn(nodes), SPEC, [link])
  }
  expect(made.map(({ input }) => input.sources[0]?.nodes?.[0])).toEqual([undefined, 0, 1])
  expect(made.map(({ input }) => input.rankNodes)).toEqual([[1], [1], [1]])
})
