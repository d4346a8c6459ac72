import { expect, test } from 'bun:test'
import { DEFAULT_RATES } from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion, NetworkDeviceInfo } from '../types.ts'
import { DirectCosts } from './direct-costs.ts'
import type { UpdateSpec } from './spec.ts'

const GB = 1e9
const RATES = { ...DEFAULT_RATES, h2dBytesPerSecond: 50 * GB, broadcastBytesPerSecond: 400 * GB }

function link(rank: number, node: number, networkDevices?: NetworkDeviceInfo[]): RankHandle {
  return { node, rank: { rank, device: rank, networkDevices } } as unknown as RankHandle
}

/** Two owners of 8 GB each, on nodes 0 and 1. */
const VERSION = {
  bytes: 16 * GB,
  layoutDigest: 'layout',
  ownerNodes: [0, 1],
  table: { names: ['a', 'b'], bytes: [8 * GB, 8 * GB], owners: [0, 1] },
} as unknown as HeldVersion

function spec(changed: Partial<UpdateSpec> = {}): UpdateSpec {
  const engines = [{ key: 'http://engine', ranks: [0, 1] }]
  return { mode: 'auto', ranks: [0, 1], engines, ...changed } as unknown as UpdateSpec
}

const costs = (...links: RankHandle[]) => new DirectCosts({ ratesOf: () => RATES }, () => links)

test('ranks that hold slices are written directly, ranks of two hosts that hold the same by broadcasts', () => {
  const here = costs(link(0, 0), link(1, 0))
  const version = { ...VERSION, ownerNodes: [0, 0] }
  expect(here.against(version, spec())).toBeNull()
  here.note(version, spec(), {
    placed: [8 * GB, 8 * GB],
    shareable: [8 * GB, 8 * GB],
    fetched: new Map(),
  })
  expect(here.against(version, spec())).toBeNull()
  // on one host they take it from each other
  here.note(version, spec(), {
    placed: [16 * GB, 16 * GB],
    shareable: [16 * GB, 16 * GB],
    fetched: new Map(),
  })
  expect(here.against(version, spec())).toBeNull()
  const told = [{ name: 'mlx5_0', bytesPerSecond: 400 * GB }]
  const apart = costs(link(0, 0, told), link(1, 1, told))
  apart.note(VERSION, spec(), {
    placed: [16 * GB, 16 * GB],
    shareable: [16 * GB, 16 * GB],
    fetched: new Map(),
  })
  expect(apart.against(VERSION, spec())).toMatch(
    /^a broadcast is expected to take 0\.190 s, copies into each engine 0\.320 s$/,
  )
  // as asked for, and of another update nobody knows
  expect(apart.against(VERSION, spec({ mode: 'direct' }))).toBeNull()
  expect(apart.against({ ...VERSION, layoutDigest: 'other' }, spec())).toBeNull()
  expect(apart.against(VERSION, spec({ ranks: [0] }))).toBeNull()
})

test('what ranks of a host cannot bring each other each copies itself', () => {
  const here = costs(link(0, 0), link(1, 0))
  const version = { ...VERSION, ownerNodes: [0, 0] }
  const placed = [16 * GB, 16 * GB]
  here.note(version, spec(), { placed, shareable: [0, 0], fetched: new Map() })
  // 0.320 s over each link
  expect(here.against(version, spec())).toContain('copies into each engine 0.320 s')
  here.note(version, spec(), { placed, shareable: [14 * GB, 14 * GB], fetched: new Map() })
  // 2 GB each, and of 28 GB at most 16 once
  expect(here.against(version, spec())).toBeNull()
})

