import type { EngineWeights } from '@ckpt/core'
import type { expectedTensors } from 'ckpt/cli/verify-engine'
import type { Checked } from './measure.ts'

export type Expected = Awaited<ReturnType<typeof expectedTensors>>

export async function weightsOf(url: string): Promise<EngineWeights> {
  const response = await fetch(`${url}/v1/weights`, { proxy: false, timeout: false })
  if (!response.ok) throw new Error(`/v1/weights answers ${response.status}`)
  return (await response.json()) as EngineWeights
}

/** Counts the tensors, those of every rank on its own, whose bytes in the engine are not those of the files or the trainer. */
export function compareWeights(
  { ranks }: EngineWeights,
  expected: ReadonlyMap<string, { readonly sha256: readonly string[] }>,
  rankCount: number,
): Checked {
  let right = 0
  for (const [rank, { tensors }] of ranks.entries()) {
    for (const [name, { sha256 }] of expected) {
      if (tensors[name]?.sha256 === sha256[rank]) right++
    }
  }
  const compared = expected.size * rankCount
  return { compared, wrong: compared - right }
}
