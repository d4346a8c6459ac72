import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { withoutUcx } from '../../../test/support/ucx.ts'
import { MIB } from './bench.ts'
import { timelineOf } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { layoutOfFiles, simulateUpdate } from './simulated-update.ts'
import { writePair } from './versions.ts'

const FLAGS = ['--ring-gib', String(2 ** -8), '--bucket-mib', '2']
const RATES = {
  h2dBytesPerSecond: 1e9,
  broadcastBytesPerSecond: 1e9,
  broadcastSeconds: 0,
  reloadBytesPerSecond: 1e9,
  bucketSeconds: 0,
  openSeconds: 0,
}

test.skipIf(withoutUcx !== null)(
  'daemons that hold a file each bring all of it to every engine, by the plan that is simulated',
  async () => {
    const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
    await using stack = new AsyncDisposableStack()
    stack.defer(() => rmSync(dir, { recursive: true, force: true }))
    const updates = await ClusterUpdates.start(stack, 'host', 2, join(dir, 'cluster'), FLAGS, {})
    const workload = { name: 'layers', tensors: layersOf(8 * MIB), model: false }
    const versions = await writePair(stack, workload, 1, dir, 2)
    const layout = await layoutOfFiles(versions.present.files)
    await updates.register(versions)
    for (let i = 0; i < 2; i++) {
      const report = await updates.update(versions)
      expect(report).toMatchObject({ mode: 'pipelined', ranks: 2, bytes: versions.bytes })
      expect(await updates.check(versions)).toEqual({ compared: 32, wrong: 0 })
      const { buckets } = simulateUpdate(layout, report, RATES)
      expect(report.buckets).toBe(buckets)
      const { reloadSeconds, totalSeconds } = timelineOf(await updates.trace(report))
      expect(reloadSeconds.map(({ length }) => length)).toEqual([buckets, buckets])
      expect(totalSeconds).toBeLessThan(report.seconds.total)
    }
  },
  120_000,
)
