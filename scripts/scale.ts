/**
 * Makes the tables of `docs/scale.md`: what is predicted of clusters that others have published results of, and what the same
 * simulation says of updates that were measured.
 *
 *     bun scripts/scale.ts            # writes them
 *     bun scripts/scale.ts --check    # status 1 when they are not what the code gives
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { DEFAULT_RATES } from '../packages/core/src/plan/cost.ts'
import {
  clusterComparisons,
  type Compared,
  type ComparedCluster,
  type ComparedDirect,
  comparisons,
  directComparisons,
  predictWith,
} from '../packages/bench/src/predicted.ts'
import { type ModelName, modelTensors } from '../packages/server/src/cli/model-shapes.ts'
import { replaceSection } from './bench-results.ts'

const ROOT = join(import.meta.dir, '..')
const DOCUMENT = 'docs/scale.md'
const MEASURED = 'docs/bench/vllm'
const CLUSTERS = 'docs/bench/prediction'
const REGENERATE = 'bun scripts/scale.ts'

/** Updates by broadcast that checkpoint-engine's README gives, in seconds. */
const PUBLISHED: readonly { model: ModelName; gpus: string; hosts: number; seconds: number }[] = [
  { model: 'glm-4.5-air', gpus: '8 x H800', hosts: 1, seconds: 3.47 },
  { model: 'qwen3-235b-a22b', gpus: '8 x H800', hosts: 1, seconds: 6.22 },
  { model: 'deepseek-v3.1', gpus: '16 x H20', hosts: 2, seconds: 10.19 },
  { model: 'deepseek-v3.1', gpus: '256 x H20', hosts: 32, seconds: 11.33 },
  { model: 'kimi-k2', gpus: '16 x H20', hosts: 2, seconds: 14.36 },
  { model: 'kimi-k2', gpus: '256 x H20', hosts: 32, seconds: 16.04 },
]
const DEVICES_PER_HOST = 8
const TENSOR_PARALLEL_MOST = 16
const H2D_GBPS = 50
const BROADCASTS_GBPS = [100, 200] as const
/** Replayed, and as vLLM loads by itself. */
const TENSOR_US = [5, 80] as const
const BUCKET_US = 50
const FREE_BYTES = 20 * 2 ** 30

export function predictions(): string {
  const cases = TENSOR_US.flatMap((us) => BROADCASTS_GBPS.map((gbps) => ({ us, gbps })))
  const heads = cases.map(({ us, gbps }) => `${us} us, ${gbps} GB/s`)
  const lines = PUBLISHED.map(({ model, gpus, hosts, seconds }) => {
    const tensors = modelTensors(model)
    const made = cases.map(({ us, gbps }) => {
      const rates = {
        ...DEFAULT_RATES,
        h2dBytesPerSecond: H2D_GBPS * 1e9,
        broadcastBytesPerSecond: gbps * 1e9,
        tensorSeconds: us / 1e6,
        bucketSeconds: BUCKET_US / 1e6,
      }
      const tensorParallel = Math.min(TENSOR_PARALLEL_MOST, hosts * DEVICES_PER_HOST)
      const cluster = { hosts, devicesPerHost: DEVICES_PER_HOST, tensorParallel }
      return predictWith({ tensors, rates, ...cluster, freeBytes: FREE_BYTES }).prediction
    })
    const [first] = made
    if (first === undefined) throw new Error('nothing is predicted')
    const size = `${(first.bytes / 1e9).toFixed(0)} GB in ${first.tensors} tensors`
    const memory = `${(first.host_bytes.rank / 1e9).toFixed(1)} GB`
    const cells = made.map((one) => `${one.seconds.toFixed(2)} s (${one.bound_by})`)
    const { direct } = first
    const straight = `${direct.seconds.toFixed(2)} s (${direct.bound_by})`
    return [`${model}, ${size}`, gpus, `${seconds.toFixed(2)} s`, ...cells, straight, memory]
  })
  const head = ['model', 'GPUs', 'published', ...heads, 'direct', 'pinned memory a rank']
  return table(head, lines)
}

