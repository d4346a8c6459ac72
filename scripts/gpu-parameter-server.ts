/**
 * checkpoint-engine's own ParameterServer against engines of ours, on a GPU: a ring that is a whole allocation of torch's, and one
 * that is a part of one. `scripts/gpu-parameter-server` calls this.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type EngineWeights, readEngineMessage } from '@ckpt/core'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  type WrittenTensor,
  writeSafetensors,
} from '../test/support/checkpoint.ts'
import { ParameterServer, type ServerAnswer } from '../test/support/parameter-server.ts'
import { CKPT, ROOT, scratch, type Started, start } from '../test/support/process.ts'

const PYTHON = process.env.CKPT_PYTHON ?? 'python3'
const WORKER = join(ROOT, 'test/python/checkpoint_engine_worker.py')
const UPDATES = 3
const TIMEOUT_SECONDS = 120
const GIB = 2 ** 30
/** No ring of these updates is smaller; small tensors of torch's own may stay. */
const RING_BYTES_LEAST = 2 ** 21

const { values } = parseArgs({
  options: { devices: { type: 'string', default: 'cuda' }, record: { type: 'string' } },
})
if (values.devices !== 'cuda' && values.devices !== 'host') throw new Error('cuda or host')
const ON_GPU = values.devices === 'cuda'
const DEVICE = ON_GPU ? 'cuda' : 'shm'

interface Size {
  readonly name: string
  /** Of the large tensors of each layer. */
  readonly rows: number
  readonly layers: number
  /** Of the server's buckets, at least the largest tensor; its ring has two. */
  readonly bucketBytes: number
}

/** Small rings of torch are parts of an allocation of 20 MiB. */
const SIZES: readonly Size[] = [
  { name: 'small', rows: 300, layers: 6, bucketBytes: 2 ** 20 },
  { name: 'large', rows: ON_GPU ? 20_000 : 4000, layers: 8, bucketBytes: 2 ** 25 },
]
const RECORDED: Size = { name: 'recorded', rows: 1, layers: 4, bucketBytes: 8192 }

const dir = scratch()
let seed = 0

function writeCheckpoint({ rows, layers }: Size): string[] {
  seed++
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  const tensors: WrittenTensor[] = [
    tensor('empty', 'F16', 2, 0, 5),
    tensor('größe', 'U8', 1, 13),
    tensor('scalar', 'I64', 8),
  ]
  for (let layer = 0; layer < layers; layer++) {
    tensors.push(
      tensor(`layers.${layer}.large`, 'BF16', 2, rows, 2048),
      tensor(`layers.${layer}.norm`, 'F32', 4, 77),
      tensor(`layers.${layer}.scale`, 'F8_E4M3', 1, 33, 7),
    )
  }
  const file = join(dir.path, `${seed}.safetensors`)
  writeSafetensors(file, tensors)
  return [file]
}

const ENGINES: Readonly<Record<string, () => Promise<Started>>> = {
  'reference engine': () => {
    const devices = ['--devices', ON_GPU ? 'cuda:0' : 'host', '--fault', 'error@1']
    return start([...CKPT, 'engine', '--listen', '127.0.0.1:0', ...devices], /(http:\/\/\S+)/)
  },
  ckpt_worker: () => {
    const server = ['--server', 'checkpoint_engine', '--fault', 'error@1']
    const command = [PYTHON, WORKER, '--device', DEVICE, ...server, '--worker', 'ckpt_worker']
    const path = [join(ROOT, 'python/ckpt_worker'), ...(process.env.PYTHONPATH?.split(':') ?? [])]
    return start(command, /(http:\/\/\S+)/, { PYTHONPATH: path.join(':') })
  },
}

async function weightsOf(url: string): Promise<EngineWeights> {
  return (await (await fetch(`${url}/v1/weights`)).json()) as EngineWeights
}

/** Of the engine's rank; one that has no keys yet takes any. */
async function uuidOf(url: string): Promise<string> {
  const { ranks } = await weightsOf(url)
  return ranks[0]?.uuid.replace('GPU-', '') ?? 'any'
}

/** Where the server's ring lay in its allocation, and in how many lists the weights came. */
function describeMessages({ messages }: ServerAnswer): string {
  const read = messages.map((message) => readEngineMessage(Uint8Array.fromHex(message)))
  const [handle] = read
  if (handle?.type !== 'handle') throw new Error('the first message is no handle')
  const lists = read.filter(({ type }) => type === 'list').length
  return `ring of ${(handle.bytes / 2 ** 20).toFixed(1)} MiB at byte ${handle.offset}, ${lists} lists`
}

async function updateOnce(server: ParameterServer, url: string, size: Size): Promise<ServerAnswer> {
  const files = writeCheckpoint(size)
  const job = { url: `${url}/collective_rpc`, files, timeout: TIMEOUT_SECONDS }
  const answer = await server.update(job)
  if (!answer.ok) throw new Error(answer.error)
  const { ranks } = await weightsOf(url)
  const compared = compareWeights(ranks, readSafetensors(files), 1)
  console.log(`  ${compared} tensors equal, ${describeMessages(answer)}`)
  return answer
}

/** The engine's fault strikes: the server says so, and the engine's worker has raised what it was told. */
async function failOnce(server: ParameterServer, url: string, size: Size): Promise<ServerAnswer> {
  const files = writeCheckpoint(size)
  const job = { url: `${url}/collective_rpc`, files, timeout: TIMEOUT_SECONDS }
  const answer = await server.update(job)
  const expected = 'RuntimeError: Failed to update weights due to remote errors'
  if (answer.error !== expected) throw new Error(`it should have failed: ${answer.error}`)
  console.log(`  a list that the engine refuses: ${answer.error}`)
  return answer
}

/** No list is refused any more. */
async function disarm(url: string): Promise<void> {
  await fetch(`${url}/v1/faults`, { method: 'POST', body: JSON.stringify({ faults: [] }) })
}

async function check(name: string, size: Size, updates: number): Promise<ServerAnswer[]> {
  console.log(`${name}, ${size.name}`)
  const engine = await ENGINES[name]!()
  const url = engine.ready[1]!
  let server: ParameterServer | null = null
  try {
    const env = { PS_MAX_BUCKET_SIZE_GB: String(size.bucketBytes / GIB) }
    server = await ParameterServer.start(PYTHON, DEVICE, { uuid: await uuidOf(url), env })
    const answers = [await failOnce(server, url, size)]
    await disarm(url)
    for (let update = 0; update < updates; update++) {
      answers.push(await updateOnce(server, url, size))
    }
    // what torch has shared stays allocated until the engine has said that it has unmapped it
    const left = answers.map(({ held, device_bytes }) => held ?? device_bytes)
    console.log(`  ${ON_GPU ? 'bytes' : 'buffers'} that the server still has: ${left.join(', ')}`)
    if (left.some((one) => one >= (ON_GPU ? RING_BYTES_LEAST : 1)))
      throw new Error('the engine has not given the ring back')
    return answers
  } finally {
    await server?.stop()
    await engine.stop()
  }
}

try {
  for (const name of Object.keys(ENGINES)) {
    for (const size of SIZES) await check(name, size, UPDATES)
  }
  if (values.record !== undefined) {
    const answers = await check('reference engine', RECORDED, 1)
    const [failed, updated] = answers.map(({ messages }) => messages)
    writeFileSync(values.record, `${JSON.stringify({ updated, failed }, null, 2)}\n`)
  }
} finally {
  dir.remove()
}
console.log('gpu-parameter-server: passed')
