import { signalWithin } from '../../engines/client.ts'
import type { EngineHost } from '../../engines/host.ts'
import { EngineContact } from './contact.ts'
import { engineKey } from './engine-key.ts'
import type { EngineBook, EngineRecord } from './engines.ts'
import type { EngineMark } from './journal.ts'

const STOP_MS = 3000

/** Of the engines of a daemon that has come: what it knows of them, and what it could not be told when it was gone. */
export async function takeMarks(
  book: EngineBook,
  node: number,
  marks: readonly EngineMark[],
  host: EngineHost,
  closing: AbortSignal,
): Promise<void> {
  book.restore(
    marks.map((mark) => ({ ...mark, node })),
    engineKey,
  )
  await book.save()
  await stopTorn(book, book.servingTorn(node), host, closing)
}

/** Pauses engines that hold a part of an update and may go on serving. Never throws. */
export async function stopTorn(
  book: EngineBook,
  records: readonly EngineRecord[],
  host: EngineHost,
  closing: AbortSignal,
): Promise<void> {
  const late = { code: 'engine_timeout', message: 'the engine did not answer' } as const
  const within = signalWithin(closing, STOP_MS, late)
  await Promise.all(
    records.map(async (record) => {
      const { key, url, uds, kind, node } = record
      const contact = new EngineContact({ key, url, uds, kind, node, ranks: [] }, [], record, host)
      await contact.stopTorn(within)
    }),
  )
  await book.save().catch(() => {}) // what cannot be written is tried again with the next mark
}
