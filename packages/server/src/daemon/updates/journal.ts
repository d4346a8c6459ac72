import { readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { type } from 'arktype'
import { processStart } from './journal-processes.ts'
import { removeStaged, replaceFile } from './replace-file.ts'

const FILE = 'journal.json'

/** A conversation that was about to start: its engine's worker may be waiting at the address. */
const JournalConversation = type({
  address: 'string',
  rank: 'number',
  dialect: "'D1' | 'D2' | 'D3' | 'D4' | null",
  /** null: nobody was contacted, the map was published. */
  engine_url: 'string | null',
  uds: 'string | null',
  /** The daemon that contacts the engine; absent: this one. */
  'node?': 'number',
  update_id: 'string',
  version: 'string | null',
  /** Its update has ended, and the engine's mark says what that holds: only the worker may still wait. */
  'ended?': 'true',
  /** When it had: `Date.now()`. */
  'ended_ms?': 'number',
})
export type JournalConversation = typeof JournalConversation.infer

/** What must be remembered of an engine: it holds a part of an update, or we paused it, or it must be started again. */
export const EngineMark = type({
  url: 'string',
  uds: 'string | null',
  /** As of a conversation. */
  'node?': 'number',
  /** The update of which it holds a part; null: it is whole. */
  update_id: 'string | null',
  dialect: "'D1' | 'D2' | 'D3' | 'D4' | null",
  /** We paused it, or were about to: the next update that succeeds resumes it. */
  paused: 'boolean',
  /** Its answers to RPCs are out of step until it is started again. */
  restart_needed: 'boolean',
  /** What tells a later start of the engine from this one, see `engines/identity.ts`. */
  listener: 'string | null',
})
export type EngineMark = typeof EngineMark.infer

const JournalDocument = type({
  format: '1',
  pid: 'number',
  /** Start of that process in clock ticks after boot: tells it from a later one with the same pid. */
  process_start: 'number | null',
  socket_dir: 'string',
  conversations: JournalConversation.array(),
  engines: EngineMark.array(),
})
export type JournalDocument = typeof JournalDocument.infer

/**
 * What must survive this process, in `STATE_DIR/journal.json`. It need not survive the machine: after that no engine waits
 * either.
 */
export class Journal {
  readonly #path: string
  readonly #socketDir: string
  #document: JournalDocument
  #writing: Promise<void> = Promise.resolve()
  #writes = 0
  #written = ''

  private constructor(path: string, document: JournalDocument) {
    this.#path = path
    this.#document = document
    this.#socketDir = document.socket_dir
  }

  /** Reads what a predecessor left (null: nothing, or nothing that can be read) and takes its place at the first write. */
  static async open(
    stateDir: string,
    socketDir: string,
  ): Promise<{ journal: Journal; left: JournalDocument | null }> {
    const path = join(stateDir, FILE)
    await removeStaged(path)
    const journal = new Journal(path, {
      format: 1,
      pid: process.pid,
      process_start: await processStart(process.pid),
      socket_dir: socketDir,
      conversations: [],
      engines: [],
    })
    return { journal, left: await readJournal(path) }
  }

  /**
   * The first write of a daemon that has a predecessor: all marks, and the conversations which it is about to end, or null where
   * they are not its to end.
   */
  takeOver(left: JournalDocument | null, marks: readonly EngineMark[]): Promise<void> {
    const conversations = left?.conversations ?? []
    const socketDir = left?.socket_dir ?? this.#socketDir
    this.#document = {
      ...this.#document,
      conversations,
      socket_dir: socketDir,
      engines: [...marks],
    }
    return this.#write()
  }

  /** Written before the first worker of an update can connect; with an empty list when all have left. */
  conversations(conversations: readonly JournalConversation[]): Promise<void> {
    const ended = this.#document.conversations.filter((one) => one.ended)
    return this.#replace([...ended, ...conversations])
  }

  /** The update has ended, but workers may still wait at those of its addresses that `keeps` names. */
  ended(keeps: (address: string) => boolean): Promise<void> {
    const kept = this.#document.conversations.filter(({ address }) => keeps(address))
    const nowMs = Date.now()
    return this.#replace(
      kept.map((one) => ({ ...one, ended: true, ended_ms: one.ended_ms ?? nowMs })),
    )
  }

  /** Nobody waits at this address any more. */
  async left(address: string): Promise<void> {
    const stay = this.#document.conversations.filter((one) => one.address !== address)
    if (stay.length < this.#document.conversations.length) await this.#replace(stay)
  }

  #replace(conversations: readonly JournalConversation[]): Promise<void> {
    const document = { ...this.#document, socket_dir: this.#socketDir }
    this.#document = { ...document, conversations: [...conversations] }
    return this.#write()
  }

  engines(marks: readonly EngineMark[]): Promise<void> {
    this.#document = { ...this.#document, engines: [...marks] }
    return this.#write()
  }

  /** Removes the file unless a mark of an engine, or a worker that may still wait, must outlive the process. */
  async close(): Promise<void> {
    await this.#writing
    // what a predecessor left stays as long as nobody has taken it over
    const { engines, conversations } = this.#document
    if (this.#writes === 0 || engines.length > 0 || conversations.length > 0) return
    await unlink(this.#path).catch(() => {})
  }

  #write(): Promise<void> {
    const text = `${JSON.stringify(this.#document, null, 2)}\n`
    if (text === this.#written) return this.#writing
    this.#written = text
    this.#writes++
    this.#writing = this.#writing.catch(() => {}).then(() => this.#writeText(text))
    return this.#writing
  }

  async #writeText(text: string): Promise<void> {
    try {
      await replaceFile(this.#path, text)
    } catch (error) {
      // the same text is worth another try
      if (this.#written === text) this.#written = ''
      throw error
    }
  }
}

async function readJournal(path: string): Promise<JournalDocument | null> {
  let value: unknown
  try {
    value = JSON.parse(await readFile(path, 'utf8'))
  } catch {
    return null
  }
  const document = JournalDocument(value)
  return document instanceof type.errors ? null : document
}
