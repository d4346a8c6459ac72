/** Daemons as processes that are killed, stopped and started again. */
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError, type Failure } from '@ckpt/core'
import { type Cluster, type ClusterNode, openCluster } from './cluster.ts'
import { freePort, NodeProcesses, portOf, TIMES } from './testing/nodes.ts'

setDefaultTimeout(60_000)

let nodes: NodeProcesses
let leaders: Cluster[]

beforeEach(() => {
  nodes = new NodeProcesses()
  leaders = []
})

afterEach(async () => {
  await Promise.all(leaders.map((leader) => leader.close()))
  await nodes.end()
})

/** A leader in this process, with what it is told. */
async function openLeader(port = 0) {
  const told = {
    joined: [] as ClusterNode[],
    lost: [] as Failure[],
    posts: [] as unknown[],
    parts: [] as number[],
  }
  const options = { nodeRank: 0, nodes: 3, leader: { host: '127.0.0.1', port }, times: TIMES }
  const info = { host: 'host-0', version: '1.0.0', ranks: [] }
  const cluster = await openCluster(
    { ...options, tokenFile: nodes.tokenFile },
    info,
    { kind: 'host' },
    {
      joined: (node) => void told.joined.push(node),
      lost: (_, failure) => void told.lost.push(failure),
      post(_, { body, parts }) {
        told.posts.push(body)
        told.parts.push(...parts.map(({ length }) => length))
      },
      async request(_, message) {
        if (message.body === 'refuse') {
          throw new CkptError('tensor_missing', 'w is missing', {
            rank: 3,
            phase: 'plan',
            tensor: 'w',
          })
        }
        return message
      },
    },
  )
  leaders.push(cluster)
  return { cluster, told }
}

async function until(what: string, holds: () => boolean): Promise<void> {
  const endMs = performance.now() + 20_000
  while (!holds()) {
    if (performance.now() > endMs) throw new Error(`waited in vain: ${what}`)
    await Bun.sleep(5)
  }
}

test('followers that start before their leader join when it comes, and all know the same members', async () => {
  const port = freePort()
  const followers = [1, 2].map((nodeRank) => nodes.start(nodeRank, port))
  for (const follower of followers) await follower.next('open')
  const leader = nodes.start(0, port)
  const isWhole = ({ nodes: of }: { nodes: readonly number[] }) => of.join() === '0,1,2'
  const views = await Promise.all([leader, ...followers].map((one) => one.next('changed', isWhole)))
  expect(new Set(views.map(({ epoch }) => epoch)).size).toBe(1)
})

test('a request is answered by either side, a refusal crosses whole, and 50 MB arrive as they were', async () => {
  const { cluster, told } = await openLeader()
  const follower = nodes.start(1, portOf(cluster.address))
  await until('a follower joins', () => told.joined.length === 1)
  const [node] = cluster.peers
  expect(node).toMatchObject({ nodeRank: 1, session: 1, info: { host: 'host-1' } })
  const large = new Uint8Array(50_000_000)
  for (let i = 0; i < large.length; i += 4093) large[i] = i % 251
  const parts = [new Uint8Array(0), large, Uint8Array.of(1, 2, 3)]
  const answer = await cluster.request(node!, { body: { deep: [1, null] }, parts }, 30_000)
  expect(answer.body).toEqual({ deep: [1, null] })
  expect(answer.parts.map((part, i) => Buffer.compare(part, parts[i]!))).toEqual([0, 0, 0])
  expect(large).toHaveLength(50_000_000)
  follower.tell({ type: 'request', ask: 'back', limitMs: 10_000 })
  expect(await follower.next('answered')).toMatchObject({ body: 'back', bytes: 0 })
  follower.tell({ type: 'request', ask: 'refuse', limitMs: 10_000 })
  expect((await follower.next('rejected')).failure).toEqual({
    code: 'tensor_missing',
    message: 'w is missing',
    rank: 3,
    phase: 'plan',
    tensor: 'w',
  })
  const late = await cluster
    .request(node!, { body: 'never', parts: [] }, 50)
    .catch((e) => e.failure)
  expect(late).toEqual({
    code: 'update_timeout',
    message: 'node 1 (host-1) has not answered within 50 ms',
  })
})

test('posts arrive in the order of sending, with a request in its place among them', async () => {
  const { cluster, told } = await openLeader()
  const follower = nodes.start(1, portOf(cluster.address))
  await follower.next('joined')
  follower.tell({ type: 'post', body: 'a', count: 3000 })
  follower.tell({ type: 'request', ask: 'between', limitMs: 20_000 })
  follower.tell({ type: 'post', body: 'b', count: 10 })
  await follower.next('answered')
  expect(told.posts.slice(0, 3000)).toEqual(Array.from({ length: 3000 }, (_, i) => ['a', i]))
  expect(told.parts.slice(0, 3000)).toEqual(Array.from({ length: 3000 }, (_, i) => i % 1000))
  await until('the other posts', () => told.posts.length === 3010)
  expect(told.posts.slice(3000)).toEqual(Array.from({ length: 10 }, (_, i) => ['b', i]))
})

