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

/** Null: what it is told is told wrongly. */
function told() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        model: { type: 'string', default: 'small-llama' },
        seed: { type: 'string', default: '1' },
        'shard-gb': { type: 'string', default: '1' },
      },
    })
  } catch {
    return null
  }
}

const { values, positionals } = told() ?? { values: {}, positionals: [] }
const directory = positionals[0]
const model = MODEL_NAMES.find((name) => name === values.model)
const shardBytes = Number(values['shard-gb']) * 1e9
const seed = Number(values.seed)
if (
  directory === undefined ||
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
