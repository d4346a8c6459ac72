import { join } from 'node:path'
import { type } from 'arktype'
import { DTYPES, dtypeIndex } from '@ckpt/core'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { tensorBytes } from 'ckpt/cli/write-checkpoint'
import { outputOf } from './command.ts'

const TIMEOUT_MS = 300_000
const PROGRAM = join(import.meta.dir, 'trainer.py')
const CLIENT = join(import.meta.dir, '../../../python/ckpt_client')

export interface TrainerJob {
  /** Where the daemon listens. */
  readonly daemon: string
  readonly checkpoint: string
  /** Of torch: `cpu`, `cuda:0`. */
  readonly device: string
  readonly tensors: readonly TensorShape[]
  readonly versions: number
}

/** What the trainer has measured. */
export const TrainerReport = type({
  /** Of each call of `register_tensors`. */
  seconds: 'number[]',
  /** Copies into pinned memory, before each call; none with tensors in CPU memory. */
  d2h_gb_per_s: 'number[]',
  /** Of each tensor of the last version. */
  sha256: { '[string]': 'string' },
})
export type TrainerReport = typeof TrainerReport.infer

/** A trainer's process from its start to its end. @throws Error with its last words when it fails */
export async function runTrainer(python: string, job: TrainerJob): Promise<TrainerReport> {
  const tensors = job.tensors.map((tensor) => ({
    ...tensor,
    dtype: DTYPES[dtypeIndex(tensor.dtype)]?.torch,
    bytes: tensorBytes(tensor),
  }))
  const { PYTHONPATH } = process.env
  const out = await outputOf([python, PROGRAM], {
    timeoutMs: TIMEOUT_MS,
    env: { PYTHONPATH: PYTHONPATH ? `${CLIENT}:${PYTHONPATH}` : CLIENT },
    input: JSON.stringify({ ...job, tensors }),
  })
  // a library may have printed before
  const report = TrainerReport(JSON.parse(out.trim().split('\n').at(-1) ?? ''))
  if (report instanceof type.errors) throw new Error(`${PROGRAM}: ${report.summary}`)
  return report
}
