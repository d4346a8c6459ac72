import { expect, test } from 'bun:test'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { TestDir } from './registry/testing/fixture.ts'
import { withNetworkDevices } from './network-devices.ts'
import type { RankInfo } from './types.ts'

const ranksOf = (count: number) =>
  Array.from({ length: count }, (_, rank) => ({ rank }) as RankInfo)

/** As the kernel shows them. */
function withDevices(rates: Record<string, string | null>, run: (dir: string) => void): void {
  const dir = new TestDir()
  try {
    for (const [name, rate] of Object.entries(rates)) {
      mkdirSync(join(dir.path, name, 'ports/1'), { recursive: true })
      if (rate !== null) writeFileSync(join(dir.path, name, 'ports/1/rate'), rate)
    }
    run(dir.path)
  } finally {
    dir.remove()
  }
}

test('devices are split evenly, with their rates, chosen as the environment says', () => {
  const rates = { mlx5_10: '200 Gb/sec (4X HDR)\n', mlx5_2: '400 Gb/sec (4X NDR)\n', eth: null }
  withDevices(rates, (dir) => {
    const env = { NCCL_IB_HCA: 'mlx5' }
    const [first, second] = withNetworkDevices(ranksOf(2), env, dir)
    expect(first?.networkDevices).toEqual([{ name: 'mlx5_10', bytesPerSecond: 25e9 }])
    expect(second?.networkDevices).toEqual([{ name: 'mlx5_2', bytesPerSecond: 50e9 }])
    const shared = withNetworkDevices(ranksOf(4), env, dir)
    expect(shared.map(({ networkDevices }) => networkDevices?.[0]?.name)).toEqual([
      'mlx5_10',
      'mlx5_10',
      'mlx5_2',
      'mlx5_2',
    ])
    const [alone] = withNetworkDevices(ranksOf(1), { PS_P2P_STORE_RDMA_DEVICES: 'eth' }, dir)
    expect(alone?.networkDevices).toEqual([{ name: 'eth', bytesPerSecond: 25e9 }])
  })
})

test('without devices, or with some that do not divide, nothing is chosen', () => {
  expect(withNetworkDevices(ranksOf(2), {}, '/nowhere')).toEqual(ranksOf(2))
  withDevices({ a: null, b: null, c: null }, (dir) => {
    expect(withNetworkDevices(ranksOf(2), {}, dir)).toEqual(ranksOf(2))
    const others = { NCCL_IB_HCA: '=a,b,c' }
    expect(withNetworkDevices(ranksOf(2), others, dir)).toEqual(ranksOf(2))
    const named = { PS_P2P_STORE_RDMA_DEVICES: 'a,b,c' }
    expect(() => withNetworkDevices(ranksOf(2), named, dir)).toThrow(
      '3 RDMA devices (a, b, c) do not divide among 2 ranks',
    )
  })
})
