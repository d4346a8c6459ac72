import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { buildTable, DEFAULT_RATES, type PlanInput } from '@ckpt/core'
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

interface MadePlan {
  readonly type: string
  readonly key: string
  readonly input: PlanInput
}

/** A checkpoint of 64 tensors of 16 MiB in a buffer on the NUMA node that `nodes` tells, if any. */
function versionOn(nodes: readonly number[]): HeldVersion {
  const bytes = 16 * MIB
  const rows = Array.from({ length: 64 }, (_, i) => {
    return { name: `${i}`, dtype: 0, shape: [bytes], bytes, offset: i * bytes, owner: 0 }
  })
  const totalBytes = rows.length * bytes
  const space = { starts: Float64Array.of(0), bytes: Float64Array.of(totalBytes) }
  return {
    table: buildTable(rows),
    sources: [nodes.length === 0 ? space : { ...space, nodes: Int32Array.from(nodes) }],
    ownerRanks: [[0]],
    layoutDigest: 'layout',
    bytes: totalBytes,
  } as unknown as HeldVersion
}

/** A planner of one rank that notes the plans that are made. */
function scene() {
  const made: MadePlan[] = []
  const link = {
    rank: { rank: 0, device: 0, numaNode: 1 },
    node: 0,
    readMemory: async () => ({ freeBytes: 8192 * MIB, totalBytes: 8192 * MIB }),
    request: async ({
      type,
      key,
      input,
    }: MadePlan | { type: string; key: string; input: null }) => {
      if (input !== null) made.push({ type, key, input })
      return made.some((held) => held.key === key) ? { digest: 'plan' } : null
    },
  } as unknown as RankLink
  const limits = { memoryFraction: 0.9, ringBytes: null, bucketBytes: null }
  const rates = { ...DEFAULT_RATES }
  const planner = new Planner(limits as DaemonOptions, { ratesOf: () => ({ ...rates }) })
  const spec = (engine: string) => {
    return { ranks: [0], mode: 'auto', engines: [{ key: engine, ranks: [0] }] }
  }
  return {
    made,
    rates,
    prepare: () => planner.prepare(versionOn([]), [link]),
    planOf: (version: HeldVersion) =>
      planner.plan(version, spec('an engine') as unknown as UpdateSpec, [link]),
    plan: (engine: string, nodes: readonly number[] = []) =>
      planner.plan(versionOn(nodes), spec(engine) as unknown as UpdateSpec, [link]),
  }
}

test('an update finds the plan that was prepared, whichever engines take it', async () => {
  const { made, prepare, plan } = scene()
  await prepare()
  const { key } = await plan('an engine')
  expect(made).toMatchObject([{ type: 'prepare', key }])
})

test('new plans are made with the rates of now, prepared ones too; one that is kept stays', async () => {
  const { made, rates, prepare, plan } = scene()
  const before = await plan('an engine')
  // each bucket costs more than it did
  rates.bucketSeconds *= 10
  const kept = await plan('an engine')
  expect(kept).toEqual({ ...before, reason: 'kept' })
  const other = await plan('another engine')
  expect(other.key).not.toBe(before.key)
  expect(other.reason).not.toBe('kept')
  expect(made.map(({ type }) => type)).toEqual(['plan', 'plan'])

  const fresh = scene()
  fresh.rates.bucketSeconds *= 10
  await fresh.prepare()
  expect(fresh.made).toMatchObject([{ type: 'prepare', key: other.key }])
  // an update of this layout will find what is kept for it, where another one would get a third plan
  rates.bucketSeconds *= 100
  await prepare()
  expect(made).toHaveLength(2)
  await plan('a third engine')
  expect(new Set(made.map(({ key }) => key)).size).toBe(3)
})

test('versions of one layout share a plan when their memory is on the same NUMA nodes', async () => {
  const { made, plan } = scene()
  for (const nodes of [[], [0], [1], [0], []]) await plan('an engine', nodes)
  expect(made.map(({ input }) => input.sources[0]?.nodes?.[0])).toEqual([undefined, 0, 1])
  expect(made.map(({ input }) => input.rankNodes)).toEqual([[1], [1], [1]])
})

test('an owner without a rank in the update is copied by those of its daemon, else by all of them', async () => {
  const { made, planOf } = scene()
  const other = { ...versionOn([]), name: 'model', ownerRanks: [[1]] }
  for (const ownerNodes of [[0], [1]]) await planOf({ ...other, ownerNodes })
  expect(made.map(({ input }) => input.ownerRanks)).toEqual([[[0]]])
})
