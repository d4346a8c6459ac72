/**
 * What only a GPU can show: the demo on CUDA, and checkpoint-engine's own worker in a torch process taking three updates in a
 * row, every tensor compared, no device memory left behind. `scripts/gpu-check` builds the library and calls this.
 */
import { join } from 'node:path'
import type { EngineWeights } from '@ckpt/core'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  writeSafetensors,
} from '../test/support/checkpoint.ts'
import { CKPT, ROOT, request, run, scratch, start } from '../test/support/process.ts'

const PYTHON = process.env.CKPT_PYTHON ?? 'python3'
const UPDATES = 3
const GIB = 2 ** 30

async function usedDeviceBytes(): Promise<number> {
  const query = ['nvidia-smi', '--query-gpu=memory.used', '--format=csv,noheader,nounits', '--id=0']
  const { status, stdout, stderr } = await run(query)
  if (status !== 0) throw new Error(`nvidia-smi: ${stderr}`)
  return Number(stdout.trim()) * 2 ** 20
}

/** About 2 GiB: one tensor of 512 MiB, layers of several dtypes, odd sizes. */
function writeCheckpoint(dir: string, seed: number): string[] {
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  const paths: string[] = []
  for (let file = 0; file < 4; file++) {
    const tensors = Array.from({ length: 12 }, (_, i) => [
      tensor(`model.layers.${file * 12 + i}.mlp.weight`, 'BF16', 2, 4096, 3840),
      tensor(`model.layers.${file * 12 + i}.norm.weight`, 'F32', 4, 4097),
      tensor(`model.layers.${file * 12 + i}.scale`, 'F8_E4M3', 1, 33, 7),
    ]).flat()
    if (file === 0) tensors.push(tensor('model.embed_tokens.weight', 'BF16', 2, 65536, 4096))
    const path = join(dir, `model-0000${file + 1}-of-00004.safetensors`)
    writeSafetensors(path, tensors)
    paths.push(path)
  }
  return paths
}

async function checkDemo(): Promise<void> {
  const { status, stdout, stderr } = await run([...CKPT, 'demo', '--devices', 'cuda', '--json'])
  if (status !== 0) throw new Error(`the demo ended with ${status}:\n${stdout}\n${stderr}`)
  console.log(`demo --devices cuda --json: ${stdout.trim()}`)
}

async function checkWorker(): Promise<void> {
  const dir = scratch()
  const socket = join(dir.path, 'ckpt.sock')
  const usedBefore = await usedDeviceBytes()
  const serve = [
    'serve',
    '--uds',
    socket,
    '--devices',
    'cuda:0',
    '--state-dir',
    join(dir.path, 'state'),
  ]
  const daemon = await start([...CKPT, ...serve], /ready/)
  const script = join(ROOT, 'test/python/checkpoint_engine_worker.py')
  const worker = await start([PYTHON, script, '--device', 'cuda'], /ready (\S+)/)
  let lastAfter = 0
  try {
    for (let update = 1; update <= UPDATES; update++) {
      const files = writeCheckpoint(dir.path, update)
      const registered = await request(socket, 'POST', '/v1/checkpoints/gpu/files', {
        files,
        replace: true,
      })
      if (registered.status !== 200) throw new Error(JSON.stringify(registered.body))
      const body = { update_url: `${worker.ready[1]}/collective_rpc`, timeout: 120 }
      const { status, body: report } = await request(
        socket,
        'POST',
        '/v1/checkpoints/gpu/update',
        body,
      )
      if (status !== 200) throw new Error(JSON.stringify(report))
      const weights = (await (await fetch(`${worker.ready[1]}/v1/weights`)).json()) as EngineWeights
      const compared = compareWeights(weights.ranks, readSafetensors(files), 1)
      const { mode, buckets, gb_per_s, seconds, device_bytes, ring_bytes, engines } = report
      console.log(
        `update ${update}: ${compared} tensors equal, ${(report.bytes / 1e9).toFixed(2)} GB, transfer ${seconds.transfer.toFixed(3)} s, ` +
          `${gb_per_s.toFixed(1)} GB/s, ${mode}, ${buckets} buckets, ring ${(ring_bytes / GIB).toFixed(2)} GiB, dialect ${engines[0].dialect}, ` +
          `device bytes before/peak/after ${device_bytes.before}/${device_bytes.peak}/${device_bytes.after}`,
      )
      // The worker takes memory for its own tensors in the first update, and as much in each later one.
      if (update > 2 && device_bytes.after > lastAfter)
        throw new Error('the update left device memory behind')
      lastAfter = device_bytes.after
    }
  } finally {
    await worker.stop()
    await daemon.stop()
    dir.remove()
  }
  const usedAfter = await usedDeviceBytes()
  console.log(
    `device memory used: ${usedBefore} bytes before, ${usedAfter} after both processes ended`,
  )
  if (usedAfter > usedBefore) throw new Error('device memory was left behind')
}

await checkDemo()
await checkWorker()
console.log('gpu-check: passed')
