import type { Library } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import type { SourceReading } from '../types.ts'

/** As fast as a GPU takes bytes from host memory, or nearly so. */
const SENT_BYTES_PER_MS = 25e6
/** How much longer than that an engine may stand still for the files. */
const LONGER_MS = 1000
/** Before a read has run so long nobody knows how fast it is. */
const KNOWN_AFTER_MS = 5
const LOOK_MS = { least: 5, most: 200 } as const

/** How far reading is. */
export interface ReadState {
  readonly bytes: number
  readonly bytesDone: number
}

export function readState(library: Library, readings: readonly SourceReading[]): ReadState {
  let bytes = 0
  let bytesDone = 0
  for (const reading of readings) {
    bytes += reading.bytes
    bytesDone += library.readQuery(reading.read).bytesDone
  }
  return { bytes, bytesDone }
}

/**
 * Milliseconds to wait before the engines are asked for anything: they must not stand still, paused or half updated, for a slow
 * disk. 0 as soon as the rest of the files will be there about when it is sent.
 *
 * @param elapsedMs since reading began
 */
export function headStartMs({ bytes, bytesDone }: ReadState, elapsedMs: number): number {
  if (bytesDone >= bytes) return 0
  if (elapsedMs < KNOWN_AFTER_MS) return KNOWN_AFTER_MS - elapsedMs
  if (bytesDone === 0) return LOOK_MS.least
  const leftMs = (bytes - bytesDone) / (bytesDone / elapsedMs)
  const enoughMs = bytes / SENT_BYTES_PER_MS + LONGER_MS
  if (leftMs <= enoughMs) return 0
  return Math.min(LOOK_MS.most, Math.max(LOOK_MS.least, leftMs - enoughMs))
}

/** Waits for the head start of the files. A read that has failed is told of elsewhere; `stopped` ends the wait. */
export async function waitForFiles(
  library: Library,
  readings: readonly SourceReading[],
  stopped: () => boolean,
): Promise<void> {
  const startedMs = Math.min(...readings.map((reading) => reading.startedMs))
  while (!stopped()) {
    const waitMs = headStartMs(readState(library, readings), clockMs() - startedMs)
    if (waitMs === 0) return
    await Bun.sleep(waitMs)
  }
}
