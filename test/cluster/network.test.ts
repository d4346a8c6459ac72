/** Daemons on hosts of their own, as far as the network goes: broadcasts, reads of other hosts' memory and joining hosts over TCP. */
import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { CKPT, run } from '../support/process.ts'
import { withoutUcx } from '../support/ucx.ts'
import type { TestVersion } from './checkpoint.ts'
import { NAME, type Network, TestCluster } from './cluster.ts'
import { TestEngine } from './engine.ts'
import { KINDS } from './kinds.ts'
import { namespaces } from './namespaces.ts'

setDefaultTimeout(120_000)

const WEIGHTS_MS = 10_000
const found = withoutUcx ?? (await namespaces(KINDS.ring.nodes))
if (typeof found === 'string') console.log(`skipped, daemons on hosts of their own: ${found}`)
const network = typeof found === 'string' ? null : overTcp(found)
let cluster: TestCluster | null = null

/** The hosts share a machine's memory, which UCX would find out. */
function overTcp(hosts: Network): Network {
  return { ...hosts, within: (node) => [...hosts.within(node), 'env', 'UCX_TLS=tcp'] }
}

afterAll(async () => {
  expect((await cluster?.end()) ?? []).toEqual([])
})

test.skipIf(network === null)('updates, reads and joining across hosts', async () => {
  cluster = await TestCluster.start('ring', network as Network)
  const first = await cluster.register()
  const all = await cluster.update(1, cluster.nextUpdateId())
  expect(all).toMatchObject({ status: 200, failure: null })
  for (const engine of cluster.engines) first.compare(await engine.weights(WEIGHTS_MS))

  // node 1 has nothing of the next version: its rank reads it out of the memory of the others
  const second = cluster.makeVersion()
  await cluster.daemon(1).ask('DELETE', `/v1/checkpoints/${NAME}`)
  for (const node of [0, 2]) await cluster.registerAt(node, second)
  const engines = [cluster.engine(1).target]
  const read = await cluster.update(0, cluster.nextUpdateId(), { ranks: [1], engines })
  expect(read).toMatchObject({ status: 200, failure: null })
  second.compare(await cluster.engine(1).weights(WEIGHTS_MS))
  first.compare(await cluster.engine(0).weights(WEIGHTS_MS))

  await joined(cluster, network as Network, second)
})

/** A host that has nothing, with an engine of its own: in the place of node 2, whose network it shares. */
async function joined(
  { leader }: TestCluster,
  { within }: Network,
  version: TestVersion,
): Promise<void> {
  const dir = join(leader.dir, 'joined')
  mkdirSync(dir, { mode: 0o700 })
  const engine = new TestEngine(0, join(dir, 'engine.sock'), within(2))
  await engine.child.start()
  try {
    const what = ['--uds', engine.socket, '--inference-parallel-size', '1', '--devices', 'host:2']
    const flags = [...what, '--leader', leader.leader, '--cluster-token-file', leader.tokenFile]
    const env = { XDG_RUNTIME_DIR: dir, XDG_STATE_HOME: dir }
    const told = await run([...within(2), ...CKPT, 'join', NAME, ...flags, '--json'], env)
    expect(told.status === 0 ? '' : told.stderr + told.stdout).toBe('')
    const [report] = JSON.parse(told.stdout).updates
    expect(report.p2p).toMatchObject({ bytes: report.bytes, transports: ['emulated'] })
    version.compare(await engine.weights(WEIGHTS_MS))
  } finally {
    await engine.child.end(WEIGHTS_MS)
  }
}
