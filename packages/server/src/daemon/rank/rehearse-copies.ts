import { buildTable, CkptError, type DirectCopy, type DirectPlan } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { copyOrder, DirectCopies, type DirectTarget } from './direct-copies.ts'
import { OwnMemory } from './own-memory.ts'

/** As of a mixture of experts: some ten copies each. */
const GROUPS = 8
const COPIES = 12
const COPY_BYTES = 64 * 2 ** 10
const STAGED = 16
const STAGED_BYTES = 256
const WAIT_MS = 5
const LIMIT_MS = 500

/** Pinned memory that {@link rehearseCopies} reads. */
export const COPIED_BYTES = GROUPS * COPIES * COPY_BYTES

/**
 * The copies of small direct updates into memory of this process, so that the first real one finds its code compiled and the driver's
 * batches made once. Blocks.
 *
 * @param buffer of {@link COPIED_BYTES}
 * @param stopped asked before each run, and while one is waited for
 * @throws CkptError of what one has failed
 */
export function rehearseCopies(
  library: Library,
  device: number,
  buffer: Handle,
  runs: number,
  stopped: () => boolean,
): void {
  using stack = new DisposableStack()
  const memory = library.memoryAlloc(device, COPIED_BYTES + STAGED * STAGED_BYTES)
  stack.defer(() => library.memoryFree(memory))
  const staging = library.bufferAlloc(STAGED * STAGED_BYTES, 0)
  stack.defer(() => library.bufferFree(staging))
  const signal = library.signalCreate()
  stack.defer(() => library.signalDestroy(signal))
  const own = new OwnMemory(library, device, [memory])
  stack.defer(() => own.free())
  stack.defer(() => own.settle(LIMIT_MS))
  const target = { library, signal, ...MADE_UP, staging: () => staging }
  for (let run = 0; run < runs && !stopped(); run++) {
    copyAll(library, { ...target, buffers: [Uint32Array.of(buffer)] }, own, stopped)
  }
}

function copyAll(
  library: Library,
  target: DirectTarget,
  own: OwnMemory,
  stopped: () => boolean,
): void {
  const { plan, layout, signal } = target
  const copies = new DirectCopies(target, own)
  const { count } = copyOrder(plan, layout)
  const endMs = clockMs() + LIMIT_MS
  while (!copies.done && !stopped()) {
    if (clockMs() > endMs) throw new CkptError('device_error', 'its copies do not end')
    copies.enqueue(count, clockMs())
    copies.takeComplete(clockMs())
    if (!copies.done) waitShortly(library, signal)
  }
}

function waitShortly(library: Library, signal: Handle): void {
  try {
    library.signalWait(signal, WAIT_MS)
  } catch (error) {
    if (CkptError.wrap(error).code !== 'update_timeout') throw error
  }
}

const MADE_UP = {
  plan: madeUpPlan(),
  layout: {
    table: buildTable([]),
    sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(COPIED_BYTES) }],
  },
}

/** Every other copy is of rows. */
function madeUpPlan(): DirectPlan {
  const copies = Array.from({ length: GROUPS * COPIES }, (_, i): DirectCopy => {
    const at = i * COPY_BYTES
    const [width, height] = i % 2 === 0 ? [COPY_BYTES, 1] : [COPY_BYTES / 8, 4]
    const pitch = height === 1 ? width : 2 * width
    const pitches = { sourcePitch: pitch, destinationPitch: pitch }
    return { owner: 0, source: at, allocation: 0, destination: at, ...pitches, width, height }
  })
  const pieces = Array.from({ length: STAGED }, (_, i) => {
    const from = { owner: 0, source: i * COPY_BYTES, sourcePitch: STAGED_BYTES }
    return { ...from, offset: i * STAGED_BYTES, width: STAGED_BYTES, height: 1 }
  })
  const bytes = STAGED * STAGED_BYTES
  const gathered = { offset: 0, allocation: 0, destination: COPIED_BYTES, bytes }
  return {
    copies,
    groups: Array.from({ length: GROUPS + 1 }, (_, group) => group * COPIES),
    staging: { bytes, pieces, copies: [gathered] },
    fetched: [],
    bytes: copies.reduce((sum, { width, height }) => sum + width * height, bytes),
  }
}
