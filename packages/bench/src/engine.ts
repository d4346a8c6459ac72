import type { EngineTarget, EngineWeights } from '@ckpt/core'
import type { expectedTensors } from 'ckpt/cli/verify-engine'
import { type RunningEngine, runReferenceEngine } from 'ckpt/engines/reference/index'
import type { Checked } from './measure.ts'

/** Ranks of the reference engine in the benches of whole updates. */
export const RANKS = 2

export type Expected = Awaited<ReturnType<typeof expectedTensors>>

export function startEngine(devices: string): Promise<RunningEngine> {
  return runReferenceEngine({
    listen: '127.0.0.1:0',
    tensorParallelSize: RANKS,
    devices,
    dialect: 'D4',
    faults: [],
  })
}

/** The engine as the target of an update, with all its ranks. */
export function targetOf({ url }: RunningEngine): EngineTarget {
  const ranks = Array.from({ length: RANKS }, (_, rank) => rank)
  return { url: `${url}/collective_rpc`, ranks, engine: 'vllm' }
}

export async function weightsOf({ url }: RunningEngine): Promise<EngineWeights> {
  const response = await fetch(`${url}/v1/weights`, { proxy: false, timeout: false })
  if (!response.ok) throw new Error(`/v1/weights answers ${response.status}`)
  return (await response.json()) as EngineWeights
}

/** Counts the tensors, those of every rank on its own, whose bytes in the engine are not those of the files. */
export function compareWeights({ ranks }: EngineWeights, expected: Expected): Checked {
  let right = 0
  for (const [rank, { tensors }] of ranks.entries()) {
    for (const [name, { sha256 }] of expected) {
      if (tensors[name]?.sha256 === sha256[rank]) right++
    }
  }
  const compared = expected.size * RANKS
  return { compared, wrong: compared - right }
}
