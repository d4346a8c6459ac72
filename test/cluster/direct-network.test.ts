/** Direct updates over hosts of their own, as far as the network goes: what each lacks it reads of the others, and a link may be cut. */
import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { UpdateReport } from '@ckpt/core'
import { run } from '../support/process.ts'
import { withoutUcx } from '../support/ucx.ts'
import type { TestVersion } from './checkpoint.ts'
import { TestCluster } from './cluster.ts'
import { type ClusterKind, KINDS } from './kinds.ts'
import { type Hosts, namespaces } from './namespaces.ts'
import { until } from '../support/until.ts'

setDefaultTimeout(120_000)

/** The last host has nothing: it reads all. */
const KIND: ClusterKind = {
  ...KINDS.direct,
  nodes: 3,
  shape: { ...KINDS.direct.shape, held: [[0], [1], []] },
}
const WEIGHTS_MS = 10_000
/** Missed after 5 s of silence; then an update ends within 2 s. */
const LOST_MS = 5000 + 2000
const SLACK_MS = 1000
/** Of what is read: what lies between two tensors, TCP's and IP's headers, answers, and what daemons say to each other beside it. */
const BESIDE = 1.1
/** The host that is cut off, of which the others read. */
const CUT = 1

/** The host that has nothing, and its link when it is slow: 40 MB/s, half of what is copied a second otherwise. */
const SLOW = 2
const SLOW_MEGABITS = 320

const found = withoutUcx ?? (await namespaces(KIND.nodes))
if (typeof found === 'string') console.log(`skipped, direct updates across hosts: ${found}`)

describe.skipIf(typeof found === 'string')('direct updates across hosts', () => {
  const network = found as Hosts
  let cluster: TestCluster

  afterAll(async () => {
    expect((await cluster?.end()) ?? []).toEqual([])
  })

  test('each host reads once what it lacks, over its link', async () => {
    // it has brought a version through the ring
    cluster = await TestCluster.start(KIND, network)
    const version = await cluster.register()
    const before = await arrived(cluster)
    const report = await updateAll(cluster, version)
    const after = await arrived(cluster)
    const lacking = lackedBytes(version)
    const wanted = lacking.reduce((sum, bytes) => sum + bytes, 0)
    expect(report).toMatchObject({
      mode: 'direct',
      ring_bytes: 0,
      p2p: { transports: ['emulated'] },
    })
    expect(report.p2p?.bytes).toBeGreaterThanOrEqual(wanted)
    expect(report.p2p?.bytes).toBeLessThan(wanted * 1.001)
    for (const [node, bytes] of lacking.entries()) {
      const came = (after[node] as number) - (before[node] as number)
      expect(came).toBeGreaterThan(bytes)
      expect(came).toBeLessThan(bytes * BESIDE)
    }
  })

  test('a link that is cut meanwhile: the engines are torn and named, and the next one brings all', async () => {
    await cluster.register()
    const id = cluster.nextUpdateId()
    const answer = cluster.update(0, id)
    await until('half of the copies', WEIGHTS_MS, async () => {
      const state = await cluster.state(id)
      if (state?.state === 'failed') throw new Error(JSON.stringify(state.error))
      return state?.phase === 'transfer' && state.buckets_done >= state.buckets / 2
    })
    const cutMs = performance.now()
    await network.cut(CUT)
    const { status, failure } = await answer
    expect(performance.now() - cutMs).toBeLessThan(LOST_MS + SLACK_MS)
    expect(status).toBe(503)
    expect(failure).toMatchObject({ code: 'node_lost', phase: 'transfer', rank: CUT })
    const engines = (await cluster.state(id))?.engines ?? []
    expect(engines.map(({ ranks, torn }) => [ranks, torn])).toEqual([
      [[0], true],
      [[1], true],
      [[2], true],
    ])
    // that of the host that is cut off has been told by its own daemon
    for (const engine of cluster.engines) {
      expect(await engine.weights(WEIGHTS_MS)).toMatchObject({ torn: true })
      await until(`engine ${engine.rank} to be paused`, WEIGHTS_MS, () => engine.isPaused())
    }

    await network.mend(CUT)
    await cluster.joined()
    const version = await cluster.register()
    expect(await updateAll(cluster, version)).toMatchObject({ mode: 'direct' })
    const { engines: known } = await cluster.status(0)
    expect(known.filter(({ torn }) => torn)).toEqual([])
    for (const engine of cluster.engines) expect(await engine.isPaused()).toBe(false)
  })

  test.skipIf(Bun.which('tc') === null)(
    'a link that is slow: the update takes as long as its bytes need, and all of them come',
    async () => {
      await network.rate(SLOW, SLOW_MEGABITS)
      const version = await cluster.register()
      const needed = lackedBytes(version)[SLOW] as number
      const { mode, p2p, seconds } = await updateAll(cluster, version)
      expect(mode).toBe('direct')
      expect(p2p?.bytes).toBeGreaterThanOrEqual(needed)
      // the headers, which are not counted, are more than what the link lets through at once in the beginning
      expect(seconds.transfer).toBeGreaterThanOrEqual((needed * 8) / (SLOW_MEGABITS * 1e6))
    },
  )
})

/** Every byte of every engine is looked at. */
async function updateAll(cluster: TestCluster, version: TestVersion): Promise<UpdateReport> {
  const id = cluster.nextUpdateId()
  expect(await cluster.update(0, id)).toMatchObject({ status: 200, failure: null })
  for (const engine of cluster.engines) version.compare(await engine.weights(WEIGHTS_MS))
  return (await cluster.state(id))?.report as UpdateReport
}

/** Of each host: what its engine needs and it does not hold itself. */
function lackedBytes(version: TestVersion): number[] {
  const sizes = version.partBytes
  return KIND.shape.held.map((parts) => {
    return sizes.reduce((sum, bytes, part) => sum + (parts.includes(part) ? 0 : bytes), 0)
  })
}

/** Bytes that have come over each host's link. */
async function arrived({ network }: TestCluster): Promise<number[]> {
  const counter = '/sys/class/net/eth0/statistics/rx_bytes'
  return Promise.all(
    KIND.shape.held.map(async (_, node) => {
      const { stdout } = await run([...network.within(node), 'cat', counter])
      return Number(stdout)
    }),
  )
}
