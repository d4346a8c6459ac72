import { type CopyPiece, type Library, selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, KIB, sizeName } from './bench.ts'
import { allocate, type DeviceBytes, joinGroup, SourceBytes, spoil } from './device-bytes.ts'
import type { Timed } from './measure.ts'
import { hashRanges, hex } from './pattern-file.ts'
import { measureRow } from './row.ts'
import { finish } from './streams.ts'

const PIECE_BYTES = [256 * KIB, 4 * KIB] as const
/** `ckpt_copy_device` takes no more. */
const PIECES_MOST = 2 ** 20

/**
 * Out of a ring into parameters on the same device, in one piece and in many of one call, as the reference engine takes a list.
 * The limit is one copy that CUDA itself makes, that of a broadcast to one other rank on the device.
 */
export const reload: Bench = {
  name: 'reload',
  bytesLeast: COPY_BYTES_LEAST,
  async *rows({ devices, sizes, dir, open }) {
    const { library: options, ranks } = selectDevices(devices, null)
    const library = open(options)
    const device = ranks[0]?.device ?? 0
    for (const bytes of sizes) {
      using stack = new DisposableStack()
      const source = new SourceBytes(library, stack, dir, bytes)
      const ring = allocate(library, stack, device, bytes)
      const parameters = allocate(library, stack, device, bytes)
      library.copyH2d(ring.stream, ring.memory, 0, source.buffer, 0, bytes)
      finish(library, [ring])
      const head = (name: string) => {
        return { bench: 'reload', case: `${sizeName(bytes)} ${name}`, bytes }
      }
      const limit = await measureRow(
        head('the limit: one broadcast'),
        broadcastOf(library, stack, source, ring, parameters),
      )
      yield limit
      const limitGbPerSecond = limit.gb_per_s ?? Number.NaN
      for (const pieceBytes of [bytes, ...PIECE_BYTES.filter((size) => size < bytes)]) {
        const pieces = reversed(bytes, pieceBytes)
        if (pieces.length > PIECES_MOST) continue
        const name =
          pieces.length === 1 ? 'in one piece' : `in ${pieces.length} of ${sizeName(pieceBytes)}`
        const timed = piecesOf(library, source, ring, parameters, pieces)
        yield await measureRow({ ...head(name), limitGbPerSecond }, timed)
      }
    }
  },
}

/** The last piece first: no two pieces can be copied as one, and one that stays where it was shows. */
function reversed(bytes: number, pieceBytes: number): CopyPiece[] {
  return Array.from({ length: bytes / pieceBytes }, (_, i) => ({
    dstOffset: bytes - (i + 1) * pieceBytes,
    srcOffset: i * pieceBytes,
    bytes: pieceBytes,
  }))
}

function broadcastOf(
  library: Library,
  stack: DisposableStack,
  source: SourceBytes,
  ring: DeviceBytes,
  parameters: DeviceBytes,
): Timed {
  const { bytes } = source
  const members = [ring, parameters]
  const group = joinGroup(library, stack, members)
  return {
    prepare: () => spoil(library, parameters.memory, bytes),
    run: () => {
      for (const member of members.keys()) library.groupBroadcast(group, member, 0, 0, bytes)
      finish(library, members)
    },
    check: () => source.compare(library, [parameters.memory]),
  }
}

function piecesOf(
  library: Library,
  source: SourceBytes,
  ring: DeviceBytes,
  parameters: DeviceBytes,
  pieces: readonly CopyPiece[],
): Timed {
  const { bytes, path } = source
  const { memory, stream } = parameters
  const inOrder = pieces.toReversed().map((piece) => ({ ...piece, offset: piece.srcOffset }))
  const expected = hashRanges(path, inOrder)
  const isWrong = (piece: CopyPiece) =>
    source.differs(library, memory, piece.dstOffset, piece.srcOffset, piece.bytes)
  return {
    prepare: () => spoil(library, memory, bytes),
    run: () => {
      library.copyDevice(stream, memory, ring.memory, pieces)
      finish(library, [parameters])
    },
    check: () => {
      // a piece at a time takes minutes for 4 KiB of 1 GiB
      const right = hex(library.memorySha256(memory, 0, bytes)) === expected
      return { compared: pieces.length, wrong: right ? 0 : pieces.filter(isWrong).length }
    },
  }
}
