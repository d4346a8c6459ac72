import { expect, test } from 'bun:test'
import { GIB, MIB } from './bench.ts'
import { claimLine } from './claims.ts'
import { claimsOf, waysOf } from './direct-ways.ts'
import { directWorkloads } from './direct-workloads.ts'
import { workloadBytes } from './workloads.ts'

test.each([16 * MIB, 64 * MIB, GIB])(
  'models that are cut to %d bytes have about as many',
  (bytes) => {
    const cut = directWorkloads([bytes], [])
    expect(cut.map(({ kind }) => kind)).toEqual(['dense', 'moe'])
    for (const workload of cut) {
      const share = workloadBytes(workload) / bytes
      expect(share).toBeGreaterThan(0.75)
      expect(share).toBeLessThanOrEqual(1)
      const names = workload.tensors.map(({ name }) => name)
      expect(new Set(names).size).toBe(names.length)
      expect(waysOf(workload).map(({ name }) => name)).toEqual(['tp 1', 'tp 8'])
    }
  },
)

test('of whole models something is asked, where the copies are those of the daemon', () => {
  const asked = directWorkloads([MIB], ['dense', 'moe', 'moe-bf16']).map((workload) =>
    waysOf(workload).map((way) => {
      const row = { case: `${workload.name}, ${way.name}`, gb_per_s: 46.5, limit_gb_per_s: 50 }
      return [way.name, ...claimsOf(workload, way, row).map(claimLine)]
    }),
  )
  const line = (holds: string, what: string, least: number) =>
    `${holds}: direct ${what}: of the pinned H2D rate 93 %, at least ${least} %`
  expect(asked).toEqual([
    [
      ['tp 1', line('FALLS SHORT', 'dense, tp 1', 94)],
      ['tp 8', line('holds', 'dense, tp 8', 90)],
    ],
    [['tp 1', line('holds', 'moe, tp 1', 93)], ['tp 8'], ['tp 1, nothing gathered']],
    [
      ['tp 1', line('holds', 'moe-bf16, tp 1', 93)],
      ['tp 8', line('holds', 'moe-bf16, tp 8', 90)],
    ],
  ])
  const [cut] = directWorkloads([16 * MIB], [])
  const row = { case: '', gb_per_s: 1, limit_gb_per_s: 50 }
  expect(waysOf(cut!).flatMap((way) => claimsOf(cut!, way, row))).toEqual([])
})
