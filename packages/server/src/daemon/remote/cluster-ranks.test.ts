import { expect, test } from 'bun:test'
import { NODES_MAX } from '@ckpt/core'
import { configureLogging } from '../log.ts'
import type { Ranks } from '../rank/handle.ts'
import { ClusterRanks } from './cluster-ranks.ts'
import type { NodeChannel } from './messages.ts'
import { pack } from './pack.ts'
import { RemoteNode } from './remote-node.ts'

const LOST = { code: 'node_lost', message: 'it is lost' } as const
const NEVER: NodeChannel = { request: () => new Promise(() => {}), post: () => {} }

function nodeOf(node: number, rankCount: number, channel = NEVER): RemoteNode {
  const ranks = Array.from({ length: rankCount }, (_, rank) => {
    return { rank, device: 0, deviceName: '', key: `${rank}`, uuid: `${node}`, numaNode: -1 }
  })
  return new RemoteNode(node, { ranks, socketDir: '/s', marks: [] }, channel, () => {
    throw new Error('no layout')
  })
}

/** A leader with two ranks of its own among three daemons. */
function scene(): ClusterRanks {
  const own = [0, 1].map((rank) => ({ rank: { rank }, node: 0 }))
  return new ClusterRanks({ links: own } as unknown as Ranks, 3, () => 'ipc://own')
}

const numbersOf = (node: RemoteNode) => node.ranks.map(({ rank }) => rank.rank)

test('ranks are numbered daemon by daemon, and keep their numbers', () => {
  const ranks = scene()
  const [first, second] = [nodeOf(1, 2), nodeOf(2, 1)]
  ranks.join(second)
  expect(numbersOf(second)).toEqual([])
  expect(() => ranks.all('all')).toThrow('node 1 has not joined')
  expect(ranks.missing).toEqual([{ node: 1, message: 'node 1 has not joined', ranks: [] }])
  ranks.join(first)
  expect([numbersOf(first), numbersOf(second)]).toEqual([[2, 3], [4]])
  ranks.lose(1, LOST)
  expect(ranks.all('survivors')).toEqual([0, 1, 4])
  expect(ranks.lost(3)).toMatchObject({ node: 1, failure: { ...LOST, rank: 3 } })
  const again = nodeOf(1, 2)
  ranks.join(again)
  expect(numbersOf(again)).toEqual([2, 3])
  expect(ranks.all('all')).toEqual([0, 1, 2, 3, 4])
  expect(ranks.missing).toEqual([])
})

test('a daemon that comes again with another number of ranks is of no use, and moves nobody', () => {
  const ranks = scene()
  const [first, second] = [nodeOf(1, 1), nodeOf(2, 1)]
  for (const node of [first, second]) ranks.join(node)
  const handles = second.ranks
  ranks.lose(1, LOST)
  const lines: string[] = []
  configureLogging({ format: 'text', level: 'warning', write: (line) => void lines.push(line) })
  ranks.join(nodeOf(1, 2))
  configureLogging({ format: 'text', level: 'fatal' })
  const message = expect.stringContaining('node 1 has come with 2 ranks in place of 1')
  expect(lines).toEqual([message])
  expect(ranks.missing).toEqual([{ node: 1, message, ranks: [2] }])
  expect(() => ranks.all('all')).toThrow('has come with 2 ranks in place of 1')
  expect(second.ranks).toBe(handles)
  ranks.join(nodeOf(1, 1))
  expect(ranks.all('all')).toEqual([0, 1, 2, 3])
})

test('guests come after all others, whose updates they are not in', () => {
  const ranks = scene()
  const [guest, other] = [nodeOf(NODES_MAX + 7, 2), nodeOf(NODES_MAX + 3, 1)]
  ranks.join(guest)
  expect(numbersOf(guest)).toEqual([])
  for (const node of [nodeOf(1, 1), nodeOf(2, 1)]) ranks.join(node)
  ranks.join(other)
  expect([numbersOf(guest), numbersOf(other)]).toEqual([[4, 5], [6]])
  expect(ranks.all('all')).toEqual([0, 1, 2, 3])
  ranks.lose(guest.node, LOST)
  expect(ranks.links.map(({ rank }) => rank.rank)).toEqual([0, 1, 2, 3, 6])
})

test('before an update every daemon is asked whether copies of an earlier one go on, a guest only before its own', async () => {
  const asked: number[] = []
  const channelOf = (node: number): NodeChannel => ({
    async request({ body }) {
      expect(body).toEqual({ op: 'quiet' })
      asked.push(node)
      return pack(null)
    },
    post: () => {},
  })
  const local = { links: [{ rank: { rank: 0 }, node: 0 }], quiet: async () => {} }
  const ranks = new ClusterRanks(local as unknown as Ranks, 2, () => 'ipc://own')
  const guests = [NODES_MAX, NODES_MAX + 1]
  for (const node of [1, ...guests]) ranks.join(nodeOf(node, 1, channelOf(node)))
  await ranks.quiet([0, 1])
  expect(asked.splice(0)).toEqual([1])
  await ranks.quiet([3])
  expect(asked).toEqual([1, NODES_MAX + 1])
})
