/** Daemons as processes that are killed, stopped and started again. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError, type Failure } from '@ckpt/core'
import { until } from '../../../../../test/support/until.ts'
import {
  type Cluster,
  type ClusterEvents,
  type ClusterNode,
  type ClusterOptions,
  openCluster,
} from './cluster.ts'
import { configureLogging } from '../log.ts'
import { freePort } from './testing/free-port.ts'
import { NodeProcesses, type NodeProcess, portOf, TIMES } from './testing/nodes.ts'

setDefaultTimeout(60_000)

const NODES = 6
const WAIT_MS = 20_000
const INFO = { host: 'host-0', version: '1.0.0', ranks: [] }

/** What the leader in this process is told of one node. */
class Told {
  readonly joined: ClusterNode[] = []
  readonly lost: Failure[] = []
  readonly posts: unknown[] = []
  readonly postedBytes: number[] = []
}

const lines: string[] = []
const nodes = new NodeProcesses(NODES)
const told = Array.from({ length: NODES }, () => new Told())
/** For every test but those that end it. */
let leader: Cluster
let port: number
/** Node 1, likewise. */
let talker: NodeProcess

const events: ClusterEvents = {
  joined: (node) => void told[node.nodeRank]!.joined.push(node),
  lost: ({ nodeRank }, failure) => void told[nodeRank]!.lost.push(failure),
  post({ nodeRank }, { body, parts }) {
    told[nodeRank]!.posts.push(body)
    told[nodeRank]!.postedBytes.push(...parts.map(({ length }) => length))
  },
  async request(_, message) {
    if (message.body !== 'refuse') return message
    const details = { rank: 3, phase: 'plan', tensor: 'w' } as const
    throw new CkptError('tensor_missing', 'w is missing', details)
  },
}

function openLeader(at: number): Promise<Cluster> {
  const { tokenFile } = nodes
  const address = { host: '127.0.0.1', port: at }
  const options: ClusterOptions = {
    nodeRank: 0,
    nodes: NODES,
    leader: address,
    times: TIMES,
    tokenFile,
  }
  return openCluster(options, INFO, { kind: 'host' }, events)
}

beforeAll(async () => {
  configureLogging({ format: 'text', level: 'warning', write: (line) => void lines.push(line) })
  leader = await openLeader(0)
  port = portOf(leader.address)
  talker = nodes.start(1, port)
  await peer(1)
})

afterAll(async () => {
  configureLogging({ format: 'text', level: 'fatal' })
  await leader.close()
  await nodes.end()
})

/** The leader's session with a node, when there is one above this number. */
async function peer(nodeRank: number, above = 0): Promise<ClusterNode> {
  const find = () => leader.peers.find((node) => node.nodeRank === nodeRank && node.session > above)
  await until(`node ${nodeRank} joins`, WAIT_MS, () => find() !== undefined)
  return find()!
}

const failureOf = (promise: Promise<unknown>): Promise<Failure> =>
  promise.then(
    () => {
      throw new Error('was answered')
    },
    (error) => error.failure,
  )

test('a request is answered by either side, and a refusal crosses whole', async () => {
  const node = await peer(1)
  expect(node.info).toEqual({
    host: 'host-1',
    version: '1.0.0',
    ranks: [{ device: 0, kind: 'host', uuid: 'host-1' }],
  })
  const body = { deep: [1, null, 'ü'] }
  expect((await leader.request(node, { body, parts: [] }, 10_000)).body).toEqual(body)
  talker.tell({ type: 'request', ask: 'back', limitMs: 10_000 })
  expect(await talker.next('answered')).toMatchObject({ body: 'back', bytes: 0 })
  talker.tell({ type: 'request', ask: 'refuse', limitMs: 10_000 })
  expect((await talker.next('rejected')).failure).toEqual({
    code: 'tensor_missing',
    message: 'w is missing',
    rank: 3,
    phase: 'plan',
    tensor: 'w',
  })
  expect(await failureOf(leader.request(node, { body: 'never', parts: [] }, 50))).toEqual({
    code: 'update_timeout',
    message: 'node 1 (host-1) has not answered within 50 ms',
  })
})

test("50 MB arrive as they were, and are still the sender's", async () => {
  const large = new Uint8Array(50_000_000)
  for (let i = 0; i < large.length; i += 4093) large[i] = i % 251
  const parts = [new Uint8Array(0), large, large.subarray(1, 4), new Uint8Array(0)]
  const answer = await leader.request(await peer(1), { body: null, parts }, 30_000)
  expect(answer.parts.map(({ length }) => length)).toEqual([0, 50_000_000, 3, 0])
  expect(answer.parts.map((part, i) => Buffer.compare(part, parts[i]!))).toEqual([0, 0, 0, 0])
})

test('posts arrive in the order of sending, with a request in its place among them', async () => {
  talker.tell({ type: 'post', body: 'a', count: 3000 })
  talker.tell({ type: 'request', ask: 'between', limitMs: 20_000 })
  talker.tell({ type: 'post', body: 'b', count: 10 })
  await talker.next('answered')
  const { posts, postedBytes } = told[1]!
  expect(posts.slice(0, 3000)).toEqual(Array.from({ length: 3000 }, (_, i) => ['a', i]))
  expect(postedBytes.slice(0, 3000)).toEqual(Array.from({ length: 3000 }, (_, i) => i % 1000))
  await until('the other posts', WAIT_MS, () => posts.length === 3010)
  expect(posts.slice(3000)).toEqual(Array.from({ length: 10 }, (_, i) => ['b', i]))
})

