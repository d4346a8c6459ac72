// Writes a safetensors checkpoint with the tensor shapes of a model and deterministic content.
//   bun scripts/make-checkpoint.ts DIR [--model small-llama|qwen3-8b|...] [--seed N] [--shard-gb N]
import { mkdirSync } from 'node:fs'
import { parseArgs } from 'node:util'
import {
  MODEL_NAMES,
  type ModelName,
  modelTensors,
} from '../packages/server/src/cli/model-shapes.ts'
import { writeCheckpoint } from '../packages/server/src/cli/write-checkpoint.ts'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  // what it does not know is told by the usage below
  strict: false,
  options: {
    model: { type: 'string', default: 'small-llama' },
    seed: { type: 'string', default: '1' },
    'shard-gb': { type: 'string', default: '1' },
  },
})
const directory = positionals[0]
const known = ['model', 'seed', 'shard-gb']
const strangers = Object.keys(values).filter((name) => !known.includes(name))
const model = MODEL_NAMES.find((name) => name === values.model)
const shardBytes = Number(values['shard-gb']) * 1e9
const seed = Number(values.seed)
if (
  directory === undefined ||
  strangers.length > 0 ||
  model === undefined ||
  !(shardBytes > 0) ||
  !Number.isInteger(seed)
) {
  process.stderr.write(
    `usage: bun scripts/make-checkpoint.ts DIR [--model ${MODEL_NAMES.join('|')}] [--seed N] [--shard-gb N]\n`,
  )
  process.exit(2)
}
mkdirSync(directory, { recursive: true })
const written = await writeCheckpoint(directory, modelTensors(model as ModelName), seed, shardBytes)
process.stdout.write(
  `${directory}: ${written.tensors} tensors, ${written.bytes} bytes in ${written.files.length} files\n`,
)
