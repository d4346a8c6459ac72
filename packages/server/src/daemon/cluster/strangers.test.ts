/** What a leader does with peers that do not speak as a follower does. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { CLUSTER_VERSION, type Packet } from '@ckpt/core'
import { ZmqContext, type ZmqSocket } from '@ckpt/cuda'
import { until } from '../../../../../test/support/until.ts'
import { readToken } from '../http/auth.ts'
import { configureLogging } from '../log.ts'
import { type Cluster, type ClusterNode, openCluster } from './cluster.ts'
import { type ClusterKeys, deriveKeys, proofOf } from './keys.ts'
import { NodeProcesses, TIMES } from './testing/nodes.ts'

setDefaultTimeout(60_000)

const WAIT_MS = 10_000

const nodes = new NodeProcesses(3)
const context = new ZmqContext()
const lines: string[] = []
const lost: string[] = []
const posts: unknown[] = []
const joined: ClusterNode[] = []
let leader: Cluster
let keys: ClusterKeys

beforeAll(async () => {
  configureLogging({ format: 'text', level: 'info', write: (line) => void lines.push(line) })
  keys = deriveKeys(readToken(nodes.tokenFile))
  const options = { nodeRank: 0, nodes: 3, times: TIMES, tokenFile: nodes.tokenFile }
  leader = await openCluster(
    { ...options, leader: { host: '127.0.0.1', port: 0 } },
    { host: 'host-0', version: '1.0.0', ranks: [] },
    { kind: 'host' },
    {
      joined: (node) => void joined.push(node),
      lost: (_, { message }) => void lost.push(message),
      post: (_, { body }) => void posts.push(body),
      request: async (_, message) => message,
    },
  )
})

afterAll(async () => {
  configureLogging({ format: 'text', level: 'fatal' })
  await leader.close()
  context.close()
  await nodes.end()
})

/** A connection of one who has the leader's public key. */
async function connect(): Promise<ZmqSocket> {
  const socket = context.socket('DEALER')
  socket.setOption('immediate', 1)
  socket.setKey('curve_serverkey', keys.leader.public)
  socket.setKey('curve_secretkey', keys.follower.secret)
  socket.setKey('curve_publickey', keys.follower.public)
  socket.connect(leader.address)
  await until('a connection', WAIT_MS, () => socket.send([text('not JSON')]))
  return socket
}

const text = (words: string) => new Uint8Array(new TextEncoder().encode(words))

function say(socket: ZmqSocket, packet: unknown, ...frames: Uint8Array[]): void {
  expect(socket.send([text(JSON.stringify(packet)), ...frames])).toBe(true)
}

async function hear<T extends Packet['type']>(
  socket: ZmqSocket,
  type: T,
): Promise<Extract<Packet, { type: T }>> {
  const packets: Packet[] = []
  await until(`a packet '${type}'`, WAIT_MS, () => {
    const frames = socket.recv()
    if (frames !== null) packets.push(JSON.parse(new TextDecoder().decode(frames[0])))
    return packets.at(-1)?.type === type
  })
  return packets.at(-1) as Extract<Packet, { type: T }>
}

const HELLO = {
  type: 'hello',
  version: CLUSTER_VERSION,
  nodes: 3,
  attempt: 0,
  at: 0,
  info: { host: 'stranger', ranks: [], version: '1.0.0' },
}

/** Joins by hand, with the leader's incarnation and the session. */
async function join(socket: ZmqSocket, nodeRank: number) {
  const hello = { ...HELLO, node_rank: nodeRank, incarnation: `by hand ${nodeRank}` }
  say(socket, { ...hello, leader: null, proof: '' })
  const { leader: incarnation } = await hear(socket, 'challenge')
  const proof = proofOf(keys.proof, incarnation, hello.incarnation, nodeRank)
  say(socket, { ...hello, leader: incarnation, proof })
  const { session } = await hear(socket, 'welcome')
  return { leader: incarnation, session }
}

test('the public key alone does not let anybody in', async () => {
  const socket = await connect()
  const hello = { ...HELLO, node_rank: 1, incarnation: 'thief' }
  say(socket, { ...hello, leader: null, proof: '' })
  const { leader: incarnation } = await hear(socket, 'challenge')
  const proof = proofOf(new Uint8Array(32), incarnation, 'thief', 1)
  say(socket, { ...hello, leader: incarnation, proof })
  expect(await hear(socket, 'refusal')).toMatchObject({ code: 'unauthorized' })
  // the proof of another node rank is none either
  const other = proofOf(keys.proof, incarnation, 'thief', 2)
  say(socket, { ...hello, leader: incarnation, proof: other })
  expect(await hear(socket, 'refusal')).toMatchObject({ code: 'unauthorized' })
  expect(joined).toEqual([])
  await until('the log', WAIT_MS, () =>
    lines.some((line) => line.includes('node 1 (stranger) may not join')),
  )
  socket.close()
})

test('what is no packet is dropped with a line in the log, and the session goes on', async () => {
  const socket = await connect()
  const session = await join(socket, 1)
  say(socket, { type: 'unheard of' })
  say(socket, 7)
  socket.send([new Uint8Array([0xff, 0xfe])])
  socket.send([])
  socket.send(Array.from({ length: 90 }, () => new Uint8Array(1)))
  say(socket, { ...session, type: 'beat', epoch: -1, at: 0 })
  const sizes = [text('"fine"').length]
  const piece = { ...session, type: 'piece', seq: 0, start: { kind: 'post', id: 0, sizes } }
  say(socket, piece, text('"fine"'))
  await until('a post', WAIT_MS, () => posts.length === 1)
  expect(posts).toEqual(['fine'])
  // what is a message, but no JSON
  say(socket, { ...piece, seq: 1 }, text('{"fine'))
  await until('the log', WAIT_MS, () => lines.some((line) => line.includes('a message of')))
  expect(lines.filter((line) => line.includes('a message was dropped')).length).toBeGreaterThan(1)
  expect(leader.peers.map(({ nodeRank }) => nodeRank)).toEqual([1])
  expect(lost).toEqual([])
  say(socket, { ...session, type: 'over', reason: 'enough' })
  await until('it is lost', WAIT_MS, () => lost.length === 1)
  expect(lost).toEqual(['node 1 (stranger) was lost: enough'])
  socket.close()
})

test('pieces that make no message, or leave one out, end the session', async () => {
  const socket = await connect()
  const session = await join(socket, 2)
  const start = { kind: 'post', id: 0, sizes: [1] }
  say(socket, { ...session, type: 'piece', seq: 0, start }, text('12'))
  await until('it is lost', WAIT_MS, () => lost.length === 2)
  expect(lost[1]).toBe(
    'node 2 (stranger) was lost: it has sent what cannot be read: more bytes than its message has',
  )
  expect(await hear(socket, 'over')).toMatchObject(session)
  const next = await join(socket, 2)
  expect(next.session).toBeGreaterThan(session.session)
  say(socket, { ...next, type: 'piece', seq: 1, start }, text('1'))
  await until('it is lost', WAIT_MS, () => lost.length === 3)
  expect(lost[2]).toContain('a message was lost on its way')
  socket.close()
})
