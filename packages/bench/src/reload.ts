import { type CopyPiece, selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, KIB, sizeName } from './bench.ts'
import { allocate, SourceBytes, spoil, WAIT_MS } from './device-bytes.ts'
import { measureRow } from './row.ts'

const PIECE_KIB = [256, 4] as const

/** Out of a ring into parameters on the same device, in many pieces of one call, as the reference engine takes a list. */
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
      const { memory, stream } = allocate(library, stack, device, bytes)
      library.copyH2d(ring.stream, ring.memory, 0, source.buffer, 0, bytes)
      library.streamSync(ring.stream, 0, WAIT_MS)
      for (const kib of PIECE_KIB.filter((one) => one * KIB <= bytes)) {
        const pieces = reversed(bytes, kib * KIB)
        const wrong = (piece: CopyPiece) =>
          source.differs(library, memory, piece.dstOffset, piece.srcOffset, piece.bytes)
        yield await measureRow(
          { bench: 'reload', case: `${sizeName(bytes)} in ${pieces.length} of ${kib} KiB`, bytes },
          {
            prepare: () => spoil(library, memory, bytes),
            run: () => {
              library.copyDevice(stream, memory, ring.memory, pieces)
              library.streamSync(stream, 0, WAIT_MS)
            },
            check: () => ({ compared: pieces.length, wrong: pieces.filter(wrong).length }),
          },
        )
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
