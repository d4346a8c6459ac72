/** Two whole daemons of one cluster, in this process. */
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ClusterStatus, StatusAnswer } from '@ckpt/core'
import { type RunningDaemon, serve } from '../serve.ts'
import { freePort } from './testing/free-port.ts'

setDefaultTimeout(60_000)

let dir: string
let daemons: RunningDaemon[]

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-serving-'))
  daemons = []
})

afterEach(async () => {
  for (const daemon of daemons) await daemon.close('the test has ended')
  rmSync(dir, { recursive: true, force: true })
})

async function start(nodeRank: number, port: number, ranks: number): Promise<RunningDaemon> {
  const daemon = await serve({
    devices: 'host:1',
    ranks,
    uds: join(dir, `${nodeRank}.sock`),
    stateDir: join(dir, `${nodeRank}`),
    leader: `127.0.0.1:${port}`,
    nodeRank,
    nodes: 2,
    clusterTokenFile: join(dir, 'token'),
  })
  daemons.push(daemon)
  return daemon
}

async function statusOf(nodeRank: number): Promise<ClusterStatus | undefined> {
  const unix = join(dir, `${nodeRank}.sock`)
  const answer = await fetch('http://ckpt/v1/status', { unix })
  return ((await answer.json()) as StatusAnswer).cluster
}

async function joined(nodeRank: number, peers: number): Promise<ClusterStatus | undefined> {
  for (let tries = 0; tries < 400; tries++) {
    const status = await statusOf(nodeRank)
    if (status?.peers.length === peers) return status
    await Bun.sleep(25)
  }
  throw new Error(`node ${nodeRank} has never had ${peers} peers`)
}

/** The leader knows a daemon's ranks a moment after it has joined. */
async function nobodyMissing(nodeRank: number): Promise<void> {
  for (let tries = 0; tries < 400; tries++) {
    if ((await statusOf(nodeRank))?.missing?.length === 0) return
    await Bun.sleep(25)
  }
  throw new Error(`node ${nodeRank} misses somebody`)
}

test('each shows the other in its status, until it has gone', async () => {
  writeFileSync(join(dir, 'token'), 'the-token\n', { mode: 0o600 })
  const port = freePort()
  const follower = await start(1, port, 2)
  expect(await statusOf(1)).toEqual({
    node_rank: 1,
    nodes: 2,
    joined: 0,
    leader: false,
    epoch: 0,
    peers: [],
    missing: [
      {
        node_rank: 0,
        message: `the leader at tcp://127.0.0.1:${port} has not answered yet`,
        ranks: [],
      },
    ],
  })
  await start(0, port, 1)
  const host = hostname()
  const rank = { device: 0, kind: expect.any(String), uuid: expect.any(String) }
  expect(await joined(0, 1)).toEqual({
    node_rank: 0,
    nodes: 2,
    joined: 2,
    leader: true,
    epoch: 1,
    peers: [{ node_rank: 1, host, session: 1, ranks: [rank, rank] }],
    missing: expect.any(Array),
  })
  await nobodyMissing(1)
  expect((await joined(1, 1))!.peers).toEqual([{ node_rank: 0, host, session: 1, ranks: [rank] }])
  await follower.close('by the test')
  const message = expect.stringContaining(`node 1 (${host}) was lost: `)
  expect(await joined(0, 0)).toMatchObject({
    epoch: 2,
    missing: [{ node_rank: 1, message, ranks: [1, 2] }],
  })
})

test('without a token file no daemon starts', async () => {
  await expect(start(0, freePort(), 1)).rejects.toThrow('--cluster-token-file')
})
