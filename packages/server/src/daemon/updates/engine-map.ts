import {
  CkptError,
  type EngineMapAnswer,
  type EngineMapQuery,
  type MapCopy,
  type PlacedCopy,
} from '@ckpt/core'
import { clockMs } from '../clock.ts'
import type { RankHandle } from '../rank/handle.ts'
import type { EngineMapSummary } from '../rank/messages.ts'
import { engineKey } from './engine-key.ts'
import type { UpdateQueue } from './queue.ts'

/** A rank that is in an update answers when that has ended; nobody waits longer. */
const WAIT_MS = 5000
/** Between looks whether an update still uses a rank. */
const LOOK_MS = 20

export interface EngineMapHost {
  readonly links: readonly RankHandle[]
  readonly queue: Pick<UpdateQueue, 'runningId'>
}

interface RankSummary {
  readonly rank: number
  readonly summary: EngineMapSummary
}

/**
 * What the ranks know of where an engine's weights lie.
 *
 * @throws CkptError `bad_request`, `not_found`; `update_running`: a rank has not answered within `waitMs`
 */
export async function engineMap(
  host: EngineMapHost,
  { url, uds, tensor }: EngineMapQuery,
  waitMs = WAIT_MS,
): Promise<EngineMapAnswer> {
  const engine = engineKey({ url, uds: uds ?? null })
  const request = { type: 'engine_map', engine, tensor: tensor ?? null } as const
  const endMs = clockMs() + waitMs
  const asked = await Promise.all(
    host.links.map(async (link) => ({
      rank: link.rank.rank,
      summary: await answerOf(link, request, endMs, () => notNow(host, link, waitMs)),
    })),
  )
  const known = asked.filter((one): one is RankSummary => one.summary !== null)
  if (known.length === 0) {
    const where = uds === undefined ? url : `${url} behind ${uds}`
    const message = `no engine at ${where} has told this daemon where its weights lie: one with ckpt_worker does when an update was left to choose its mode`
    throw new CkptError('not_found', message)
  }
  const ranks = known.map((one) => rankAnswer(one, tensor))
  if (tensor === undefined) return { url, ranks }
  return { url, tensor: tensorAnswer(url, tensor, known), ranks }
}

async function answerOf(
  link: RankHandle,
  request: { type: 'engine_map'; engine: string; tensor: string | null },
  endMs: number,
  late: () => CkptError,
): Promise<EngineMapSummary | null> {
  // asked only then: whatever its thread is asked in an update is kept until that has ended
  while (link.busy && clockMs() < endMs) await Bun.sleep(LOOK_MS)
  if (link.busy) throw late()
  // what a Worker knew has died with it
  if (link.dead !== null) return null
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(late()), Math.max(0, endMs - clockMs()))
  try {
    return await Promise.race([link.request(request), promise])
  } finally {
    clearTimeout(timer)
  }
}

function notNow(
  { queue }: EngineMapHost,
  { rank: { rank } }: RankHandle,
  waitMs: number,
): CkptError {
  const { runningId } = queue
  const why = runningId === null ? 'it is busy' : `update ${runningId} runs`
  const message = `rank ${rank} has not told its map within ${waitMs / 1000} s: ${why}`
  const update = runningId === null ? {} : { update_id: runningId }
  return new CkptError('update_running', message, { rank, ...update })
}

function rankAnswer(
  { rank, summary }: RankSummary,
  tensor: string | undefined,
): EngineMapAnswer['ranks'][number] {
  const { digest, tensors, copies, bytes, allocationBytes } = summary
  const answer = { rank, digest, tensors, copies, bytes, allocations: [...allocationBytes] }
  if (tensor === undefined) return answer
  return { ...answer, placed: (summary.tensor?.copies ?? []).map(placedCopy) }
}

function placedCopy(copy: MapCopy): PlacedCopy {
  const { source, allocation, destination, run, sizes } = copy
  return {
    source,
    allocation,
    destination,
    run,
    sizes: [...sizes],
    source_strides: [...copy.sourceStrides],
    destination_strides: [...copy.destinationStrides],
  }
}

function tensorAnswer(
  url: string,
  name: string,
  known: readonly RankSummary[],
): EngineMapAnswer['tensor'] {
  const placed = known.find(({ summary }) => summary.tensor !== null)?.summary.tensor
  if (placed) return { name, dtype: placed.dtype, shape: [...placed.shape] }
  const message = `the placement map of the engine at ${url} has no ${name}`
  throw new CkptError('not_found', message, { tensor: name })
}
