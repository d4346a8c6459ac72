import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { chooseRdmaDevices, rdmaDevicesOf } from './rdma-devices.ts'

const HOST = ['mlx5_0', 'mlx5_1', 'mlx5_2', 'mlx5_10', 'bnxt_0']

const byHca = (hca: string) => chooseRdmaDevices(HOST, { devices: undefined, hca })

test.each([
  ['mlx5', ['mlx5_0', 'mlx5_1', 'mlx5_10', 'mlx5_2']],
  // there is one of that name
  ['mlx5_1', ['mlx5_1']],
  ['=mlx5_1,mlx5_0', ['mlx5_0', 'mlx5_1']],
  ['^mlx5', ['bnxt_0']],
  ['^=mlx5_1,mlx5_2', ['mlx5_0', 'mlx5_10', 'bnxt_0']],
  ['mlx5_0:1,mlx5_2:2', ['mlx5_0', 'mlx5_2']],
  [' =mlx5_0 , bnxt_0 ', ['bnxt_0', 'mlx5_0']],
])('NCCL_IB_HCA=%s', (hca, devices) => {
  expect(byHca(hca)).toEqual({ devices, by: 'NCCL_IB_HCA' })
})

test.each(['', '  ', '=mlx5', 'ib0', '^mlx5,bnxt', '=^mlx5_0'])(
  'NCCL_IB_HCA=%j leaves all of them',
  (hca) => expect(byHca(hca)).toEqual({ devices: HOST, by: null }),
)

test("checkpoint-engine's own setting comes first, whatever there is", () => {
  const settings = { devices: 'mlx5_7,mlx5_0', hca: '=mlx5_1' }
  const by = 'PS_P2P_STORE_RDMA_DEVICES'
  expect(chooseRdmaDevices(HOST, settings)).toEqual({ devices: ['mlx5_7', 'mlx5_0'], by })
  expect(chooseRdmaDevices(HOST, { ...settings, devices: '' }).by).toBe('NCCL_IB_HCA')
})

test('a device for several ranks, or several for one', () => {
  const of = (count: number, ranks: number) =>
    Array.from({ length: ranks }, (_, rank) => rdmaDevicesOf(HOST.slice(0, count), rank, ranks))
  expect(of(2, 4)).toEqual([['mlx5_0'], ['mlx5_0'], ['mlx5_1'], ['mlx5_1']])
  expect(of(4, 2)).toEqual([
    ['mlx5_0', 'mlx5_1'],
    ['mlx5_2', 'mlx5_10'],
  ])
  expect(() => of(3, 4)).toThrow('3 RDMA devices (mlx5_0, mlx5_1, mlx5_2) do not divide among 4')
  expect(() => of(4, 3)).toThrow('do not divide among 3 ranks')
  expect(() => of(0, 1)).toThrow('there is no RDMA device')
})

test('each device is used as much as any other', () => {
  const counts = fc.integer({ min: 1, max: 12 })
  fc.assert(
    fc.property(counts, counts, fc.boolean(), (fewer, times, moreDevices) => {
      const [count, ranks] = moreDevices ? [fewer * times, fewer] : [fewer, fewer * times]
      const devices = Array.from({ length: count }, (_, i) => `mlx5_${i}`)
      const used = Array.from({ length: ranks }, (_, rank) => rdmaDevicesOf(devices, rank, ranks))
      const wanted = devices.flatMap((one) => Array(Math.max(1, ranks / count)).fill(one))
      expect(used.flat()).toEqual(wanted)
    }),
  )
})
