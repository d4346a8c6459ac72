import { describe, expect, test } from 'bun:test'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion, NetworkDeviceInfo, VersionLease } from '../types.ts'
import { memoryReadable, networkRateOf } from './network.ts'

const GB = 1e9

function link(rank: number, node: number, networkDevices?: NetworkDeviceInfo[]): RankHandle {
  return { node, rank: { rank, networkDevices } } as unknown as RankHandle
}

/** Owners on nodes 0, 1 and 1. */
function leaseOf() {
  const served: number[][] = []
  let isComplete = false
  const lease = {
    version: { ownerNodes: [0, 1, 1] } as unknown as HeldVersion,
    complete: Bun.sleep(1).then(() => {
      isComplete = true
      return 0
    }),
    serve: async (nodes: ReadonlySet<number>) => {
      expect(isComplete).toBe(true)
      served.push([...nodes].sort())
      return [0, 1, 1].map((node, owner) => {
        return nodes.has(node) ? ({ address: owner } as unknown as RemoteBuffers) : null
      })
    },
  } as unknown as VersionLease
  return { lease, served }
}

describe('what ranks read of other hosts', () => {
  test('is what their own daemon does not have, and is served once for all of them', async () => {
    const { lease, served } = leaseOf()
    const at = await memoryReadable(lease, [link(0, 0), link(1, 0), link(2, 1), link(3, 2)])
    expect(served).toEqual([[0, 1]])
    const addresses = (node: number) => at(node).remotes.map((one) => one?.address ?? null)
    expect(at(0).away).toEqual([false, true, true])
    expect(addresses(0)).toEqual([null, 1, 2] as never)
    expect(addresses(1)).toEqual([0, null, null] as never)
    // it has none of it
    expect(addresses(2)).toEqual([0, 1, 2] as never)
  })

  test('is nothing where one host has all of it, and nobody is asked', async () => {
    const { lease, served } = leaseOf()
    const here = { ...lease, version: { ownerNodes: [1, 1] } } as unknown as VersionLease
    const at = await memoryReadable(here, [link(0, 1), link(1, 1)])
    expect(at(1)).toEqual({ away: [false, false], remotes: [null, null] })
    expect(served).toEqual([])
  })

  test('comes over all devices of a host, each counted once', () => {
    const [one, two] = [
      { name: 'mlx5_0', bytesPerSecond: 50 * GB },
      { name: 'mlx5_1', bytesPerSecond: 25 * GB },
    ]
    const all = [link(0, 0, [one]), link(1, 0, [one, two]), link(2, 1, []), link(3, 2)]
    expect(networkRateOf(0, all, GB)).toBe(75 * GB)
    expect(networkRateOf(1, all, 62 * GB)).toBe(12.5 * GB)
    expect(networkRateOf(2, all, 3 * GB)).toBe(3 * GB)
  })
})