test('ranks of a host share where broadcasts are faster than its links', () => {
  const links = [link(0, 0), link(1, 0), link(2, 1)]
  const at = (broadcastBytesPerSecond: number) => {
    const rates = { ...RATES, broadcastBytesPerSecond }
    return new DirectCosts({ ratesOf: () => rates }, () => links)
  }
  const all = spec({ ranks: [0, 1, 2] })
  expect(at(400 * GB).shares(0, all)).toBe(true)
  expect(at(50 * GB).shares(0, all)).toBe(false)
  // of one device it does not matter what its link was seen to keep up with
  const sharing = links.map(({ node, rank }) => ({ node, rank: { ...rank, device: 0 } }))
  const slow = { ratesOf: () => ({ ...RATES, broadcastBytesPerSecond: 50 * GB }) }
  expect(new DirectCosts(slow, () => sharing as never).shares(0, all)).toBe(true)
  // one rank has nobody to share with
  expect(at(400 * GB).shares(1, all)).toBe(false)
  expect(at(400 * GB).shares(0, spec({ ranks: [1, 2] }))).toBe(false)
})

test('hosts that have to get all of it from each other get no more of it by broadcasts', () => {
  const slow = [{ name: 'eth0', bytesPerSecond: GB }]
  const apart = costs(link(0, 0, slow), link(1, 1, slow))
  const fetched = new Map([
    [0, new Map([[1, 8 * GB]])],
    [1, new Map([[0, 8 * GB]])],
  ])
  apart.note(VERSION, spec(), {
    placed: [16 * GB, 16 * GB],
    shareable: [16 * GB, 16 * GB],
    fetched,
  })
  expect(apart.against(VERSION, spec())).toBeNull()
})

test('a host that has what many need sends it to each of them, or once by broadcasts', () => {
  const told = (gbPerSecond: number) => [{ name: 'mlx5_0', bytesPerSecond: gbPerSecond * GB }]
  const ranks = [0, 1, 2, 3]
  const version = { ...VERSION, ownerNodes: [0, 0] }
  // each of four hosts needs a part
  const note = (one: DirectCosts, part: number) => {
    const bytes = part * 16 * GB
    const fetched = new Map([1, 2, 3].map((node) => [node, new Map([[0, bytes]])]))
    one.note(version, spec({ ranks }), {
      placed: ranks.map(() => bytes),
      shareable: ranks.map(() => 0),
      fetched,
    })
    return one.against(version, spec({ ranks }))
  }
  const four = costs(...ranks.map((rank) => link(rank, rank, told(50))))
  // 48 GB leave the first one, or 16
  expect(note(four, 1)).toMatch(/broadcast is expected to take 0\.3\d\d s, .* 0\.960 s$/)
  expect(note(four, 1 / 4)).toBeNull()
  const fast = costs(link(0, 0, told(150)), ...[1, 2, 3].map((rank) => link(rank, rank, told(50))))
  expect(note(fast, 1)).toBeNull()
})

test('what was said holds for a while: engines are started again, and networks come', () => {
  let nowMs = 0
  const links = [link(0, 0), link(1, 0)]
  const one = new DirectCosts(
    { ratesOf: () => RATES },
    () => links,
    () => nowMs,
  )
  one.note(VERSION, spec(), 'there is no UCX')
  expect(one.against(VERSION, spec())).toBe('there is no UCX')
  expect(one.against(VERSION, spec({ mode: 'direct' }))).toBeNull()
  nowMs = 600_001
  expect(one.against(VERSION, spec())).toBeNull()
})

test('a network that nobody has told of is no faster than broadcasts were', () => {
  const slow = { ...RATES, broadcastBytesPerSecond: 2 * GB }
  const apart = new DirectCosts({ ratesOf: () => slow }, () => [link(0, 0), link(1, 1)])
  const fetched = new Map([
    [0, new Map([[1, 8 * GB]])],
    [1, new Map([[0, 8 * GB]])],
  ])
  apart.note(VERSION, spec(), {
    placed: [16 * GB, 16 * GB],
    shareable: [16 * GB, 16 * GB],
    fetched,
  })
  expect(apart.against(VERSION, spec())).toBeNull()
  const fast = { ...RATES, broadcastBytesPerSecond: 100 * GB }
  const told = [{ name: 'mlx5_0', bytesPerSecond: 50 * GB }]
  const near = new DirectCosts({ ratesOf: () => fast }, () => [link(0, 0, told), link(1, 1, told)])
  near.note(VERSION, spec(), { placed: [64 * GB, 64 * GB], shareable: [64 * GB, 64 * GB], fetched })
  expect(near.against(VERSION, spec())).toContain('a broadcast is expected')
})