/** What a document gives, and the file that it is from. */
type FromFile<Of> = Of & { readonly file: string }

export function measured(root: string): FromFile<Compared>[] {
  const isWanted = (file: string) =>
    /^h200-(dense|moe)[^.]*\.json$/.test(file) && !file.includes('graphs')
  return ofDocuments(root, MEASURED, comparisons, isWanted)
}

/** One server, alone on its device. */
export function direct(root: string): FromFile<ComparedDirect>[] {
  const isWanted = (file: string) =>
    /^h200-(dense|moe)[^.]*\.json$/.test(file) && !/graphs|two|three/.test(file)
  return ofDocuments(root, MEASURED, directComparisons, isWanted)
}

export function clusters(root: string): FromFile<ComparedCluster>[] {
  return ofDocuments(root, CLUSTERS, clusterComparisons)
}

/** Of every document of a folder that is wanted, in the order of their names. */
function ofDocuments<Of>(
  root: string,
  folder: string,
  read: (file: string, text: string) => Of[],
  isWanted: (file: string) => boolean = () => true,
): FromFile<Of>[] {
  const files = readdirSync(join(root, folder)).filter(isWanted).toSorted()
  return files.flatMap((file) => {
    const text = readFileSync(join(root, folder, file), 'utf8')
    return read(file, text).map((one) => ({ file, ...one }))
  })
}

/** Predicted by measured, less one. */
export function deviation({
  predictedSeconds,
  measuredSeconds,
}: Pick<Compared, 'predictedSeconds' | 'measuredSeconds'>): number {
  return predictedSeconds / measuredSeconds - 1
}

function comparisonTable(all: FromFile<Compared>[]): string {
  const lines = all.map((one) => [
    `${one.what}, ${one.round}`,
    link(MEASURED, one),
    `${one.callSeconds.toFixed(3)} s`,
    `${one.measuredSeconds.toFixed(3)} s`,
    `${one.predictedSeconds.toFixed(3)} s`,
    percent(deviation(one)),
  ])
  const head = ['update', 'row of', 'whole call', 'copies and reload', 'predicted', 'deviation']
  return table(head, lines)
}

function directTable(all: FromFile<ComparedDirect>[]): string {
  const lines = all.map((one) => [
    one.what,
    link(MEASURED, one),
    `${one.runs}`,
    `${one.measuredSeconds.toFixed(3)} s`,
    `${one.predictedSeconds.toFixed(3)} s`,
    percent(deviation(one)),
  ])
  const head = ['updates', 'row of', 'runs', 'whole call, median', 'predicted', 'deviation']
  return table(head, lines)
}

function clusterTable(all: FromFile<ComparedCluster>[]): string {
  const lines = all.map((one) => [
    one.what,
    link(CLUSTERS, one),
    `${one.runs}`,
    `${one.measuredSeconds.toFixed(3)} s (slowest ${one.slowestSeconds.toFixed(3)})`,
    `${one.predictedSeconds.toFixed(3)} s`,
    percent(deviation(one)),
  ])
  const head = ['updates', 'row of', 'runs', 'measured, median', 'predicted', 'deviation']
  return table(head, lines)
}

function link(folder: string, { file }: FromFile<object>): string {
  return `[${file}](${relative(dirname(DOCUMENT), join(folder, file))})`
}

function percent(part: number): string {
  return `${(part * 100).toFixed(1)} %`
}

function table(head: readonly string[], lines: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...lines.map(line)].join('\n')
}

export function section(root: string): string {
  return [
    predictions(),
    comparisonTable(measured(root)),
    directTable(direct(root)),
    clusterTable(clusters(root)),
  ].join('\n\n')
}

if (import.meta.main) {
  const check = process.argv.includes('--check')
  const path = join(ROOT, DOCUMENT)
  const text = readFileSync(path, 'utf8')
  const wanted = replaceSection(text, section(ROOT), DOCUMENT)
  if (check && wanted !== text) {
    process.stderr.write(`${DOCUMENT} is not what the code gives: run \`${REGENERATE}\`\n`)
    process.exit(1)
  }
  if (wanted !== text) writeFileSync(path, wanted)
}