test('a follower that is killed is lost, requests that wait for it are rejected, and it joins when started again', async () => {
  const { cluster, told } = await openLeader()
  const port = portOf(cluster.address)
  const follower = nodes.start(1, port)
  await until('it joins', () => told.joined.length === 1)
  const [node] = cluster.peers
  const waiting = cluster
    .request(node!, { body: 'never', parts: [] }, 60_000)
    .catch((e) => e.failure)
  await follower.next('asked')
  const killedMs = performance.now()
  await follower.kill()
  const failure = await waiting
  expect(performance.now() - killedMs).toBeLessThan(TIMES.lostMs + 1000)
  expect(failure).toEqual({
    code: 'node_lost',
    message: expect.stringMatching(/^node 1 \(host-1\) was lost: /),
  })
  expect(told.lost).toEqual([failure])
  expect(cluster.peers).toEqual([])
  const again = await cluster.request(node!, { body: 1, parts: [] }, 1000).catch((e) => e.failure)
  expect(again).toMatchObject({ code: 'node_lost' })
  nodes.start(1, port)
  await until('it joins again', () => told.joined.length === 2)
  cluster.post(node!, { body: 'of the session before', parts: [] })
  expect(cluster.peers[0]!.session).toBe(2)
  expect(cluster.epoch).toBe(3)
})

test('a leader that is killed is lost to its followers, and has them back when it is started again', async () => {
  const port = freePort()
  const leader = nodes.start(0, port)
  await leader.next('open')
  const followers = [1, 2].map((nodeRank) => nodes.start(nodeRank, port))
  for (const follower of followers) await follower.next('joined')
  followers[0]!.tell({ type: 'request', ask: 'never', limitMs: 60_000 })
  await leader.next('asked')
  await leader.kill()
  for (const follower of followers) {
    expect((await follower.next('lost')).failure).toEqual({
      code: 'leader_lost',
      message: expect.stringMatching(/^the leader \(node 0, host-0\) was lost: /),
    })
  }
  expect((await followers[0]!.next('rejected')).failure.code).toBe('leader_lost')
  nodes.start(0, port)
  for (const follower of followers) await follower.next('joined')
  followers[0]!.tell({ type: 'request', ask: 'hello', limitMs: 10_000 })
  expect(await followers[0]!.next('answered')).toMatchObject({ body: 'hello' })
})

test('a follower that stood still for too long has lost its session, and joins with another', async () => {
  const { cluster, told } = await openLeader()
  const follower = nodes.start(1, portOf(cluster.address))
  await follower.next('joined')
  const [before] = cluster.peers
  follower.signal('SIGSTOP')
  const stoppedMs = performance.now()
  const failure = await cluster
    .request(before!, { body: 'while it stands', parts: [] }, 60_000)
    .catch((error) => error.failure)
  const lostMs = performance.now() - stoppedMs
  expect(lostMs).toBeGreaterThan(TIMES.lostMs - 500)
  expect(lostMs).toBeLessThan(TIMES.lostMs + 1000)
  expect(failure).toMatchObject({ code: 'node_lost' })
  follower.signal('SIGCONT')
  expect((await follower.next('lost')).failure).toMatchObject({ code: 'leader_lost' })
  const { session } = await follower.next('joined')
  expect(session).toBeGreaterThan(before!.session)
  await until('the leader has it', () => cluster.peers[0]?.session === session)
  const { body } = await cluster.request(cluster.peers[0]!, { body: 'now', parts: [] }, 10_000)
  expect(body).toBe('now')
  // what was asked in the session before has not reached it
  expect(follower.all('asked').map((line) => line.body)).toEqual(['now'])
  expect(told.lost).toHaveLength(1)
})

test('another token is refused with words, and the right one goes on', async () => {
  const { cluster, told } = await openLeader()
  const port = portOf(cluster.address)
  const tokenFile = join(nodes.dir, 'other')
  writeFileSync(tokenFile, 'another-token\n', { mode: 0o600 })
  const stranger = nodes.start(1, port, { tokenFile })
  const { text } = await stranger.next('log', (line) => line.text.includes('handshake'))
  expect(text).toContain('another cluster token')
  const follower = nodes.start(2, port)
  await follower.next('joined')
  expect(told.joined.map(({ nodeRank }) => nodeRank)).toEqual([2])
  expect(stranger.all('joined')).toEqual([])
})

test('a second daemon of a node rank is told so once, and takes the place when the first has gone', async () => {
  const { cluster, told } = await openLeader()
  const port = portOf(cluster.address)
  const first = nodes.start(1, port)
  await first.next('joined')
  const second = nodes.start(1, port)
  const { text } = await second.next('log', (line) => line.text.includes('may not join'))
  expect(text).toContain('another daemon, on host-1, lives with --node-rank 1')
  await Bun.sleep(5 * TIMES.heartbeatMs)
  expect(second.all('log').filter((line) => line.text.includes('may not join'))).toHaveLength(1)
  expect(told.joined).toHaveLength(1)
  expect(await first.close()).toBe(0)
  await second.next('joined')
  expect(told.lost).toEqual([
    { code: 'node_lost', message: 'node 1 (host-1) was lost: it is shutting down' },
  ])
  await until('the leader has it', () => cluster.peers[0]?.session === 2)
})

test('a leader that cannot bind says where', async () => {
  const { cluster } = await openLeader()
  const refused = await openLeader(portOf(cluster.address)).catch((error) => error.failure)
  expect(refused).toMatchObject({ code: 'bad_request' })
  expect(refused.message).toContain(`zmq_bind ${cluster.address}: Address already in use`)
})
