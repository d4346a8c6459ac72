import type { Library } from '@ckpt/cuda'
import { KIB, MIB, sizeName } from './bench.ts'
import { type DeviceBytes, SourceBytes, spoil } from './device-bytes.ts'
import type { Timed } from './measure.ts'
import { hashRanges, hex } from './pattern-file.ts'
import { measureRow, type Row } from './row.ts'
import { finish } from './streams.ts'

const WIDTHS = [192, 512, KIB, 2 * KIB, 4 * KIB, 8 * KIB] as const
/** Of so many rows of the source one is copied. */
const PITCHES_IN_ROWS = [2, 8] as const
const MOVED_BYTES_MOST = { cuda: 128 * MIB, host: 16 * MIB } as const
/** A multiple of every width, so that all copies move the same bytes. */
const MOVED_BYTES_STEP = 24 * KIB

/** What one copy takes out of the source; the device has the rows without a gap. */
export interface Rows {
  readonly width: number
  readonly pitch: number
  readonly height: number
}

/** Two-dimensional copies out of pinned memory. `target` has room for the largest size and for what they move at most. */
export async function* rowCopies(
  library: Library,
  dir: string,
  target: DeviceBytes,
  largest: number,
  limitGbPerSecond: number,
): AsyncGenerator<Row, void, undefined> {
  const cases = rowsOfCases(library.kind, largest)
  using stack = new DisposableStack()
  const room = Math.max(...cases.map(({ pitch, height }) => pitch * height))
  const source = new SourceBytes(library, stack, dir, room)
  for (const rows of cases) {
    const { width, pitch, height } = rows
    const name = `pinned, rows of ${sizeName(width)}, pitch of ${pitch / width} rows`
    const head = { bench: 'h2d', case: name, bytes: width * height, limitGbPerSecond }
    yield await measureRow(head, copyOfRows(library, target, source, rows))
  }
}

/** Every width at every pitch. All of them move the same bytes, no more than `largest` unless a step is more. */
export function rowsOfCases(kind: Library['kind'], largest: number): Rows[] {
  const steps = Math.floor(Math.min(largest, MOVED_BYTES_MOST[kind]) / MOVED_BYTES_STEP)
  const bytes = Math.max(1, steps) * MOVED_BYTES_STEP
  return PITCHES_IN_ROWS.flatMap((pitchInRows) =>
    WIDTHS.map((width) => ({ width, pitch: width * pitchInRows, height: bytes / width })),
  )
}

/** One copy, from the beginning of the source to that of the target. */
export function copyOfRows(
  library: Library,
  target: DeviceBytes,
  source: SourceBytes,
  { width, pitch, height }: Rows,
): Timed {
  const { stream, memory } = target
  const bytes = width * height
  const expected = hashRanges(
    source.path,
    Array.from({ length: height }, (_, row) => ({ offset: row * pitch, bytes: width })),
  )
  return {
    prepare: () => spoil(library, memory, bytes),
    run: () => {
      library.copyH2d2d(stream, memory, 0, width, source.buffer, 0, pitch, width, height)
      finish(library, [target])
    },
    check: () => {
      const held = hex(library.memorySha256(memory, 0, bytes))
      return { compared: 1, wrong: held === expected ? 0 : 1 }
    },
  }
}