test('a follower that is killed is lost, requests that wait for it are rejected, and it joins when started again', async () => {
  const follower = nodes.start(2, port)
  const node = await peer(2)
  const waiting = failureOf(leader.request(node, { body: 'never', parts: [] }, 60_000))
  await follower.next('asked')
  const { epoch } = leader
  const killedMs = performance.now()
  await follower.kill()
  const failure = await waiting
  expect(performance.now() - killedMs).toBeLessThan(TIMES.lostMs + 1000)
  expect(failure).toEqual({
    code: 'node_lost',
    message: expect.stringMatching(/^node 2 \(host-2\) was lost: /),
  })
  expect(told[2]!.lost).toEqual([failure])
  expect(leader.epoch).toBeGreaterThan(epoch)
  const late = await failureOf(leader.request(node, { body: 1, parts: [] }, 1000))
  expect(late).toMatchObject({ code: 'node_lost' })
  const again = nodes.start(2, port)
  const next = await peer(2, node.session)
  leader.post(node, { body: 'to the session before', parts: [] })
  await leader.request(next, { body: 'to this one', parts: [] }, 10_000)
  expect(again.all('posted')).toEqual([])
})

test('a follower that stood still for too long has lost its session, and joins with another', async () => {
  const follower = nodes.start(3, port)
  const before = await peer(3)
  follower.signal('SIGSTOP')
  await until('it stands still', WAIT_MS, () => follower.stands)
  const stoppedMs = performance.now()
  const standing = { body: 'while it stands', parts: [] }
  const failure = await failureOf(leader.request(before, standing, 60_000))
  const lostMs = performance.now() - stoppedMs
  expect(lostMs).toBeGreaterThan(TIMES.lostMs - 500)
  expect(lostMs).toBeLessThan(TIMES.lostMs + 1000)
  expect(failure).toMatchObject({ code: 'node_lost' })
  follower.signal('SIGCONT')
  expect((await follower.next('lost')).failure).toMatchObject({ code: 'leader_lost' })
  const after = await peer(3, before.session)
  const { body } = await leader.request(after, { body: 'now', parts: [] }, 10_000)
  expect(body).toBe('now')
  // what was asked in the session before has not reached it
  expect(follower.all('asked').map((line) => line.body)).toEqual(['now'])
  expect(told[3]!.lost).toHaveLength(1)
})

test('another token is refused with words, and who has the right one goes on', async () => {
  const tokenFile = join(nodes.dir, 'other')
  writeFileSync(tokenFile, 'another-token\n', { mode: 0o600 })
  const stranger = nodes.start(4, port, { tokenFile })
  const { text } = await stranger.next('log', (line) => line.text.includes('handshake'))
  expect(text).toContain('another cluster token')
  const ofLeader = () => lines.filter((line) => line.includes('a handshake at tcp://127.0.0.1'))
  await until('the log of the leader', WAIT_MS, () => ofLeader().length > 0)
  await Bun.sleep(TIMES.lostMs)
  // for each attempt a line would be too many
  expect(ofLeader()).toHaveLength(1)
  await leader.request(await peer(1), { body: 1, parts: [] }, 10_000)
  expect(told[4]!.joined).toEqual([])
  expect(stranger.all('joined')).toEqual([])
})

test('a follower that reaches nobody says so, once for a long time', async () => {
  const alone = nodes.start(2, freePort())
  const isOfNobody = ({ text }: { text: string }) => text.includes('nobody answers at tcp://')
  await alone.next('log', isOfNobody)
  await Bun.sleep(2 * TIMES.lostMs)
  expect(alone.all('log').filter(isOfNobody)).toHaveLength(1)
  await alone.kill()
})

test('a second daemon of a node rank is told so once, and takes the place when the first has gone', async () => {
  const first = nodes.start(5, port)
  const { session } = await peer(5)
  const second = nodes.start(5, port)
  const { text } = await second.next('log', (line) => line.text.includes('may not join'))
  expect(text).toContain('another daemon, on host-5, lives with --node-rank 5')
  await Bun.sleep(5 * TIMES.heartbeatMs)
  expect(second.all('log').filter((line) => line.text.includes('may not join'))).toHaveLength(1)
  expect(told[5]!.joined).toHaveLength(1)
  expect(await first.close()).toBe(0)
  await second.next('joined')
  await peer(5, session)
  expect(told[5]!.lost).toEqual([
    { code: 'node_lost', message: 'node 5 (host-5) was lost: it is shutting down' },
  ])
})

test('a leader that cannot bind says where', async () => {
  const refused = await failureOf(openLeader(port))
  expect(refused.code).toBe('cannot_listen')
  expect(refused.message).toContain(`zmq_bind ${leader.address}: Address already in use`)
})

test('followers that start before their leader join when it comes, and again when it was killed and has come back', async () => {
  const at = freePort()
  const followers = [1, 2].map((nodeRank) => nodes.start(nodeRank, at))
  for (const follower of followers) await follower.next('open')
  const killed = nodes.start(0, at)
  const isWhole = ({ nodes: of }: { nodes: readonly number[] }) => of.join() === '0,1,2'
  const views = await Promise.all([killed, ...followers].map((one) => one.next('changed', isWhole)))
  expect(new Set(views.map(({ epoch }) => epoch)).size).toBe(1)
  followers[0]!.tell({ type: 'request', ask: 'never', limitMs: 60_000 })
  await killed.next('asked')
  await killed.kill()
  for (const follower of followers) {
    expect((await follower.next('lost')).failure).toEqual({
      code: 'leader_lost',
      message: expect.stringMatching(/^the leader \(node 0, host-0\) was lost: /),
    })
  }
  expect((await followers[0]!.next('rejected')).failure.code).toBe('leader_lost')
  nodes.start(0, at)
  for (const follower of followers) await follower.next('joined')
  followers[0]!.tell({ type: 'request', ask: 'hello', limitMs: 10_000 })
  expect(await followers[0]!.next('answered')).toMatchObject({ body: 'hello' })
})
