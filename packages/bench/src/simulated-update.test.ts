import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MIB } from './bench.ts'
import { layersOf, writeVersions } from './checkpoint.ts'
import { layoutOfFiles, layoutOfSharedDevice, simulateUpdate } from './simulated-update.ts'

const SIZES = { ring_bytes: 16 * MIB, bucket_bytes: 1.5 * MIB }
const FAST = {
  h2dBytesPerSecond: 1e15,
  broadcastBytesPerSecond: 1e15,
  broadcastSeconds: 0,
  reloadBytesPerSecond: 1e15,
  bucketSeconds: 0,
  openSeconds: 0,
}

test('an update of files that daemons hold each', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
  try {
    const bytes = 8 * (MIB + 2048)
    const [{ files }] = await writeVersions(dir, layersOf(8 * MIB), bytes, 4)
    const layout = await layoutOfFiles(files)
    expect(layout.sources).toHaveLength(4)
    // natural order, of which each daemon has two layers
    expect(layout.table.names.slice(0, 3)).toEqual([
      'layers.0.norm.weight',
      'layers.0.proj.weight',
      'layers.1.norm.weight',
    ])
    expect([...layout.table.owners]).toEqual([0, 1, 2, 3].flatMap((one) => [one, one, one, one]))
    const seconds = (rates: object) => simulateUpdate(layout, SIZES, { ...FAST, ...rates }).seconds
    expect(simulateUpdate(layout, SIZES, FAST).buckets).toBe(8)
    // each stage alone: two buckets of each link, all of the others
    expect(seconds({ h2dBytesPerSecond: bytes / 4 })).toBeCloseTo(1)
    expect(seconds({ broadcastBytesPerSecond: bytes })).toBeCloseTo(1)
    expect(seconds({ broadcastSeconds: 0.1 })).toBeCloseTo(0.8)
    expect(seconds({ reloadBytesPerSecond: bytes / 2 })).toBeCloseTo(2)
    expect(seconds({ bucketSeconds: 0.1 })).toBeCloseTo(0.8)
    expect(seconds({ openSeconds: 3 })).toBeCloseTo(3)
    // and together they overlap but for the first broadcast and the last reload
    const both = { broadcastBytesPerSecond: bytes, reloadBytesPerSecond: bytes }
    expect(seconds(both)).toBeCloseTo(1 + 1 / 8)
    // ranks of one daemon that share a link: all of it goes over that one
    const shared = await layoutOfSharedDevice(files, 2)
    const slow = { ...FAST, h2dBytesPerSecond: bytes }
    expect(simulateUpdate(shared, SIZES, slow).seconds).toBeCloseTo(1)
  } finally {
    rmSync(dir, { recursive: true })
  }
})
