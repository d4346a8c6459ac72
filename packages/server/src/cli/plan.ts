import { existsSync, statSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { chromeTrace } from '@ckpt/core'
import { DEFAULT_RATES } from '@ckpt/core/plan/cost'
import { findCheckpointFiles, readShapes } from './checkpoint-files.ts'
import { usageError } from './exit.ts'
import { formatBytes, formatRate, formatSeconds, formatTable, counted } from './format.ts'
import { MODEL_NAMES, modelTensors, type TensorShape } from './model-shapes.ts'
import { positiveNumber, seconds, wholeNumber, withJson } from './options.ts'
import { print } from './output.ts'
import type { Prediction, PredictionInput } from './plan-prediction.ts'
import { writeTrace } from './trace-file.ts'

interface PlanFlags {
  model: string
  hosts: number
  devicesPerHost: number
  tensorParallel?: number
  h2dGbps: number
  broadcastGbps: number
  networkGbps?: number
  reloadGbps: number
  reloadUsPerTensor: number
  reloadUsPerBucket: number
  freeGib: number
  ringGib?: number
  bucketMib?: number
  mode: PredictionInput['mode']
  trace?: string
  json?: boolean
}

const BOUNDS: Readonly<Record<Prediction['bound_by'], string>> = {
  h2d: 'the copies from host memory',
  broadcast: 'the broadcast',
  reload: "the engines' own work",
  latency: 'the way from stage to stage: none is busy all the time',
}

/** A network device of 400 Gbit/s for each. */
const NETWORK_GBPS = 50
const GIB = 1024 ** 3
const MIB = 1024 ** 2

export function addPlanCommand(program: Command): void {
  const rates = DEFAULT_RATES
  withJson(program.command('plan'))
    .description(
      'predict the timeline of an update: the real plan and executor on a simulated clock',
    )
    .requiredOption(
      '--model <spec>',
      `${MODEL_NAMES.join(', ')}; a checkpoint, of which only headers are read; or a JSON file of [{name, dtype, shape}]`,
    )
    .option('--hosts <n>', 'hosts; the checkpoint is striped over them', wholeNumber(1), 1)
    .option('--devices-per-host <n>', 'each is a rank with a link of its own', wholeNumber(1), 1)
    .option(
      '--tensor-parallel <n>',
      'ranks of one engine, each of which copies its part (default: the devices of a host)',
      wholeNumber(1),
    )
    .option(
      '--h2d-gbps <n>',
      'GB/s from pinned memory to a device',
      positiveNumber,
      rates.h2dBytesPerSecond / 1e9,
    )
    .option(
      '--broadcast-gbps <n>',
      'GB/s of a broadcast',
      positiveNumber,
      rates.broadcastBytesPerSecond / 1e9,
    )
    .option(
      '--network-gbps <n>',
      `GB/s of a host's network in each direction, for direct updates (default: ${NETWORK_GBPS} a device)`,
      positiveNumber,
    )
    .option(
      '--reload-gbps <n>',
      "GB/s of the engine's copies",
      positiveNumber,
      rates.reloadBytesPerSecond / 1e9,
    )
    .option(
      '--reload-us-per-tensor <n>',
      "the engine's work on a tensor",
      seconds,
      rates.tensorSeconds * 1e6,
    )
    .option('--reload-us-per-bucket <n>', 'a round trip', seconds, rates.bucketSeconds * 1e6)
    .option('--free-gib <n>', 'free device memory of each rank', positiveNumber, 8)
    .option('--ring-gib <n>', 'GiB of the ring (default: chosen)', positiveNumber)
    .option('--bucket-mib <n>', 'most MiB of a bucket (default: chosen)', positiveNumber)
    .addOption(new Option('--mode <m>').choices(['auto', 'pipelined', 'serial']).default('auto'))
    .option('--trace <file>', 'write the timeline there, for https://ui.perfetto.dev')
    .action(plan)
}

async function plan(flags: PlanFlags): Promise<void> {
  const { hosts, devicesPerHost, tensorParallel = devicesPerHost } = flags
  if ((hosts * devicesPerHost) % tensorParallel !== 0) {
    const ranks = counted(hosts * devicesPerHost, 'rank')
    throw usageError(`${ranks} make no engines of --tensor-parallel ${tensorParallel}`)
  }
  const tensors = await tensorsOf(flags.model)
  if (tensors.length === 0) throw usageError('the model has no tensors')
  const { predict } = await import('./plan-prediction.ts')
  const input: PredictionInput = {
    tensors,
    hosts,
    devicesPerHost,
    tensorParallel,
    rates: {
      h2dBytesPerSecond: flags.h2dGbps * 1e9,
      broadcastBytesPerSecond: flags.broadcastGbps * 1e9,
      reloadBytesPerSecond: flags.reloadGbps * 1e9,
      tensorSeconds: flags.reloadUsPerTensor / 1e6,
      bucketSeconds: flags.reloadUsPerBucket / 1e6,
    },
    networkBytesPerSecond: (flags.networkGbps ?? NETWORK_GBPS * devicesPerHost) * 1e9,
    freeBytes: flags.freeGib * GIB,
    fraction: 0.9,
    ringBytes: flags.ringGib === undefined ? null : flags.ringGib * GIB,
    bucketBytes: flags.bucketMib === undefined ? null : flags.bucketMib * MIB,
    mode: flags.mode,
  }
  const { prediction, rows } = predict(input, flags.trace !== undefined)
  if (flags.trace !== undefined) await writeTrace(flags.trace, chromeTrace(rows))
  await print(flags.json === true, prediction, () => predictionText(prediction))
}

async function tensorsOf(spec: string): Promise<TensorShape[]> {
  const model = MODEL_NAMES.find((name) => name === spec)
  if (model !== undefined) return modelTensors(model)
  if (!existsSync(spec)) {
    throw usageError(`--model '${spec}' is neither a path nor one of ${MODEL_NAMES.join(', ')}`)
  }
  return (await isJson(spec)) ? await tensorsOfJson(spec) : await tensorsOfFiles(spec)
}

/** By its first byte: a file of tensors begins with the length of its header. */
async function isJson(path: string): Promise<boolean> {
  if (statSync(path).isDirectory()) return false
  return /^\s*[[{]/.test(await Bun.file(path).slice(0, 64).text()) && !path.endsWith('.safetensors')
}

async function tensorsOfJson(path: string): Promise<TensorShape[]> {
  const value: unknown = await Bun.file(path)
    .json()
    .catch((error: Error) => {
      throw usageError(`--model ${path} is no JSON: ${error.message}`)
    })
  if (!Array.isArray(value) || !value.every(isTensorShape)) {
    throw usageError(
      `--model ${path} must hold a list of {"name", "dtype", "shape"}; of a checkpoint give the folder`,
    )
  }
  return value
}

function isTensorShape(value: unknown): value is TensorShape {
  const { name, dtype, shape } = (value ?? {}) as Partial<TensorShape>
  const isDimension = (n: unknown) => Number.isSafeInteger(n) && Number(n) >= 0
  return (
    typeof name === 'string' &&
    typeof dtype === 'string' &&
    Array.isArray(shape) &&
    shape.every(isDimension)
  )
}

async function tensorsOfFiles(path: string): Promise<TensorShape[]> {
  const { files } = await findCheckpointFiles(path)
  const tensors = new Map<string, TensorShape>()
  for (const file of files) {
    for (const tensor of await readShapes(file)) tensors.set(tensor.name, tensor)
  }
  return [...tensors.values()]
}

function predictionText(p: Prediction): string {
  const { h2d, broadcast, reload } = p.stages
  const row = (name: string, s: number, bytes: number) => [
    name,
    s.toFixed(4),
    formatRate(bytes, s),
    p.seconds > 0 ? `${Math.round((100 * s) / p.seconds)} %` : '',
  ]
  return [
    `${p.tensors} tensors, ${formatBytes(p.bytes)}, the largest is ${p.largest.name} with ${formatBytes(p.largest.bytes)}`,
    `${counted(p.ranks, 'rank')} on ${counted(p.hosts, 'host')}, ${p.tensor_parallel} to an engine, ${p.mode}: ${p.mode_reason}`,
    `pinned memory ${formatBytes(p.host_bytes.host)} a host, ${formatBytes(p.host_bytes.rank)} a rank`,
    `ring ${formatBytes(p.ring_bytes)}, ${p.buckets} buckets of at most ${formatBytes(p.bucket_bytes)}, ${p.segments} copies`,
    '',
    formatTable([
      ['stage', 'busy s', 'GB/s', 'of the time'],
      row('h2d (all devices)', h2d.busy_s, h2d.bytes),
      row('broadcast', broadcast.busy_s, broadcast.bytes),
      row('reload (one engine)', reload.busy_s, reload.bytes),
      row('update', p.seconds, p.bytes),
    ]),
    '',
    `bound by ${BOUNDS[p.bound_by]}`,
    '',
    `in the engines: ${p.tenths_s.map((s, i) => `${10 * (i + 1)} % ${formatSeconds(s)}`).join(', ')}`,
    '',
    directText(p.direct),
  ].join('\n')
}

function directText(direct: Prediction['direct']): string {
  const { seconds, gb_per_s, bound_by, link_bytes, read_bytes, chosen } = direct
  const reads = read_bytes > 0 ? `, ${formatBytes(read_bytes)} read of other hosts by each` : ''
  const by = bound_by === 'network' ? "the hosts' network" : BOUNDS.h2d
  return [
    `straight into the engines' memory, where their workers are ckpt's: ${seconds.toFixed(4)} s, ${gb_per_s.toFixed(2)} GB/s`,
    `${formatBytes(link_bytes)} over each device's link${reads}; bound by ${by}`,
    chosen
      ? "updates would be done so (their mode 'auto')"
      : 'updates would go through the ring: it is faster',
  ].join('\n')
}
