import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { naturalCompare } from '@ckpt/core/checkpoint/natural-order'
import { type H2dPiece, type Handle, type Library, openLibrary } from '@ckpt/cuda'
import type { CopyCalls } from 'ckpt/daemon/rank/direct-copies'
import { MIB } from './bench.ts'
import { countCopies, DirectShare } from './direct-share.ts'
import { directWorkloads } from './direct-workloads.ts'
import { engineParameters } from './engine-parameters.ts'
import { layOut } from './models.ts'
import { parameterMap } from './parameter-map.ts'
import { RepeatedPattern } from './repeated-pattern.ts'

const RANKS = 8
const dir = mkdtempSync(join(tmpdir(), 'ckpt-direct-test-'))
const library: Library = openLibrary({ kind: 'host' })
const stack = new DisposableStack()
let signal: Handle
let staging: Handle
/** Of each model one share of eight. */
const shares = new Map<string, DirectShare>()

beforeAll(() => {
  signal = library.signalCreate()
  stack.defer(() => library.signalDestroy(signal))
  staging = library.bufferAlloc(4 * MIB, 0)
  stack.defer(() => library.bufferFree(staging))
  for (const { kind, name, tensors } of directWorkloads([16 * MIB], [])) {
    const sorted = tensors.toSorted((a, b) => naturalCompare(a.name, b.name))
    const checkpoint = layOut(name, sorted)
    const pattern = new RepeatedPattern(library, stack, dir, checkpoint.sources[0]!.bytes[0]!)
    const map = parameterMap(tensors, engineParameters(tensors, 3, RANKS), MIB)
    shares.set(kind, new DirectShare(library, stack, 0, checkpoint, pattern, map))
  }
})
afterAll(() => {
  stack.dispose()
  rmSync(dir, { recursive: true, force: true })
  expect(library.liveObjects()).toBe(0)
})

/** How many allocations are wrong after copies that are made by `calls`. */
function wrongOf(kind: string, calls: CopyCalls, stagingBytesMax?: number): number {
  const share = shares.get(kind)!
  share.spoil()
  share.copy(share.plan(stagingBytesMax), { library: calls, signal, staging })
  return share.check().wrong
}

/** The library with some of its calls replaced. */
function withCalls(changed: Partial<CopyCalls>): CopyCalls {
  return {
    copyH2dBatch: (...call) => library.copyH2dBatch(...call),
    bufferGather: (...call) => library.bufferGather(...call),
    eventRecord: (...call) => library.eventRecord(...call),
    eventNotify: (...call) => library.eventNotify(...call),
    eventQuery: (event) => library.eventQuery(event),
    ...changed,
  }
}

test.each(['dense', 'moe'])('%s: right as the daemon copies, and with nothing gathered', (kind) => {
  expect(wrongOf(kind, library)).toBe(0)
  expect(wrongOf(kind, library, 0)).toBe(0)
  const [gathered, alone] = [undefined, 0].map((most) => {
    return countCopies([shares.get(kind)!.plan(most)])
  })
  expect(gathered!.pieces).toBeGreaterThan(0)
  expect(gathered!.rows).toBeGreaterThan(0)
  expect([alone!.pieces, alone!.gathered]).toEqual([0, 0])
  expect(alone!.single + alone!.rows).toBe(gathered!.single + gathered!.rows + gathered!.pieces)
})

test.each(['dense', 'moe'])('%s: one byte of one copy that is wrong shows', (kind) => {
  const share = shares.get(kind)!
  const allocations = share.check().compared
  expect(allocations).toBeGreaterThan(1)
  const broken: Record<string, Partial<CopyCalls>> = {
    'no last byte': {
      copyH2dBatch: once('row', (piece) => ({ ...piece, width: piece.width - 1 })),
    },
    'the bytes beside them': {
      copyH2dBatch: once('row', (piece) => ({ ...piece, bufferOffset: piece.bufferOffset + 2 })),
    },
    'no last row': {
      copyH2dBatch: once('rows', (piece) => ({ ...piece, height: piece.height - 1 })),
    },
    'rows without their pitch': {
      copyH2dBatch: once('rows', (piece) => ({ ...piece, bufferPitch: piece.width })),
    },
    'a piece less gathered': {
      bufferGather: (to, pieces) => library.bufferGather(to, pieces.slice(1)),
    },
  }
  for (const [what, calls] of Object.entries(broken)) {
    // what the staging memory still has is right
    spoilStaging()
    expect([what, wrongOf(kind, withCalls(calls))]).toEqual([what, 1])
  }
  expect(wrongOf(kind, library)).toBe(0)
})

/** For the first piece of one row, or of more; the others are as they should be. */
function once(
  kind: 'row' | 'rows',
  change: (piece: H2dPiece) => H2dPiece,
): CopyCalls['copyH2dBatch'] {
  let changed = false
  return (stream, pieces) => {
    const made = pieces.map((piece) => {
      if (changed || (piece.height === 1) !== (kind === 'row')) return piece
      changed = true
      return change(piece)
    })
    library.copyH2dBatch(stream, made)
  }
}

function spoilStaging(): void {
  using own = new DisposableStack()
  const other = library.bufferAlloc(4 * MIB, 0)
  own.defer(() => library.bufferFree(other))
  const piece = { srcBuffer: other, srcOffset: 0, srcPitch: 0, dstOffset: 0, dstPitch: 0 }
  library.bufferGather(staging, [{ ...piece, width: 4 * MIB, height: 1 }])
}
