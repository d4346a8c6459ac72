/** The choice of RDMA devices is that of checkpoint-engine's own functions, on random hosts and settings. */
import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { chooseRdmaDevices, rdmaDevicesOf } from '@ckpt/core'
import fc from 'fast-check'
import { python, ROOT } from './support/process.ts'

const PYTHON = python()
const CASES = 3000

const device = fc
  .tuple(fc.constantFrom('mlx5_', 'mlx5_bond_', 'bnxt_re', 'ib'), fc.nat(12))
  .map(([kind, number]) => `${kind}${number}`)
const spec = fc.oneof(device, fc.constantFrom('mlx5', 'mlx5_1', 'ib', 'x', '', ' '))
const token = fc
  .tuple(spec, fc.constantFrom('', ':1', ' :2', ':'), fc.constantFrom('', ' '))
  .map(([name, port, space]) => `${space}${name}${port}${space}`)
const list = fc.array(token, { maxLength: 4 }).map((tokens) => tokens.join(','))
const hca = fc
  .tuple(fc.constantFrom('', '^', '=', '^=', '=^', ' '), list)
  .map(([prefix, names]) => prefix + names)
const anyCase = fc.record({
  available: fc.uniqueArray(device, { maxLength: 40 }),
  env: fc.record({
    PS_P2P_STORE_RDMA_DEVICES: fc.option(fc.constantFrom('mlx5_0', 'mlx5_0,mlx5_1', ''), {
      freq: 5,
    }),
    NCCL_IB_HCA: fc.option(hca),
  }),
  ranks: fc.constantFrom(1, 2, 4, 8),
})

test.skipIf(PYTHON === null)('as checkpoint-engine chooses', () => {
  const cases = fc.sample(anyCase, { numRuns: CASES, seed: 7 })
  const script = join(ROOT, 'test/python/rdma_devices.py')
  const ran = Bun.spawnSync([PYTHON as string, script], {
    stdin: Buffer.from(JSON.stringify(cases)),
  })
  expect(ran.stderr.toString().slice(-2000)).toBe('')
  const theirs = JSON.parse(ran.stdout.toString())
  const ours = cases.map(({ available, env, ranks }) => {
    const { PS_P2P_STORE_RDMA_DEVICES: own, NCCL_IB_HCA: names } = env
    const settings = { devices: own ?? undefined, hca: names ?? undefined }
    const { devices } = chooseRdmaDevices(available, settings)
    const of = (rank: number) => rdmaDevicesOf(devices, rank, ranks)
    return { devices, own: all(ranks, of) }
  })
  for (const [index, wanted] of theirs.entries()) {
    expect([cases[index], ours[index]]).toEqual([cases[index], wanted])
  }
  // both of them, often
  const divides = ours.filter(({ own }) => own !== null).length
  expect(Math.min(divides, CASES - divides)).toBeGreaterThan(CASES / 10)
})

/** Null: they do not divide. */
function all(ranks: number, of: (rank: number) => readonly string[]) {
  try {
    return Array.from({ length: ranks }, (_, rank) => of(rank))
  } catch {
    return null
  }
}
