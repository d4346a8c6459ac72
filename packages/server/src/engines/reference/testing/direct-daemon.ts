import { buildTable, tensorBytes, type TensorTable } from '@ckpt/core'
import {
  type LookAnswer,
  packBegin,
  packEnd,
  packLook,
  readGrant,
  readLookAnswer,
} from '@ckpt/core/placement/direct-messages'
import { decodePlacementMap, type PlacementMap } from '@ckpt/core/placement/placement-map'
import { type DirectPlan, planDirect } from '@ckpt/core/placement/plan-direct'
import type { Handle, Library } from '@ckpt/cuda'
import { type DaemonSide, RING_BYTES, type TestTensor } from './scripted-daemon.ts'

const WAIT_MS = 10_000

/** What the rank at `side` says of its placement. Throws when it refuses. */
export async function look(
  side: DaemonSide,
  knownMap: string | null = null,
): Promise<LookAnswer & { readonly decoded: PlacementMap | null }> {
  await side.send(packLook(knownMap))
  const answer = readLookAnswer(await side.reply())
  if (answer === null || 'refused' in answer) {
    throw new Error(answer === null ? 'no answer of ckpt_worker' : answer.refused)
  }
  const { encodedMap } = answer
  const decoded = encodedMap.length === 0 ? null : decodePlacementMap(encodedMap)
  return { ...answer, decoded }
}

/** Why a message is refused; null: it is granted. */
export async function ask(side: DaemonSide, message: Uint8Array): Promise<string | null> {
  await side.send(message)
  const answer = readGrant(await side.reply())
  if (answer === null) throw new Error('no answer of ckpt_worker')
  return answer.refused
}

export const askBegin = (side: DaemonSide, { generation }: LookAnswer) =>
  ask(side, packBegin(generation))
export const askEnd = (side: DaemonSide) => ask(side, packEnd())

/** The tensors in one buffer that {@link ScriptedDaemon.hold} has filled. */
export function tableOf(tensors: readonly TestTensor[]): TensorTable {
  return buildTable(
    tensors.map(({ name, dtype, shape, offset }) => {
      const bytes = tensorBytes(dtype, shape) ?? 0
      return { name, dtype, shape, bytes, owner: 0, offset }
    }),
  )
}

/** Throws the reason when the map does not fit. */
export function planOf(map: PlacementMap, tensors: readonly TestTensor[]): DirectPlan {
  const sources = [{ starts: Float64Array.of(0), bytes: Float64Array.of(RING_BYTES) }]
  const plan = planDirect(map, tableOf(tensors), sources)
  if ('reason' in plan) throw new Error(plan.reason)
  return plan
}

/** Copies the tensors out of `buffer` into the rank's parameters; what is to be staged goes there piece by piece. */
export function copyInto(
  library: Library,
  { handles }: LookAnswer,
  map: PlacementMap,
  tensors: readonly TestTensor[],
  buffer: Handle,
): void {
  const { copies, staging } = planOf(map, tensors)
  const opened = handles.map((handle, i) =>
    library.memoryOpen(0, Uint8Array.fromHex(handle), map.allocationBytes[i]!),
  )
  const stream = library.streamCreate(0)
  for (const { allocation, source, sourcePitch, width, height, ...to } of copies) {
    const place = [opened[allocation]!, to.destination, to.destinationPitch] as const
    library.copyH2d2d(stream, ...place, buffer, source, sourcePitch, width, height)
  }
  for (const gathered of staging.copies) {
    const end = gathered.offset + gathered.bytes
    for (const { offset, source, sourcePitch, width, height } of staging.pieces) {
      if (offset < gathered.offset || offset >= end) continue
      const destination = gathered.destination + offset - gathered.offset
      const place = [opened[gathered.allocation]!, destination, width] as const
      library.copyH2d2d(stream, ...place, buffer, source, sourcePitch, width, height)
    }
  }
  library.streamSync(stream, 0, WAIT_MS)
  library.streamDestroy(stream)
  for (const memory of opened) library.memoryFree(memory)
}
